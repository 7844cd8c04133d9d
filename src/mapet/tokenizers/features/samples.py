"""A uniform sample of patch features, in one pass over the images, on disk: what k-means clusters.

Which patches of an image are taken is a function of (seed, sample key): it depends neither on the order of the images nor on the
number of workers or processes, nor on where an earlier attempt was stopped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from mapet.data.batch import LoadedBatch, UnreadableImage
from mapet.data.loader import ViewRenderer, make_loader
from mapet.data.order import sequential_batches
from mapet.data.skipped import UnreadableImages, walk
from mapet.data.source import ImageSource, sample_keys, subset
from mapet.data.views import FixedView
from mapet.errors import StorageError, TokenizerError
from mapet.runtime.processes import Processes
from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.features.base import FeatureExtractor
from mapet.tokenizers.features.file import FeatureFile, Written

BATCH_SIZE = 64
# Pixel values that features are fitted on at once (256 MiB of float32).
FIT_VALUES = 2**26


@dataclass(frozen=True)
class PatchSample:
    """Which patches of an image are taken.

    Args:
        patches: Patches of an image.
        per_image: How many of them, on average over images; at most all.
        seed: Determines every draw.
    """

    patches: int
    per_image: float
    seed: int

    def count(self, key: str) -> int:
        """Patches of this image: `per_image`, rounded up or down by chance so that it comes out right on average."""
        return self._draw(key)[0]

    def patch_indices(self, key: str) -> Tensor:
        """(count,) numbers of patches in raster order, in random order."""
        count, generator = self._draw(key)
        return torch.randperm(self.patches, generator=generator)[:count]

    def _draw(self, key: str) -> tuple[int, torch.Generator]:
        generator = seeded_generator(self.seed, "tokenizer patches", key)
        expected = min(float(self.patches), self.per_image)
        more = float(torch.rand((), generator=generator, dtype=torch.float64)) < expected % 1
        return int(expected) + more, generator


@dataclass(frozen=True)
class SampledFeatures:
    """What a process has extracted.

    Args:
        path: The .npy file, (n, dim) float16.
        job: Names all that they depend on.
        images: Images that gave patches.
        points: n.
    """

    path: Path
    job: str
    images: int
    points: int


def images_to_fit(
    extractor: FeatureExtractor, source: ImageSource, order: Tensor, title: str, workers: int, unreadable: UnreadableImages
) -> Tensor:
    """The first images of `order` (n, 3, size, size) in [0, 1] that can be read, as many as the extractor is fitted to."""
    count = min(extractor.images_to_fit, FIT_VALUES // (3 * extractor.image_size**2) or 1)
    images, view = subset(source, order[:count].numpy()), FixedView(extractor.image_size)
    loader = make_loader(images, ViewRenderer(view), sequential_batches(len(images), BATCH_SIZE), workers)
    batches = walk(title, loader, len(images), unreadable, after=2.0)
    return torch.cat([torch.empty(0, 3, view.size, view.size), *(batch.images.float() / 255 for batch in batches)])


@torch.no_grad()
def sample_features(
    source: ImageSource,
    extractor: FeatureExtractor,
    sample: PatchSample,
    folder: Path,
    *,
    device: torch.device,
    workers: int,
    unreadable: UnreadableImages,
    processes: Processes | None = None,
) -> SampledFeatures:
    """Extracts the features of `sample` into a file in `folder`, or completes what an interrupted call left there.

    Args:
        source: The images; those that give no patch are not decoded.
        extractor: Fitted, on `device`.
        sample: Which patches.
        folder: Where the file lies; features of other settings there are not touched.
        device: Where the extractor computes.
        workers: Processes that decode images.
        unreadable: Counts and names the images that cannot be read.
        processes: This process among those that share the images, batches in order; each has a file of its own.

    Raises:
        TokenizerError: Features that are NaN, infinite or too large for float16; the image is named.
        StorageError: The disk is full, or has too little room from the beginning.
    """
    processes = processes or Processes()
    keys = sample_keys(source)
    indices = _share([i for i, key in enumerate(keys) if sample.count(key)], processes)
    path = folder / f"features-{processes.rank}-of-{processes.world}.npy"
    job = _digest(extractor, sample, [keys[i] for i in indices])
    file = FeatureFile(path, extractor.dim, job)
    unreadable.record(UnreadableImage(**image) for image in file.written.unreadable)
    if not file.written.finished:
        _refuse_full_disk(folder, (sum(sample.count(keys[i]) for i in indices) - file.written.rows) * extractor.dim * 2)
        with file:
            _extract(subset(source, indices), extractor, sample, file, device, workers, unreadable)
            file.finish()
    return SampledFeatures(path, job, file.written.images, file.written.rows)


def _share(images: list[int], processes: Processes) -> list[int]:
    """Those of this process: whole batches in order, so that all processes together have the features of one, in its order."""
    batches = -(-len(images) // BATCH_SIZE)
    first, last = (batches * rank // processes.world for rank in (processes.rank, processes.rank + 1))
    return images[first * BATCH_SIZE : last * BATCH_SIZE]


def _digest(extractor: FeatureExtractor, sample: PatchSample, keys: Sequence[str]) -> str:
    """Names all that the features in a file depend on, in their order."""
    facts = {"extractor": extractor.fingerprint, "sample": asdict(sample), "batch": BATCH_SIZE}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    digest.update(" ".join(keys).encode())
    return digest.hexdigest()


def _extract(
    source: ImageSource,
    extractor: FeatureExtractor,
    sample: PatchSample,
    file: FeatureFile,
    device: torch.device,
    workers: int,
    unreadable: UnreadableImages,
) -> None:
    """Adds batch after batch to `file`, from the first that it does not have."""
    batches = sequential_batches(len(source), BATCH_SIZE)[file.written.batches :]
    loader = make_loader(source, ViewRenderer(FixedView(extractor.image_size)), batches, workers, device)
    for batch in walk("Extracting features", loader, len(source), unreadable, done=_images_in(file.written)):
        features = _sampled(batch, extractor, sample, device)
        _refuse_overflow(features, batch, sample, source)
        file.add(features, len(batch.keys), [asdict(image) for image in batch.unreadable])


def _images_in(written: Written) -> int:
    return written.images + len(written.unreadable)


def _sampled(batch: LoadedBatch, extractor: FeatureExtractor, sample: PatchSample, device: torch.device) -> Tensor:
    """(n, dim) float16 on the CPU: the chosen patches of a batch, image after image."""
    if not batch.keys:
        return torch.empty(0, extractor.dim, dtype=torch.float16)
    features = extractor(batch.images.to(device, non_blocking=True).float() / 255).flatten(0, 2)
    rows = torch.cat([position * sample.patches + sample.patch_indices(key) for position, key in enumerate(batch.keys)])
    return features[rows.to(device)].half().cpu()


def _refuse_overflow(features: Tensor, batch: LoadedBatch, sample: PatchSample, source: ImageSource) -> None:
    """Stops at numbers that no mean survives."""
    broken = (~features.isfinite()).any(1).nonzero()[:, 0].tolist()
    if broken:
        owners = [position for position, key in enumerate(batch.keys) for _ in range(sample.count(key))]
        index = int(batch.indices[owners[broken[0]]])
        raise TokenizerError(
            f"{len(broken)} patches have features that are NaN, infinite or above {torch.finfo(torch.float16).max:.0f}, the first "
            f"in {source.describe(index)}. Check the weights; if they are right, give another layer or another model."
        )


def _refuse_full_disk(folder: Path, needed: int) -> None:
    """Before hours of work, not after."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise StorageError(
            f"The features take {needed / 2**20:,.1f} MiB in {folder}, where {free / 2**20:,.1f} MiB are free. Make room, give "
            "another --out, or cluster fewer patches (--points, --share)."
        )
