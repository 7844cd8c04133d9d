"""Features with a planted structure, in place of a backbone and images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.evaluation.frozen_backbone import FeatureSet, FrozenBackbone
from mapet.models.spec import BackboneSpec
from tests.tiny import LOCATION

CLASSES = 4


def features_of(labels: Tensor, noise: float, seed: int, scale: Tensor | float = 1.0) -> FeatureSet:
    """Eight features, of which the first four tell the class where there is not too much noise."""
    values = noise * torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    values[:, :4] += torch.nn.functional.one_hot(labels, 4)
    return FeatureSet(values * scale, torch.empty(len(labels), 0), labels)


def planted_frozen(noise: float = 0.5, train: int = 120, test: int = 80, scale: Tensor | float = 1.0) -> Any:
    """Stands for a `FrozenBackbone` whose features are cached."""
    generator = torch.Generator().manual_seed(3)
    learned, evaluated = (torch.randint(CLASSES, (count,), generator=generator) for count in (train, test))
    return SimpleNamespace(
        title="planted",
        device=torch.device("cpu"),
        num_classes=CLASSES,
        train_features=features_of(learned, noise, 1, scale),
        test_features=features_of(evaluated, noise, 2, scale),
    )


def without_test(frozen: Any) -> Any:
    """The same, where a look at the test part is an error."""
    blind = SimpleNamespace(**vars(frozen))
    del blind.test_features
    return blind


def tiny_frozen(**options: Any) -> FrozenBackbone:
    """An untrained ViT of two blocks with dark and bright images: 40 to learn from, 20 to judge."""
    shape = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "init_values": 0.1, "num_classes": 0, "img_size": 16}
    spec = BackboneSpec("vit_tiny_patch16_224", shape, 16, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), seed=0)
    sources = [open_source(LOCATION, split) for split in ("train", "test")]
    given: dict[str, Any] = {"device": torch.device("cpu"), "workers": 0, "unreadable": UnreadableImages(), **options}
    return FrozenBackbone("tiny", spec.build(), spec, *sources, **given)
