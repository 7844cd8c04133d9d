"""What `load_tokenizer` makes of a name, a file, and a folder that is not there."""

from __future__ import annotations

import os

import pytest
import torch

import mapet
from mapet.errors import TokenizerError
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.place import named_folder
from mapet.tokenizers.random_projection import RandomProjection


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MAPET_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("k-clip", "mapet tokenizer fit IMAGENET --preset k-clip --out"),
        ("vq-kd", "mapet tokenizer convert vqkd_"),
        ("dall-e", "mapet tokenizer convert facebook/flava-image-codebook --out"),
    ],
)
def test_a_name_without_a_tokenizer_says_how_to_make_it(home, name, command):
    with pytest.raises(TokenizerError, match=command) as caught:
        mapet.load_tokenizer(name)
    assert str(home / "tokenizers" / name) in str(caught.value)


def test_a_name_is_found_from_anywhere_and_a_folder_here_comes_first(home):
    everywhere, here = RandomProjection(8, 4, 10, seed=1), RandomProjection(8, 4, 10, seed=2)
    everywhere.save(named_folder("k-clip"))
    assert load_tokenizer("k-clip").fingerprint == everywhere.fingerprint
    here.save("k-clip")
    assert load_tokenizer("k-clip").fingerprint == here.fingerprint


def test_the_cache_follows_the_desktop_standard(tmp_path, monkeypatch):
    monkeypatch.delenv("MAPET_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert named_folder("dall-e") == tmp_path / "mapet" / "tokenizers" / "dall-e"


def test_a_misspelt_name_is_answered_with_the_nearest(home):
    with pytest.raises(TokenizerError, match=r"There is no tokenizer at kclip\. .*Did you mean 'k-clip'\?"):
        load_tokenizer("kclip")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.ones(2)}}, file)
    with pytest.raises(TokenizerError, match=r"weights\.pth"):
        load_tokenizer(file)


def test_a_pipe_in_place_of_weights_is_refused(tmp_path):
    """F7: it would block for ever, and no signal would end it."""
    RandomProjection(8, 4, 10, seed=1).save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "weights.safetensors").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "tokenizer" / "weights.safetensors")
    with pytest.raises(TokenizerError, match="a named pipe, not a regular file"):
        load_tokenizer(tmp_path / "tokenizer")
