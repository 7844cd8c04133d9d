"""A backbone on disk: weights, and what timm needs to build the model that they belong to.

backbone/model.json            timm's name and keyword arguments, image size, normalisation, seed; checksums of weights and itself
backbone/weights.safetensors   the state_dict of that timm model, strict
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from mapet.compat import VisionTransformer
from mapet.errors import ModelError, allowed_values
from mapet.models.backbone import image_size
from mapet.models.spec import BackboneSpec
from mapet.models.vit import create_vit
from mapet.models.weights import load_strictly
from mapet.runtime.device import without_memory
from mapet.runtime.files import atomic_directory, recover, sha256, write_json
from mapet.runtime.json_files import read_json, sealed, unsealed
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.tensors import load_tensors, open_tensors, write_tensors

_ANOTHER_VERSION = "model.json beside it names another model than the one that was saved: get or write the folder again."
_WEIGHTS = (".safetensors", ".pth", ".pt", ".pkl", ".bin", ".tar", ".ckpt")


def save_backbone(folder: Path, spec: BackboneSpec, backbone: VisionTransformer | Mapping[str, Tensor]) -> None:
    """Writes the folder atomically; `backbone` is the model or its `state_dict`."""
    weights = backbone if isinstance(backbone, Mapping) else backbone.state_dict()
    with atomic_directory(folder) as partial:
        write_tensors(partial / "weights.safetensors", weights)
        description = {**asdict(spec), "weights_sha256": sha256(partial / "weights.safetensors")}
        write_json(partial / "model.json", sealed(description))


def read_backbone(folder: Path) -> tuple[VisionTransformer, BackboneSpec]:
    """The backbone saved in `folder`, in evaluation mode on the CPU.

    Raises:
        ModelError: There is none, or its files do not belong together.
    """
    folder = recover(folder)
    description, weights = folder / "model.json", folder / "weights.safetensors"
    if not description.is_file() or not weights.is_file():
        raise ModelError(what_lies_in(folder))
    spec, digest = _read_spec(description)
    if digest != sha256(weights):
        raise ModelError(f"{weights} is not what was written (cut off or changed). Run `mapet pretrain` with the same --out again.")
    _compare_shapes(spec, weights)
    backbone = create_vit(spec.name, **spec.options)
    load_strictly(backbone, load_tensors(weights), file=weights, way_out=_ANOTHER_VERSION)
    return backbone.eval(), spec


def _read_spec(path: Path) -> tuple[BackboneSpec, str]:
    """The content of model.json, every value of the right type, and the SHA-256 of the weights."""
    values = unsealed(read_json(path, dict, ModelError), path, ModelError)
    digest = values.pop("weights_sha256", None)
    try:
        return TypeAdapter(BackboneSpec).validate_json(json.dumps(values), strict=True), digest
    except (ValidationError, ModelError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else str(error)
        if isinstance(reason, dict):
            reason = f"{'.'.join(map(str, reason['loc']))} is not {allowed_values([reason])}."
        raise ModelError(f"{path} is damaged, or no description of a backbone: {reason} Get or write the folder again.") from None


def _compare_shapes(spec: BackboneSpec, weights: Path) -> None:
    """Refuses a description of other tensors than the file holds, before any memory is taken for them."""
    with without_memory():
        network = create_vit(spec.name, **spec.options)
    with open_tensors(weights) as file:
        shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
    load_strictly(network, shapes, file=weights, way_out=_ANOTHER_VERSION)
    if spec.image_size not in image_size(network):
        raise ModelError(f"{weights.parent} is for images of {image_size(network)} px, and model.json names {spec.image_size}.")


def what_lies_in(folder: Path) -> str:
    """Why there is no backbone in `folder`, and what to give in its place."""
    start = f"There is no backbone in {folder}"
    if folder.name == RunDirectory(".").backbone.name and not folder.exists():
        return f"{start}. It is written when a pre-training ends; let it finish first."
    if not folder.is_dir():
        return f"{start}: no such folder is there. Give a run directory, a folder with model.json, or a file of weights."
    models = sorted(path.parent for path in folder.glob("*/model.json"))
    if models:
        return f"{start} itself. There is one in {' and in '.join(map(str, models[:3]))}: give that."
    if any(folder.glob("*.onnx")):
        return (
            f"{folder} holds an ONNX file ({next(folder.glob('*.onnx')).name}), which other programs run and which is not read "
            "here. Give the backbone that it was exported from."
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _WEIGHTS)
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return f"{start} that names its model, but files of weights: {_listed(files)}{more}. Give one of the files."
    return f"{start}: model.json or weights.safetensors is missing. Give a run directory, a folder with both, or a file of weights."


def _listed(files: list[Path]) -> str:
    return ", ".join(file.name for file in files[:3])
