"""Fits a tokenizer to images: features, a uniform sample of them on disk, k-means. The same call continues what was stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mapet.data.skipped import UnreadableImages
from mapet.data.source import ImageSource, subset
from mapet.errors import TokenizerError
from mapet.runtime.processes import Processes, barrier, broadcast_, gather_numbers, only_writers, process_group
from mapet.runtime.progress import progress, say
from mapet.runtime.seeding import derive_seed, seeded_generator
from mapet.tokenizers.base import refuse_existing, refuse_other_content
from mapet.tokenizers.clustering.kmeans import KMeansResult, kmeans
from mapet.tokenizers.clustering.nearest import full_float32
from mapet.tokenizers.clustering.points import StoredPoints
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import FeatureExtractor, create_features
from mapet.tokenizers.features.samples import PatchSample, SampledFeatures, images_to_fit, sample_features
from mapet.tokenizers.fit_settings import FitSettings

MEMORY = 4 * 2**30


def fit_tokenizer(
    source: ImageSource,
    settings: FitSettings,
    *,
    out: Path | str | None = None,
    keep_features: bool = False,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    workers: int = 0,
    unreadable: UnreadableImages,
) -> FeatureKMeans:
    """Fits features and clusters them to tokens; the same arguments give the same tokenizer.

    Started by torchrun, all processes share the images and cluster together.

    Args:
        source: The images.
        settings: What is fitted.
        out: Where the tokenizer is saved. Until then, features and clusters lie beside it in .OUT.features, and the same call
            continues with them after any interruption. Without it nothing is kept.
        keep_features: Leaves the features there, for another clustering of them.
        memory: Bytes of main memory for the features; more are read from the disk in every pass of k-means.
        device: Where features and clusters are computed.
        workers: Processes that decode images.
        unreadable: Counts and names the images that cannot be read.

    Returns:
        The tokenizer, on the CPU; its `fit_report` has inertia, used codes and perplexity.

    Raises:
        InUseError: Another process writes `out`.
        TokenizerError: There is a tokenizer at `out` whose features were not kept; there are fewer patches than tokens, images
            without contrast, or settings that do not fit.
        DataError: More unreadable images than `unreadable` allows.
        StorageError: Too little room for the features.
    """
    if out is not None:
        has_features = _features_beside(Path(out)).is_dir()  # for another clustering, or after an interruption
        (refuse_other_content if has_features else refuse_existing)(Path(out))
    with process_group(device) as processes, only_writers(out, processes), _work_folder(out) as folder:
        fit = _Fit(source, settings, folder, memory, processes, processes.device(device), workers, unreadable)
        with full_float32(fit.device):
            tokenizer = fit.run()
        if out is not None and processes.rank == 0:
            tokenizer.save(out)
        barrier()  # until the tokenizer is there, all are needed to continue
        if not keep_features:
            shutil.rmtree(folder, ignore_errors=True)
    return tokenizer


@contextmanager
def _work_folder(out: Path | str | None) -> Iterator[Path]:
    """Where features and clusters lie until the tokenizer is saved: beside it, or in a folder that is removed in any case."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="mapet-features-") as folder:
            yield Path(folder)
    else:
        yield _features_beside(Path(out))


def _features_beside(out: Path) -> Path:
    path = out.absolute()
    return path.with_name(f".{path.name}.features")


@dataclass(frozen=True)
class _Fit:
    """One call of `fit_tokenizer`, in one of its processes."""

    source: ImageSource
    settings: FitSettings
    folder: Path
    memory: int
    processes: Processes
    device: torch.device
    workers: int
    unreadable: UnreadableImages

    def run(self) -> FeatureKMeans:
        settings = self.settings
        extractor = create_features(
            settings.features, image_size=settings.image_size, patch_size=settings.patch_size, **settings.feature_options
        ).to(self.device)
        order = torch.randperm(len(self.source), generator=seeded_generator(settings.seed, "tokenizer images"))
        indices = order[: settings.max_images]
        sample = self._patch_sample(len(indices), extractor)
        self._fit_features(extractor, indices)
        images = subset(self.source, indices.sort().values.numpy())  # in the order in which they lie on the disk
        features = sample_features(
            images,
            extractor,
            sample,
            self.folder,
            device=self.device,
            workers=self.workers,
            unreadable=self.unreadable,
            processes=self.processes,
        )
        result, points = self._cluster(features)
        if settings.vocab_size > 1 and int((result.counts > 0).sum()) == 1:
            raise TokenizerError(
                f"The features of all {points} patches are the same, so that there is one token only. Check the images, or give "
                "other features."
            )
        tokenizer = FeatureKMeans(extractor.cpu(), result.centroids.cpu())
        tokenizer.fit_report = _report(result, points, sum(gather_numbers(features.images)), settings.seed)
        self._say(tokenizer)
        return tokenizer

    def _patch_sample(self, images: int, extractor: FeatureExtractor) -> PatchSample:
        patches = extractor.grid_size[0] * extractor.grid_size[1]
        per_image = self.settings.per_image(images, patches)
        expected = round(images * per_image)
        if expected < self.settings.vocab_size:
            raise TokenizerError(
                f"{images} images of {patches} patches give {expected} points, fewer than the {self.settings.vocab_size} tokens "
                "requested. Lower the vocabulary size, add images, or raise num_points or share."
            )
        return PatchSample(patches, per_image, self.settings.seed)

    def _fit_features(self, extractor: FeatureExtractor, indices: Tensor) -> None:
        """Fits the extractor to the first images of `indices`, in all processes to the same bits."""
        images = images_to_fit(extractor, self.source, indices, "Fitting features", self.workers, self.unreadable)
        extractor.fit(images.to(self.device), seeded_generator(self.settings.seed, "features"))
        for tensor in extractor.state_dict().values():
            broadcast_(tensor)

    def _cluster(self, features: SampledFeatures) -> tuple[KMeansResult, int]:
        """k-means over the features of all processes, with a progress bar; also how many they are."""
        settings, passes = self.settings, self.settings.iterations + 1
        points = sum(gather_numbers(features.points))
        name = f"k-means-{settings.vocab_size}-{settings.iterations}-{settings.restarts}-{features.job[:16]}.safetensors"
        with progress("Clustering", settings.restarts * passes) as bar:

            def show(restart: int, iteration: int, inertia: float) -> None:
                bar.advance(restart * passes + iteration + 1 - bar.done)
                bar.note(f"restart {restart + 1}/{settings.restarts}, inertia {inertia / points:.4g} per point")

            result = kmeans(
                StoredPoints(features.path),
                settings.vocab_size,
                seed=derive_seed(settings.seed, "k-means"),
                iterations=settings.iterations,
                restarts=settings.restarts,
                device=self.device,
                memory=self.memory,
                checkpoint=self.folder / name,
                sharded=self.processes.world > 1,
                on_iteration=show,
            )
            bar.advance(settings.restarts * passes - bar.done)
        return result, points

    def _say(self, tokenizer: FeatureKMeans) -> None:
        if self.processes.rank == 0:
            report = tokenizer.fit_report
            say(
                f"k-means: inertia {report['inertia_per_point']:.4g} per point; {report['used_codes']} of {tokenizer.vocab_size} "
                f"tokens used, perplexity {report['perplexity']:.0f}"
            )


def _report(result: KMeansResult, num_points: int, num_images: int, seed: int) -> dict[str, Any]:
    """The entry of tokenizer.json about the fit."""
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
