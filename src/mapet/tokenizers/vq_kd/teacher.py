"""VQ-KD's teacher: any kind of patch features on the tokenizer's grid, fitted once and kept, so that a training goes on with it."""

from __future__ import annotations

from pathlib import Path

import torch

from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource
from mapet.errors import CheckpointError, NotAllowedError, TokenizerError
from mapet.models.weights import load_strictly
from mapet.runtime.files import atomic_directory, recover, write_json
from mapet.runtime.json_files import read_json
from mapet.runtime.seeding import seeded_generator
from mapet.runtime.tensors import load_tensors, write_tensors
from mapet.tokenizers.clustering.nearest import full_float32
from mapet.tokenizers.features.base import FeatureExtractor, create_features, restore_features
from mapet.tokenizers.features.samples import images_to_fit
from mapet.tokenizers.vq_kd.settings import VQKDSettings

_SETTINGS, _WEIGHTS = "teacher.json", "weights.safetensors"


def create_teacher(settings: VQKDSettings, grid_size: tuple[int, int]) -> FeatureExtractor:
    """The teacher, not yet fitted.

    Args:
        settings: Name it, and the size at which it sees images.
        grid_size: Of the tokenizer: the teacher must have the same patches.

    Raises:
        TokenizerError: There are no such features, or their grid is another one.
    """
    size, rows = settings.teacher_image_size or settings.image_size, grid_size[0]
    requirement = f"The tokenizer has a grid of {grid_size[0]} x {grid_size[1]}, and its teacher must have the same"
    if size % rows:
        raise TokenizerError(
            f"{requirement}: {size} px cannot be divided so. Give a teacher image size such as {rows * max(1, size // rows)}."
        )
    try:
        teacher = create_features(settings.teacher, image_size=size, patch_size=size // rows, **settings.teacher_options)
    except TokenizerError as error:
        raise TokenizerError(f"The teacher at {size} px (--teacher-image-size): {error}") from error
    if teacher.grid_size != grid_size:
        actual = f"{teacher.grid_size[0]} x {teacher.grid_size[1]}"
        raise TokenizerError(f"{requirement}, not {actual}. Give another --teacher-image-size.")
    return teacher


def fit_teacher(
    teacher: FeatureExtractor,
    source: ImageSource,
    seed: int,
    folder: Path,
    *,
    device: torch.device,
    workers: int,
    unreadable: UnreadableImages,
) -> None:
    """Fits the teacher to a seeded sample of the images, and keeps it in `folder`.

    Args:
        teacher: Fitted in place.
        source: The images.
        seed: Determines the sample and every draw.
        folder: Where `saved_teacher` finds it.
        device: Where to compute.
        workers: Processes that decode images.
        unreadable: Counts and names the images that cannot be read.
    """
    order = torch.randperm(len(source), generator=seeded_generator(seed, "teacher images"))
    images = images_to_fit(teacher, source, order, "Fitting the teacher", workers, unreadable)
    with full_float32(device):
        teacher.to(device).fit(images.to(device), seeded_generator(seed, "teacher"))
    with atomic_directory(folder) as partial:
        write_tensors(partial / _WEIGHTS, teacher.state_dict())
        write_json(partial / _SETTINGS, teacher.settings())


def saved_teacher(folder: Path) -> FeatureExtractor | None:
    """The teacher that `fit_teacher` left in `folder`, on the CPU; None if there is none.

    Raises:
        CheckpointError: Its files are damaged.
    """
    if not recover(folder).is_dir():
        return None
    try:
        teacher = restore_features(read_json(folder / _SETTINGS, dict))
        load_strictly(teacher, load_tensors(folder / _WEIGHTS))
    except NotAllowedError:
        raise
    except Exception as error:
        raise CheckpointError(f"The teacher in {folder} is damaged: {error} Delete {folder.parent} to start again.") from error
    return teacher.eval().requires_grad_(False)
