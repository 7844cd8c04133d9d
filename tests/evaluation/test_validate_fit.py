"""Weights that are another model's, and folders that hold no classifier: what fits them, or what to give, is said."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.checkpoints.classifier import ModelChoice, load_classifier
from mapet.compat import timm
from mapet.config.recipes import parse_options
from mapet.errors import ModelError
from mapet.models.spec import BackboneSpec
from tests.checkpoints.runs import save_run
from tests.evaluation.test_validate import TINY, publish, split_queries, tiny_choice, tiny_state


@cache
def small_state(**options: Any) -> dict[str, torch.Tensor]:
    """Weights that no test changes."""
    return timm.create_model("vit_small_patch16_224", **options).state_dict()


def test_another_size_is_said_with_the_model_that_fits(tmp_path: Path) -> None:
    state = small_state(init_values=0.1, global_pool="avg")
    path = publish(tmp_path / "small.tar", split_queries(state))
    with pytest.raises(ModelError) as refusal:
        load_classifier(path, ModelChoice("vit_standard_tiny_patch16_224"))
    assert "expected width 192, MLP width 768; found width 384, MLP width 1536" in str(refusal.value)
    assert "It fits --model vit_standard_small_patch16_224" in str(refusal.value)
    assert load_classifier(path).name == "vit_standard_small_patch16_224", "recognised without --model"


@pytest.mark.parametrize(
    ("options", "published", "message"),
    [
        ({}, False, r"found width 384, .*\. It fits --model vit_small_patch16_224\.$"),
        (
            {"init_values": 0.1},
            False,
            r"--model vit_standard_small_patch16_224 if it is MaPeT's .*, --model vit_small_patch16_224 if",
        ),
        ({"init_values": 0.1}, True, r"It fits --model vit_standard_small_patch16_224\.$"),
    ],
)
def test_only_what_has_a_trace_of_mapet_is_called_mapets(tmp_path: Path, options: dict, published: bool, message: str) -> None:
    state = small_state(**options)
    path = publish(tmp_path / "small.tar", split_queries(state) if published else state)
    with pytest.raises(ModelError, match=message):
        load_classifier(path, ModelChoice("vit_tiny_patch16_224"))


def test_without_a_name_timms_model_of_these_shapes_is_named(tmp_path: Path) -> None:
    path = publish(tmp_path / "small.tar", small_state())
    with pytest.raises(ModelError, match=r"Give --model NAME\. Its shapes are those of vit_small_patch16_224: --model vit_small_"):
        load_classifier(path)
    assert load_classifier(path, ModelChoice("vit_small_patch16_224")).preprocessing.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 2}, "--model-kwargs depth=2."),
        ({"depth": 2, "mlp_ratio": 2.0}, "--model-kwargs depth=2 --model-kwargs mlp_ratio=2."),
        (
            {"depth": 1, "embed_dim": 128, "num_heads": 2, "patch_size": 32},
            "--model-kwargs embed_dim=128 --model-kwargs depth=1 --model-kwargs patch_size=32 --model-kwargs num_heads=2. "
            "The weights do not contain the number of heads; 64 wide is usual.",
        ),
    ],
)
def test_what_differs_is_said_as_options_that_work(tmp_path: Path, changes: dict, words: str) -> None:
    path = publish(tmp_path / "vit.tar", timm.create_model("vit_tiny_patch16_224", num_classes=5, **changes).state_dict())
    with pytest.raises(ModelError) as refusal:
        load_classifier(path, ModelChoice("vit_tiny_patch16_224"))
    assert str(refusal.value).endswith(f"or what differs: {words}")
    given = [word for word in words.partition(" The weights")[0].rstrip(".").split() if word != "--model-kwargs"]
    assert load_classifier(path, ModelChoice("vit_tiny_patch16_224", options=parse_options(given))).classes == 5


def test_images_that_patches_do_not_cover_are_refused(tmp_path: Path) -> None:
    checkpoint = publish(tmp_path / "vit.tar", split_queries(tiny_state()))
    with pytest.raises(ModelError, match=r"image size \(100, 100\) is not a multiple of the patch size \(8, 8\)"):
        load_classifier(checkpoint, tiny_choice(image_size=100))


def test_a_folder_that_is_no_classifier_says_what_to_give(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"data": "photos"}))
    with pytest.raises(ModelError, match=r"run of a pre-training, .*mapet evaluate finetune \S+run DATA.* give the model/ folder"):
        load_classifier(run)
    options = {**TINY, "num_classes": 5}
    spec = BackboneSpec("vit_tiny_patch16_224", options, 32, (0.5,) * 3, (0.2,) * 3, 0)
    save_backbone(run / "evaluations" / "finetune-photos" / "model", spec, spec.build())
    with pytest.raises(ModelError, match=r"Give a fine-tuned model of it: \S+run/evaluations/finetune-photos/model\."):
        load_classifier(run)
    with pytest.raises(ModelError, match=r"There is one in \S+finetune-photos/model: give that"):
        load_classifier(run / "evaluations" / "finetune-photos")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").touch()
    for place in (tmp_path / "onnx", tmp_path / "onnx" / "model.onnx"):
        with pytest.raises(ModelError, match="Give the backbone that it was exported from"):
            load_classifier(place)


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    state = split_queries(tiny_state())
    del state["blocks.1.ls2.gamma"]
    with pytest.raises(ModelError, match=r"weights in \S+vit\.tar do not .* Missing: blocks\.1\.ls2\.gamma\. If --model and"):
        load_classifier(publish(tmp_path / "vit.tar", state), tiny_choice())


def test_a_pre_training_checkpoint_has_no_head(tmp_path: Path) -> None:
    state = {name: value for name, value in split_queries(tiny_state()).items() if not name.startswith(("head", "fc_norm"))}
    state |= {"mask_positional_token": torch.zeros(1, 1, 24), "decoder.weight": torch.zeros(9, 24)}
    with pytest.raises(ModelError, match=r"(?s)a pre-training checkpoint: probe or fine-tune it.*decoder.weight +\(9, 24\)"):
        load_classifier(publish(tmp_path / "vit.tar", state), tiny_choice())


@pytest.mark.parametrize(
    ("name", "size"), [("deit3_small_patch16_224", 240), ("vit_tiny_patch16_224", 96), ("deit_tiny_distilled_patch16_224", 64)]
)
def test_the_image_size_is_that_of_the_positions_by_the_models_own_rule(tmp_path, name, size):
    """R9: 225 positions are 15 x 15 patches of a model without a place for the class token."""
    network = timm.create_model(name, img_size=size, depth=1, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    classifier = load_classifier(tmp_path / "weights.pth", ModelChoice(name, options={"depth": 1}))
    assert classifier.preprocessing.size == size
