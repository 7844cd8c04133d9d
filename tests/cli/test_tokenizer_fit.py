"""`mapet tokenizer fit` as a user meets it: from a run, with a share of the patches, and what it answers to mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mapet.tokenizers.load import load_tokenizer
from tests.checkpoints.runs import save_run
from tests.command import mapet


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_run(tmp_path / "run")


def test_tokens_of_a_run_that_is_then_deleted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--share", "0.5", "-k", "8", "--layer", "-2", "--workers", "0", "--restarts", "1")
    assert mapet("tokenizer", "fit", "digits", "--features", run, "--out", tmp_path / "tok", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    shutil.rmtree(run)
    tokenizer = load_tokenizer(tmp_path / "tok")
    report = tokenizer.fit_report
    assert report["points"] == report["images"] * 8
    assert lines[0].endswith("tok, 8 tokens for 4 x 4 patches")
    assert lines[1].startswith(f"Its fit: images {report['images']:,}, points {report['points']:,}, seed 0")
    assert (tokenizer.image_size, tokenizer.grid_size) == (32, (4, 4))
    assert tokenizer.settings()["features"]["layer"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"tok"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "{run}", "--layer", "7"], "has no layer 7. Allowed: 0 to 2"),
        (["--features", "coates", "--layer", "1"], "The kind of features 'coates' has no option 'layer'"),
        (["--features", "{run}/tokens"], "no features called"),
        (["-k", "70000"], "The vocabulary size is 70000. Allowed: 2 to 65536"),
        (["--preset", "k-clop"], "Did you mean 'k-clip'"),
        (["--share", "0.1", "--points", "100"], "give one of them"),
        (["--features", "{run}", "--patch-size", "4"], "feature map of 4 x 4, not the 8 x 8"),
    ],
)
def test_mistakes(run: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    filled = [argument.format(run=run) for argument in arguments]
    assert mapet("tokenizer", "fit", "digits", "--out", tmp_path / "tok", *filled) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "tok").exists()
