"""Exports are read by the libraries they are for, and compute what the backbone computes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mapet.checkpoints.address import LoadedBackbone, load_backbone
from mapet.checkpoints.backbone_folder import save_backbone
from mapet.compat import create_transform, resolve_model_data_config, timm
from mapet.config.settings import hash_of_science
from mapet.data.views import EvaluationView, normalise
from mapet.errors import FailedRunError, ModelError, SettingsError
from mapet.export import preprocessing
from mapet.export import timm as export_timm
from mapet.export.export import Written, export
from mapet.models.spec import BackboneSpec
from mapet.runtime.run_directory import RunDirectory
from tests.checkpoints.published import images, randomise

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
VIT, BEIT = "vit_tiny_patch16_224", "beit_base_patch16_224"
SCALED = {**SIZES, "init_values": 0.1}


def loaded(name: str, **options) -> LoadedBackbone:
    found = load_backbone(f"random:{name}", options=options)
    randomise(found.backbone)
    return replace(found, spec=replace(found.spec, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))


MODELS = {
    "plain": (VIT, SIZES),
    "LayerScale": (VIT, SCALED),
    "classifier on the class token": (VIT, {**SCALED, "num_classes": 5}),
    "classifier on the mean": (VIT, {**SCALED, "num_classes": 5, "global_pool": "avg"}),
    "mean without a classifier": (VIT, {**SCALED, "global_pool": "avg"}),
    "Beit with a classifier": (BEIT, {**SIZES, "num_classes": 5}),
    "Beit with a shared table": (
        BEIT,
        {**SIZES, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "global_pool": "token"},
    ),
}


@pytest.mark.parametrize(("name", "options"), MODELS.values(), ids=MODELS)
def test_transformers(tmp_path, name, options):
    import transformers

    found = loaded(name, **options)
    written = export(found, "hf", tmp_path / "hf")
    assert written.difference is not None
    assert written.difference < 1e-5
    with torch.inference_mode():
        if found.backbone.num_classes:
            theirs = (
                transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()(pixel_values=images()).logits
            )
            ours = found.backbone(images())
        else:
            theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
            theirs = theirs(pixel_values=images()).last_hidden_state
            ours = found.backbone.forward_features(images())
            ours = found.backbone.fc_norm(ours) if found.backbone.global_pool == "avg" else ours
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    again = load_backbone(tmp_path / "hf").backbone
    with torch.inference_mode():
        back = again(images()) if found.backbone.num_classes else again.forward_features(images())
    torch.testing.assert_close(back, ours, rtol=1e-5, atol=1e-5)


def smooth(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width * height).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", params=[1.0, 0.875])
def preprocessed(request, tmp_path_factory) -> tuple[BackboneSpec, Path]:
    """What was exported, with the share of the image that its crop takes, and the folder of the exports."""
    found, folder = loaded(VIT, **SCALED), tmp_path_factory.mktemp("preprocessed")
    spec = replace(found.spec, crop_fraction=request.param)
    for form in ("hf", "timm"):
        export(replace(found, spec=spec), form, folder / form)
    return spec, folder


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (500, 375), (35, 36), (36, 39), (43, 36), (32, 32), (33, 32), (91, 64)])
def test_exported_preprocessing_gives_the_crop_of_evaluations(preprocessed, size):
    """R29: timm's crop is ours for every size; that of transformers starts at most one pixel before it, as the card states."""
    import transformers

    spec, folder = preprocessed
    view, picture = EvaluationView(32, spec.crop_fraction), smooth(*size)
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "hf")
    model = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    ours, allowed = normalise(view(picture)[None], spec.mean, spec.std)[0], 3.01 / 255 / min(spec.std)
    torch.testing.assert_close(transform(picture), ours, rtol=0, atol=1e-5)
    resized = np.array(view.resized(picture))
    top, left = ((side - 32) // 2 for side in resized.shape[:2])
    theirs = normalise(torch.from_numpy(resized[top : top + 32, left : left + 32]).permute(2, 0, 1)[None], spec.mean, spec.std)[0]
    pixels = torch.as_tensor(np.array(processor(picture).pixel_values))[0]
    torch.testing.assert_close(pixels, theirs, rtol=0, atol=allowed)
    if not any((side - 32) % 4 == 3 for side in resized.shape[:2]):
        torch.testing.assert_close(pixels, ours, rtol=0, atol=allowed)
    card = (folder / "hf" / "README.md").read_text()
    assert "is 32 plus 3, 7, 11, ... pixels long, its crop lies one pixel further left or above" in card
    assert "at most 3 of 255 levels" in card
    assert "one pixel" not in (folder / "timm" / "README.md").read_text()


@pytest.mark.parametrize("form", ["hf", "timm"])
def test_an_export_with_other_preprocessing_is_not_kept(tmp_path, monkeypatch, form):
    """R29: a resize without the margin is found by the check of the export."""
    found = loaded(VIT, **SCALED)
    monkeypatch.setattr(preprocessing, "EvaluationView", lambda size, fraction: EvaluationView(size, 0.8))
    with pytest.raises(FailedRunError, match=r"other pixels than mapet's for a picture of 32 x 32: up to \d+ of 255"):
        export(found, form, tmp_path / form)
    assert not (tmp_path / form).exists()


@pytest.mark.parametrize(
    ("name", "options"), [MODELS["LayerScale"], MODELS["classifier on the mean"], MODELS["Beit with a classifier"]]
)
def test_timm(tmp_path, name, options):
    found = loaded(name, **options)
    assert export(found, "timm", tmp_path / "timm").difference == 0
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    own = found.backbone.state_dict()
    assert again.state_dict().keys() == own.keys()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())
    data = resolve_model_data_config(again)
    assert [*data["mean"], *data["std"], data["crop_pct"], *data["input_size"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0, 3, 32, 32]
    back = load_backbone(tmp_path / "timm")
    assert (back.spec.mean, back.spec.image_size) == ((0.1, 0.2, 0.3), 32)
    assert "tag" not in (tmp_path / "timm" / "config.json").read_text()


def test_safetensors(tmp_path):
    found = loaded(VIT, **SCALED)
    written = export(found, "safetensors", tmp_path / "plain")
    assert written.difference == 0
    again = timm.create_model(VIT, **found.spec.options)
    again.load_state_dict(load_file(tmp_path / "plain" / "weights.safetensors"), strict=True)
    assert load_backbone(tmp_path / "plain").spec == found.spec
    names: dict = {}
    exec(written.usage.replace("FOLDER", str(tmp_path / "plain")), names)
    assert torch.equal(names["model"].pos_embed, found.backbone.pos_embed)


def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    found = loaded(VIT, **{**SCALED, "depth": 1, "num_classes": 3})
    written = export(found, "onnx", tmp_path / "onnx")
    assert written.difference is not None
    assert written.difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (theirs,) = session.run(None, {"images": images(count).numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(theirs), found.backbone(images(count)), rtol=1e-4, atol=1e-4)


def test_onnx_without_its_packages(tmp_path, monkeypatch):
    from mapet.export import onnx as export_onnx

    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs onnx and onnxscript.*pip install 'mapet\[onnx\]'"):
        export(loaded(VIT, **SIZES), "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_small_patch14_reg4_dinov2", {**SIZES, "patch_size": 8}, "register tokens"),
        (VIT, {**SIZES, "class_token": False, "global_pool": "avg"}, "no class token"),
        (VIT, {**SIZES, "no_embed_class": True}, "no position for the class token"),
        (VIT, {**SIZES, "qk_norm": True}, "norms of queries and keys"),
        (VIT, {**SIZES, "pre_norm": True}, "a norm before its blocks"),
        (VIT, {**SIZES, "act_layer": "silu"}, "another activation than GELU"),
        (VIT, {**SIZES, "num_classes": 3, "global_pool": "max"}, "pooling 'max'"),
    ],
)
def test_what_transformers_cannot_express_is_refused(tmp_path, name, options, reason):
    with pytest.raises(ModelError, match=f"has {reason}, which ViT in transformers has not. Use --to timm"):
        export(loaded(name, **options), "hf", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_export_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(export_timm, "write", lambda found, folder: Written("timm", "", 0.1))
    with pytest.raises(FailedRunError, match=r"differ from the backbone's by 1.0e-01"):
        export(loaded(VIT, **SIZES), "timm", tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ModelError, match="is there already, and nothing is written over"):
        export(loaded(VIT, **SIZES), "timm", tmp_path)
    with pytest.raises(SettingsError, match=r"There is no export format called 'tim'. Did you mean 'timm'"):
        export(loaded(VIT, **SIZES), "tim", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with a record of what it was begun with, and a figure."""
    found = loaded(VIT, **SCALED)
    run = RunDirectory(tmp_path / "someone" / "run-7")
    save_backbone(run.backbone, found.spec, found.backbone)
    config = {
        "data": "/data/of/someone/photos",
        "tokenizer": "/data/of/someone/tok",
        "tokenizer_fingerprint": "f00d" * 16,
        "images": {"count": 12345, "sha256": "1"},
        "science": {
            "seed": 4,
            "image_size": 32,
            "objective": {"name": "mapet", "options": {"num_context": 9}},
            "training": {"lr": 0.001},
        },
    }
    config["science_hash"] = hash_of_science(config["science"])
    run.config.write_text(json.dumps(config))
    for step in (10, 250):
        run.append_metrics({"step": step, "loss": 1.0})
    result = {
        "protocol": {"name": "knn", "pool": "mean"},
        "preset": "default",
        "protocol_hash": "abcd1234",
        "data": "/data/of/someone/cats",
        "classes": 2,
        "train_images": 100,
        "test_images": 50,
        "seconds": 1.0,
        "figures": {"top1": 0.5678},
        "random_figures": {"top1": 0.1},
        "metric": "top1",
    }
    run.evaluations.mkdir()
    (run.evaluations / "knn.json").write_text(json.dumps(result))
    return run.path


def test_the_card_says_what_was_done_and_no_path(run, tmp_path):
    found = load_backbone(run)
    export(found, "timm", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n")
    for fact in (
        "# run-7",
        'mapet with {"num_context": 9}',
        "| photos |",
        "12,345",
        "| 250 |",
        "f00d" * 16,
        json.loads((run / "config.json").read_text())["science_hash"],
        "0.001",
    ):
        assert fact in card, fact
    assert "| knn:default | `abcd1234` | cats | top1 56.78 % | 10.00 % |" in card
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in card
    assert "someone" not in card
    assert str(tmp_path) not in card
    assert "## Licence" in card


def test_the_card_of_a_fine_tuned_model_says_for_what_it_was_trained(tmp_path):
    stem = tmp_path / "secret" / "finetune-cats"
    source = loaded(VIT, **SCALED, num_classes=3)
    save_backbone(stem / "model", source.spec, source.backbone)
    (stem / "classes.json").write_text(json.dumps(["manx", "ragdoll", "sphynx"]))
    result = {
        "protocol": {"name": "finetune"},
        "preset": "small",
        "protocol_hash": "abcd1234",
        "backbone": str(tmp_path / "secret" / "run-7"),
        "data": str(tmp_path / "secret" / "cats"),
        "classes": 3,
        "seconds": 1.0,
        "train_images": 2345,
        "test_images": 678,
        "figures": {"top1": 0.8125},
    }
    export(load_backbone(stem / "model"), "safetensors", tmp_path / "bare")
    assert "| Protocol |" not in (tmp_path / "bare" / "README.md").read_text()
    stem.with_suffix(".json").write_text(json.dumps(result))
    export(load_backbone(stem / "model"), "timm", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (
        *(
            "# finetune-cats\n",
            "| Protocol | finetune:small |",
            "| Hash of the protocol | `abcd1234` |",
            "| Started from | run-7 |",
            "| Data | cats |",
        ),
        *("| Training images | 2,345 |", "| Test images | 678 |", "| manx, ragdoll, sphynx |"),
        "| finetune:small | `abcd1234` | cats | top1 81.25 % |",
    ):
        assert fact in card, fact
    assert "secret" not in card
    stem.with_suffix(".json").write_text(json.dumps({**result, "protocol": {"name": "finetune", "scratch": True}}))
    export(load_backbone(stem / "model"), "safetensors", tmp_path / "scratch")
    assert "| Started from | random initialisation |" in (tmp_path / "scratch" / "README.md").read_text()


class FakeHub:
    """Records what it is asked for."""

    calls: list

    def __init__(self, **_) -> None:
        type(self).calls = []

    def create_repo(self, name, **options) -> None:
        if name.startswith("stranger"):
            raise OSError("403 Forbidden: you may not write here")
        self.calls.append(("create", name, options))

    def upload_folder(self, *, repo_id, folder_path, commit_message) -> None:
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir()), commit_message))


def test_push(tmp_path, monkeypatch):
    import huggingface_hub

    from mapet.export.hub import push

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    export(loaded(VIT, **SIZES), "timm", tmp_path / "out")
    assert push(tmp_path / "out", "me/vit", private=True) == "https://huggingface.co/me/vit"
    files = ["README.md", "config.json", "model.safetensors"]
    assert FakeHub.calls == [
        ("create", "me/vit", {"private": True, "exist_ok": True}),
        ("upload", "me/vit", files, "Export from mapet"),
    ]
    with pytest.raises(FailedRunError, match=r"403 Forbidden.*hf auth login.*hf upload stranger/vit"):
        push(tmp_path / "out", "stranger/vit")
    with pytest.raises(ModelError, match="Write OWNER/NAME"):
        push(tmp_path / "out", "vit")


def test_the_command(run, tmp_path, capsys, monkeypatch):
    import typer

    from mapet.cli.export import export as command

    app = typer.Typer()
    app.command()(command)
    monkeypatch.setattr(sys, "argv", ["export", str(run), "--to", "timm", "--out", str(tmp_path / "out")])
    app(standalone_mode=False)
    assert f'timm.create_model("local-dir:{tmp_path / "out"}"' in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_names_of_classes_go_along(tmp_path):
    import transformers

    found, names = loaded(VIT, **{**SIZES, "num_classes": 3}), ["ant", "bee", "cat"]
    save_backbone(tmp_path / "tuned" / "model", found.spec, found.backbone)
    (tmp_path / "tuned" / "classes.json").write_text(json.dumps(names))
    tuned = load_backbone(tmp_path / "tuned" / "model")
    assert tuned.classes == tuple(names)
    for form in ("hf", "timm", "safetensors"):
        export(tuned, form, tmp_path / form)
    assert transformers.AutoConfig.from_pretrained(tmp_path / "hf").id2label == dict(enumerate(names))
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"] == names
    assert load_backbone(tmp_path / "safetensors").classes == tuple(names)
    assert load_backbone(tmp_path / "timm").backbone.num_classes == 3
