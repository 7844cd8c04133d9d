"""Fits a tokenizer to images: a seeded sample of them, features of random patches, k-means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mapet.data.loader import UnreadableImages, make_loader, sequential_batches
from mapet.data.sources import ImageSource, subset
from mapet.data.views import FixedView
from mapet.errors import TokenizerError
from mapet.runtime.progress import progress, say
from mapet.runtime.seeding import seeded_generator
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features import FeatureExtractor, create_features
from mapet.tokenizers.kmeans import KMeansResult, kmeans
from mapet.tokenizers.nearest import full_float32

BATCH_SIZE = 64
# Pixel values that features are fitted on at once (256 MiB of float32).
FIT_VALUES = 2**26


def fit_tokenizer(
    source: ImageSource,
    *,
    features: str,
    feature_options: dict[str, Any],
    image_size: int,
    patch_size: int,
    vocab_size: int,
    num_points: int = 200_000,
    max_images: int = 20_000,
    iterations: int = 20,
    restarts: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 0,
    unreadable: UnreadableImages,
) -> FeatureKMeans:
    """Fits `features` and clusters them into `vocab_size` tokens; the same arguments give the same tokenizer.

    Args:
        source: The images.
        features: As in `create_features`: "pixels", "coates", a timm model's name.
        feature_options: Settings of that kind of features.
        image_size: Height and width at which images are tokenised, in pixels.
        patch_size: Height and width of a patch at that size.
        vocab_size: Number of tokens.
        num_points: About how many patches are clustered.
        max_images: At most so many images are read, a random sample.
        iterations: Of k-means, per restart.
        restarts: Of k-means; the lowest inertia wins.
        seed: Determines the sample and every draw.
        device: Where features and clusters are computed.
        workers: Processes that decode images.
        unreadable: Counts and names the images that cannot be read.

    Returns:
        The tokenizer, on the CPU; its `fit_report` tells inertia, used codes and perplexity.

    Raises:
        TokenizerError: Fewer patches than tokens, or settings that do not fit.
        DataError: More unreadable images than `unreadable` allows.
    """
    if misplaced := [name for name in ("name", "image_size", "patch_size") if name in feature_options]:
        raise TokenizerError(f"{misplaced[0]} is no option of the features; it is set beside them.")
    extractor = create_features(features, image_size=image_size, patch_size=patch_size, **feature_options).to(device)
    sample = _sample(source, max_images, seed)
    patches = extractor.grid_size[0] * extractor.grid_size[1]
    per_image = min(patches, -(-num_points // len(sample)))
    if per_image * len(sample) < vocab_size:
        raise TokenizerError(
            f"{len(sample)} images of {patches} patches give {per_image * len(sample)} points, fewer than the {vocab_size} tokens "
            "asked for. Lower the vocabulary size, add images, or raise num_points."
        )
    reader = _Reader(image_size, torch.device(device), workers, unreadable)
    with full_float32(reader.device):
        count = min(extractor.images_to_fit, FIT_VALUES // (3 * image_size**2) or 1, len(sample))
        extractor.fit(reader.first(sample, count), seeded_generator(seed, "features"))
        points = _points(reader, sample, extractor, per_image, seed)
        result = _cluster(points, vocab_size, iterations, restarts, seed, reader.device)
    tokenizer = FeatureKMeans(extractor.cpu(), result.centroids.cpu())
    tokenizer.fit_report = _report(result, len(points), len(points) // per_image, seed)
    say(
        f"k-means: inertia {tokenizer.fit_report['inertia_per_point']:.4g} per point; {tokenizer.fit_report['used_codes']} of "
        f"{vocab_size} tokens used, perplexity {tokenizer.fit_report['perplexity']:.0f}"
    )
    return tokenizer


def _sample(source: ImageSource, max_images: int, seed: int) -> ImageSource:
    """At most `max_images` of the images, in random order."""
    order = torch.randperm(len(source), generator=seeded_generator(seed, "tokenizer images"))
    return subset(source, order[:max_images].numpy())


@dataclass(frozen=True)
class _Reader:
    """Reads images as `encode` will see them: the fixed view, in [0, 1], on the device."""

    image_size: int
    device: torch.device
    workers: int
    unreadable: UnreadableImages

    def read(self, source: ImageSource, description: str) -> Iterator[tuple[Tensor, list[str]]]:
        """Yields images (B, 3, image_size, image_size) and their keys, with a progress bar."""
        batches, pinned = sequential_batches(len(source), BATCH_SIZE), self.device.type == "cuda"
        with progress(description, len(source)) as bar:
            for batch in make_loader(source, FixedView(self.image_size), batches, self.workers, pin_memory=pinned):
                self.unreadable.record(batch.unreadable)
                if batch.keys:
                    yield batch.images.to(self.device, non_blocking=True).float() / 255, batch.keys
                bar.advance(len(batch.keys) + len(batch.unreadable))

    def first(self, source: ImageSource, count: int) -> Tensor:
        """The first `count` images, those that can be read, in one tensor."""
        empty = torch.empty(0, 3, self.image_size, self.image_size, device=self.device)
        if not count:
            return empty
        images = self.read(subset(source, range(count)), "Fitting features")
        return torch.cat([empty, *(chunk for chunk, _ in images)])


def _points(reader: _Reader, sample: ImageSource, extractor: FeatureExtractor, per_image: int, seed: int) -> Tensor:
    """Features (n, dim) of `per_image` random patches of every image, in main memory."""
    points = torch.empty(len(sample) * per_image, extractor.dim)
    filled = 0
    for images, keys in reader.read(sample, "Extracting features"):
        features = extractor(images).flatten(1, 2)
        chosen = torch.stack([_random_patches(features.shape[1], per_image, seed, key) for key in keys])
        drawn = features.gather(1, chosen[..., None].expand(-1, -1, extractor.dim).to(features.device)).flatten(0, 1)
        points[filled : filled + len(drawn)] = drawn.cpu()
        filled += len(drawn)
    return points[:filled]


def _random_patches(patches: int, count: int, seed: int, key: str) -> Tensor:
    return torch.randperm(patches, generator=seeded_generator(seed, "tokenizer patches", key))[:count]


def _cluster(points: Tensor, vocab_size: int, iterations: int, restarts: int, seed: int, device: torch.device) -> KMeansResult:
    """k-means with a progress bar."""
    passes = iterations + 1
    with progress("Clustering", restarts * passes) as bar:

        def show(restart: int, iteration: int, inertia: float) -> None:
            bar.advance(restart * passes + iteration + 1 - bar.done)
            bar.note(f"restart {restart + 1}/{restarts}, inertia {inertia / len(points):.4g} per point")

        generator = seeded_generator(seed, "k-means")
        result = kmeans(
            points,
            vocab_size,
            iterations=iterations,
            restarts=restarts,
            generator=generator,
            device=device,
            on_iteration=show,
        )
        bar.advance(restarts * passes - bar.done)
    return result


def _report(result: KMeansResult, num_points: int, num_images: int, seed: int) -> dict[str, Any]:
    """What tokenizer.json tells about the fit."""
    shares = result.counts[result.counts > 0].double() / num_points
    return {
        "images": num_images,
        "points": num_points,
        "seed": seed,
        "iterations": result.iterations,
        "inertia": result.inertia,
        "inertia_per_point": result.inertia / num_points,
        "used_codes": len(shares),
        "perplexity": float(torch.exp(-(shares * shares.log()).sum())),
    }
