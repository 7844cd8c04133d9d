"""`mapet tokenizer train` on a folder of images."""

from __future__ import annotations

import pytest

from mapet.tokenizers.load import load_tokenizer
from tests.command import mapet
from tests.data.images import write_images

SMALL = ["--image-size", "8", "-k", "6", "--code-dim", "4", "--decoder-depth", "1", "--steps", "2", "--batch-size", "4"]
VIT = [f"--encoder-option={option}" for option in ("patch_size=4", "embed_dim=16", "depth=1", "num_heads=2")]


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "photos", "1.png 2.png 3.png 4.png 5.png")
    return tmp_path / "photos"


def train(photos, *words: str) -> int:
    out = photos.parent / "tok"
    return mapet("tokenizer", "train", photos, "--out", out, "--workers", "0", "--device", "cpu", *SMALL, *VIT, *words)


def test_a_tokenizer_that_can_be_used(photos, capsys):
    assert train(photos, "--teacher", "pixels", "--teacher-option", "dim=4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("tok, 6 tokens for 2 x 2 patches")
    assert "used codes " in lines[1]
    assert lines[2].startswith("Next: mapet tokenize DATA --tokenizer")
    assert load_tokenizer(photos.parent / "tok").grid_size == (2, 2)
    assert mapet("tokenize", photos, "--tokenizer", photos.parent / "tok", "--out", photos.parent / "tokens", "--workers", "0") == 0


def test_a_mistake_is_answered_in_words(photos, capsys):
    assert train(photos, "--teacher", "pixels", "--teacher-image-size", "9") == 2
    assert "grid of 2 x 2" in capsys.readouterr().err
    assert train(photos, "--teacher", "pixels", "--epochs", "3") == 2
    assert "give one of them" in capsys.readouterr().err
