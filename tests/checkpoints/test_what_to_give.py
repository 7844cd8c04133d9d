"""Where there is no backbone, or weights of another, the message says what lies there and what to give."""

from __future__ import annotations

import json

import pytest
import torch

from mapet.checkpoints.address import load_backbone
from mapet.checkpoints.backbone_folder import save_backbone
from mapet.compat import timm
from mapet.errors import ModelError
from tests.checkpoints.published import save
from tests.checkpoints.runs import SPEC

SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 3}


def test_folders_without_a_backbone_say_what_lies_there(tmp_path):
    for name in ("b.pth", "a.safetensors", "notes.txt"):
        (tmp_path / "files" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "files" / name).touch()
    with pytest.raises(ModelError, match=r"but files of weights: a\.safetensors, b\.pth\. Give one of the files"):
        load_backbone(tmp_path / "files")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"holds an ONNX file \(model\.onnx\).*Give the backbone that it was exported from"):
        load_backbone(tmp_path / "onnx")
    save_backbone(tmp_path / "stem" / "model", SPEC, SPEC.build())
    with pytest.raises(ModelError, match=r"There is one in \S+stem/model: give that"):
        load_backbone(tmp_path / "stem")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"There is no backbone in \S+empty: model\.json or weights\.safetensors is missing"):
        load_backbone(tmp_path / "empty")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps({"data": "photos"}))
    with pytest.raises(ModelError, match="written when a pre-training ends; let it finish first"):
        load_backbone(tmp_path / "run")


def test_weights_of_another_model_than_described_are_named(tmp_path):
    save_backbone(tmp_path / "saved", SPEC, SPEC.build())
    description = json.loads((tmp_path / "saved" / "model.json").read_text())
    description["options"]["init_values"] = None
    del description["own_sha256"]
    (tmp_path / "saved" / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"weights in \S+saved/weights\.safetensors do not fit .*get or write the folder again"):
        load_backbone(tmp_path / "saved")


@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_the_file_is_named_whose_weights_do_not_fit(tmp_path, change):
    state = timm.create_model("vit_tiny_patch16_224", **SMALL_VIT).state_dict()
    if change == "missing":
        del state["blocks.1.mlp.fc1.bias"]
    else:
        state["blocks.1.mlp.fc1.bias"] = torch.zeros(3)
    with pytest.raises(ModelError, match=r"torn\.pth cannot be used: .*blocks\.1\.mlp\.fc1\.bias"):
        load_backbone(save(state, tmp_path / "torn.pth"))
