"""BEiT, BEiT v2 and CAE equal their released implementations: logits, losses, gradients, the lagging teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mapet.checkpoints.projections import join_biases
from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.objectives.beit import BEiT, released_name
from mapet.objectives.beit_v2 import BEiTv2
from mapet.objectives.beit_v2 import _our_name as beit_v2_name
from mapet.objectives.cae import CAE, _cross_attention_biases
from mapet.objectives.cae import _our_name as cae_name
from mapet.objectives.masking import MaskCorruption
from tests.golden import load_golden, with_prefix


def backbone(config: dict[str, Any]) -> nn.Module:
    names = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "init_values")
    return create_backbone("vit_tiny_patch16_224", num_classes=0, **{name: config[name] for name in names})


def batch_of(golden: dict[str, Tensor], step: str = "") -> tuple[Batch, MaskCorruption]:
    batch = Batch(golden[f"in.images{step}"], golden[f"in.token_ids{step}"].flatten(1))
    return batch, MaskCorruption(golden[f"in.bool_masked_pos{step}"].bool())


def assert_gradients_equal(objective: nn.Module, expected: dict[str, Tensor]) -> None:
    parameters = dict(objective.named_parameters())
    for name, gradient in expected.items():
        found = parameters[name].grad
        if gradient.abs().max() < 1e-7:  # zero but for rounding, such as whatever shifts all scores of an attention alike
            assert found is None or found.abs().max() < 1e-7, name
        else:
            torch.testing.assert_close(
                found, gradient, rtol=0, atol=1e-4 * float(gradient.abs().max()), msg=lambda m, n=name: f"{n}: {m}"
            )


def without_key_biases(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys have no bias in the release; ours moves no attention weight, and its gradient is rounding only."""
    return {name: value for name, value in gradients.items() if not name.endswith("qkv.bias")}


def test_beit() -> None:
    description, golden = load_golden("mim/beit_pretrain_tiny_mim_abs_a")
    config = description["config"]
    objective = BEiT(backbone(config), config["vocab_size"])
    objective.load_released(with_prefix(golden, "sd."))
    batch, corruption = batch_of(golden)
    output = objective(batch, corruption, return_logits=True)
    logits = output.logits[output.target_positions >= 0]
    torch.testing.assert_close(logits, golden["out.logits_masked"], rtol=0, atol=2e-5)
    assert int(output.num_targets) == len(golden["in.labels"])
    loss = output.loss_sum / output.num_targets
    torch.testing.assert_close(loss, golden["out.loss"], rtol=0, atol=2e-5)
    loss.backward()
    expected = {released_name(name): value for name, value in join_biases(with_prefix(golden, "grad.")).items()}
    assert_gradients_equal(objective, without_key_biases(expected))
    assert_value_and_query_biases_equal(objective, expected)


def assert_value_and_query_biases_equal(objective: nn.Module, expected: dict[str, Tensor]) -> None:
    parameters = dict(objective.named_parameters())
    joint = [name for name in expected if name.endswith("qkv.bias")]
    assert joint
    for name in joint:
        width = len(expected[name]) // 3
        for part in (slice(0, width), slice(2 * width, None)):
            limit = 1e-4 * float(expected[name].abs().max())
            torch.testing.assert_close(parameters[name].grad[part], expected[name][part], rtol=0, atol=limit)


@contextmanager
def relative_positions(objective: BEiTv2, table: Tensor, index: Tensor) -> Iterator[None]:
    """Adds the release's relative positions to every attention, which a plain ViT lacks, and takes away the absolute ones."""
    bias = table[index.flatten().long()].view(*index.shape, -1).permute(2, 0, 1).unsqueeze(0)
    objective.backbone.pos_embed.data.zero_()
    blocks = [*objective.backbone.blocks, *objective.head_blocks]
    handles = [
        block.register_forward_pre_hook(lambda _, args, kwargs: (args, kwargs | {"attn_mask": bias}), with_kwargs=True)
        for block in blocks
    ]
    yield
    for handle in handles:
        handle.remove()


def test_beit_v2() -> None:
    description, golden = load_golden("mim/beit_pretrain_tiny_cls_shared_a")
    config = description["config"]
    depths = {"early_layers": config["early_layers"], "head_layers": config["head_layers"]}
    objective = BEiTv2(backbone(config), config["vocab_size"], **depths)
    weights = with_prefix(golden, "sd.")
    table, index = (weights.pop(f"rel_pos_bias.relative_position_{name}") for name in ("bias_table", "index"))
    objective.load_released(weights)
    batch, corruption = batch_of(golden)
    with relative_positions(objective, table, index):
        output = objective(batch, corruption, return_logits=True)
        loss = output.loss_sum / output.num_targets
        loss.backward()
    logits = output.logits[output.target_positions >= 0]
    torch.testing.assert_close(logits, golden["out.logits_masked"], rtol=0, atol=2e-5)
    torch.testing.assert_close(loss, golden["out.loss_1"] + golden["out.loss_2"], rtol=0, atol=2e-5)
    gradients = {name: value for name, value in with_prefix(golden, "grad.").items() if not name.startswith("rel_pos_bias")}
    expected = {beit_v2_name(name): value for name, value in join_biases(gradients).items()}
    assert_gradients_equal(objective, without_key_biases(expected))
    assert_value_and_query_biases_equal(objective, expected)


def cae(name: str, teacher: str) -> tuple[CAE, dict[str, Any], dict[str, Tensor]]:
    description, golden = load_golden(f"mim/{name}")
    config = description["config"]
    variant = config["variant"]
    objective = CAE(
        backbone(config),
        config["vocab_size"],
        teacher=teacher,
        width=variant["decoder_embed_dim"],
        num_heads=variant["decoder_num_heads"],
        regressor_depth=config["regressor_depth"],
        decoder_depth=config["decoder_depth"],
        alignment=config["align_loss_weight"],
    )
    objective.load_released(with_prefix(golden, "sd."))
    return objective, config, golden


def cae_gradients(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = join_biases(_cross_attention_biases(with_prefix(golden, "grad.")))
    return {cae_name(name): value for name, value in gradients.items() if not name.startswith("teacher.")}


@pytest.mark.parametrize(("name", "teacher"), [("cae_tiny_projected_a", "lagging"), ("cae_tiny_self_target_a", "self")])
def test_cae(name: str, teacher: str) -> None:
    objective, _, golden = cae(name, teacher)
    batch, corruption = batch_of(golden)
    hidden, visible = objective._split(corruption)
    torch.testing.assert_close(objective.positions, golden["out.pos_embed_decoder_dim"][:, 1:], rtol=0, atol=1e-6)
    torch.testing.assert_close(objective.guess(batch.images, visible, hidden), golden["out.latent_pred"], rtol=0, atol=2e-5)
    torch.testing.assert_close(objective.represent(batch.images, hidden), golden["out.latent_target"], rtol=0, atol=2e-5)
    output = objective(batch, corruption, return_logits=True)
    torch.testing.assert_close(output.logits.flatten(0, 1), golden["out.logits"], rtol=0, atol=2e-5)
    alignment = output.metrics["alignment"] / output.num_targets
    torch.testing.assert_close(alignment, golden["out.loss_align_raw_mse"], rtol=0, atol=2e-5)
    loss = output.loss_sum / output.num_targets
    torch.testing.assert_close(loss, golden["out.loss"], rtol=0, atol=2e-5)
    loss.backward()
    expected = cae_gradients(golden)
    assert_gradients_equal(objective, without_key_biases(expected))
    assert_value_and_query_biases_equal(objective, expected)


@pytest.mark.parametrize(("name", "teacher"), [("cae_tiny_projected_a", "lagging"), ("cae_tiny_self_target_a", "self")])
def test_cae_after_a_step(name: str, teacher: str) -> None:
    """The release's teacher is one optimizer step behind; plain SGD on every parameter shows the lag."""
    objective, config, golden = cae(name, teacher)
    objective.backbone.pos_embed.requires_grad_(False)
    output = objective(*batch_of(golden))
    (output.loss_sum / output.num_targets).backward()
    for key, parameter in objective.named_parameters():
        if key.endswith("qkv.bias") and parameter.grad is not None:  # keys have no bias in the release
            third = len(parameter) // 3
            parameter.grad[third : 2 * third] = 0
    objective.before_optimizer_step()
    trained = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    torch.optim.SGD(trained, lr=config["sgd_lr_between_steps"]).step()
    batch, corruption = batch_of(golden, "_step2")
    hidden, visible = objective._split(corruption)
    torch.testing.assert_close(objective.guess(batch.images, visible, hidden), golden["step2.latent_pred"], rtol=0, atol=2e-5)
    torch.testing.assert_close(objective.represent(batch.images, hidden), golden["step2.latent_target"], rtol=0, atol=2e-5)
    logits = objective(batch, corruption, return_logits=True).logits.flatten(0, 1)
    torch.testing.assert_close(logits, golden["step2.logits"], rtol=0, atol=2e-5)


def test_cae_encodes_visible_patches_only() -> None:
    objective, _, golden = cae("cae_tiny_self_target_a", "self")
    rows: list[tuple[int, bool]] = []
    objective.backbone.blocks[0].register_forward_hook(
        lambda _, inputs, __: rows.append((inputs[0].shape[1], torch.is_grad_enabled()))
    )
    batch, corruption = batch_of(golden)
    objective(batch, corruption)
    hidden = int(corruption.mask[0].sum())
    visible = objective.num_patches - hidden
    assert sorted(rows) == sorted([(1 + visible, True), (1 + hidden, False)])
    assert objective.sequence_length == 2 + objective.num_patches
