"""Objectives small enough to be checked in a moment, batches for them, and what the checks do with both."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mapet.data.batch import Batch
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, Objective, ObjectiveOutput, create_objective
from mapet.registry import options_of

VOCAB, SIDE, PATCH, PATCHES = 32, 32, 8, 16
MODEL = "vit_tiny_patch16_224"
BACKBONE = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 2, "init_values": 0.1}
SMALL = {
    "width": 48, "num_heads": 2, "depth": 1, "regressor_depth": 1, "decoder_depth": 1,
    "teacher_options": {"pretrained": False},
}  # fmt: skip
"""Options for which a check of this size needs other values than the default, where an objective has them."""
NEEDED: dict[str, dict[str, Any]] = {"teacher": {"teacher": "test_vit", "teacher_size": 64}}
"""Options without a default, by what an objective needs."""


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Objective:
    """The objective on a tiny backbone, both at a random initialisation that depends on `seed` alone."""
    torch.manual_seed(seed)
    backbone = create_backbone(MODEL, **BACKBONE).to(dtype)
    kind = OBJECTIVES.get_or_import(name)
    small = {key: value for key, value in SMALL.items() if key in options_of(kind)}
    for need in kind.needs:
        small |= NEEDED.get(need, {})
    return create_objective(name, backbone=backbone, vocab_size=VOCAB, **(small | options))


def random_batch(objective: Objective, size: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(size, 3, objective.view_size, objective.view_size, generator=generator)
    dtype = next(objective.parameters()).dtype
    return Batch(images.to(dtype), torch.randint(VOCAB, (size, PATCHES), generator=generator))


def draw(objective: Objective, batch: Batch, seed: int = 2) -> Any:
    return objective.corrupt(batch, torch.Generator().manual_seed(seed))


def tensors(corruption: object) -> list[Tensor]:
    values = [getattr(corruption, field.name) for field in dataclasses.fields(corruption)]  # type: ignore[arg-type]
    return [value for value in values if isinstance(value, Tensor)]


def part_of(batch: Batch, part: slice) -> Batch:
    return Batch(batch.images[part], None if batch.token_ids is None else batch.token_ids[part])


def forward(objective: Objective, seed: int = 2, return_logits: bool = False) -> ObjectiveOutput:
    """Of a random batch, with what is hidden drawn from `seed`."""
    batch = random_batch(objective)
    return objective(batch, draw(objective, batch, seed), return_logits=return_logits)


def mean_loss(objective: Objective, seed: int = 2) -> Tensor:
    output = forward(objective, seed)
    return output.loss_sum / output.num_targets


def gradients(objective: Objective) -> dict[str, Tensor]:
    """Of the mean loss, where a parameter has one."""
    mean_loss(objective).backward()
    return {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}


def move(objective: Objective) -> None:
    """One plain step of gradient descent."""
    mean_loss(objective).backward()
    objective.before_optimizer_step()
    torch.optim.SGD([value for value in objective.parameters() if value.requires_grad], lr=0.1).step()
    objective.zero_grad(set_to_none=True)


def awakened(objective: Objective) -> Objective:
    """With weights so large that everything that may be seen makes a difference."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in objective.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return objective


def with_other_pixels(batch: Batch, patches: Tensor) -> Batch:
    """The batch with one patch of every image changed (B,); none where it is -1."""
    images = batch.images.clone()
    for image, patch in zip(images, patches.tolist(), strict=True):
        if patch >= 0:
            top, left = PATCH * (patch // (SIDE // PATCH)), PATCH * (patch % (SIDE // PATCH))
            image[:, top : top + PATCH, left : left + PATCH] += 10
    return Batch(images, batch.token_ids)


def entering(objective: Objective, batch: Batch, corruption: Any) -> Tensor:
    """The rows of the batch as they enter the first block, first call."""
    seen: list[Tensor] = []
    first: Any = objective.backbone.blocks[0]
    handle = first.norm1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    objective(batch, corruption)
    handle.remove()
    return seen[0]
