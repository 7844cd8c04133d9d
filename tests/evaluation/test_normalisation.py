"""Whatever looks at images with a backbone normalises them as its recipe tells, not as ImageNet is normalised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mapet.data.masked import open_segmentation
from mapet.data.skipped import UnreadableImages
from mapet.evaluation.copies import SeenKeys
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.evaluate import evaluate_models
from mapet.evaluation.finetuning.training import FineTuning
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.probes.representations import every_layer, last_layer, patch_tokens
from mapet.evaluation.segmentation.evaluate import evaluate_model
from mapet.evaluation.segmentation.protocol import Segment
from mapet.evaluation.segmentation.training import SegmentationTraining
from mapet.models.spec import BackboneSpec
from tests.evaluation.finetuning.tiny import CPU, quick, tiny_frozen, tiny_spec
from tests.evaluation.segmentation.pictures import HEIGHT, WIDTH, write_folder
from tests.evaluation.segmentation.test_training import OPTIONS, SMALL
from tests.tiny import LOCATION, TinyImages

MEAN, STD, GREY = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 200
IMAGES = torch.full((3, 3, 16, 16), GREY, dtype=torch.uint8)


class GreyImages(TinyImages):
    """Images of one colour, so that no crop changes what a pixel is."""

    def read(self, index: int) -> bytes:
        return b"P6 16 16 255\n" + bytes([GREY] * 16 * 16 * 3)


def watched(network: nn.Module) -> list[Tensor]:
    """What enters the patch embedding of a ViT from now on."""
    seen: list[Tensor] = []
    network.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    return seen


def assert_normalised(seen: list[Tensor]) -> None:
    assert seen
    expected = (GREY / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    for images in seen:
        torch.testing.assert_close(images, expected.view(1, 3, 1, 1).expand_as(images), rtol=0, atol=1e-5)


def grey_frozen() -> FrozenBackbone:
    frozen = tiny_frozen(spec=replace(tiny_spec(), mean=MEAN, std=STD))
    frozen.train, frozen.test = GreyImages(LOCATION, 16, seed=0), GreyImages(LOCATION, 8, seed=1)
    frozen.keys = {"training": SeenKeys(frozen.train), "test": SeenKeys(frozen.test)}
    return frozen


@pytest.mark.parametrize(
    "look",
    [
        lambda frozen: frozen.train_features,
        lambda frozen: last_layer(frozen, "mean")(IMAGES),
        lambda frozen: every_layer(frozen, "mean")(IMAGES),
        lambda frozen: patch_tokens(frozen)(IMAGES),
    ],
    ids=["features", "last_layer", "every_layer", "patch_tokens"],
)
def test_features(look: Callable[[FrozenBackbone], object]) -> None:
    frozen = grey_frozen()
    seen = watched(frozen.backbone)
    look(frozen)
    assert_normalised(seen)


def test_fine_tuning_and_its_test(tmp_path: Path) -> None:
    settings = quick(epochs=1)
    tuning = FineTuning(grey_frozen(), settings, tmp_path)
    seen = watched(tuning.model)
    tuning.run()
    frozen = grey_frozen()
    model, spec, _ = build_classifier(frozen, settings)
    seen += (tested := watched(model))
    evaluate_models({"": model}, spec, frozen, settings)
    assert_normalised([*seen, *tested])


def test_segmentation_and_its_test(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    for path in (folder / "images").rglob("*.png"):
        Image.new("RGB", (WIDTH, HEIGHT), (GREY,) * 3).save(path)
    train, test = open_segmentation(str(folder))
    spec = BackboneSpec("vit_tiny_patch16_224", OPTIONS, 16, MEAN, STD, seed=0)
    frozen = FrozenBackbone("grey", spec.build(), spec, train, test, device=CPU, workers=0, unreadable=UnreadableImages())
    settings = Segment(**SMALL)
    training = SegmentationTraining(frozen, train, settings, tmp_path / "out")
    seen = watched(training.model.backbone)
    training.step(torch.full((2, 3, 32, 32), GREY, dtype=torch.uint8), torch.zeros(2, 32, 32, dtype=torch.int16), 0, 0.01)
    evaluate_model(training.model.eval(), frozen, test, settings, None)
    assert_normalised(seen)
    assert len(seen) > 1
