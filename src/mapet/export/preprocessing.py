"""Whether the preprocessing that is exported with a model gives the pixels that evaluations here see.

timm's transform is torchvision's: the same crop and the same pixels. The image processors of transformers start the central crop
at floor(margin / 2); `EvaluationView` rounds half a pixel to the even number. Where a margin is 3, 7, 11, ... pixels, theirs starts
one pixel further left or above. No processor of transformers that takes any image has the other rule, so an export for transformers
states the difference, and is held to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mapet.data.views import EvaluationView
from mapet.errors import FailedRunError
from mapet.models.spec import BackboneSpec
from mapet.runtime.seeding import seeded_generator

TOLERANCE = 3  # of 255: torchvision rounds a resized picture otherwise than Pillow


def check_preprocessing(spec: BackboneSpec, theirs: Callable[[Image.Image], Tensor], half: Callable[[float], int] = round) -> None:
    """Compares the pixels of pictures of odd and even sizes with those of `EvaluationView`.

    Args:
        spec: Of the backbone: image size, share that is seen, mean and standard deviation.
        theirs: From a picture in mode RGB to what the model gets: (3, size, size), normalised.
        half: How half a margin becomes the place where the crop starts.

    Raises:
        FailedRunError: A picture comes out more than `TOLERANCE` levels of 255 away.
    """
    view = EvaluationView(spec.image_size, spec.crop_fraction)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    for picture in _pictures(view):
        resized = view.resized(picture)
        left, top = (half((side - view.size) / 2) for side in resized.size)
        ours = np.array(resized.crop((left, top, left + view.size, top + view.size)))
        exported = 255 * (theirs(picture) * std + mean)
        difference = float((exported - torch.from_numpy(ours).permute(2, 0, 1)).abs().max())
        if not difference <= TOLERANCE:
            raise FailedRunError(
                f"The exported preprocessing gives other pixels than mapet's for a picture of {picture.width} x {picture.height}: "
                f"up to {difference:.0f} of 255 levels, more than {TOLERANCE}. Nothing was kept. Please report this with the "
                "versions of transformers, timm and torchvision."
            )


def floor_note(spec: BackboneSpec) -> str:
    """The sentence on exports whose crop starts at floor(margin / 2)."""
    side = EvaluationView(spec.image_size, spec.crop_fraction).shorter_side
    return (
        f"The image processor cuts the centre as transformers does. Where a side of the resized image (the shorter one has {side} "
        f"pixels) is {spec.image_size} plus 3, 7, 11, ... pixels long, its crop lies one pixel further left or above than in "
        "mapet's evaluations, as for an image of 640 x 427 at 224 pixels; all other images have the same crop. Resized values "
        f"differ by at most {TOLERANCE} of 255 levels. The timm export has mapet's crop for every size."
    )


def _pictures(view: EvaluationView) -> Iterator[Image.Image]:
    """Landscape, portrait and square, as large as the crop, and with margins of every remainder by four."""
    crop, side = view.size, view.shorter_side
    beside = [(side + more, side) for more in range(5)] + [(side, side + more) for more in range(1, 5)]
    generator = seeded_generator(0, "export")
    for width, height in [(crop, crop), *beside, (640, 427), (427, 640), (500, 375), (333, 500)]:
        coarse = torch.randint(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=torch.uint8, generator=generator)
        yield Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC)
