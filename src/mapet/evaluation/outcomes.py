"""What became of every test image: what figures are means of, and what two backbones are compared by, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mapet.data.source import KEY_LENGTH
from mapet.errors import CheckpointError, DataError, FailedRunError
from mapet.runtime.files import atomic_file
from mapet.runtime.tensors import open_tensors, write_tensors

MEAN_PER_CLASS = "mean_per_class"
SUFFIX = ".outcomes.safetensors"


@dataclass(frozen=True)
class Outcomes:
    """Of n test images, in the order of their source, without those that cannot be read.

    Args:
        values: Name of a figure to (n,) float64, 0 to 1, of which the figure is the mean.
        labels: (n,) int64, of a classification.
        pixels: (n, 3, C) int64, of a segmentation: pixels of every class that are right, that are true, and that are predicted.
    """

    values: dict[str, Tensor]
    labels: Tensor | None = None
    pixels: Tensor | None = None

    def metrics(self) -> dict[str, float]:
        """The mean of every value, and the mean over the classes that occur of the share found in each (of `top1`)."""
        metrics = {name: float(value.mean()) for name, value in self.values.items()}
        if self.labels is None:
            return metrics
        counts = torch.bincount(self.labels)
        per_class = torch.bincount(self.labels, weights=self.values["top1"])[counts > 0] / counts[counts > 0]
        return {**metrics, MEAN_PER_CLASS: float(per_class.mean())}


def classified(scores: Tensor, labels: Tensor) -> Outcomes:
    """Whether the class of every image was found: `top1`, and `top5` among the five likeliest (all classes where there are fewer).

    Args:
        scores: (n, C), the higher the likelier.
        labels: (n,) int64.

    Raises:
        DataError: n is 0.
        FailedRunError: A score is not a number.
    """
    if not len(labels):
        raise DataError("No test image could be read, so that nothing can be evaluated.")
    if broken := int((~scores.isfinite()).any(dim=1).sum()):
        raise FailedRunError(
            f"The scores of {broken} of {len(labels)} test images are NaN or infinite, so that there is no figure."
        )
    best, labels = scores.topk(min(5, scores.shape[1]), dim=1).indices.cpu(), labels.cpu()
    correct = best == labels[:, None]
    return Outcomes({"top1": correct[:, 0].double(), "top5": correct.any(dim=1).double()}, labels)


def save_outcomes(path: Path, keys: np.ndarray, parts: dict[str, Outcomes]) -> None:
    """Writes outcomes with the sample key of every image, so that other results on the same images can be compared with them.

    Args:
        path: The file, beside the result.
        keys: (n,) sample keys as bytes.
        parts: "pre-trained" and "random", as far as there are any.
    """
    digits = np.frombuffer(bytearray.fromhex(b"".join(keys.tolist()).decode()), np.uint8)
    tensors = {"keys": torch.from_numpy(digits).view(len(keys), KEY_LENGTH // 2)}
    for part, outcomes in parts.items():
        for name, value in outcomes.values.items():
            whole = bool((value == value.round()).all())
            tensors[f"{part}.{name}"] = value.to(torch.uint8 if whole else torch.float32)
        if outcomes.labels is not None:
            tensors["labels"] = outcomes.labels.int()
        if outcomes.pixels is not None:
            tensors[f"{part}.pixels"] = outcomes.pixels
    with atomic_file(path) as partial:
        write_tensors(partial, tensors)
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody else read what it writes


def load_outcomes(path: Path, part: str = "pre-trained") -> tuple[np.ndarray, Outcomes]:
    """The sample keys (n,), and what became of every image.

    Args:
        path: As `save_outcomes` wrote it.
        part: "pre-trained" or "random".

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        with open_tensors(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Run the evaluation again to write it anew.") from None
    part_tensors = {name.removeprefix(f"{part}."): value for name, value in tensors.items() if name.startswith(f"{part}.")}
    pixels, labels = part_tensors.pop("pixels", None), tensors.get("labels")
    if not _fit(tensors.get("keys"), part_tensors, labels, pixels):
        raise CheckpointError(f"{path} holds what no evaluation writes. Run the evaluation again to write it anew.")
    keys = np.array([bytes(key).hex() for key in tensors["keys"].numpy()], f"S{KEY_LENGTH}")
    outcomes = Outcomes(
        {name: value.double() for name, value in part_tensors.items()}, None if labels is None else labels.long(), pixels
    )
    return keys, outcomes


def _fit(keys: Tensor | None, values: Mapping[str, Tensor], labels: Tensor | None, pixels: Tensor | None) -> bool:
    """Whether these are outcomes of the same images."""
    if keys is None or keys.dtype != torch.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_LENGTH // 2:
        return False
    shares = all(value.shape == keys.shape[:1] and bool(((value >= 0) & (value <= 1)).all()) for value in values.values())
    classes = labels is None or (labels.shape == keys.shape[:1] and not labels.is_floating_point())
    return shares and classes and (pixels is None or (pixels.ndim == 3 and pixels.shape[:2] == (len(keys), 3)))
