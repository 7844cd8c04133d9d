"""The classifier equals MaPeT's release, its parameter groups and schedule those of BEiT's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mapet.checkpoints.projections import join_qkv
from mapet.compat import VisionTransformer, timm
from mapet.data.views import IMAGENET_MEAN, IMAGENET_STD
from mapet.engine.optimizer import adamw, layer_groups
from mapet.engine.schedule import cosine
from mapet.evaluation.finetuning.classifier import classifier_spec, init_head, transfer
from mapet.evaluation.finetuning.protocol import FineTune
from mapet.models.spec import BackboneSpec
from mapet.models.weights import load_strictly
from tests.golden import load_golden, with_prefix

POOLS = {"avg": "mean", "token": "cls"}
BEIT = "mim/beit_finetune_tiny_a"


def classifier_of(config: dict[str, Any], settings: FineTune) -> VisionTransformer:
    names = ("patch_size", "embed_dim", "depth", "num_heads", "init_values")
    options = {name: config[name] for name in names} | {"num_classes": 0}
    spec = BackboneSpec("vit_tiny_patch16_224", options, config["img_size"], IMAGENET_MEAN, IMAGENET_STD, seed=0)
    return classifier_spec(spec, settings, config["num_classes"]).build()


@pytest.mark.parametrize("pool", POOLS)
def test_the_classifier_equals_the_release(pool: str) -> None:
    facts, tensors = load_golden(f"mapet/finetune_tiny_{pool}_a")
    model = classifier_of(facts["config"], FineTune(pool=POOLS[pool]))
    load_strictly(model, join_qkv(with_prefix(tensors, "state_dict.")))
    model.double().train()
    images = tensors["images"].double()
    torch.testing.assert_close(model.forward_features(images).float(), tensors["features"], rtol=0, atol=2e-5)
    logits = model(images)
    torch.testing.assert_close(logits, tensors["logits64"], rtol=0, atol=1e-12)
    cross_entropy(logits, tensors["labels"]).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in with_prefix(tensors, "grad.").items():
        name, rows = joined(name, expected)
        torch.testing.assert_close(gradients[name][rows].float(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def joined(name: str, value: Tensor) -> tuple[str, slice]:
    """Where q (the first rows) and kv (the others) are in timm's qkv."""
    for part in ("q", "kv"):
        if f".attn.{part}." in name:
            width = value.shape[1]
            return name.replace(f".{part}.", ".qkv."), slice(0, width) if part == "q" else slice(width, None)
    return name, slice(None)


def timm_names(names: list[str]) -> list[str]:
    return [*dict.fromkeys(name.replace(".attn.q.", ".attn.qkv.").replace(".attn.kv.", ".attn.qkv.") for name in names)]


@pytest.mark.parametrize("pool", POOLS)
def test_what_is_kept_dropped_and_new_is_what_the_release_keeps_drops_and_adds(pool: str) -> None:
    facts, tensors = load_golden(f"mapet/finetune_load_{pool}_a")
    model = classifier_of(facts["config"], FineTune(pool=POOLS[pool]))
    found = transfer(join_qkv(with_prefix(tensors, "pretrain.")), model)
    assert sorted(found.kept) == sorted(timm_names(facts["kept"]))
    assert sorted(found.dropped) == sorted(timm_names(facts["dropped_from_pretraining_checkpoint"]))
    assert sorted(found.new) == sorted(facts["fresh_in_finetune_model"])
    assert f"{len(found.kept)} kept; dropped: {', '.join(found.dropped)}; new: {', '.join(found.new)}." in found.line()
    own = model.state_dict()
    if pool == "avg":
        assert torch.equal(own["fc_norm.weight"], with_prefix(tensors, "finetune.")["fc_norm.weight"])
        assert torch.equal(own["fc_norm.bias"], with_prefix(tensors, "finetune.")["fc_norm.bias"])
    model.head.load_state_dict(with_prefix(tensors, "finetune.head."))
    with torch.no_grad():
        logits = model.eval()(tensors["images"])
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=2e-5)


def beit_of(kind: str, facts: dict[str, Any], tensors: dict[str, Tensor]) -> torch.nn.Module:
    """timm's Beit, or its ViT, that has the published model's parameters."""
    config = facts["config"]
    weights = with_prefix(tensors, f"{kind}.sd.")
    common = {name: config[name] for name in ("img_size", "embed_dim", "depth", "num_heads", "num_classes")}
    return timm.models.beit.Beit(
        **common,
        init_values=0.1 if "blocks.0.gamma_1" in weights else None,
        global_pool="avg" if kind.startswith("meanpool") else "token",
        use_abs_pos_emb="pos_embed" in weights,
        use_rel_pos_bias="blocks.0.attn.relative_position_bias_table" in weights,
    )


@pytest.mark.parametrize("kind", ["meanpool_rel", "meanpool_abs", "cls_abs"])
def test_parameter_groups_are_those_of_beit(kind: str) -> None:
    facts, tensors = load_golden(BEIT)
    expected = facts["param_groups"][kind]
    model = beit_of(kind, facts, tensors)
    groups = layer_groups(model, facts["config"]["depth"], expected["layer_decay"], expected["weight_decay"])
    assert described(groups, model) == {
        (round(group["lr_scale"], 12), group["weight_decay"]): sorted(group["names"]) for group in expected["groups"]
    }


def described(groups: list[dict[str, Any]], model: torch.nn.Module) -> dict[tuple[float, float], list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        (round(group["lr_scale"], 12), group["weight_decay"]): sorted(names[id(parameter)] for parameter in group["params"])
        for group in groups
    }


def test_parameter_groups_of_a_plain_vit_are_the_same() -> None:
    facts, _ = load_golden(BEIT)
    expected = facts["param_groups"]["meanpool_abs"]
    config = facts["config"] | {"patch_size": 16, "init_values": None}
    model = classifier_of(config, FineTune())
    groups = described(layer_groups(model, config["depth"], expected["layer_decay"], expected["weight_decay"]), model)
    assert len(groups) == len(expected["groups"])
    for group in expected["groups"]:
        names = [
            name.replace(".q_bias", ".qkv.bias") for name in group["names"] if not name.endswith((".v_bias", "gamma_1", "gamma_2"))
        ]
        assert groups[round(group["lr_scale"], 12), group["weight_decay"]] == sorted(names)


def test_without_layer_decay_all_layers_have_one_rate() -> None:
    facts, _ = load_golden("mapet/finetune_tiny_avg_a")
    settings = FineTune(layer_decay=None, weight_decay=0.3)
    model = classifier_of(facts["config"], settings)
    groups = layer_groups(model, facts["config"]["depth"], settings.layer_decay, settings.weight_decay)
    optimizer = adamw(groups, settings.betas, settings.eps)
    assert sorted((group["lr_scale"], group["weight_decay"]) for group in optimizer.param_groups) == [(1.0, 0.0), (1.0, 0.3)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])


@pytest.mark.parametrize("name", ["warm_epochs", "nowarm"])
def test_the_cosine_is_that_of_beit(name: str) -> None:
    facts, tensors = load_golden(BEIT)
    config, expected = facts["sched"][name], tensors[f"sched.{name}"].numpy()
    warmup, total = config.get("warmup_epochs", 0) * config["niter_per_ep"], config["epochs"] * config["niter_per_ep"]
    lr, last = config["base_value"], config["final_value"]
    found = np.array([cosine(step, total, warmup, lr=lr, min_lr=last, warmup_lr=0) for step in range(total)])
    np.testing.assert_allclose(found[warmup:], expected[warmup:], rtol=1e-12)
    if warmup:  # theirs reaches the peak one step early and stays there for two; ours rises evenly to the first step behind it
        np.testing.assert_allclose(expected[:warmup], lr * np.arange(warmup) / (warmup - 1), rtol=1e-12)
        np.testing.assert_allclose(found[:warmup], lr * np.arange(warmup) / warmup, rtol=1e-12)


def test_the_head_starts_as_that_of_beit_or_of_mapet() -> None:
    facts, _ = load_golden(BEIT)
    published = facts["head_weight_std_at_init_with_init_scale_0.001"]
    for scale, std in ((1e-3, published), (1.0, 0.02)):
        head = torch.nn.Linear(768, 100)
        init_head(head, FineTune(head_init_scale=scale))
        assert float(head.weight.detach().std()) == pytest.approx(std, rel=0.03)
        assert not head.bias.any()
    other = torch.nn.Linear(768, 100)
    init_head(other, FineTune(seed=1))
    assert not torch.equal(head.weight, other.weight)


@pytest.mark.parametrize("kind", ["meanpool_rel", "meanpool_abs", "cls_abs"])
def test_logits_are_those_of_beit(kind: str) -> None:
    facts, tensors = load_golden(BEIT)
    model = beit_of(kind, facts, tensors).eval()
    weights = with_prefix(tensors, f"{kind}.sd.")
    load_strictly(model, {name: value for name, value in weights.items() if "relative_position_index" not in name})
    with torch.no_grad():
        torch.testing.assert_close(model(tensors["in.images"]), tensors[f"{kind}.out.logits"], rtol=0, atol=2e-5)
