from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from mapet.compat import timm
from mapet.engine.optimizer import layer_groups, layer_of
from mapet.engine.schedule import linear as learning_rate
from mapet.errors import SettingsError
from mapet.evaluation.segmentation.model import UperNet, at_crop_size, blocks_of_depth, check_blocks
from tests.golden import GOLDENS


def tiny(kind: str = "vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    model = timm.create_model(kind, img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2, num_classes=0, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_features_are_patches_behind_the_chosen_blocks_without_norm() -> None:
    backbone = tiny()
    model = UperNet(backbone, 3, [0, 1, 2, 3], 8, 8).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = backbone.patch_embed(images)
        x = torch.cat([backbone.cls_token.expand(2, -1, -1), x], dim=1) + backbone.pos_embed
        grids = []
        for block in backbone.blocks:
            x = block(x)
            grids.append(x[:, 1:].transpose(1, 2).reshape(2, 16, 4, 4))
        features = model.features(images)
    torch.testing.assert_close(features[2], grids[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[3], nn.functional.max_pool2d(grids[3], 2), atol=1e-5, rtol=1e-5)
    assert [tuple(feature.shape[-2:]) for feature in features] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert model(images)[0].shape == (2, 3, 16, 16)
    assert model(images)[1].shape == (2, 3, 4, 4)


def test_both_heads_drop_channels_in_training_only() -> None:
    model = UperNet(tiny(), 3, [0, 1, 2, 3], 8, 8, dropout=0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images))
        for head in (model.decode_head, model.auxiliary_head):
            head.classifier[0].train()
        first, again = model(images), model(images)
    assert not torch.allclose(first[0], again[0])
    assert not torch.allclose(first[1], again[1])


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (4, (0, 1, 2, 3)), (8, (1, 3, 5, 7)), (6, (0, 2, 3, 5))]
)
def test_which_blocks_are_used(depth: int, blocks: tuple[int, ...]) -> None:
    assert blocks_of_depth(depth) == blocks


def test_too_few_or_unordered_blocks_are_refused() -> None:
    with pytest.raises(SettingsError, match="has 3 blocks"):
        blocks_of_depth(3)
    for blocks in ([0, 1, 2], [3, 2, 1, 0], [0, 1, 2, 4], [0, 0, 1, 2]):
        with pytest.raises(SettingsError, match="four ascending numbers from 0 to 3"):
            check_blocks(blocks, 4)


@pytest.mark.parametrize("kind", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_positions_are_resized_to_the_crop_and_the_backbone_stays_as_it_is(kind: str) -> None:
    absolute = kind.startswith("vit")
    backbone = tiny(kind)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    trained = at_crop_size(backbone, 64, 0.3)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    if absolute:
        grid = backbone.pos_embed[:, 1:].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
        larger = nn.functional.interpolate(grid, (8, 8), mode="bicubic", antialias=False, align_corners=False)
        torch.testing.assert_close(trained.pos_embed[:, 1:], larger.permute(0, 2, 3, 1).reshape(1, 64, 16))
        torch.testing.assert_close(trained.pos_embed[:, :1], backbone.pos_embed[:, :1])
    else:
        tables = [model.blocks[1].attn.relative_position_bias_table for model in (backbone, trained)]
        small, large = (table[:-3].reshape(side, side, 2) for table, side in zip(tables, (7, 15), strict=True))
        for before_place, place in (((3, 3), (7, 7)), ((0, 0), (0, 0)), ((6, 3), (14, 7))):  # no distance, and the largest ones
            torch.testing.assert_close(large[place], small[before_place], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tables[1][-3:], tables[0][-3:])
    model = UperNet(trained, 3, [0, 1, 2, 3], 8, 8)
    assert model(torch.randn(2, 3, 64, 64))[0].shape == (2, 3, 32, 32)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trained.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_crop_of_broken_patches_is_refused() -> None:
    for crop in (60, 24, 0):
        with pytest.raises(SettingsError, match="multiple of 16"):
            at_crop_size(tiny(), crop, 0.0)


def test_layers_are_numbered_as_in_mmsegmentation() -> None:
    golden = json.loads((GOLDENS / "mim" / "beit_finetune_tiny_a.json").read_text())["mmseg_layer_id_num_layers_12"]
    found = {name: layer_of(name.replace("backbone.fpn", "rescaling.fpn"), 12) for name in golden}
    assert found == golden
    assert len(golden) > 5


def test_learning_rates_fall_from_layer_to_layer_and_positions_are_not_decayed() -> None:
    model = UperNet(tiny(), 3, [0, 1, 2, 3], 8, 8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = layer_groups(model, 4, 0.5, 0.05)
    groups = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in grouped for p in group["params"]}
    assert len(groups) == len(names)
    assert groups["backbone.patch_embed.proj.weight"] == (0.5**5, 0.05)
    assert groups["backbone.pos_embed"] == groups["backbone.cls_token"] == (0.5**5, 0.0)
    assert groups["backbone.blocks.0.attn.qkv.weight"] == (0.5**4, 0.05)
    assert groups["backbone.blocks.3.mlp.fc2.weight"] == (0.5, 0.05)
    assert groups["backbone.blocks.3.mlp.fc2.bias"] == (0.5, 0.0)
    assert groups["rescaling.fpn1.0.weight"] == groups["decode_head.bottleneck.conv.weight"] == (1.0, 0.05)
    assert groups["decode_head.bottleneck.batch_norm.weight"] == (1.0, 0.0)


def test_the_rate_rises_in_the_warm_up_and_falls_to_zero() -> None:
    def mmcv(step: int) -> float:
        """Poly of power 1, scaled by (1 - k) with k = (1 - step / warm-up) (1 - ratio) in the warm-up."""
        regular = 5e-5 * (1 - step / 160_000)
        return regular * (1 - (1 - step / 1500) * (1 - 1e-6)) if step < 1500 else regular

    for step in (0, 1, 700, 1499, 1500, 1501, 80_000, 159_999):
        assert learning_rate(step, 160_000, 1500, 5e-5) == pytest.approx(mmcv(step), rel=1e-9)
    assert learning_rate(0, 160_000, 1500, 5e-5) == pytest.approx(5e-11)
    assert learning_rate(160_000, 160_000, 1500, 5e-5) == 0.0
