"""R9, R10, R11, R22: whatever timm builds is read back as what it is, or refused in words; nothing of a file is left out unsaid."""

from __future__ import annotations

import pytest
import torch

from mapet.checkpoints.address import load_backbone
from mapet.compat import timm
from mapet.errors import MapetError, ModelError
from mapet.models.vit import create_vit
from tests.checkpoints.published import images, randomise, save

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
PLAIN = "vit_tiny_patch16_224"
HEADS = {"num_heads": 2}  # what no shape tells

# timm's name and options; what a user has to give, if anything.
READ = [
    (PLAIN, {}, {}),
    (PLAIN, {"num_classes": 5}, {}),
    (PLAIN, {"num_heads": 2}, HEADS),
    (PLAIN, {"img_size": 48, "patch_size": 16}, {}),
    (PLAIN, {"img_size": 40, "patch_size": 4}, {}),
    (PLAIN, {"patch_size": (8, 4), "img_size": 32}, {"img_size": 32}),
    (PLAIN, {"embed_dim": 192, "num_heads": 3}, {}),
    (PLAIN, {"mlp_ratio": 2.0}, {}),
    (PLAIN, {"mlp_ratio": 2.7}, {}),
    (PLAIN, {"qkv_bias": False}, {}),
    (PLAIN, {"proj_bias": False}, {}),
    (PLAIN, {"init_values": 1e-5}, {}),
    (PLAIN, {"pre_norm": True}, {"pre_norm": True}),
    (PLAIN, {"final_norm": False}, {}),
    (PLAIN, {"global_pool": "avg"}, {}),
    (PLAIN, {"global_pool": "avg", "num_classes": 5}, {}),
    (PLAIN, {"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg", "fc_norm": False}),
    (PLAIN, {"fc_norm": True}, {"global_pool": "token"}),
    (PLAIN, {"class_token": False, "global_pool": "avg"}, {}),
    (PLAIN, {"class_token": False, "global_pool": "avg", "fc_norm": False}, {}),
    (PLAIN, {"no_embed_class": True}, {"img_size": 32}),
    (PLAIN, {"no_embed_class": True}, {"no_embed_class": True}),
    (PLAIN, {"img_size": 16, "no_embed_class": True}, {}),
    (PLAIN, {"reg_tokens": 4, "no_embed_class": True}, {}),
    (PLAIN, {"reg_tokens": 4}, {}),
    (PLAIN, {"reg_tokens": 1}, {}),
    (PLAIN, {"reg_tokens": 1, "class_token": False, "global_pool": "avg", "no_embed_class": True}, {}),
    (PLAIN, {"reg_tokens": 3, "class_token": False, "global_pool": "avg", "fc_norm": False}, {}),
    ("vit_wee_patch16_reg1_gap_256", {}, {}),
    ("vit_medium_patch16_gap_256", {}, {}),
    ("vit_medium_patch16_gap_256", {"num_classes": 3}, {}),
    ("vit_medium_patch16_reg4_gap_256", {}, {}),
    ("vit_base_patch14_dinov2", {}, {}),
    ("vit_base_patch14_reg4_dinov2", {}, {}),
    ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0}, {}),
    ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 2.5}, {}),
    ("deit3_small_patch16_224", {}, {"img_size": 32}),
    ("beit_base_patch16_224", {}, {}),
    ("beit_base_patch16_224", {"init_values": None, "num_classes": 4}, {}),
    ("beitv2_base_patch16_224", {"global_pool": "token"}, {}),
]


def written(tmp_path, name, options):
    torch.manual_seed(0)
    network = randomise(timm.create_model(name, **{**TINY, **options}))
    return network, save(network.state_dict(), tmp_path / "vit.pth")


def compare(network, loaded) -> None:
    size = network.patch_embed.img_size[0]
    with torch.inference_mode():
        torch.testing.assert_close(loaded.backbone(images(2, size)), network(images(2, size)), rtol=0, atol=0)
        pair = loaded.backbone.forward_features(images(2, size)), network.forward_features(images(2, size))
    torch.testing.assert_close(*pair, rtol=0, atol=0)
    assert loaded.spec.image_size == size
    account = loaded.conversion
    assert account.dropped == account.new == ()
    again = loaded.spec.build()
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize(("name", "options", "given"), READ, ids=str)
def test_what_timm_builds_is_read_from_its_shapes(tmp_path, name, options, given):
    network, path = written(tmp_path, name, options)
    compare(network, load_backbone(path, options=given))


@pytest.mark.parametrize(("name", "options"), [row[:2] for row in READ], ids=str)
def test_what_timm_builds_is_read_by_its_name_and_options(tmp_path, name, options):
    network, path = written(tmp_path, name, options)
    compare(network, load_backbone(path, model=name, options={**TINY, **options}))


CLIP, QUICK = "vit_base_patch16_clip_224", "vit_base_patch16_clip_quickgelu_224"


def test_what_weights_do_not_tell_is_taken_from_the_name(tmp_path):
    """R10: epsilon and activation of CLIP; the same file gives another model under each name."""
    for name in (CLIP, QUICK):
        network, path = written(tmp_path, name, {})
        loaded = load_backbone(path, model=name, options=TINY)
        compare(network, loaded)
        assert loaded.conversion is not None
        assert ("have quick GELU" in loaded.conversion.summary()) == (name == CLIP)
    _, path = written(tmp_path, PLAIN, {})
    with pytest.raises(ModelError, match=rf"'{CLIP}' has a norm in front of the blocks .* these weights have none"):
        load_backbone(path, model=CLIP, options=TINY)


@pytest.mark.parametrize(
    ("name", "options", "given", "taken"),
    [
        (PLAIN, {}, {}, "GELU, 1e-06 and 4 x 4 patches"),
        (PLAIN, {"num_heads": 2}, HEADS, "GELU, 1e-06 and 4 x 4 patches"),
        (PLAIN, {}, {"img_size": 32}, "GELU and 1e-06"),
        ("vit_giant_patch14_dinov2", {"mlp_ratio": 3.0}, {}, "SiLU, 1e-06 and 4 x 4 patches"),
        ("beit_base_patch16_224", {}, {}, "GELU, 1e-06 and 4 x 4 patches"),
        ("vit_base_patch16_siglip_gap_256", {}, {}, "GELU, 1e-06 and 4 x 4 patches"),  # whose activation is another
    ],
    ids=str,
)
def test_what_is_taken_for_granted_is_stated(tmp_path, name, options, given, taken):
    """R10: whatever no file of weights tells stands in one line; a name tells it."""
    network, path = written(tmp_path, name, options)
    loaded = load_backbone(path, options=given)
    assert loaded.conversion is not None
    assert f": {taken} are taken. timm's name for the model (--model NAME)" in loaded.conversion.summary()
    named = load_backbone(path, model=name, options={**TINY, **options})
    assert named.conversion is not None
    assert "epsilon" not in named.conversion.summary()
    compare(network, named)


REFUSED = [
    (CLIP, {}, {}, r"norm in front of the blocks .* Give timm's name .*quick GELU"),
    (PLAIN, {"pre_norm": True}, {}, r"norm in front of the blocks .* options pre_norm=True"),
    (PLAIN, {"no_embed_class": True}, {}, r"16 positions, which can be read in two ways: 4 x 4 .*img_size=32.*3 x 5.*\[24, 40\]"),
    (PLAIN, {"img_size": (24, 40)}, {}, r"16 positions, which can be read in two ways"),
    (PLAIN, {"img_size": (24, 40)}, {"img_size": [24, 40]}, r"24 x 40 pixels.*images are square here"),
    (PLAIN, {"img_size": (24, 32)}, {}, r"12 patches, which make no square. Give the image size"),
    (PLAIN, {"in_chans": 1}, {}, r"images of 1 channels.*read here with three"),
    (PLAIN, {"qk_norm": True}, {}, r"no place for blocks\.0\.attn\.q_norm\.weight"),
    (PLAIN, {"pos_embed": "none"}, {}, r"neither pos_embed nor relative positions"),
    (PLAIN, {"global_pool": "map"}, {}, r"no place for attn_pool"),
    (PLAIN, {"scale_mlp_norm": True}, {}, r"no place for"),
    (PLAIN, {"embed_dim": 48}, {}, r"width 48 is no multiple of 64"),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64}, {}, r"no place for patch_embed\.backbone"),
    ("eva02_tiny_patch14_224", {}, {}, r"weights lack|no place for"),
    ("vit_relpos_small_patch16_224", {}, {}, r"neither pos_embed nor"),
    ("deit_tiny_distilled_patch16_224", {}, {}, r"no place for dist_token|which make no square"),
    ("vit_small_patch16_18x2_224", {}, {}, r"no "),
]


@pytest.mark.parametrize(("name", "options", "given", "message"), REFUSED, ids=str)
def test_what_has_two_readings_or_another_form_is_refused(tmp_path, name, options, given, message):
    sizes = {} if name == "vit_tiny_r_s16_p8_224" else TINY
    taken = {key: value for key, value in sizes.items() if not (name.startswith("eva02") and key == "patch_size")}
    network = timm.create_model(name, **{**taken, "num_classes": 0, **options})
    with pytest.raises(ModelError, match=message):
        load_backbone(save(network.state_dict(), tmp_path / "vit.pth"), options=given)


@pytest.mark.parametrize(("size", "cells"), [(16, 4), (48, 12)])
def test_options_that_are_given_go_with_what_shapes_tell(tmp_path, size, cells):
    """R22: the patch of 4 is the file's, whatever the model that comes closest has."""
    _, path = written(tmp_path, PLAIN, {"img_size": 36, "patch_size": 4})
    loaded = load_backbone(path, options={"img_size": size})
    assert loaded.backbone.patch_embed.grid_size == (cells, cells)
    assert loaded.conversion is not None
    assert "Positions were resized from 9 x 9" in loaded.conversion.summary()


@pytest.mark.parametrize("name", [PLAIN, "beit_base_patch16_224"])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("in_chans", value) for value in (1, "3", 0)),
        *(("img_size", value) for value in ([96, 128], "big", -32, [32], {}, True, 33)),
        *(("patch_size", value) for value in ("8", 0, 5)),
        *(("embed_dim", value) for value in (10.5, "x")),
        *(("depth", value) for value in (0, "2", -1)),
        *(("num_heads", value) for value in (0, "x", 5)),
        *(
            (option, "x")
            for option in ("mlp_ratio", "num_classes", "norm_layer", "init_values", "block_fn", "weight_init", "colour")
        ),
        *(("act_layer", 3), ("global_pool", 7), ("drop_rate", 7)),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(tmp_path, name, option, value):
    """R21: at random initialisation and for a file."""
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1}
    with pytest.raises(MapetError):
        create_vit(name, **{**small, option: value})
    if name == PLAIN:
        _, path = written(tmp_path, PLAIN, {})
        with pytest.raises(MapetError):
            load_backbone(path, options={option: value})


def test_numbers_that_are_not_finite_are_named(tmp_path):
    """F9: where weights are opened; evaluations refuse what is computed of them."""
    network, _ = written(tmp_path, PLAIN, {})
    state = network.state_dict()
    state["blocks.1.mlp.fc2.weight"][0, 0] = float("nan")
    loaded = load_backbone(save(state, tmp_path / "nan.pth"))
    assert loaded.conversion is not None
    assert "blocks.1.mlp.fc2.weight holds numbers that are not finite" in loaded.conversion.summary()


@pytest.mark.parametrize("blocks", [5_000])
def test_blocks_that_only_names_claim_build_nothing(tmp_path, blocks):
    """F12."""
    network, _ = written(tmp_path, PLAIN, {})
    state = network.state_dict() | {f"blocks.{number}.ls3.gamma": torch.zeros(0) for number in range(2, blocks)}
    with pytest.raises(ModelError, match=r"lack blocks\.2\.attn\.proj\.bias, which their first block has"):
        load_backbone(save(state, tmp_path / "many.pth"))
