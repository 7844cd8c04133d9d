"""Patch features: what a tokenizer clusters. One vector for every patch of the grid.

`create_features` builds one by name: "pixels", "coates", any timm model ("resnet50x64_clip.openai", "timm:resnet18",
"timm:resnet18@weights.safetensors"), or the folder of a run of our own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mapet.config.architecture import LARGEST_IMAGE
from mapet.errors import TokenizerError
from mapet.models.weights import fingerprint
from mapet.registry import Registry, check_options


class FeatureExtractor(nn.Module, ABC):
    """Maps images to one feature vector per patch; its parameters come from `fit`.

    A subclass raises `code_version` when the same settings and parameters would give other features.

    Args:
        image_size: Height and width of its images in pixels.
        grid_size: Patches from top to bottom and from left to right.
        dim: Length of a feature vector.
    """

    code_version: ClassVar[int] = 1
    # Number of images that `fit` uses; 0 where nothing is estimated from images.
    images_to_fit = 0

    def __init__(self, image_size: int, grid_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise TokenizerError(f"A feature vector has at least one value; dim is {dim}.")
        self.image_size, self.grid_size, self.dim = image_size, grid_size, dim

    @abstractmethod
    def fit(self, images: Tensor, generator: torch.Generator) -> None:
        """Finds the parameters.

        Args:
            images: (n, 3, image_size, image_size) in [0, 1]; `images_to_fit` of them are enough.
            generator: Source of all draws.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, gh, gw, dim) of images (B, 3, image_size, image_size) in [0, 1]."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What `create_features` needs to build it again, without its parameters."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over code version, settings and every tensor, in hex: equal fingerprints give equal features."""
        facts = {"code_version": self.code_version, "settings": self.settings()}
        return fingerprint(self, facts)


FEATURES: Registry[type[FeatureExtractor]] = Registry(
    "kind of features",
    {
        "pixels": "mapet.tokenizers.features.pixels:PixelFeatures",
        "coates": "mapet.tokenizers.features.coates:CoatesFeatures",
        "timm": "mapet.tokenizers.features.timm_model:TimmFeatures",
        "run": "mapet.tokenizers.features.run:RunFeatures",
    },
    base="mapet.tokenizers.features.base:FeatureExtractor",
    error=TokenizerError,
)
# Options by which features are made anew, and which saved ones do not have.
FETCHING_OPTIONS = ("checkpoint", "run")


def create_features(name: str, *, image_size: int, patch_size: int, **options: Any) -> FeatureExtractor:
    """An extractor by name, not yet fitted.

    Args:
        name: "pixels", "coates", a timm model's name, "timm:NAME", "timm:NAME@FILE", the folder of a run, "run:FOLDER" or
            "package.module:Class" (after `mapet.allow`).
        image_size: Height and width of its images in pixels, a multiple of `patch_size`.
        patch_size: Height and width of a patch, so that the grid has image_size / patch_size patches a side.
        options: Settings of that kind of features.

    Raises:
        TokenizerError: Unknown name or option, an option's value of another type, or sizes that do not fit.
    """
    kind, options = resolve_features(name, options)
    return _create(kind, {"image_size": image_size, "patch_size": patch_size, **options})


def restore_features(settings: Any) -> FeatureExtractor:
    """The extractor that `settings()` described, as a file keeps it; its parameters are loaded afterwards.

    Nothing is fetched and no other file is opened: a model's weights are beside the settings.

    Raises:
        TokenizerError: Unknown kind or option, or a value of another type.
        NotAllowedError: The kind is a class that the user did not type.
    """
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise TokenizerError(f"The settings of the features are {settings!r:.80}, without a name.")
    options = {name: value for name, value in settings.items() if name != "name"}
    for name in FETCHING_OPTIONS:
        if options.get(name) is not None:
            raise TokenizerError(f"Settings of saved features name a file ({name}): their weights lie beside them.")
    return _create(settings["name"], options)


def _create(kind: str, options: Mapping[str, Any]) -> FeatureExtractor:
    """Those of a kind, where a whole number of patches fits into an image."""
    check_options(f"The {FEATURES.kind} '{kind}'", FEATURES.get(kind), options, TokenizerError)
    image_size, patch_size = options["image_size"], options["patch_size"]
    if min(image_size, patch_size) < 1 or max(image_size, patch_size) > LARGEST_IMAGE or image_size % patch_size:
        raise TokenizerError(
            f"Image size {image_size} is not a multiple of the patch size {patch_size}. "
            f"Give an image size such as {min(LARGEST_IMAGE, max(1, image_size // max(1, patch_size)) * patch_size)}."
        )
    return FEATURES.create(kind, **options)


def run_behind(name: str) -> str | None:
    """The folder of a run that `name` means: "run:FOLDER", or a folder that is here. A timm model's name means the model."""
    from mapet.compat import timm

    prefix, _, rest = name.partition(":")
    if prefix == "run" and rest:
        return rest
    return name if name and Path(name).is_dir() and name not in FEATURES and not timm.is_model(name) else None


def resolve_features(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The registered kind behind `name`, and the options that `name` implies."""
    if name in FEATURES:
        return name, options
    if run := run_behind(name):
        return "run", {**options, "run": run}
    prefix, colon, rest = name.partition(":")
    if colon and prefix != "timm":
        return name, options
    model, _, checkpoint = (rest if colon else name).partition("@")
    return "timm", {**options, "model": model, **({"checkpoint": checkpoint} if checkpoint else {})}


class Whitening(nn.Module):
    """Principal components scaled to (nearly) unit variance; a rotation of ZCA, so Euclidean distances are the same.

    Args:
        dim_in: Length of the vectors.
        dim_out: Components kept, the strongest first.
        epsilon: Added to each component's variance, relative to the mean variance of the input: damps the weak ones.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, dim_in: int, dim_out: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("mean", torch.full((dim_in,), float("nan")))
        self.register_buffer("components", torch.full((dim_out, dim_in), float("nan")))

    @torch.no_grad()
    def fit(self, samples: Iterable[Tensor]) -> None:
        """Estimates mean and components from chunks (n, dim_in), one after the other, with sums in float64.

        Raises:
            TokenizerError: The samples are all alike: whitening would enlarge their rounding errors to features.
        """
        count, shift = 0, None
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        products = torch.zeros(2 * total.shape, dtype=torch.float64, device=total.device)
        for chunk in samples:
            # A nearby origin keeps float32 products exact enough.
            shift = chunk.mean(0) if shift is None else shift
            near = chunk - shift
            count, total = count + len(chunk), total + near.sum(0, dtype=torch.float64)
            products += near.T @ near
        assert shift is not None
        mean = total / count
        variances, vectors = torch.linalg.eigh(products / count - mean.outer(mean))
        if not float(variances.mean()) > LEAST_VARIANCE:
            raise TokenizerError(
                "Features cannot be fitted to images without contrast: each has one colour only, or all are alike. Check the "
                "images, or give others."
            )
        variances, vectors = variances.flip(0), vectors.flip(1)
        floor = self.epsilon * variances.mean() + torch.finfo(torch.float32).tiny
        scaled = vectors / (variances.clamp_min(0) + floor).sqrt()
        self.mean.copy_(mean + shift)
        self.components.copy_(_with_fixed_signs(scaled.T)[: len(self.components)])

    def forward(self, samples: Tensor) -> Tensor:
        """(..., dim_in) -> (..., dim_out)."""
        return (samples - self.mean) @ self.components.T


def _with_fixed_signs(components: Tensor) -> Tensor:
    """Each row with its largest entry positive: eigenvectors are only determined up to their sign."""
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)


def normalise_contrast(windows: Tensor) -> Tensor:
    """Takes brightness and contrast out of every pixel window (..., values in [0, 1]), as Coates & Ng (2012) do."""
    centred = windows - windows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + CONTRAST_FLOOR).sqrt()


# Mean variance of normalised windows, and of what is computed from them, that rounding alone explains.
LEAST_VARIANCE = 1e-10
# Variance added before dividing, so that flat windows stay flat: 10 on the scale of 0..255.
CONTRAST_FLOOR = 10 / 255**2
