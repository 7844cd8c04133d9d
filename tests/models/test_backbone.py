"""Backbones: what can be pre-trained, and what is refused in words."""

from __future__ import annotations

import huggingface_hub.errors
import pytest
import torch

from mapet.checkpoints.address import load_backbone
from mapet.compat import timm
from mapet.errors import ModelError
from mapet.models import create_backbone
from mapet.models.backbone import embed_patches
from mapet.models.vit import create_vit


def test_is_the_timm_model_untouched() -> None:
    torch.manual_seed(0)
    ours = create_backbone("vit_tiny_patch16_224", depth=1)
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1)
    assert type(ours) is type(theirs)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "context", "parameters"), [("tiny", 49, 7_110_272), ("small", 49, 24_829_184), ("base", 59, 92_117_504)]
)
def test_published_parameter_counts(size: str, context: int, parameters: int) -> None:
    from mapet.objectives import create_objective

    with torch.device("meta"):
        backbone = create_backbone(f"vit_{size}_patch16_224", init_values=0.1, num_classes=0)
        objective = create_objective("mapet", backbone=backbone, vocab_size=8192, num_context=context)
    assert sum(parameter.numel() for parameter in objective.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tinny_patch16_224", {}, "Did you mean 'vit_tiny_patch16_224'"),
        ("resnet18", {}, "ResNet is not a timm VisionTransformer"),
        ("vit_tiny_patch16_224", {"img_size": 100}, r"image size \(100, 100\) is not a multiple of the patch size \(16, 16\)"),
        ("vit_tiny_patch16_224", {"colour": 3}, "cannot build"),
        ("vit_tiny_patch16_224", {"num_heads": 0}, "cannot build"),
        ("vit_tiny_patch16_224", {"embed_dim": -192}, "cannot build"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}, "patch_drop_rate"),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}, "learned position embeddings"),
        ("vit_base_patch16_xp_224", {}, "two-stream attention"),
    ],
    ids=["unknown", "not a ViT", "patch", "argument", "heads", "width", "dropped patches", "no positions", "other blocks"],
)
def test_refuses_in_words(name: str, options: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_backbone(name, **options)


class UnexpectedError(Exception):
    """As the HTTP client raises, which knows nothing of OSError."""


class OldNotFoundError(FileNotFoundError, ValueError):
    """As huggingface_hub raised before version 1."""


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files\n in the cache"),
        OSError("Cannot find the requested files in the cache"),
        ConnectionError("Cannot find the requested files in the cache"),
        OldNotFoundError("Cannot find the requested files in the cache"),
        UnexpectedError("Cannot find the requested files in the cache"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_weights_that_cannot_be_fetched_are_said_in_words(monkeypatch, name: str, error: Exception) -> None:
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ModelError) as said:
        load_backbone(f"timm:{name}")
    start = f"Cannot fetch timm's weights for '{name}': Cannot find the requested files in the cache."
    assert str(said.value).startswith(start)
    assert f"random:{name}" in str(said.value)
    with pytest.raises(ModelError, match=f"timm cannot build '{name}'.*Cannot find the requested files"):
        create_vit(name)


def test_a_wrong_option_of_a_pretrained_model_is_no_matter_of_the_network() -> None:
    with pytest.raises(ModelError, match="timm cannot build 'vit_tiny_patch16_224'"):
        create_backbone("vit_tiny_patch16_224", pretrained=True, colour=3)


def test_refuses_images_of_another_size() -> None:
    backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(ModelError, match=r"images are \(48, 48\) pixels, the backbone was built for \(32, 32\)"):
        embed_patches(backbone, torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 1_000_000},
        {"embed_dim": 12_000_000},
        {"mlp_ratio": 1e9},
        {"mlp_ratio": 10**60},
        {"num_classes": 10**12},
        {"img_size": 10**8},
        {"img_size": [10**8, 10**8], "patch_size": 16},
        {"depth": 512, "embed_dim": 65536},
    ],
    ids=str,
)
def test_sizes_beyond_the_machine_are_refused_before_memory_is_taken(options: dict) -> None:
    """F23: with both figures."""
    with pytest.raises(ModelError, match=r"would take [\d,]+ GiB for its weights, and this machine has \d+"):
        create_backbone("vit_tiny_patch16_224", **options)


@pytest.mark.parametrize("options", [{"num_heads": 10**9}, {"depth": "many"}, {"depth": -5}, {"embed_dim": 0}], ids=str)
def test_sizes_that_are_none_are_refused(options: dict) -> None:
    with pytest.raises(ModelError):
        create_backbone("vit_tiny_patch16_224", **options)
