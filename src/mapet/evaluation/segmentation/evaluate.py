"""Testing a trained model on whole images: scores over all pixels, and some pictures of what it sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.data.batch import UnreadableImage
from mapet.data.decode import decode_image
from mapet.data.masked import MaskedImages
from mapet.errors import DataError, FailedRunError, UnreadableImageError
from mapet.evaluation.frozen_backbone import FrozenBackbone
from mapet.evaluation.outcomes import Outcomes
from mapet.evaluation.segmentation.miou import ConfusionMatrix, Scores
from mapet.evaluation.segmentation.model import UperNet
from mapet.evaluation.segmentation.overlays import overlay
from mapet.evaluation.segmentation.settings import SegmentSettings
from mapet.evaluation.segmentation.sliding import segment_image
from mapet.runtime.device import autocast
from mapet.runtime.files import atomic_file
from mapet.runtime.processes import errors_in_all
from mapet.runtime.progress import progress
from mapet.runtime.rank import this_process

OVERLAYS = 8


@torch.inference_mode()
def evaluate_model(
    model: UperNet, frozen: FrozenBackbone, test: MaskedImages, settings: SegmentSettings, overlays: Path | None
) -> tuple[Scores, Outcomes]:
    """Scores of a model, in evaluation mode, on all test images, each at the size of its mask; and what they are of, by image.

    Several processes share the images, and each writes the pictures of its own.

    Args:
        model: The model.
        frozen: For its device, its normalisation and its count of unreadable images.
        test: The images.
        settings: Of sizes and windows.
        overlays: Folder for `OVERLAYS` pictures, evenly spread over the test images; None for none.

    Raises:
        DataError: No image can be read, or too many cannot.
    """
    device, matrix = frozen.device, ConfusionMatrix(len(test.class_names), frozen.device)
    find = _finder(model, frozen, settings)
    pictured = {*np.linspace(0, len(test) - 1, min(OVERLAYS, len(test))).round().astype(int).tolist()} if overlays else {}
    indices = this_process().share(range(len(test)))
    with errors_in_all(), progress(f"Test images, {frozen.title}", len(indices)) as bar:
        for index in indices:
            bar.advance()
            try:
                image = decode_image(test.read(index))
            except UnreadableImageError as error:
                frozen.unreadable.record([UnreadableImage(index, test.keys[index], test.describe(index), str(error))])
                continue
            truth, predicted = test.read_mask(index), find(image)
            matrix.add(torch.from_numpy(truth).to(device), predicted)
            frozen.keys["test"].record(np.array([index]), [test.keys[index]])
            if overlays is not None and index in pictured:
                name = f"{Path(test.describe(index)).stem}.png"
                _write(overlay(image, truth, predicted.cpu().numpy(), test.class_names), overlays / name)
    frozen.share_records()
    pixels = matrix.share()
    if not len(pixels):
        raise DataError(f"None of the {len(test)} test images of {test.location} can be read.")
    return matrix.scores(), Outcomes({}, pixels=pixels)


def _finder(model: UperNet, frozen: FrozenBackbone, settings: SegmentSettings) -> Callable[[Image.Image], Tensor]:
    """From an image to its classes, (H, W) int64."""

    def logits(windows: Tensor) -> Tensor:
        with autocast(frozen.device, settings.precision):
            scores = model.logits(windows)
        if not scores.isfinite().all():
            raise FailedRunError("The scores of a test image are NaN or infinite: the training diverged. Give a lower lr.")
        return scores

    def find(image: Image.Image) -> Tensor:
        spec = frozen.spec
        return segment_image(logits, image, settings.scale, settings.crop, settings.stride, spec.mean, spec.std, frozen.device)

    return find


def _write(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as partial:
        picture.save(partial, "PNG")
