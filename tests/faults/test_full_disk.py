"""F10: a full disk ends in the same words wherever tensors are written, and leaves what was there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mapet.checkpoints.address import load_backbone
from mapet.checkpoints.backbone_folder import save_backbone
from mapet.data.skipped import UnreadableImages
from mapet.engine.checkpoint import save_checkpoint
from mapet.errors import StorageError
from mapet.export.export import export
from mapet.pretraining.pretrain import backbone_spec
from mapet.runtime import tensors
from mapet.tokenizers.clustering.state import State, StateFile
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import FeatureExtractor, create_features
from mapet.tokenizers.vq_kd.teacher import fit_teacher
from tests.tiny import tiny_settings, tiny_source


def backbone(path: Path) -> None:
    spec = backbone_spec(tiny_settings())
    save_backbone(path, spec, spec.build())


def checkpoint(path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    save_checkpoint(path, 1, "0" * 16, model, torch.optim.AdamW(model.parameters()), keep=1)


def small_features() -> FeatureExtractor:
    return create_features("pixels", image_size=16, patch_size=4, dim=4)


def teacher(path: Path) -> None:
    fit_teacher(small_features(), tiny_source(), 0, path, device=torch.device("cpu"), workers=0, unreadable=UnreadableImages())


def exported(form: str) -> Callable[[Path], object]:
    options = {"img_size": 32, "patch_size": 8, "depth": 1}
    return lambda path: export(load_backbone("random:vit_tiny_patch16_224", options=options), form, path)


WRITERS = {
    "backbone": backbone,
    "tokenizer": lambda path: FeatureKMeans(small_features(), torch.zeros(3, 4)).save(path),
    "checkpoint": checkpoint,
    "VQ-KD teacher": teacher,
    "k-means state": lambda path: StateFile(path, {}, False).save(State(centroids=torch.zeros(2, 2)), now=True),
    "timm export": exported("timm"),
    "hf export": exported("hf"),
    "safetensors export": exported("safetensors"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_f10_a_full_disk_ends_in_words(tmp_path: Path, write: Callable[[Path], object], monkeypatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(
        StorageError, match=r"Cannot write .*out.*No space left on device.*MiB are free.*run the same command again"
    ):
        write(tmp_path / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
