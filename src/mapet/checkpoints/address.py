"""A backbone by its address, wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.checkpoints.archive import state_dict_of
from mapet.checkpoints.backbone_folder import read_backbone
from mapet.checkpoints.conversion import Conversion, convert
from mapet.checkpoints.huggingface import fetch, is_hugging_face, read_model
from mapet.checkpoints.place import HUB, RANDOM, TIMM, require_place
from mapet.compat import VisionTransformer, resolve_model_data_config
from mapet.errors import ModelError
from mapet.models.backbone import image_size
from mapet.models.spec import BackboneSpec
from mapet.models.vit import create_vit
from mapet.runtime.json_files import read_json
from mapet.runtime.progress import say
from mapet.runtime.run_directory import RunDirectory

CLASSES = "classes.json"


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone, how it is fed, and where it comes from.

    Args:
        backbone: In evaluation mode on the CPU.
        spec: How to build it again, at random initialisation, and how to feed it.
        title: What to call it.
        run: The pre-training that it is the result of, if there is one here.
        untrained: It is at its random initialisation.
        conversion: What became of the entries of a published checkpoint.
        classes: Names of the classes, in the order of the classifier's outputs, if they are kept with it.
    """

    backbone: VisionTransformer
    spec: BackboneSpec
    title: str
    run: RunDirectory | None = None
    untrained: bool = False
    conversion: Conversion | None = None
    classes: tuple[str, ...] | None = None


def load_backbone(address: str | Path, *, model: str | None = None, options: Mapping[str, Any] | None = None) -> LoadedBackbone:
    """Opens the backbone at `address`; prints the converted and dropped entries of a published one.

    Args:
        address: A run directory, or a folder with a saved backbone; a file with the checkpoint of MaPeT, BEiT, BEiT v2, CAE, MAE,
            DINOv2 or timm; a folder of Hugging Face (ViT, ViTMAE, Dinov2, Beit, or written by timm) or "hf://OWNER/NAME";
            "timm:NAME" for timm's weights (downloaded by timm); "random:NAME" for a timm model at its random initialisation.
        model: timm's name of the model in a file, where it cannot be derived from names and shapes, or to be sure of it.
        options: Keyword arguments of `timm.create_model`, for all but the first two; of a published checkpoint those that are not
            given are derived.

    Raises:
        ModelError: There is none, or it is not what was written, or does not fit; what was expected and what was found.
    """
    text = str(address)
    require_place(text)
    for prefix in (RANDOM, TIMM):
        if text.startswith(prefix):
            _refuse(model, text)
            return _by_name(text.removeprefix(prefix), prefix, dict(options or {}))
    path = fetch(text) if text.startswith(HUB) else Path(address)
    if path.is_file():
        return _converted(_without_wrapper(state_dict_of(path)), text, model, options or {})
    if path.is_dir() and not (path / "model.json").is_file() and is_hugging_face(path):
        return _of_hugging_face(path, text, model, options or {})
    _refuse(model, text)
    if (path / "tokenizer.json").is_file():
        raise ModelError(f"{path} is a tokenizer, not a backbone. What it is worth: mapet evaluate tokens {path} DATA")
    if (path / "config.json").is_file() and not (path / "model.json").is_file():
        run = RunDirectory.existing(path)
        return LoadedBackbone(*read_backbone(run.backbone), title=text, run=run)
    backbone, spec = read_backbone(path)
    return LoadedBackbone(backbone, spec, title=text, classes=_classes(path, backbone.num_classes))


def _classes(folder: Path, count: int) -> tuple[str, ...] | None:
    """As fine-tuning leaves them beside the model, or an export in it."""
    for path in (folder / CLASSES, folder.parent / CLASSES):
        names = read_json(path, list, ModelError) if count and path.is_file() else None
        if isinstance(names, list) and len(names) == count:
            return tuple(map(str, names))
    return None


def _refuse(model: str | None, address: str) -> None:
    if model is not None:
        raise ModelError(f"{address} already names its model. Leave out the model '{model}'.")


def _by_name(name: str, prefix: str, options: dict[str, Any]) -> LoadedBackbone:
    options = {"num_classes": 0, **options}
    spec = BackboneSpec(name, options, 0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), seed=0)
    backbone = spec.build() if prefix == RANDOM else create_vit(name, **options, pretrained=True)
    data = resolve_model_data_config(backbone)
    spec = replace(spec, image_size=image_size(backbone)[0], mean=data["mean"], std=data["std"])
    return LoadedBackbone(backbone.eval(), spec, f"{prefix}{name}", untrained=prefix == RANDOM)


def _of_hugging_face(folder: Path, title: str, model: str | None, options: Mapping[str, Any]) -> LoadedBackbone:
    checkpoint = read_model(folder)
    all_options = {**checkpoint.options, **options}
    return _converted(
        checkpoint.tensors, title, model or checkpoint.model, all_options, checkpoint.normalisation, checkpoint.notes, True
    )


def _converted(
    tensors: Mapping[str, Tensor],
    title: str,
    model: str | None,
    options: Mapping[str, Any],
    normalisation: Any = None,
    notes: tuple[str, ...] = (),
    configured: bool = False,
) -> LoadedBackbone:
    backbone, spec, conversion = convert(
        tensors, title, model=model, options=options, normalisation=normalisation, configured=configured
    )
    conversion = replace(conversion, notes=(*conversion.notes, *notes))
    say(f"{title} is a {conversion.summary()}")
    return LoadedBackbone(backbone, spec, title, conversion=conversion)


def _without_wrapper(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the "module." that DistributedDataParallel puts before all of them."""
    prefix = "module."
    wrapped = all(name.startswith(prefix) for name in tensors)
    return {name.removeprefix(prefix) if wrapped else name: value for name, value in tensors.items()}
