"""F2, F19: a description of a backbone is read only as it was written, and asks for nothing but an architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mapet.checkpoints.backbone_folder import read_backbone
from mapet.errors import ModelError
from mapet.models.spec import BackboneSpec
from tests.checkpoints.runs import SPEC, save_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run") / "backbone"


def edit(folder: Path, **entries: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    "entries", [{"std": [0.5, 0.6, 0.75]}, {"mean": [0.1, 0.2, 0.31]}, {"image_size": 64}, {"seed": 4}, {"crop_fraction": 0.9}]
)
def test_every_changed_value_is_noticed(folder: Path, entries: dict[str, object]) -> None:
    edit(folder, **entries)
    with pytest.raises(ModelError, match=r"model\.json is not what was written"):
        read_backbone(folder)


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    path = folder / "model.json"
    written = path.read_bytes()
    for place in range(0, len(written), 3):
        path.write_bytes(written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :])
        try:
            _, spec = read_backbone(folder)
        except ModelError:
            continue
        assert spec == SPEC, place  # a blank that became another


def test_folders_without_a_checksum_are_read(folder: Path) -> None:
    """As the first version wrote them."""
    path = folder / "model.json"
    values = json.loads(path.read_text())
    del values["own_sha256"]
    path.write_text(json.dumps(values))
    assert read_backbone(folder)[1] == SPEC


@pytest.mark.parametrize("entries", [{"image_size": "32"}, {"image_size": True}, {"seed": 0.0}, {"mean": "0.5"}, {"name": 3}])
def test_f17_values_have_their_own_type(folder: Path, entries: dict[str, object]) -> None:
    """Also in folders of the first version, which have no checksum."""
    path = folder / "model.json"
    values = json.loads(path.read_text())
    del values["own_sha256"]
    path.write_text(json.dumps(values | entries))
    with pytest.raises(ModelError, match=next(iter(entries))):
        read_backbone(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_path": "x.pth"}, "no option 'checkpoint_path' that may be set"),
        ({"pretrained_cfg": {"url": "http://127.0.0.1:9/x"}}, "no option 'pretrained_cfg' that may be set"),
        ({"depth": 10**9}, "depth = 1000000000 is not allowed. Allowed: at most"),
        ({"depth": True}, "depth = True"),
        ({"act_layer": "no_such"}, "timm cannot build"),
        ({"act_layer": "os.system"}, r"act_layer = 'os.system' is not allowed. Allowed: text that matches \^"),
        ({"act_layer": "a" * 41}, "Allowed: text whose length is at most 40"),
    ],
)
def test_options_are_those_of_an_architecture(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        BackboneSpec(SPEC.name, {**SPEC.options, **options}, 32, SPEC.mean, SPEC.std, 0).build()


def test_tensors_are_compared_before_memory_is_taken(folder: Path) -> None:
    path = folder / "model.json"
    values = json.loads(path.read_text())
    del values["own_sha256"]
    values["options"] |= {"embed_dim": 2**14, "depth": 64, "num_heads": 512}  # terabytes
    path.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="do not fit"):
        read_backbone(folder)


@pytest.mark.parametrize(
    "entries",
    [{"std": (0.0, 0.5, 0.5)}, {"std": (-1.0, 1.0, 1.0)}, {"std": (float("nan"), 1.0, 1.0)}, {"mean": (float("inf"), 0.0, 0.0)},
     {"image_size": -1}, {"crop_fraction": 0.0}],
    ids=str,
)  # fmt: skip
def test_figures_that_no_image_can_have_are_named(entries: dict[str, Any]) -> None:
    """R12, F17: wherever they come from, and the one that is wrong."""
    (name,) = entries
    with pytest.raises(ModelError, match=rf"has {name}=.*; allowed: "):
        replace(SPEC, **entries)
