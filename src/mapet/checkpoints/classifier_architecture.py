"""The model that the weights of a classifier belong to, and the error if it is another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mapet.checkpoints.architecture import HEAD_DIM
from mapet.checkpoints.contents import listing
from mapet.compat import timm
from mapet.errors import ModelError
from mapet.runtime.device import without_memory

# Names of the release, and timm's for the same architecture.
PUBLISHED = {f"vit_standard_{size}_patch16_224": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")}
_PLAIN = (*PUBLISHED.values(), "vit_small_patch32_224", "vit_base_patch32_224", "vit_base_patch8_224", "vit_large_patch16_224")
_OPTIONS = {"width": "embed_dim", "depth": "depth", "patch": "patch_size"}


def vit_facts(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Width, depth, patch and MLP width, from the names and shapes of a ViT's weights; {} if they are of something else."""
    patches = weights.get("patch_embed.proj.weight")
    blocks = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    if patches is None or patches.ndim != 4 or not blocks:
        return {}
    facts = {"width": patches.shape[0], "depth": max(blocks) + 1, "patch": patches.shape[-1]}
    hidden = weights.get("blocks.0.mlp.fc1.weight")
    return facts if hidden is None else facts | {"MLP width": hidden.shape[0]}


def released_name(weights: Mapping[str, Tensor], path: Path, published: bool) -> str:
    """The name of the release for weights of its models.

    Args:
        weights: Under timm's names.
        path: Of the file.
        published: They were under the names of the release (queries apart from keys and values).

    Raises:
        ModelError: They are not of the release; names the model of timm that has their shapes, if there is one.
    """
    facts = vit_facts(weights)
    name = next((name for name, plain in PUBLISHED.items() if _facts_of(plain) == facts), None) if published else None
    if name is None:
        timm_name = "" if published else _plain_name(facts)
        shapes = f" Its shapes are those of {timm_name}: --model {timm_name}, if it was trained as that." if timm_name else ""
        raise ModelError(
            f"Which model {path} belongs to cannot be detected from its weights. Give --model NAME.{shapes} It contains "
            f"{listing(weights)}"
        )
    return name


def check_fit(weights: Mapping[str, Tensor], model: nn.Module, name: str, path: Path, *, published: bool) -> None:
    """Refuses weights of another architecture than the model's.

    Args:
        weights: Under timm's names.
        model: What they are to be loaded into.
        name: As the user calls it.
        path: Of the file.
        published: See `released_name`.

    Raises:
        ModelError: The message has the expected and actual values, and the --model or --model-kwargs that fit.
    """
    expected, actual = vit_facts(model.state_dict()), vit_facts(weights)
    if expected and not actual:
        raise ModelError(f"{path} does not hold the weights of a ViT such as '{name}'. It contains {listing(weights)}")
    different = [fact for fact in expected if expected[fact] != actual.get(fact)]
    if different:
        scaled = "blocks.0.ls1.gamma" in weights
        raise ModelError(
            f"{path} does not fit '{name}': expected {_in_words(expected, different)}; found {_in_words(actual, different)}. "
            f"{_model_that_fits(actual, published, scaled) or _options_that_fit(expected, actual)}"
        )


def _model_that_fits(facts: Mapping[str, int], published: bool, scaled: bool) -> str:
    """The --model for these shapes; of MaPeT only what has a trace of it, since it is fed otherwise than timm's."""
    plain = _plain_name(facts)
    released = next((name for name, of_timm in PUBLISHED.items() if of_timm == plain), "")
    if released and published:
        return f"It fits --model {released}."
    if released and scaled:
        return (
            f"It fits --model {released} if it is MaPeT's (images normalised by ImageNet's mean and deviation), --model {plain} if "
            "it is not (with timm's preprocessing of that model)."
        )
    return f"It fits --model {plain}." if plain else ""


def _options_that_fit(expected: Mapping[str, int], actual: Mapping[str, int]) -> str:
    """The --model-kwargs with which timm's model takes the weights."""
    if "MLP width" not in actual:
        return "Give the model that it was saved from."
    options: dict[str, Any] = {option: actual[fact] for fact, option in _OPTIONS.items() if actual[fact] != expected[fact]}
    heads = ""
    if "embed_dim" in options:
        options["num_heads"] = actual["width"] // HEAD_DIM if actual["width"] % HEAD_DIM == 0 else "N"
        heads = f" The weights do not contain the number of heads{'; 64 wide is usual' if options['num_heads'] != 'N' else ''}."
    ratio = actual["MLP width"] / actual["width"]
    if ratio != expected["MLP width"] / expected["width"]:
        options["mlp_ratio"] = f"{ratio:g}"
    words = " ".join(f"--model-kwargs {name}={value}" for name, value in options.items())
    return f"Give the model that it was saved from, or what differs: {words}.{heads}"


def _plain_name(facts: Mapping[str, int]) -> str:
    """Timm's plain ViT of these shapes; empty if it has none."""
    return next((name for name in _PLAIN if _facts_of(name) == facts), "")


@cache
def _facts_of(name: str) -> dict[str, int]:
    with without_memory():
        return vit_facts(timm.create_model(name).state_dict())


def _in_words(facts: Mapping[str, int], names: list[str]) -> str:
    return ", ".join(f"{name} {facts.get(name, 'unknown')}" for name in names)
