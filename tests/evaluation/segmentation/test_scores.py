from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, log_softmax

from mapet.data.mask_files import IGNORED, PADDED
from mapet.evaluation.segmentation.loss import pixel_loss
from mapet.evaluation.segmentation.miou import ConfusionMatrix, constant_scores
from mapet.evaluation.segmentation.sliding import classes_at, sliding_logits, window_starts


def drawn(shape: tuple[int, ...], classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, classes, shape, generator=generator)


def test_the_mean_iou_is_that_of_sets_of_pixels_over_all_images() -> None:
    classes, images = 5, 3
    truths = [drawn((7, 9), classes - 1, seed) for seed in range(images)]  # class 4 is never there
    found = [torch.where(truth >= 0, truth, 0).roll(2, 1).clamp(max=2) for truth in truths]  # class 3 is never found
    matrix = ConfusionMatrix(classes)
    for truth, predicted in zip(truths, found, strict=True):
        matrix.add(truth.to(torch.int16), predicted)
    scores = matrix.scores()
    pixels = [
        (int(t), int(p))
        for ts, ps in zip(truths, found, strict=True)
        for t, p in zip(ts.flatten(), ps.flatten(), strict=True)
        if t >= 0
    ]
    expected = []
    for number in range(classes):
        union = [pair for pair in pixels if number in pair]
        expected.append(sum(pair == (number, number) for pair in union) / len(union) if union else None)
    assert scores.iou[4] is None
    assert scores.iou[3] == 0.0
    assert scores.iou[:4] == pytest.approx(expected[:4])
    assert scores.miou == pytest.approx(np.mean([value for value in expected if value is not None]))
    assert scores.pixel_accuracy == pytest.approx(np.mean([truth == predicted for truth, predicted in pixels]))
    recalls = [np.mean([p == number for t, p in pixels if t == number]) for number in range(4)]
    assert scores.mean_class_accuracy == pytest.approx(np.mean(recalls))


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    matrix = ConfusionMatrix(3)
    matrix.add(torch.tensor([0, 0, 1, IGNORED]), torch.tensor([0, 0, 2, 2]))
    assert matrix.scores().iou == [1.0, 0.0, 0.0]


def test_predicting_one_class_everywhere() -> None:
    scores = constant_scores(torch.tensor([30, 60, 10]), 1)
    assert scores.miou == pytest.approx(0.6 / 3)
    assert scores.pixel_accuracy == pytest.approx(0.6)


def test_the_loss_is_the_mean_over_pixels_with_a_class() -> None:
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    classes = drawn((2, 6, 10), 4, 2)
    classes[0, 0] = PADDED
    large = log_softmax(interpolate(logits, (6, 10), mode="bilinear", align_corners=False), dim=1)
    places = [(i, r, c) for i in range(2) for r in range(6) for c in range(10) if classes[i, r, c] >= 0]
    total = -sum(large[i, int(classes[i, r, c]), r, c].item() for i, r, c in places)
    assert 0 < len(places) < classes.numel()
    assert pixel_loss(logits, classes).item() == pytest.approx(total / len(places))
    assert pixel_loss(logits, classes, published_denominator=True).item() == pytest.approx(total / classes.numel())


def test_a_batch_without_any_class_gives_zero_and_no_nan() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), IGNORED))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(683, 512, 341), (512, 512, 341), (854, 512, 341), (300, 512, 341), (40, 16, 16), (41, 16, 11)]
)
def test_windows_cover_everything_and_end_with_the_image(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    assert len(starts) == math.ceil(max(length - window, 0) / stride) + 1
    assert starts[0] == 0
    assert starts[-1] == max(length - window, 0)
    assert all(start == number * stride for number, start in enumerate(starts[:-1]))


def test_logits_are_averaged_over_windows() -> None:
    image = torch.randn(3, 11, 17, generator=torch.Generator().manual_seed(5))

    def logits(windows: torch.Tensor) -> torch.Tensor:
        """At half the size; the second class depends on everything in the window."""
        small = interpolate(windows, scale_factor=0.5, mode="bilinear", align_corners=False)
        return torch.stack([small.sum(dim=1), small.mean(dim=(1, 2, 3))[:, None, None].expand(-1, 4, 4)], dim=1)

    total, seen = np.zeros((2, 11, 17)), np.zeros((11, 17))
    for row in (0, 3):
        for column in (0, 5, 9):
            found = interpolate(
                logits(image[None, :, row : row + 8, column : column + 8]), (8, 8), mode="bilinear", align_corners=False
            )
            total[:, row : row + 8, column : column + 8] += found[0].numpy()
            seen[row : row + 8, column : column + 8] += 1
    assert seen.min() == 1
    np.testing.assert_allclose(sliding_logits(logits, image, 8, 5).numpy(), total / seen, atol=1e-5)


def test_an_image_smaller_than_a_window_is_padded_with_the_mean_colour() -> None:
    image = torch.ones(3, 5, 20)
    seen = []

    def logits(windows: torch.Tensor) -> torch.Tensor:
        seen.append(windows)
        return windows[:, :2]

    assert sliding_logits(logits, image, 8, 8).shape == (2, 5, 20)
    windows = torch.cat(seen)
    assert windows.shape == (3, 3, 8, 8)
    assert (windows[:, :, 5:] == 0).all()
    assert (windows[:, :, :5] == 1).all()


def test_classes_of_large_images_are_those_of_all_logits_at_once() -> None:
    logits = torch.randn(37, 5, 6, generator=torch.Generator().manual_seed(8))
    whole = interpolate(logits[None], (33, 47), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    torch.testing.assert_close(classes_at(logits, (33, 47)), whole)
