"""A local file of weights for a timm model: in timm's own names, or in those of whoever published them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mapet.checkpoints.archive import state_dict_of
from mapet.compat import timm
from mapet.errors import ModelError, TokenizerError
from mapet.models.weights import load_strictly
from mapet.runtime.device import without_memory

_RESAMPLED = ("pos_embed", "patch_embed.proj.weight")


def load_weights(network: nn.Module, model: str, path: Path) -> None:
    """Loads a file into `network`, strictly; half precision becomes float32.

    Args:
        network: The timm model at its own image size. A classifier may be in the file but not in the network.
        model: Its name.
        path: safetensors, torch.save or TorchScript, such as OpenAI's RN50x64.pt with both towers of CLIP; nothing in it is
            executed. Names that are not timm's are converted by timm, if it supports them.

    Raises:
        TokenizerError: Lists what is missing, unknown or of another shape, and names the CLIP ResNet that it is, if it is one.
        ModelError: The file cannot be read.
    """
    published = timm.models.clean_state_dict(state_dict_of(path))
    try:
        load_strictly(network, _in_names_of(network, model, published), optional=_counters(network))
    except ModelError as error:
        raise TokenizerError(f"{path} does not hold the weights of '{model}'. {error} {_way_out(model, published)}") from None


def _in_names_of(network: Any, model: str, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `network`, apart from a classifier that it goes without."""
    classifiers = network.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    expected = network.state_dict()

    def needed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if name in expected or not name.startswith(classifiers)}

    weights = needed(published)
    return weights if weights.keys() == expected.keys() else needed(_translated(network, model, published))


def _translated(network: Any, model: str, published: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors under timm's names, if timm supports their source."""
    translate = getattr(sys.modules[timm.models.model_entrypoint(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return published
    try:
        translated = translate(dict(published), network)
    except (KeyError, IndexError, AttributeError, RuntimeError, TypeError, ValueError):  # made for other names than these
        return published
    # timm resamples these to fit; of another patch or image size they are the weights of another model.
    sizes = {value.numel() for value in published.values()}
    fitted = [name for name in _RESAMPLED if name in translated and translated[name].numel() not in sizes]
    if fitted:
        raise ModelError(f"Of another shape: {', '.join(fitted)}.")
    return translated


def _counters(network: nn.Module) -> tuple[str, ...]:
    """Buffers that nothing is computed from; some files leave them out."""
    return tuple(name for name in network.state_dict() if name.endswith("num_batches_tracked"))


def _way_out(model: str, published: Mapping[str, Tensor]) -> str:
    """Which of CLIP's ResNets these are the weights of, or what else to do."""
    shapes = {name: value.to("meta") for name, value in published.items()}
    for other in timm.list_models("resnet*_clip"):
        with without_memory():
            network = timm.create_model(other, num_classes=0)
        weights, counters = _in_names_of(network, other, shapes), _counters(network)
        expected = {name: value for name, value in network.state_dict().items() if name not in counters}
        if other != model.partition(".")[0] and all(
            name in weights and weights[name].shape == expected[name].shape for name in expected
        ):
            return f"They are those of '{other}.openai': give that name."
    return "Give a file saved from the same timm model, or published with it."
