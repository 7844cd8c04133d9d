"""How a classifier is fed when it is judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.decode import decode_image
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.evaluation.finetuning.classifier import build_classifier
from mapet.evaluation.finetuning.evaluate import evaluate_models
from tests.evaluation.finetuning.tiny import quick, tiny_frozen


@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.5])
def test_test_images_are_seen_by_the_crop_of_the_settings(fraction: float) -> None:
    frozen, settings = tiny_frozen(), quick(crop_fraction=fraction, micro_batch=8, drop_path=0.5)
    model, spec, _ = build_classifier(frozen, settings)
    seen, modes = [], []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    evaluate_models({"": model.train()}, spec, frozen, settings)
    side, expected = math.floor(16 / fraction), []
    for index in range(len(frozen.test)):
        image = decode_image(frozen.test.read(index)).resize((side, side), Image.Resampling.BICUBIC)
        edge = round((side - 16) / 2)
        pixels = np.asarray(image.crop((edge, edge, edge + 16, edge + 16))) / 255
        expected.append(torch.from_numpy((pixels - IMAGENET_MEAN) / IMAGENET_STD).permute(2, 0, 1).float())
    torch.testing.assert_close(torch.cat(seen), torch.stack(expected), rtol=0, atol=1e-5)
    assert modes == [False] * 3
    assert model.training
