from __future__ import annotations

import re

import pytest
import torch

from mapet.compat import timm
from mapet.data.mask_files import IGNORED
from mapet.evaluation.segmentation.loss import at_size, pixel_loss
from mapet.evaluation.segmentation.model import UperNet
from tests.golden import load_golden, with_prefix

IGNORE_ID = 255
AUX_WEIGHT = 0.4
RENAMED = [
    (r"backbone\.(fpn\d)", r"rescaling.\1"),
    (r"conv_seg", r"classifier.1"),
    (r"\.bn\.", ".batch_norm."),
    (r"psp_modules\.(\d)\.1\.", r"psp_modules.\1.1."),
]


def ours(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="module")
def golden():
    description, tensors = load_golden("mim/seg_upernet_tiny_a")
    config = description["config"]
    backbone = timm.models.beit.Beit(
        img_size=config["img_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=0,
        qkv_bias=True,
        init_values=0.1,
        use_abs_pos_emb=False,
        use_rel_pos_bias=config["rel"],
        use_shared_rel_pos_bias=False,
    )
    model = UperNet(backbone, config["num_classes"], config["out_indices"], config["channels"], config["aux_channels"])
    weights = {ours(name): value for name, value in with_prefix(tensors, "sd.").items()}
    found = model.load_state_dict(weights, strict=False)
    assert [name for name in found.missing_keys if "norm." not in name and "k_bias" not in name] == []
    assert [name for name in found.unexpected_keys if "relative_position_index" not in name] == []
    return description, tensors, model


def classes_of(tensors) -> torch.Tensor:
    labels = tensors["in.labels"][:, 0]
    return labels.masked_fill(labels == IGNORE_ID, IGNORED)


def test_features_and_logits_are_those_of_the_published_implementation(golden) -> None:
    description, tensors, model = golden
    model.eval()
    with torch.no_grad():
        features = model.features(tensors["in.images"])
        logits, aux = model(tensors["in.images"])
    assert [list(feature.shape) for feature in features] == description["feature_shapes"]
    for level, feature in enumerate(features):
        torch.testing.assert_close(feature, tensors[f"out.feature{level}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(logits, tensors["out.decode_logits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(aux, tensors["out.aux_logits"], atol=2e-5, rtol=0)
    upsampled = at_size(logits, classes_of(tensors).shape[-2:])
    torch.testing.assert_close(upsampled, tensors["out.decode_logits_upsampled"], atol=2e-5, rtol=0)


def test_losses_and_gradients_are_those_of_the_published_implementation(golden) -> None:
    _, tensors, model = golden
    model.train()
    with torch.no_grad():
        torch.testing.assert_close(model(tensors["in.images"])[0], tensors["train.decode_logits"], atol=2e-5, rtol=0)
    model.double().zero_grad()
    classes = classes_of(tensors)
    losses = [pixel_loss(some, classes, published_denominator=True) for some in model(tensors["in.images"].double())]
    assert losses[0].item() == pytest.approx(tensors["train.decode_loss"].item(), abs=2e-5)
    assert AUX_WEIGHT * losses[1].item() == pytest.approx(tensors["train.aux_loss_weighted"].item(), abs=2e-5)
    (losses[0] + AUX_WEIGHT * losses[1]).backward()
    model.float()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    compared = with_prefix(tensors, "grad.")
    assert compared
    for name, expected in compared.items():
        # the golden's own rounding: 1.1e-4 of the largest entry of the class token's gradient, which is 1e-3, 1e-4 elsewhere
        difference = (gradients[ours(name)].float() - expected).abs().max() / expected.abs().max()
        assert difference < 1.2e-4, name


def test_the_right_loss_divides_by_the_pixels_that_have_a_class(golden) -> None:
    description, tensors, _ = golden
    classes = classes_of(tensors)
    assert (classes == IGNORED).double().mean().item() == pytest.approx(description["fraction_ignored"])
    right = pixel_loss(tensors["train.decode_logits"], classes)
    assert right.item() == pytest.approx(description["decode_loss_if_mean_over_valid_pixels_only"], abs=2e-5)
