"""`mapet validate`, with the options of the released README, and `mapet evaluate classify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.cli import validate as command
from mapet.compat import timm
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.errors import SettingsError
from mapet.evaluation.classify.protocol import Classify
from mapet.evaluation.outcomes import load_outcomes
from mapet.models.spec import BackboneSpec
from tests.command import mapet
from tests.evaluation.test_validate import TINY, checkpoint, images_of, tiny_state

__all__ = ["checkpoint"]

app = typer.Typer()
app.command()(command.validate)
KWARGS = [word for name in TINY if name != "img_size" for word in ("--model-kwargs", f"{name}={TINY[name]}")]


def run(*words: str | Path):
    return CliRunner().invoke(app, [*map(str, words), "--workers", "0"])


def test_the_command_of_the_released_readme(checkpoint: Path, tmp_path: Path) -> None:
    folder = images_of(tmp_path / "val")
    keys = ["--interpolation", "bicubic", "--amp", "--gp", "avg", "--pin-mem", "--no-prefetcher"]
    model = ["--model", "vit_standard_tiny_patch16_224", *KWARGS]
    result = run(folder, *model, "--checkpoint", checkpoint, *keys, "-b", "4", "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    kept = json.loads((tmp_path / "result.json").read_text())
    assert (kept["images"], kept["precision"], kept["preprocessing"]["interpolation"]) == (15, "bf16", "bicubic")
    assert f"top-1 {100 * kept['top1']:.3f} %" in result.stdout
    assert kept["sha256"] in result.stdout
    said = " ".join(result.stderr.split())
    assert said.count("nothing to do") == 1
    assert "--pin-mem (" in said
    assert "--no-prefetcher (" in said


def test_validate_and_evaluate_classify_are_one(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same metrics, hash and outcomes, kept beside each other for every checkpoint."""
    folder, out = images_of(tmp_path / "val"), tmp_path / "out"
    state = tiny_state()
    saved = timm.create_model("vit_tiny_patch16_224", **TINY, init_values=0.1, global_pool="avg", num_classes=5)
    saved.load_state_dict(state)
    spec = BackboneSpec(
        "vit_tiny_patch16_224",
        {**TINY, "init_values": 0.1, "global_pool": "avg", "num_classes": 5},
        32,
        seed=0,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop_fraction=0.9,
    )
    save_backbone(tmp_path / "model", spec, saved)
    model = ["--model", "vit_standard_tiny_patch16_224", *KWARGS]
    assert run(folder, *model, "--checkpoint", checkpoint, "--out", out, "--json", tmp_path / "one.json").exit_code == 0
    assert mapet("evaluate", "classify", tmp_path / "model", folder, "--out", out, "--workers", "0") == 0
    said = capsys.readouterr().out
    one, other = (json.loads(path.read_text()) for path in sorted(out.glob("*.json")))
    assert one["figures"] == other["figures"]
    assert one["protocol_hash"] == other["protocol_hash"] == Classify().hash
    assert (one["train_images"], one["test_images"], one["metric"]) == (0, 15, "top1")
    assert json.loads((tmp_path / "one.json").read_text())["top1"] == one["figures"]["top1"]
    low, high = one["details"]["intervals"]["top1"]
    assert low < one["figures"]["top1"] < high
    assert f"top-1 {100 * one['figures']['top1']:.3f} %" in said
    (keys, outcomes), (other_keys, others) = (load_outcomes(path) for path in sorted(out.glob("*.safetensors")))
    assert keys.tolist() == other_keys.tolist()
    assert torch.equal(outcomes.values["top1"], others.values["top1"])
    for wrong in (["classify,knn", tmp_path / "model", folder], ["classify", tmp_path / "model", folder, "--random"]):
        assert mapet("evaluate", *wrong, "--workers", "0") == 2


def test_the_images_are_given_once(checkpoint: Path, tmp_path: Path) -> None:
    folder = images_of(tmp_path / "val")
    words = [
        "--model",
        "vit_standard_tiny_patch16_224",
        *KWARGS,
        "--checkpoint",
        checkpoint,
        "--crop-pct",
        "1",
        "--mean",
        "0.5",
        "0.4",
        "0.3",
    ]
    given = run("--data-dir", folder, *words)
    assert "shorter side to 32 (bicubic), centre crop 32, mean 0.5 0.4 0.3, std 0.229 0.224 0.225" in given.stdout, given.output
    for wrong in ([folder, "--data-dir", folder], []):
        assert isinstance(run(*wrong, *words).exception, SettingsError)


def test_a_deviation_of_zero_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    error = run("digits", "--checkpoint", tmp_path / "none.tar", "--std", "0", "0", "0").exception
    assert isinstance(error, SettingsError)
    assert "allowed: three numbers above 0" in str(error)


def test_the_help_shows_how_three_numbers_are_given() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert said.count("R G B") == 2
    assert "float,float" not in said
