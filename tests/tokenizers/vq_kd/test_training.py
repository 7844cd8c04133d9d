"""Training VQ-KD: it learns, it continues exactly, and what cannot be trained is refused before anything is done."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.data.skipped import UnreadableImages
from mapet.engine.callbacks import LogPoint
from mapet.engine.checkpoint import newest_checkpoint
from mapet.errors import CheckpointError, InterruptedRunError, ModelError, NonFiniteLossError, SettingsError, TokenizerError
from mapet.models.spec import BackboneSpec
from mapet.runtime.run_directory import RunDirectory
from mapet.runtime.tensors import write_tensors
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.vq_kd import step as vq_kd_step
from mapet.tokenizers.vq_kd import training as vq_kd_training
from mapet.tokenizers.vq_kd.distillation import Distillation
from mapet.tokenizers.vq_kd.settings import VQKDSettings
from mapet.tokenizers.vq_kd.tokenizer import VQKD
from mapet.tokenizers.vq_kd.training import train_vq_kd
from mapet.tokenizers.vq_kd.use import CodebookUse
from tests.tiny import BATCH, IMAGES, StopAfter, TinyImages

ENCODER = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
SETTINGS = VQKDSettings(
    teacher="pixels",
    teacher_options={"dim": 12},
    image_size=16,
    vocab_size=20,
    code_dim=8,
    encoder="vit_tiny_patch16_224",
    encoder_options=ENCODER,
    decoder_depth=1,
    steps=8,
    batch_size=BATCH,
    lr=2e-3,
    seed=4,
)


def train(out: Path, settings: VQKDSettings = SETTINGS, count: int = IMAGES, **how) -> VQKD:
    source: Any = TinyImages("tiny", count, seed=0)
    return train_vq_kd(source, out, settings, unreadable=UnreadableImages(), **{"save_every": 3, "log_every": 2, **how})


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out.parent / f"{out.name}.training" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "tok"
    train(out)
    return out


def test_it_learns(tmp_path):
    tokenizer = train(tmp_path / "tok", replace(SETTINGS, steps=60, lr=4e-3), log_every=10)
    losses = [entry["reconstruction"] for entry in metrics(tmp_path / "tok")]
    assert losses[-1] < 0.9 * losses[0]
    assert tokenizer.fit_report["used_codes"] > 10
    assert tokenizer.fit_report["perplexity"] > 5


def test_what_it_leaves(whole):
    tokenizer = load_tokenizer(whole)
    assert isinstance(tokenizer, VQKD)
    assert (tokenizer.vocab_size, tokenizer.grid_size) == (20, (4, 4))
    ids = tokenizer.encode(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert ids.shape == (2, 4, 4)
    entries = metrics(whole)
    assert [entry["step"] for entry in entries] == [2, 3, 4, 6, 8]
    assert all(entry["loss"] == pytest.approx(entry["reconstruction"] + entry["commitment"]) for entry in entries)
    assert tokenizer.fit_report["loss"] == entries[-1]["loss"]
    assert tokenizer.fit_report["usage_over_steps"] == 8
    assert sorted(file.name for file in (whole.parent / "tok.training").iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "teacher",
        "tensorboard",
        "unreadable.json",
    ]


def test_the_teacher_sees_the_same_crops_at_its_own_size(tmp_path):
    seen = []

    def spy(step, images, teachers, *rest):
        seen.append((images, teachers))
        return call(step, images, teachers, *rest)

    call = vq_kd_step.DistillationStep.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq_kd_step.DistillationStep, "__call__", spy)
        train(tmp_path / "tok", replace(SETTINGS, teacher_image_size=32, steps=2))
    for images, teachers in seen:
        assert images.shape == (BATCH, 3, 16, 16)
        assert teachers.shape == (BATCH, 3, 32, 32)
        shrunk = torch.nn.functional.avg_pool2d(teachers, 2)
        differences = (shrunk[:, None] - images[None]).square().mean((2, 3, 4))
        assert torch.equal(differences.argmin(1), torch.arange(BATCH))


def test_a_run_of_our_own_as_teacher_may_be_deleted(tmp_path):
    recipe = BackboneSpec("vit_tiny_patch16_224", {**ENCODER, "img_size": 16}, 16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), seed=1)
    save_backbone(RunDirectory(tmp_path / "run").backbone, recipe, recipe.build())
    settings = replace(SETTINGS, teacher=f"run:{tmp_path / 'run'}", teacher_options={})
    train(tmp_path / "whole", settings)
    train_until(4, tmp_path / "tok", settings=settings)
    shutil.rmtree(tmp_path / "run")
    assert train(tmp_path / "tok", settings).fingerprint == load_tokenizer(tmp_path / "whole").fingerprint


def test_a_network_with_its_projection_as_teacher(tmp_path):
    options = {"pretrained": False, "projection": True}
    settings = replace(SETTINGS, teacher="vit_tiny_patch16_224", teacher_options=options, teacher_image_size=64, steps=2)
    train(tmp_path / "tok", settings)
    weights = load_file(newest_checkpoint(tmp_path / "tok.training" / "checkpoints").path / "model.safetensors")
    assert len(weights["decode_task_layer.2.weight"]) == 1000


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_an_interrupted_training_continues_bitwise(whole, tmp_path, steps):
    train_until(steps, tmp_path / "tok", workers=1)
    assert not (tmp_path / "tok").exists()
    train(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fingerprint == load_tokenizer(whole).fingerprint
    assert load_tokenizer(tmp_path / "tok").fit_report == load_tokenizer(whole).fit_report  # F21
    assert timeless(tmp_path / "tok") == timeless(whole)


TIMES = ("images_per_second", "waiting", "seconds")


def timeless(out: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in metrics(out)]


def train_until(number: int, out: Path, **how) -> None:
    """Trains, with Ctrl-C while step `number` is taken."""
    with pytest.raises(InterruptedRunError, match=f"Stopped after step {number} of the VQ-KD training"):
        train(out, stop=lambda: StopAfter(number), **how)


def test_a_finished_training_is_not_repeated(whole, monkeypatch):
    monkeypatch.setattr(vq_kd_step.DistillationStep, "__call__", None)
    before = load_tokenizer(whole)
    assert train(whole).fingerprint == before.fingerprint
    assert load_tokenizer(whole).fit_report == before.fit_report


def test_seed_and_teacher_matter(whole, tmp_path):
    fingerprints = {load_tokenizer(whole).fingerprint}
    for number, settings in enumerate((replace(SETTINGS, seed=5), replace(SETTINGS, teacher_options={"dim": 11}))):
        fingerprints.add(train(tmp_path / str(number), settings).fingerprint)
    assert len(fingerprints) == 3


def test_other_settings_or_images_are_not_continued(tmp_path):
    train_until(2, tmp_path / "tok")
    with pytest.raises(CheckpointError, match=r"lr was 0\.002, is 0\.001\. Continue it with its own"):
        train(tmp_path / "tok", replace(SETTINGS, lr=1e-3))
    with pytest.raises(CheckpointError, match="images was 40, is 32"):
        train(tmp_path / "tok", count=32)


def test_a_training_that_took_no_step_may_be_begun_otherwise(whole, tmp_path):
    other = replace(SETTINGS, teacher="coates", teacher_options={"num_filters": 12, "window": 4})
    die_in(vq_kd_step.DistillationStep, "__call__", tmp_path / "tok", other)
    die_in(vq_kd_training, "fit_teacher", tmp_path / "tok", SETTINGS)
    train(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fingerprint == load_tokenizer(whole).fingerprint


def die_in(owner: Any, name: str, out: Path, settings: VQKDSettings, after: int = 0) -> None:
    """Trains until `name` was called `after` times, and ends there without saving anything."""
    called, call = [], getattr(owner, name)

    def dying(*inputs, **options):
        called.append(name)
        if len(called) > after:
            raise KeyboardInterrupt
        return call(*inputs, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(KeyboardInterrupt):
            train(out, settings)


def test_a_killed_training_continues_bitwise(whole, tmp_path):
    die_in(vq_kd_step.DistillationStep, "__call__", tmp_path / "tok", SETTINGS, after=5)
    assert [entry["step"] for entry in metrics(tmp_path / "tok")] == [2, 3, 4]
    train(tmp_path / "tok")
    assert load_tokenizer(tmp_path / "tok").fingerprint == load_tokenizer(whole).fingerprint
    assert timeless(tmp_path / "tok") == timeless(whole)


def test_a_damaged_state_is_named(tmp_path):
    train_until(2, tmp_path / "tok")
    training = tmp_path / "tok.training"
    state = newest_checkpoint(training / "checkpoints").path / "model.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=r"checkpoints below .* are damaged\. Delete that folder"):
        train(tmp_path / "tok")
    (training / "teacher" / "weights.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"The teacher in .* is damaged"):
        train(tmp_path / "tok")


def test_a_loss_that_is_not_finite_moves_nothing(tmp_path):
    train_until(3, tmp_path / "tok")
    before = {path: path.read_bytes() for path in (tmp_path / "tok.training" / "checkpoints").rglob("*.safetensors")}
    forward, moved = vq_kd_step.Distillation.forward, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq_kd_step.Distillation, "forward", lambda *inputs: poisoned(forward(*inputs)))
        patch.setattr(vq_kd_step.Distillation, "update_codebook", lambda *_: moved.append(1))
        with pytest.raises(
            NonFiniteLossError,
            match=r"at step 3 of the VQ-KD training\. The optimizer did not move.*batch: \w{32}",
        ):
            train(tmp_path / "tok")
    assert not moved
    assert {path: path.read_bytes() for path in (tmp_path / "tok.training" / "checkpoints").rglob("*.safetensors")} == before


def poisoned(output):
    return replace(output, reconstruction=output.reconstruction * float("nan"))


def test_a_collapsed_codebook_is_warned_of() -> None:
    model = Distillation(VQKD(16, 40, 8, "vit_tiny_patch16_224", ENCODER), 12, 1)
    use, found = CodebookUse(model, patches_per_step=16), []
    for step in (50, 100, 150):
        model.recent.add(torch.tensor([5, 3, 9] + [0] * 37), step)
        found.append(use.observe(LogPoint(step, 0.1, {})))
    assert [observation.scalars["used_codes"] for observation in found] == [3, 3, 3]
    assert found[0].warnings == {"collapsed_codebook": None}
    assert "Only 3 of 40 codes were used in the last 100 steps" in found[1].warnings["collapsed_codebook"]


def test_a_training_that_an_earlier_release_began_is_continued(whole, tmp_path) -> None:
    """That release kept one file, state.safetensors, where there are checkpoints now."""
    train_until(3, tmp_path / "tok")
    training = tmp_path / "tok.training"
    checkpoint = newest_checkpoint(training / "checkpoints")
    files = {name: load_file(checkpoint.path / f"{name}.safetensors") for name in ("model", "optimizer")}
    tensors = {f"{kind}.{name}": value for kind, content in files.items() for name, value in content.items()}
    write_tensors(training / "state.safetensors", tensors | {"window": torch.empty(0, 3)}, {"step": "3"})
    shutil.rmtree(training / "checkpoints")
    assert train(tmp_path / "tok").fingerprint == load_tokenizer(whole).fingerprint


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": "coats", "teacher_options": {}}, TokenizerError, "no features called 'coats'"),
        ({"teacher": "pixels", "teacher_options": {"dims": 3}}, TokenizerError, "no option 'dims'"),
        ({"teacher_image_size": 30}, TokenizerError, r"grid of 4 x 4.*30 px cannot be divided so.*such as 28"),
        (
            {"teacher": "timm:resnet18", "teacher_options": {"pretrained": False}, "teacher_image_size": 64},
            TokenizerError,
            r"teacher at 64 px \(--teacher-image-size\).*feature map of 2 x 2, not the 4 x 4.*image size 128",
        ),
        ({"encoder": "vit_bose"}, ModelError, "no model 'vit_bose'"),
        ({"encoder": "resnet18", "encoder_options": {}}, ModelError, "resnet18"),
        ({"image_size": 18}, ModelError, "not a multiple of the patch size"),
        ({"vocab_size": 65_537}, SettingsError, r"vocabulary size is 65537\. Allowed: 2 to 65536"),
        ({"teacher_options": {"image_size": 3}}, SettingsError, "image_size is no option of the teacher"),
        ({"epochs": 2.0}, SettingsError, r"Both steps \(8\) and epochs \(2\)"),
        ({"lr": -1.0}, SettingsError, "lr is -1; it must be positive"),
        ({"precision": "fp8"}, SettingsError, "Allowed: fp32, bf16"),
        ({"warmup": 1.0}, SettingsError, "Allowed: 0 to below 1"),
        ({"scale": (0.5, 0.2)}, SettingsError, "smallest <= largest"),
    ],
)
def test_what_cannot_be_trained(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path / "tok", replace(SETTINGS, **changes))
    assert not (tmp_path / "tok").exists()
    assert not (tmp_path / "tok.training").exists()


def test_a_folder_of_something_else_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(vq_kd_step.DistillationStep, "__call__", None)
    with pytest.raises(TokenizerError, match="is not a tokenizer; it is left alone"):
        train(tmp_path)


def test_learning_rate():
    published = replace(SETTINGS, lr=None, batch_size=512, steps=None)
    assert published.highest_lr == 2e-4
    assert replace(published, batch_size=128).highest_lr == 5e-5
    assert published.total_steps(30) == 3000
    rates = [published.learning_rate(step, 1000) for step in range(1000)]
    assert max(rates) == rates[100] == 2e-4
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert 0 < rates[0] < 3e-6
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3)
    assert replace(published, batch_size=8).learning_rate(999, 1000) == pytest.approx(2e-4 / 64)
