"""Published checkpoints become backbones that compute what their own code computes."""

from __future__ import annotations

import argparse
import json
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mapet.checkpoints.address import load_backbone
from mapet.checkpoints.backbone_folder import read_backbone, save_backbone
from mapet.compat import timm
from mapet.errors import ModelError
from mapet.models.backbone import check_backbone, num_heads
from mapet.models.relative_positions import resize_relative_positions
from tests.checkpoints.published import images, published_shapes, randomise, save
from tests.checkpoints.runs import SPEC, save_run
from tests.golden import load_golden, with_prefix


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_what_is_kept_of_mapets_pre_training_is_what_the_release_keeps(tmp_path, pool):
    facts, tensors = load_golden(f"mapet/finetune_load_{pool}_a")
    saved = {"arch": "x", "state_dict": with_prefix(tensors, "pretrain."), "args": argparse.Namespace(lr=1.0)}
    options = {name: facts["config"][name] for name in ("num_heads", "num_classes", "global_pool")}
    loaded = load_backbone(save(saved, tmp_path / "mapet.pth"), options=options)
    account = loaded.conversion
    assert account is not None
    assert sorted((*account.kept, *account.converted)) == sorted(facts["kept"])
    assert sorted(account.dropped) == sorted(facts["dropped_from_pretraining_checkpoint"])
    assert sorted(account.new) == sorted(facts["fresh_in_finetune_model"])
    assert all(".attn.q" in name or ".attn.kv" in name for name in account.converted)
    head = with_prefix(tensors, "finetune.head.")
    loaded.backbone.head.load_state_dict(head)
    with torch.inference_mode():
        close(loaded.backbone(tensors["images"]), tensors["logits"], 2e-5)


@pytest.mark.parametrize("pool", ["avg", "token"])
def test_mapets_fine_tuned_models(tmp_path, pool):
    facts, tensors = load_golden(f"mapet/finetune_tiny_{pool}_a")
    path = save({"state_dict": with_prefix(tensors, "state_dict.")}, tmp_path / "tuned.pth")
    loaded = load_backbone(path, options={"num_heads": facts["config"]["num_heads"]})
    assert loaded.conversion is not None
    assert loaded.conversion.dropped == loaded.conversion.new == ()
    with torch.inference_mode():
        close(loaded.backbone(tensors["images"]), tensors["logits"], 2e-5)
        close(loaded.backbone.forward_features(tensors["images"]), tensors["features"], 2e-5)
    assert loaded.spec.image_size == facts["config"]["img_size"]


@pytest.mark.parametrize("variant", ["meanpool_rel", "meanpool_abs", "cls_abs"])
def test_beits_fine_tuned_models(tmp_path, variant):
    facts, tensors = load_golden("mim/beit_finetune_tiny_a")
    path = save({"model": with_prefix(tensors, f"{variant}.sd.")}, tmp_path / "beit.pth")
    loaded = load_backbone(path, options={"num_heads": facts["config"]["num_heads"]})
    if variant != "meanpool_rel":  # keys have no bias, which no output shows
        assert not loaded.backbone.state_dict()["blocks.0.attn.qkv.bias"].chunk(3)[1].any()
    with torch.inference_mode():
        close(loaded.backbone(tensors["in.images"]), tensors[f"{variant}.out.logits"], 2e-5)
        layers = loaded.backbone.forward_intermediates(tensors["in.images"], output_fmt="NLC", return_prefix_tokens=True)[1]
    for layer, (patches, prefix) in enumerate(layers):
        close(torch.cat([prefix, patches], dim=1), tensors[f"{variant}.out.block{layer}"], 2e-5)


def test_beits_relative_positions_are_evaluated_saved_and_not_pre_trained(tmp_path):
    facts, tensors = load_golden("mim/beit_finetune_tiny_a")
    path = save({"model": with_prefix(tensors, "meanpool_rel.sd.")}, tmp_path / "beit.pth")
    loaded = load_backbone(path, options={"num_heads": facts["config"]["num_heads"]})
    save_backbone(tmp_path / "saved", loaded.spec, loaded.backbone)
    again, spec = read_backbone(tmp_path / "saved")
    assert spec == loaded.spec
    with torch.inference_mode():
        close(again(tensors["in.images"]), tensors["meanpool_rel.out.logits"], 2e-5)
        assert loaded.spec.build()(tensors["in.images"]).shape == (facts["config"]["batch"], facts["config"]["num_classes"])
    with pytest.raises(ModelError, match=r"Beit is not a timm VisionTransformer. Use a plain ViT"):
        check_backbone(loaded.backbone)


@pytest.mark.parametrize(("variant", "title"), [("", "BEiT pre-training"), ("_cls_pt", "BEiT v2 pre-training")])
def test_beits_published_pre_training(tmp_path, variant, title):
    tensors = published_shapes("beit", f"beit_base_patch16_224_8k_vocab{variant}", factor=8, depth=2)
    loaded = load_backbone(save({"model": tensors}, tmp_path / "beit.pth"))
    account = loaded.conversion
    assert account is not None
    assert account.family == f"{title} checkpoint"
    assert account.new == account.converted == ()
    tops = {name.partition(".")[0] for name in account.dropped}
    assert tops == {"mask_token", "lm_head", "rel_pos_bias"} | ({"cls_pt_layers"} if variant else set())
    assert loaded.spec.options["use_shared_rel_pos_bias"] is True
    assert loaded.spec.mean == ((0.485, 0.456, 0.406) if variant else (0.5, 0.5, 0.5))
    close(
        loaded.backbone.state_dict()["rel_pos_bias.relative_position_bias_table"],
        tensors["rel_pos_bias.relative_position_bias_table"],
        0,
    )
    with torch.inference_mode():
        assert loaded.backbone(images(1, 224)).shape == (1, 96)


def test_a_shared_table_counts_in_every_block(tmp_path):
    facts, tensors = load_golden("mim/beit_finetune_tiny_a")
    own = with_prefix(tensors, "meanpool_rel.sd.")
    table = own["blocks.0.attn.relative_position_bias_table"]
    same = {name: table if name.endswith("bias_table") else value for name, value in own.items()}
    shared = {name: value for name, value in own.items() if "relative_position" not in name}
    shared["rel_pos_bias.relative_position_bias_table"] = table
    outputs = []
    for tensors_of in (same, shared):
        backbone = load_backbone(save(tensors_of, tmp_path / "beit.pth")).backbone
        with torch.inference_mode():
            outputs.append(backbone(images(1, facts["config"]["img_size"])))
    close(*outputs)


def test_caes_encoder(tmp_path):
    facts, tensors = load_golden("mim/cae_tiny_self_target_a")
    path = save({"model": with_prefix(tensors, "sd.")}, tmp_path / "cae.pth")
    loaded = load_backbone(path, options={"num_heads": facts["config"]["num_heads"]})
    account = loaded.conversion
    assert account is not None
    assert account.family == "CAE pre-training checkpoint"
    assert all(name.startswith("encoder.") for name in (*account.kept, *account.converted))
    assert not any(name.startswith("encoder.") for name in account.dropped)
    backbone, hidden = check_backbone(loaded.backbone), tensors["in.bool_masked_pos"].bool().flatten(1)
    with torch.inference_mode():  # the target of the alignment: the encoder's view of the hidden patches, projected
        patches = backbone.patch_embed(tensors["in.images"]) + backbone.pos_embed[:, 1:]
        patches = patches[hidden].reshape(len(patches), -1, patches.shape[-1])
        token = (backbone.cls_token + backbone.pos_embed[:, :1]).expand(len(patches), -1, -1)
        encoded = backbone.norm(backbone.blocks(torch.cat([token, patches], dim=1)))[:, 1:]
        projection, norm = (with_prefix(tensors, f"sd.encoder_to_decoder{part}.") for part in ("", "_norm"))
        narrow = torch.nn.functional.linear(encoded, **projection)
        target = torch.nn.functional.layer_norm(narrow, narrow.shape[-1:], **norm, eps=1e-6)
    close(target, tensors["out.latent_target"], 2e-5)


@pytest.mark.parametrize(
    "model", ["cae_base_patch16_224_8k_vocab | published", "cae_base_patch16_224_8k_vocab | MaPeT-style decoder 384x6"]
)
def test_caes_published_names(tmp_path, model):
    tensors = published_shapes("cae", model, factor=12, depth=2)
    loaded = load_backbone(save({"model": tensors}, tmp_path / "cae.pth"))
    assert loaded.conversion is not None
    assert loaded.conversion.new == ()
    assert check_backbone(loaded.backbone).embed_dim == 64


@pytest.mark.parametrize("wrapper", ["", "module.", "backbone."])
def test_timms_names_with_and_without_a_wrapper(tmp_path, wrapper):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    network = randomise(timm.create_model("vit_tiny_patch16_224", **options))
    state = {f"{wrapper}{name}": value for name, value in network.state_dict().items()}
    loaded = load_backbone(save(state, tmp_path / "vit.pth"))
    assert loaded.conversion is not None
    assert len(loaded.conversion.kept) == len(state)
    with torch.inference_mode():
        close(loaded.backbone(images()), network(images()))


def test_maes_decoder_is_dropped(tmp_path):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    network = randomise(timm.create_model("vit_tiny_patch16_224", **options))
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_embed.weight": torch.zeros(16, 64),
    }
    decoder["decoder_blocks.0.attn.qkv.weight"] = torch.zeros(48, 16)
    loaded = load_backbone(save({"model": network.state_dict() | decoder}, tmp_path / "mae.pth"))
    assert loaded.conversion is not None
    assert loaded.conversion.family == "MAE pre-training checkpoint"
    assert set(loaded.conversion.dropped) == set(decoder)
    assert loaded.spec.mean == (0.485, 0.456, 0.406)
    with torch.inference_mode():
        close(loaded.backbone(images()), network(images()))


def test_positions_are_resized_as_published(tmp_path):
    facts, tensors = load_golden("mim/beit_finetune_tiny_a")
    state = with_prefix(tensors, "cls_abs.sd.")
    width = state["pos_embed"].shape[2]
    state["pos_embed"] = torch.cat([tensors["abspos.in_4"]] * math.ceil(width / 8), dim=2)[..., :width]
    loaded = load_backbone(save(state, tmp_path / "beit.pth"), options={"num_heads": facts["config"]["num_heads"], "img_size": 112})
    assert loaded.backbone.pos_embed is not None
    close(loaded.backbone.pos_embed[..., :8], tensors["abspos.out_4_to_7"], 1e-6)
    assert loaded.conversion is not None
    assert "pos_embed" in loaded.conversion.converted
    assert "Positions were resized from 4 x 4 to 7 x 7 patches." in loaded.conversion.summary()
    assert loaded.spec.image_size == 112


def test_relative_positions_are_resized_as_published(tmp_path):
    facts, tensors = load_golden("mim/beit_finetune_tiny_a")
    state = with_prefix(tensors, "meanpool_rel.sd.")
    state |= {name: tensors["relpos.in_4"] for name in state if name.endswith("bias_table")}
    loaded = load_backbone(save(state, tmp_path / "beit.pth"), options={"img_size": 112})
    for block in range(facts["config"]["depth"]):
        table = loaded.backbone.state_dict()[f"blocks.{block}.attn.relative_position_bias_table"]
        close(table, tensors["relpos.out_4_to_7"], 1e-6)
    assert loaded.conversion is not None
    assert loaded.conversion.summary().count("Relative positions were resized") == 1


@pytest.mark.parametrize(("old", "new"), [(4, 7), (14, 24), (14, 32)])
def test_tables_of_relative_positions(old, new):
    _, tensors = load_golden("mim/beit_finetune_tiny_a")
    resized = resize_relative_positions(tensors[f"relpos.in_{old}"], (old, old), (new, new))
    close(resized, tensors[f"relpos.out_{old}_to_{new}"], 1e-6)
    assert torch.equal(resized[-3:], tensors[f"relpos.in_{old}"][-3:])


SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    network = timm.create_model("vit_tiny_patch16_224", **SMALL_VIT)
    return save(network.state_dict(), tmp_path_factory.mktemp("vit") / "vit.pth")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("vit_tiny_patch16_224", {}, r"width 192 expected, 64 found; depth 12 expected, 2 found; patch size 16 expected, 8 found"),
        ("vit_tiny_patch16_224", {"embed_dim": 64, "patch_size": 8, "num_heads": 1}, r": depth 12 expected, 2 found. Give"),
        (
            "beit_base_patch16_224",
            {"embed_dim": 64, "patch_size": 8, "depth": 2},
            "relative positions expected, absolute ones found",
        ),
        (None, {"num_classes": 4}, "has 3 classes, 4 expected"),
        ("vit_tiny_patch16_24", {}, "Did you mean"),
        (None, {"img_size": 36}, "not a multiple of the patch size"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(small, model, options, message):
    with pytest.raises(ModelError, match=message):
        load_backbone(small, model=model, options=options)


def test_the_model_and_its_weights_at_timm_tell_the_normalisation(small, tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    path = save(network.state_dict(), tmp_path / "tiny.pth")
    assert load_backbone(path).spec.mean == (0.485, 0.456, 0.406)
    loaded = load_backbone(path, model="vit_tiny_patch16_224.augreg_in21k", options={"depth": 1})
    assert loaded.spec.mean == (0.5, 0.5, 0.5)
    assert load_backbone(path, model="vit_standard_tiny_patch16_224", options={"depth": 1}).spec.name == "vit_tiny_patch16_224"
    assert load_backbone(small, options={"num_classes": 0}).backbone.num_classes == 0


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", **{**SMALL_VIT, "embed_dim": 48})
    path = save(network.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ModelError, match=r"width 48 is no multiple of 64.*num_heads=N"):
        load_backbone(path)


def test_other_blocks_are_not_dropped_silently(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", **SMALL_VIT, qk_norm=True)
    with pytest.raises(ModelError, match=r"has no place for blocks.0.attn.q_norm.weight.* and 4 more"):
        load_backbone(save(network.state_dict(), tmp_path / "vit.pth"))


def test_an_unknown_checkpoint_is_listed(tmp_path):
    state = {f"layers.{index}.weight": torch.zeros(4, 3) for index in range(5)} | {"steps": torch.zeros(1, dtype=torch.int64)}
    with pytest.raises(ModelError) as caught:
        load_backbone(save(state, tmp_path / "odd.pth"))
    assert "6 tensors: layers (5), steps (1)" in str(caught.value)
    assert "layers.N.weight  (4, 3)  5 times" in str(caught.value)
    assert "(1) int64" in str(caught.value)


@pytest.mark.parametrize("name", ["blocks.1.attn.kv.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "patch_embed.proj.weight"])
def test_shapes_that_do_not_go_together_are_refused_in_words(tmp_path, name):
    facts, tensors = load_golden("mapet/finetune_tiny_avg_a")
    state = with_prefix(tensors, "state_dict.") | {name: torch.zeros(2, 5, 3)}
    with pytest.raises(ModelError):
        load_backbone(save(state, tmp_path / "odd.pth"), options={"num_heads": facts["config"]["num_heads"]})


class Attack:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


def test_code_in_a_pickle_is_not_run(tmp_path):
    state = {"model": {"blocks.0.attn.qkv.weight": Attack(tmp_path / "ran")}, "patch_embed.proj.weight": torch.zeros(1)}
    with pytest.raises(ModelError):
        load_backbone(save(state, tmp_path / "attack.pth"))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    with pytest.raises(ModelError):
        load_backbone(tmp_path / "plain.pkl")
    assert not (tmp_path / "ran").exists()


def test_runs_saved_models_and_names(tmp_path):
    run = save_run(tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"data": "photos"}))
    assert load_backbone(run).run is not None
    assert load_backbone(run / "backbone").run is None
    assert load_backbone(run).spec == SPEC
    loaded = load_backbone("random:vit_tiny_patch16_224", options={"depth": 1})
    assert loaded.untrained
    assert (loaded.spec.mean, loaded.spec.image_size) == ((0.5, 0.5, 0.5), 224)
    beit = load_backbone("random:beit_base_patch16_224", options={"depth": 1})
    assert type(beit.backbone).__name__ == "Beit"
    with pytest.raises(ModelError, match="Leave out the model"):
        load_backbone(run, model="vit_tiny_patch16_224")
    with pytest.raises(ModelError, match="There is no backbone at"):
        load_backbone(tmp_path / "nowhere")


def test_what_only_timm_knows_is_translated_by_timm(tmp_path):
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
    network = randomise(timm.create_model("vit_base_patch32_clip_224", **options))
    swaps = {
        "patch_embed.proj": "conv1",
        "pos_embed": "positional_embedding",
        "blocks.": "transformer.resblocks.",
        "norm_pre": "ln_pre",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "cls_token": "class_embedding",
    }
    state = {"token_embedding.weight": torch.zeros(4, 4)}
    for name, value in network.state_dict().items():
        for old, new in swaps.items():
            name = name.replace(old, new)
        name = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        flat = {"class_embedding": value.flatten(), "positional_embedding": value[0]}
        state[f"visual.{name}"] = flat.get(name, value)
    path = save(state, tmp_path / "clip.pth")
    with pytest.raises(
        ModelError, match=r"is no checkpoint that is known here. If timm can read it, give timm's name for it \(--model NAME\)"
    ):
        load_backbone(path)
    loaded = load_backbone(path, model="vit_base_patch32_clip_224.openai", options=options)
    assert loaded.conversion is not None
    assert loaded.conversion.dropped == ("token_embedding.weight",)
    assert loaded.conversion.converted == loaded.conversion.new == ()
    assert loaded.spec.mean == timm.get_pretrained_cfg("vit_base_patch32_clip_224.openai").mean
    with torch.inference_mode():
        close(loaded.backbone(images()), network(images()))
    with pytest.raises(ModelError, match="is no checkpoint of 'vit_tiny_patch16_224', nor any other"):
        load_backbone(save({"weight": torch.zeros(2)}, tmp_path / "odd.pth"), model="vit_tiny_patch16_224")


@pytest.mark.parametrize("options", [{}, {"num_heads": 3}], ids=str)
def test_a_number_of_heads_that_no_file_tells_is_stated(tmp_path: Path, options: dict, capsys: pytest.CaptureFixture[str]) -> None:
    """R22: 12 heads and 3 have the same shapes."""
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_heads=12, num_classes=0)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    backbone = load_backbone(tmp_path / "weights.pth", options=options).backbone
    assert num_heads(backbone) == 3
    said = "does not contain the number of heads; 3 are assumed (64 wide). --option num_heads=N." in capsys.readouterr().err
    assert said is (not options)
