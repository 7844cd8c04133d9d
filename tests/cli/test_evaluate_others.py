"""`mapet evaluate` of what is no single backbone on a single data set: tokens and transfer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mapet.compat import timm
from mapet.evaluation.presets import PROTOCOLS
from mapet.evaluation.protocol import Metrics, Protocol
from mapet.tokenizers.random_projection import RandomProjection
from tests.cli.test_commands import write_images
from tests.command import mapet
from tests.data.named_layouts import LAYOUTS

QUICK = ("--workers", "0", "--set", "min_steps=5", "--set", "epochs=1")
TINY = ["--option", "img_size=16", "--option", "patch_size=8", "--option", "embed_dim=24", "--option", "depth=1"]
TINY += ["--option", "num_heads=2", "--workers", "0"]


SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def test_tokens_of_a_tokenizer_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos")
    RandomProjection(image_size=16, patch_size=8, vocab_size=20).save(tmp_path / "tokenizer")
    assert mapet("evaluate", "tokens", tmp_path / "tokenizer", photos, "--out", tmp_path / "out", *QUICK) == 0
    said = capsys.readouterr().out
    assert "20 codes, 2 x 2 tokens an image" in said
    assert "tokens:mlp" in said
    assert "most frequent class" in said
    (kept,) = (json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json"))
    assert kept["protocol"]["min_steps"] == 5
    assert mapet("evaluate", "tokens", tmp_path / "tokenizer") == 2
    assert "has no images of its own" in capsys.readouterr().err
    assert mapet("evaluate", "tokens,knn", tmp_path / "tokenizer", photos) == 2
    assert "'tokens' evaluates a tokenizer and 'knn' a backbone" in capsys.readouterr().err


def test_transfer_to_named_sets_and_folders(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos")
    LAYOUTS["pets"](tmp_path, monkeypatch)
    words = ("evaluate", "transfer:knn", "random:vit_tiny_patch16_224")
    assert mapet(*words, f"pets,{photos}", "--root", tmp_path, *TINY) == 0
    said = capsys.readouterr().out
    assert "protocol knn:cached, pool both" in said
    assert "mean per class" in said
    assert mapet(*words, "pets", "--root", photos, *TINY) == 2
    assert "oxford-iiit-pet/annotations/trainval.txt" in capsys.readouterr().err
    assert mapet(*words, *TINY) == 2
    assert "Which data sets?" in capsys.readouterr().err


def test_transfer_of_a_tokenizer_and_of_a_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a protocol takes is what a transfer takes; images of other classes than the head's are refused."""
    first, second = write_images(tmp_path / "first"), write_images(tmp_path / "second")
    RandomProjection(image_size=16, patch_size=8, vocab_size=20).save(tmp_path / "tokenizer")
    assert mapet("evaluate", "transfer:tokens", tmp_path / "tokenizer", f"{first},{second}", *QUICK) == 0
    assert "protocol tokens:mlp" in capsys.readouterr().out
    head = timm.create_model("vit_tiny_patch16_224", **SMALL, num_classes=2)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    words = [tmp_path / "head.pth", f"{first},{second}", "--model", "vit_tiny_patch16_224", *TINY]
    assert mapet("evaluate", "transfer:classify", *words) == 0
    assert "protocol classify" in capsys.readouterr().out
    assert mapet("evaluate", "transfer:classify", tmp_path / "head.pth", "digits", *words[2:]) == 2
    assert "head" in capsys.readouterr().err
    (tmp_path / "map.txt").write_text("wrong\nnames\n")
    assert mapet("evaluate", "classify", tmp_path / "head.pth", first, *words[2:], "--class-map", tmp_path / "map.txt") == 2
    assert "is none of the 2 of the head" in capsys.readouterr().err
    assert mapet("evaluate", "classify", tmp_path / "head.pth", first, *words[2:], "--use-ema") == 2
    assert "keeps no moving average" in capsys.readouterr().err
    assert mapet("evaluate", "knn", "random:vit_tiny_patch16_224", first, *TINY, "--use-ema") == 2
    assert "--use-ema is about a classifier, and a backbone is evaluated here" in capsys.readouterr().err


class Unlisted(Protocol):
    """Right half of the time: a protocol without a YAML file."""

    name = "unlisted"
    pools = False

    def evaluate(self, subject: Any) -> Metrics:
        return Metrics({"top1": 0.5})


def test_a_protocol_without_a_yaml_file_is_listed_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PROTOCOLS._entries, "unlisted", f"{__name__}:Unlisted")
    assert mapet("protocols") == 0
    assert "unlisted     Right half of the time: a protocol without a YAML file." in capsys.readouterr().out
    assert mapet("protocols", "unlisted") == 0
    assert "name: unlisted" in capsys.readouterr().out
    photos = write_images(tmp_path / "photos")
    assert mapet("evaluate", "unlisted", "random:vit_tiny_patch16_224", photos, *TINY) == 0
    assert "unlisted" in capsys.readouterr().out


def test_what_is_not_kept_and_what_random_adds_nothing_to_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos")
    words = ("evaluate", "knn,", "random:vit_tiny_patch16_224", photos, *TINY)
    assert mapet(*words, "--random") == 0
    said = capsys.readouterr()
    assert said.out.count("knn (cached, both)") == 1
    assert "Not kept. To keep results: --out FOLDER" in said.out
    assert "at its random initialisation itself" in said.err
    assert mapet(*words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "Not kept" not in said.out
    assert "initialisation itself" not in said.err


def test_results_hold_the_part_and_the_depth_that_were_evaluated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """R2: --split and --class-depth are part of the location, so that results on other parts stay apart."""
    photos = tmp_path / "photos"
    for part in ("train", "val", "test"):
        for name in ("pets", "wild"):
            write_images(photos / part / name)
    words, out = ("evaluate", "knn", "random:vit_tiny_patch16_224", photos, *TINY), tmp_path / "out"
    options = ([], ["--split", "test"], ["--class-depth", "2"], ["--split", "testing", "--class-depth", "2"])
    for option in options:
        assert mapet(*words, "--out", out, *option) == 0
    kept = [json.loads(file.read_text()) for file in out.glob("*.json")]
    assert {(result["data"].removeprefix(str(photos)), result["classes"]) for result in kept} == {
        ("", 2),
        ("#split=test", 2),
        ("#class-depth=2", 4),
        ("#split=testing,class-depth=2", 4),
    }
    said = capsys.readouterr()
    assert "left out: test. --split test evaluates on that one." in said.err
    assert "4 deeper folders are not used as classes" in said.err
    for wrong, message in (
        (["--split", "holdout"], "has no split 'holdout'. It has: train, val, test."),
        (["--split", "a,b"], "is no name of a split"),
        (["--class-depth", "3"], "are to lie 3 levels below it"),
    ):
        assert mapet(*words, *wrong) == 2
        assert message in capsys.readouterr().err
    assert mapet("evaluate", "knn", "random:vit_tiny_patch16_224", "--split", "test") == 2
    assert "there is none. Give DATA" in capsys.readouterr().err
    assert mapet("evaluate", "transfer:knn", "random:vit_tiny_patch16_224", photos, "--split", "test", *TINY) == 2
    assert "write them behind the place" in capsys.readouterr().err
