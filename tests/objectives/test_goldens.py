"""MaPeT equals its released implementation: masks, logits, loss, gradients, drop path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mapet.checkpoints.projections import join_qkv
from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.models.two_stream import mapet_visibility
from mapet.objectives import create_objective
from mapet.objectives.mapet import PermutationCorruption
from tests.golden import load_golden, with_prefix

MASKS = ["n6_l1", "n6_l3", "n17_l5", "n17_l16", "n65_l17", "n197_l1", "n197_l50", "n197_l148"]
MODELS = ["model_tiny_m1", "model_tiny_m2", "model_tiny_m3", "model_tiny_m4_noscale"]


def build(config: dict, **backbone_options: float) -> nn.Module:
    backbone = create_backbone(
        "vit_tiny_patch16_224",
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        init_values=config["init_values"],
        num_classes=0,
        **backbone_options,
    )
    options = {"vocab_size": config["ntoken"], "num_context": config["least_number"] - 1}
    return create_objective("mapet", backbone=backbone, **options)


def raster_order(logits: Tensor, positions: Tensor) -> Tensor:
    """(B, T, vocab) logits sorted by their patches."""
    return torch.stack([rows[order] for rows, order in zip(logits, positions.argsort(dim=1), strict=True)])


def dense_masks(permutation: Tensor, num_context: int) -> tuple[Tensor, Tensor]:
    """The released masks of one permutation, undone from the static ones: columns CLS, patches, mask tokens in raster order."""
    num_patches, num_targets = len(permutation), len(permutation) - num_context
    prefix_length = 1 + num_context + num_targets
    visible = mapet_visibility(prefix_length, num_targets)
    open_sees = torch.cat([torch.ones(prefix_length, prefix_length), torch.zeros(prefix_length, num_targets)], dim=1).bool()
    context, targets = permutation[:num_context] + 1, permutation[num_context:] + 1
    mask_columns = 1 + num_patches + targets.argsort().argsort()
    columns = torch.cat([torch.zeros(1, dtype=torch.int64), context, mask_columns, targets])
    content = torch.zeros(len(columns), len(columns), dtype=torch.bool)
    content[columns[:, None], columns[None, :]] = torch.cat([open_sees, visible[:num_targets]])
    query = torch.zeros(num_targets, len(columns), dtype=torch.bool)
    query[targets.argsort().argsort()[:, None], columns[None, :]] = visible[num_targets:]
    return content, query


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_those_of_the_release(name: str) -> None:
    description, golden = load_golden(f"mapet/masks_{name}_a")
    num_context = description["least_number"] - 1
    for index, permutation in enumerate(golden["permutation_patches"]):
        content, query = dense_masks(permutation, num_context)
        assert torch.equal(query, golden["query_mask"][index])
        if "content_mask" in golden:
            assert torch.equal(content, golden["content_mask"][index])


def run(objective: nn.Module, golden: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean loss with gradients, and logits (B, vocab, T) in raster order."""
    dtype = objective.mask_token.dtype
    batch = Batch(golden["images"].to(dtype), golden["tokens"])
    output = objective(batch, PermutationCorruption(golden["permutation_patches"]), return_logits=True)
    loss = output.loss_sum / output.num_targets
    loss.backward()
    return loss.detach(), raster_order(output.logits, output.target_positions).transpose(1, 2).detach()


def published_gradients(objective: nn.Module, names: list[str]) -> dict[str, Tensor]:
    ours = {"mask_positional_token": "mask_token", "decoder.weight": "head.weight", "decoder.bias": "head.bias"}
    parameters = dict(objective.named_parameters())
    gradients = {}
    for name in names:
        attention, _, kind = name.rpartition(".")
        if attention.endswith((".attn.q", ".attn.kv")):
            joint = parameters[f"backbone.{attention.rpartition('.')[0]}.qkv.{kind}"].grad
            width = joint.shape[0] // 3
            gradients[name] = joint[:width] if attention.endswith(".q") else joint[width:]
        else:
            gradients[name] = parameters[ours.get(name, f"backbone.{name}")].grad
    return gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_model_is_that_of_the_release(name: str, dtype: torch.dtype, checkpointing: bool) -> None:
    description, golden = load_golden(f"mapet/{name}_a")
    objective = build(description["config"])
    objective.load_released(with_prefix(golden, "state_dict."))
    objective.to(dtype).backbone.set_grad_checkpointing(checkpointing)
    exact = dtype == torch.float64
    suffix = "64" if exact else ""
    loss, logits = run(objective, golden)
    tolerance = 1e-12 if exact else 2e-5
    torch.testing.assert_close(logits, golden[f"logits{suffix}"], rtol=0, atol=tolerance)
    torch.testing.assert_close(loss, golden[f"loss{suffix}"], rtol=0, atol=tolerance)
    expected = {key: value.to(dtype) for key, value in with_prefix(golden, "grad64.").items()}
    assert expected
    gradients = published_gradients(objective, list(expected))
    for key, value in expected.items():
        bound = (1e-12 if exact else 1e-4) * value.abs().max().item()
        torch.testing.assert_close(gradients[key], value, rtol=0, atol=bound)


class FixedDropPath(nn.Module):
    """Multiplies the residual branch of every sample by a given factor."""

    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, rows: Tensor) -> Tensor:
        return rows * self.factors.view(-1, 1, 1)


def test_drop_path_multiplies_both_streams_by_one_factor() -> None:
    description, golden = load_golden("mapet/droppath_tiny_a")
    objective = build(description["config"], drop_path_rate=description["config"]["drop_path_rate"])
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in objective.backbone.blocks]
    assert rates == pytest.approx(description["drop_path_rates_per_block"])
    objective.load_released(with_prefix(golden, "state_dict."))
    for block, factors in zip(objective.backbone.blocks, golden["drop_path_factors"], strict=True):
        block.drop_path1, block.drop_path2 = FixedDropPath(factors[0]), FixedDropPath(factors[1])
    loss, logits = run(objective.train(), golden)
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=2e-5)
    torch.testing.assert_close(loss, golden["loss"], rtol=0, atol=2e-5)
    expected = with_prefix(golden, "grad.")
    assert expected
    for key, value in published_gradients(objective, list(expected)).items():
        bound = 1e-4 * expected[key].abs().max().item()
        torch.testing.assert_close(value, expected[key], rtol=0, atol=bound)


def test_drop_path_draws_one_factor_an_image_for_all_rows_of_both_streams() -> None:
    description, golden = load_golden("mapet/droppath_tiny_a")
    objective = build(description["config"], drop_path_rate=0.5).train()
    torch.manual_seed(4)
    drawn, _ = run(objective, golden)
    torch.manual_seed(4)
    images = len(golden["images"])
    for block in objective.backbone.blocks:
        for name in ("drop_path1", "drop_path2"):
            if keep := 1 - getattr(getattr(block, name), "drop_prob", 1.0):
                setattr(block, name, FixedDropPath(torch.empty(images).bernoulli_(keep) / keep))
    given, _ = run(objective, golden)
    assert torch.equal(drawn, given)


def test_join_qkv_keeps_the_order_q_k_v() -> None:
    q, kv = torch.full((2, 2), 1.0), torch.tensor([[2.0, 2.0], [2.0, 2.0], [3.0, 3.0], [3.0, 3.0]])
    joined = join_qkv({"blocks.0.attn.q.weight": q, "blocks.0.attn.kv.weight": kv})
    assert list(joined) == ["blocks.0.attn.qkv.weight"]
    assert joined["blocks.0.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
