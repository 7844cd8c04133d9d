"""The command line as a user meets it: help, every verb on a real folder, mistakes answered in words with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.evaluation.presets import protocol_of
from tests.command import mapet

TINY = [
    *("--set", "image_size=16", "--set", "backbone.options={patch_size: 4, embed_dim: 24, depth: 2, num_heads: 2, num_classes: 0}"),
    *("--set", "objective.options.num_context=4", "--set", "training.steps=4", "--set", "training.batch_size=8"),
    *("--set", "tokenizer.vocab_size=8", "--set", "tokenizer.max_images=20", "--set", "mechanics.workers=0"),
]


def write_images(folder: Path, count: int = 24) -> Path:
    draws = np.random.default_rng(0)
    for index in range(count):
        path = folder / ("left", "right")[index % 2] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 100, (20, 24, 3), dtype=np.uint8)
        pixels[:, (index % 2) * 12 :][:, :12] += 120
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("cli") / "photos")


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert mapet("pretrain", photos, "--recipe", "digits", "--out", out, *TINY) == 0
    return out


def test_help_waits_for_no_heavy_import() -> None:
    code = "import sys, mapet.cli.main as m; sys.argv = ['mapet', 'pretrain', '--help']\ntry: m.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'timm', 'numpy', 'datasets', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--recipe" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "mapet", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mapet 0.")


def test_road_from_a_folder_to_a_report(photos: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("evaluate", "knn,linear", run, "--workers", "0") == 0
    printed = capsys.readouterr().out
    assert printed.count("random initialisation") == 2
    assert mapet("report", run) == 0
    assert (run / "report.html").stat().st_size > 10_000
    results = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*.json")]
    assert {result["protocol"]["name"] for result in results} == {"knn", "linear"}
    assert all(result["train_images"] + result["test_images"] == 24 for result in results)


def test_tokenizer_and_store_can_be_made_apart(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, tokens = tmp_path / "tokenizer", tmp_path / "tokens"
    common = ("--image-size", "16", "--patch-size", "4", "-k", "8", "--points", "300", "--workers", "0")
    assert mapet("tokenizer", "fit", photos, "--features", "pixels", "--out", tokenizer, *common) == 0
    assert mapet("tokenize", photos, "--tokenizer", tokenizer, "--out", tokens, "--workers", "0") == 0
    assert "4 x 4 tokens each, vocabulary 8" in capsys.readouterr().out
    assert mapet("pretrain", photos, "--recipe", "digits", "--out", tmp_path / "run", "--tokens", tokens, *TINY) == 0
    assert not (tmp_path / "run" / "tokens").exists()


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("recipes") == 0
    listed = capsys.readouterr().out
    assert "digits" in listed
    assert "mapet_base" in listed
    assert mapet("recipes", "digits") == 0
    assert "# Command: " in capsys.readouterr().out


MISTAKES = {
    "missing folder": (["pretrain", "{tmp}/nothing", "--recipe", "digits", "--out", "{tmp}/out"], "There is no file or folder"),
    "empty folder": (["pretrain", "{tmp}", "--recipe", "digits", "--out", "{tmp}/out"], "no images"),
    "unknown recipe": (["pretrain", "{photos}", "--recipe", "digit", "--out", "{tmp}/out"], "Did you mean 'digits'"),
    "unknown setting": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "training.learning_rat=1"],
        "There is no setting 'training.learning_rat'",
    ),
    "bad value": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "training.lr=fast"],
        'training.lr = "fast" is not allowed. Allowed: a number.',
    ),
    "no equals sign": (["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "lr"], "key=value"),
    "patch": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "image_size=17"],
        "not a multiple of the patch size",
    ),
    "context": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "objective.options.num_context=64"],
        "num_context is 64; with 64 patches it must be an integer between 0 and 63",
    ),
    "objective": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "objective.name=mapt"],
        "Did you mean 'mapet'",
    ),
    "batch": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "batch_size=1000"],
        "fewer than one batch of 1000",
    ),
    "device": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "device=gpu"],
        "There is no device 'gpu'",
    ),
    "last part": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{tmp}/out", "--set", "stepz=20"],
        "There is no setting 'stepz'. It could be training.steps.",
    ),
    "out is a file": (["pretrain", "{photos}", "--recipe", "digits", "--out", __file__], "test_commands.py is a file, and a run"),
    "not a backbone": (["evaluate", "knn", "{photos}"], "There is no backbone in"),
    "missing backbone": (["evaluate", "knn", "{tmp}/none"], "There is no backbone at"),
    "unknown timm model": (["evaluate", "knn", "random:vit_tinny_patch16_224", "{photos}"], "Did you mean 'vit_tiny_patch16_224'"),
    "unknown preset": (["evaluate", "linear:papr", "{run}"], "Did you mean 'paper'"),
    "setting of a protocol": (["evaluate", "knn", "{run}", "--set", "neighbors=5"], "Did you mean 'neighbours'"),
    "no data of its own": (["evaluate", "knn", "random:vit_tiny_patch16_224"], "Give DATA"),
    "unknown protocol": (["evaluate", "kmn", "{run}"], "Did you mean 'knn'"),
    "unknown pooling": (["evaluate", "knn", "{run}", "--pool", "max", "--workers", "0"], "There is no pooling 'max'"),
    "no tokenizer": (["tokenize", "{photos}", "--tokenizer", "{tmp}/none", "--out", "{tmp}/out"], "There is no tokenizer at"),
    "features": (["tokenizer", "fit", "{photos}", "--features", "coate", "--out", "{tmp}/out"], "coates"),
    "other settings": (
        ["pretrain", "{photos}", "--recipe", "digits", "--out", "{run}", *TINY, "--set", "lr=0.1"],
        "training.lr was 0.003, is 0.1",
    ),
}


def _fill(word: str, folders: dict[str, Path]) -> str:
    for name, folder in folders.items():
        word = word.replace(name, str(folder))
    return word


def test_protocols_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert mapet("protocols") == 0
    listed = capsys.readouterr().out
    assert "linear:paper" in listed
    assert protocol_of("linear:paper").hash in listed
    assert mapet("protocols", "linear") == 0
    assert "# " in capsys.readouterr().out


def test_ctrl_c_before_anything_is_begun_says_so(photos: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mapet.runtime.device.choose_device", interrupt)
    assert mapet("evaluate", "knn", "random:vit_tiny_patch16_224", photos) == 130
    assert "mapet: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes_are_answered_in_words(
    mistake: str, photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, answer = MISTAKES[mistake]
    capsys.readouterr()
    folders = {"{tmp}": tmp_path, "{photos}": photos, "{run}": run}
    assert mapet(*(_fill(word, folders) for word in words)) == 2
    printed = capsys.readouterr().err
    assert answer in printed
    assert "Traceback" not in printed
    assert "mapet: " in printed


def test_unreadable_image_is_named_and_can_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "photos")
    (folder / "left" / "broken.jpg").write_text("not an image")
    command = ("pretrain", folder, "--recipe", "digits", "--out", tmp_path / "run", *TINY)
    assert mapet(*command) == 2
    assert "broken.jpg" in capsys.readouterr().err
    assert mapet(*command, "--max-unreadable", "1") == 0
    assert "broken.jpg" in capsys.readouterr().err


def test_vocabulary_of_a_store_must_be_that_of_the_recipe(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("pretrain", photos, "--recipe", "digits", "--out", tmp_path / "run", "--tokens", run / "tokens", *TINY)
    assert mapet(*command, "--set", "tokenizer.vocab_size=16") == 2
    assert "vocabulary of 8 codes, but 16 are set" in capsys.readouterr().err


def test_one_class_folder_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "photos")
    (folder / "middle").mkdir()
    assert mapet("pretrain", folder, "--recipe", "digits", "--out", tmp_path / "run", *TINY) == 2
    assert "middle" in capsys.readouterr().err


def test_images_that_changed_since_are_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_images(tmp_path / "photos")
    command = ("pretrain", folder, "--recipe", "digits", "--out", tmp_path / "one", *TINY)
    assert mapet(*command) == 0
    image = Image.open(folder / "left" / "00.png")
    image.putpixel((0, 0), (255, 0, 0))
    image.save(folder / "left" / "00.png")
    (folder / "right" / "01.png").rename(folder / "right" / "renamed.png")
    capsys.readouterr()
    again = ("pretrain", folder, "--recipe", "digits", "--out", tmp_path / "two", "--tokens", tmp_path / "one" / "tokens", *TINY)
    assert mapet(*again) == 2
    printed = capsys.readouterr().err
    assert "00.png" in printed
    assert "renamed" not in printed
