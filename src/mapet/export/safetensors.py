"""Exports as they are kept here: a state dict under timm's names, and what timm needs to build the model it belongs to."""

from __future__ import annotations

from pathlib import Path

from mapet.checkpoints.address import CLASSES, LoadedBackbone
from mapet.checkpoints.backbone_folder import read_backbone, save_backbone
from mapet.export.export import Outputs, Written, largest_difference
from mapet.runtime.files import write_json


def write(loaded: LoadedBackbone, folder: Path) -> Written:
    """Writes weights.safetensors and model.json, and loads them again."""
    spec = loaded.spec
    save_backbone(folder / "backbone", spec, loaded.backbone)
    for file in (folder / "backbone").iterdir():
        file.rename(folder / file.name)
    (folder / "backbone").rmdir()
    if loaded.classes:
        write_json(folder / CLASSES, list(loaded.classes))
    again, _ = read_backbone(folder)
    arguments = "".join(f", {name}={value!r}" for name, value in spec.options.items())
    usage = (
        "import timm\nfrom safetensors.torch import load_file\n\n"
        f'model = timm.create_model("{spec.name.partition(".")[0]}"{arguments})\n'
        'model.load_state_dict(load_file("FOLDER/weights.safetensors"))'
    )
    return Written("timm", usage, largest_difference(loaded.backbone, Outputs(again)))
