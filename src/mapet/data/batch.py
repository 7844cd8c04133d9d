"""Batches: what was loaded of a source, and what an objective is given."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class UnreadableImage:
    """An image that was skipped.

    Args:
        index: Position in the source.
        key: Its sample key; "" where not even its bytes could be read.
        description: Shown to the user: a path, or a row.
        reason: Why, in words.
    """

    index: int
    key: str
    description: str
    reason: str


@dataclass(frozen=True)
class LoadedBatch:
    """The readable samples of one batch, in the requested order; B may be smaller than requested, or 0.

    Args:
        images: (B, 3, H, W) uint8; where an image is seen in V views, (B * V, 3, H, W), those of an image behind each other.
        keys: B sample keys.
        labels: (B,) int64, or None where the source has none; (B, H, W) int16 where every pixel has one.
        indices: (B,) int64 positions in the source.
        unreadable: What was skipped.
        views: The numbers of the V views.
        tokenizer_images: The same regions as `images` as the tokenizer sees them, (B * V, 3, T, T) uint8, where they are used.
    """

    images: Tensor
    keys: list[str]
    labels: Tensor | None
    indices: Tensor
    unreadable: list[UnreadableImage]
    views: tuple[int, ...] = (0,)
    tokenizer_images: Tensor | None = None

    def only(self, rows: list[int]) -> LoadedBatch:
        """Some of the B samples of a batch that shows one view of each; what could not be read stays."""
        tensors = {name: tensor[rows] for name, tensor in self._optional.items() if tensor is not None}
        keys = [self.keys[row] for row in rows]
        return replace(self, images=self.images[rows], keys=keys, indices=self.indices[rows], **tensors)

    @property
    def _optional(self) -> dict[str, Tensor | None]:
        return {"labels": self.labels, "tokenizer_images": self.tokenizer_images}

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory, from where a CUDA device copies in the background; torch's DataLoader calls it."""
        pinned = {name: None if tensor is None else tensor.pin_memory() for name, tensor in self._optional.items()}
        return replace(self, images=self.images.pin_memory(), **pinned)

    def share_memory(self) -> LoadedBatch:
        """The same in shared memory; raises RuntimeError where that is full."""
        for tensor in (self.images, self.labels, self.indices, self.tokenizer_images):
            if tensor is not None and tensor.numel():
                tensor.share_memory_()
        return self


@dataclass(frozen=True)
class Batch:
    """Normalised images and the visual tokens of their patches.

    Args:
        images: (B, 3, H, W) float, normalised as the backbone expects.
        token_ids: (B, N_p) int64, one visual token for every patch in raster order; None where no objective needs them.
    """

    images: Tensor
    token_ids: Tensor | None = None
