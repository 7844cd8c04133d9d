"""`mapet tokenize`: views, verification, and several processes."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from mapet.token_store.format import write_header
from mapet.token_store.read import TokenStore
from mapet.tokenizers.random_projection import RandomProjection
from tests.command import mapet
from tests.distributed.ranks import run_ranks
from tests.token_store.planted import change_one_pixel, write_images

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RandomProjection(image_size=8, patch_size=4, vocab_size=50).save(tmp_path / "tokenizer")
    return write_images(tmp_path / "images", 12, size=(10, 14))


def command(folder: Path, *words: str | Path) -> list[str | Path]:
    return ["tokenize", folder, "--tokenizer", folder.parent / "tokenizer", "--out", folder.parent / "store", *words]


def test_views_are_stored_with_their_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--views", "3", "--scale", "0.5", "1.0", "--no-flip", "--seed", "4", "--workers", "0")
    assert mapet(*command(folder, *options)) == 0
    assert "12 images, 3 x 2 x 2 tokens each, vocabulary 50" in capsys.readouterr().out
    store = TokenStore.open(folder.parent / "store")
    assert store.view == {"name": "stored", "count": 3, "scale": [0.5, 1.0], "flip": False, "seed": 4}
    assert mapet(*command(folder, "--workers", "0")) == 2
    assert "--views 3 --scale 0.5 1 --no-flip --seed 4" not in capsys.readouterr().err
    assert mapet(*command(folder, *options)) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scale", "0.2", "1"], "--scale is about random crops"),
        (["--no-flip"], "--no-flip is about random crops"),
        (["--views", "2", "--scale", "0.9", "0.3"], "scale is (0.9, 0.3); allowed"),
        (["--views", "2", "--scale", "0", "0.3"], "scale is (0.0, 0.3); allowed"),
        (["--verify", "5"], "There is no token store at"),
    ],
)
def test_what_cannot_be_is_told_in_words(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert mapet(*command(folder, *words)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder.parent / "store").exists()


def test_verify_tells_whether_a_store_is_right(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = ("--workers", "0")
    assert mapet(*command(folder, "--views", "2", *plain)) == 0
    assert mapet(*command(folder, "--verify", "1000", *plain)) == 0
    assert "24 stored crops tokenised again: all 96 tokens are as stored" in capsys.readouterr().out
    assert mapet(*command(folder, "--verify", "10", "--views", "3", *plain)) == 2
    assert "Choose the stored view" in capsys.readouterr().err

    store = TokenStore.open(folder.parent / "store")
    ids = np.array(store.ids)
    ids[5, 1] = (ids[5, 1] + 1) % 50
    np.save(store.path / "ids.npy", ids)
    assert mapet(*command(folder, "--verify", "1000", *plain)) == 2
    assert "ids.npy has the SHA-256" in capsys.readouterr().err
    write_header(store.path, store.header.space, 12, {})
    assert mapet(*command(folder, "--verify", "1000", *plain)) == 1
    assert "view 1: 4 of 4 tokens differ" in capsys.readouterr().err
    change_one_pixel(folder / "0003.png")
    assert mapet(*command(folder, "--verify", "1000", *plain)) == 2
    assert "0003.png" in capsys.readouterr().err
    assert np.array_equal(np.load(store.path / "ids.npy"), ids)


def tokenize_on_a_rank(folder: Path) -> tuple[int, str]:
    """The exit code, and what is printed."""
    with redirect_stdout(io.StringIO()) as printed:
        code = mapet(*json.loads((folder / "words.json").read_text()))
    return code, printed.getvalue()


def test_two_processes_make_the_store_of_one_and_one_of_them_speaks(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "0005.png").write_text("no image")
    one, two = folder.parent / "one", folder.parent / "two"
    words = [*command(folder, "--views", "3"), "--workers", "0", "--device", "cpu", "--max-unreadable", "1"]
    assert mapet(*words, "--out", one) == 0
    ranks = tmp_path_factory.mktemp("ranks")
    (ranks / "words.json").write_text(json.dumps([str(word) for word in (*words, "--out", two)]))
    ended = run_ranks("tests.cli.test_tokenize:tokenize_on_a_rank", 2, ranks)
    assert [code for code, _ in ended] == [0, 0]
    printed = "".join(text for _, text in ended)
    assert printed.count("Token store:") == 1
    assert printed.count("11 images") == 1
    for name in ("ids.npy", "keys.npy", "header.json"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["images", "one", "tokenizer", "two"]


def test_verification_is_the_work_of_the_first_process(folder: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet(*command(folder, "--workers", "0")) == 0
    capsys.readouterr()
    for rank, said in (("0", True), ("1", False)):
        for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert mapet(*command(folder, "--verify", "4", "--workers", "0")) == 0
        assert ("tokens are as stored" in capsys.readouterr().out) is said
