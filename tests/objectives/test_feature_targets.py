"""What SimMIM, MaskFeat and MVP predict, against the definition written out, for a head whose prediction is known."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.objectives import create_objective
from mapet.objectives.maskfeat import oriented_gradients

SIDE, PATCH = 64, 16
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def build(name: str, **options: object):
    """An objective that predicts the same vector for every patch: its head's bias."""
    torch.manual_seed(0)
    backbone = create_backbone(
        "vit_tiny_patch16_224", img_size=SIDE, patch_size=PATCH, embed_dim=16, depth=1, num_heads=1, num_classes=0
    )
    objective = create_objective(name, backbone=backbone, vocab_size=8, mean=MEAN, std=STD, **options)
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.normal_(objective.head.bias)
    return objective


def pixels_and_batch() -> tuple[Tensor, Batch]:
    """(2, 3, SIDE, SIDE) in [0, 1], and the same normalised."""
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    shape = (3, 1, 1)
    return pixels, Batch((pixels - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape), None)


def patch(images: Tensor, image: int, number: int) -> Tensor:
    """(C, PATCH, PATCH) of one patch in raster order."""
    top, left = PATCH * (number // (SIDE // PATCH)), PATCH * (number % (SIDE // PATCH))
    return images[image, :, top : top + PATCH, left : left + PATCH]


def hidden_places(mask: Tensor) -> list[tuple[int, int]]:
    return [(image, number) for image, number in mask.nonzero().tolist()]


def test_simmim_is_the_mean_absolute_error_of_hidden_pixels() -> None:
    objective, (_, batch) = build("simmim"), pixels_and_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(2))
    output, bias = objective(batch, corruption), objective.head.bias.detach()
    places = hidden_places(corruption.mask)
    expected = sum(float((bias - patch(batch.images, *place).permute(1, 2, 0).flatten()).abs().mean()) for place in places)
    assert 0 < len(places) < corruption.mask.numel()
    assert int(output.num_targets) == len(places)
    torch.testing.assert_close(output.loss_sum.item(), expected, rtol=1e-5, atol=0)


def histograms(image: np.ndarray, cell: int) -> np.ndarray:
    """(H / cell, W / cell, C, 9) of an image (C, H, W), pixel by pixel: nine orientations without direction, length one."""
    channels, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    found = np.zeros((height // cell, width // cell, channels, 9))
    for channel, row, column in np.ndindex(image.shape):
        around = padded[channel, row : row + 3, column : column + 3]
        across = (around[:, 2] - around[:, 0]) @ (1, 2, 1)
        down = (around[2] - around[0]) @ (1, 2, 1)
        degrees = math.degrees(math.atan2(down, across)) % 180
        found[row // cell, column // cell, channel, min(int(degrees / 20), 8)] += math.hypot(across, down)
    return found / np.linalg.norm(found, axis=3, keepdims=True)


def test_maskfeat_is_the_squared_error_of_the_histograms_of_hidden_patches() -> None:
    objective, (pixels, batch) = build("maskfeat"), pixels_and_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(2))
    output, bias = objective(batch, corruption), objective.head.bias.detach().numpy()
    places, cells, expected = hidden_places(corruption.mask), PATCH // 2, 0.0
    described = [histograms(image.double().numpy(), cells) for image in pixels]
    for image, number in places:
        row, column = 2 * (number // (SIDE // PATCH)), 2 * (number % (SIDE // PATCH))
        expected += float(((bias - described[image][row : row + 2, column : column + 2].ravel()) ** 2).mean())
    assert int(output.num_targets) == len(places)
    torch.testing.assert_close(output.loss_sum.item(), expected, rtol=1e-4, atol=0)


def test_opposite_edges_have_one_histogram_and_contrast_none() -> None:
    ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
    across, back, down = (oriented_gradients(image, 4)[0, :, 0, 0] for image in (ramp, 1 - 0.5 * ramp, ramp.mT))
    torch.testing.assert_close(across, torch.eye(9)[0])
    torch.testing.assert_close(back, across)
    torch.testing.assert_close(down, torch.eye(9)[4])


def test_mvp_is_the_cosine_with_what_the_teacher_makes_of_the_pixels() -> None:
    objective = build("mvp", teacher="test_vit", teacher_options={"pretrained": False})
    pixels, batch = pixels_and_batch()
    corruption = objective.corrupt(batch, torch.Generator().manual_seed(2))
    output, bias = objective(batch, corruption), objective.head.bias.detach()
    features, places = objective.teacher(pixels).flatten(1, 2), hidden_places(corruption.mask)
    expected = sum(1 - float(features[place] @ bias / (features[place].norm() * bias.norm())) for place in places)
    assert int(output.num_targets) == len(places)
    torch.testing.assert_close(output.loss_sum.item(), expected, rtol=1e-4, atol=0)
