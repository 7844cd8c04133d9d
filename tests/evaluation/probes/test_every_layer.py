"""BEiT's linear evaluation looks at raw block outputs: the features that its own code gave, from timm's models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mapet.compat import Beit, VisionTransformer
from mapet.errors import SettingsError
from mapet.evaluation.frozen_backbone import FeatureSet, FrozenBackbone
from mapet.evaluation.probes.representations import block_outputs, every_layer, last_layer
from tests.golden import load_golden, with_prefix

GOLDEN = "mim/beit_finetune_tiny_a"


def beit(name: str, config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """timm's Beit with the golden's weights."""
    options = {key: config[key] for key in ("img_size", "embed_dim", "depth", "num_heads", "num_classes")}
    model = Beit(
        **options,
        qkv_bias=True,
        init_values=0.1 if "blocks.0.gamma_1" in weights else None,
        use_abs_pos_emb="pos_embed" in weights,
        use_rel_pos_bias="blocks.0.attn.relative_position_bias_table" in weights,
        global_pool="avg" if "fc_norm.weight" in weights else "token",
        norm_layer=lambda size, **options: nn.LayerNorm(size, eps=1e-6, **options),
    )
    model.load_state_dict({key: value for key, value in weights.items() if not key.endswith("position_index")}, strict=True)
    return model.eval()


def plain(config: dict[str, Any], weights: dict[str, Tensor]) -> VisionTransformer:
    """timm's VisionTransformer with the golden's weights: one bias for query, key and value; keys have none."""
    options = {key: config[key] for key in ("img_size", "embed_dim", "depth", "num_heads", "num_classes")}
    model = VisionTransformer(**options, global_pool="token", norm_layer=lambda size, **kw: nn.LayerNorm(size, eps=1e-6, **kw))
    converted = dict(weights)
    for block in range(config["depth"]):
        query, value = (converted.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
        converted[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    model.load_state_dict(converted, strict=True)
    return model.eval()


def as_subject(model: nn.Module) -> SimpleNamespace:
    """Images of mean 0 and deviation 1, that nothing normalises."""
    spec = SimpleNamespace(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    frozen = SimpleNamespace(backbone=model.requires_grad_(False), spec=spec, device=torch.device("cpu"))
    frozen.features = lambda images: FrozenBackbone.features(frozen, images)  # type: ignore[arg-type]
    return frozen


@pytest.mark.parametrize("name", ["cls_abs", "meanpool_abs", "meanpool_rel"])
def test_features_of_every_layer_are_those_of_the_published_code(name: str) -> None:
    description, tensors = load_golden(GOLDEN)
    config, weights = description["config"], with_prefix(tensors, f"{name}.sd.")
    models = [beit(name, config, weights)] + ([plain(config, weights)] if name == "cls_abs" else [])
    for model in models:
        features = every_layer(as_subject(model), "both")(tensors["in.images"])  # type: ignore[arg-type]
        assert features.shape == (config["batch"], config["depth"], 2 * config["embed_dim"])
        for layer in range(config["depth"]):
            expected = tensors[f"{name}.out.linear_eval_input_layer{layer}"]
            torch.testing.assert_close(features[:, layer], expected, rtol=0, atol=2e-5)
            patches, prefix = block_outputs(model, tensors["in.images"])[layer]  # type: ignore[arg-type]
            torch.testing.assert_close(torch.cat([prefix, patches], 1), tensors[f"{name}.out.block{layer}"], rtol=0, atol=2e-5)


def test_pooling_of_layers_is_that_of_the_last_one() -> None:
    description, tensors = load_golden(GOLDEN)
    frozen = as_subject(plain(description["config"], with_prefix(tensors, "cls_abs.sd.")))
    images = tensors["in.images"]
    both, mean, cls = (every_layer(frozen, pool)(images) for pool in ("both", "mean", "cls"))  # type: ignore[arg-type]
    assert torch.equal(both, torch.cat([cls, mean], dim=2))
    norm = frozen.backbone.norm
    tokens = torch.cat([block_outputs(frozen.backbone, images)[-1][part] for part in (1, 0)], dim=1)
    expected = FeatureSet(norm(tokens)[:, 1:].mean(1), norm(tokens)[:, 0], torch.empty(0)).pooled("both")
    torch.testing.assert_close(last_layer(frozen, "both")(images)[:, 0], expected)  # type: ignore[arg-type]


def test_register_tokens_are_no_class_token_and_no_patches() -> None:
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=3, num_classes=0, reg_tokens=3)
    frozen, images = as_subject(model.eval()), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    patches, prefix = block_outputs(model, images)[1]
    assert (patches.shape, prefix.shape) == ((2, 4, 12), (2, 4, 12))
    features = every_layer(frozen, "both")(images)  # type: ignore[arg-type]
    torch.testing.assert_close(features[:, 1], torch.cat([prefix[:, 0], patches.mean(dim=1)], dim=1))


def test_without_class_token_there_is_only_the_mean() -> None:
    options = {"class_token": False, "global_pool": "avg", "num_classes": 0}
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=3, **options)
    frozen, images = as_subject(model.eval()), torch.randn(2, 3, 32, 32)
    assert every_layer(frozen, "mean")(images).shape == (2, 2, 12)  # type: ignore[arg-type]
    assert torch.equal(every_layer(frozen, "both")(images), every_layer(frozen, "mean")(images))  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="no class token"):
        every_layer(frozen, "cls")(images)  # type: ignore[arg-type]
