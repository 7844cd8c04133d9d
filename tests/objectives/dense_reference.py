"""Two-stream pre-training written out naively: raster order, one dense mask per sample, nothing shared with the library's layout.

Every position of the image has a content row; every target has a mask-token row and a query row. Masks follow the table in the
paper's section 3.2 entry by entry. Slow on purpose.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm


def dense_logits(objective: nn.Module, images: Tensor, permutation: Tensor, kind: str) -> dict[tuple[int, int], Tensor]:
    """Logits of every predicted target, the last `num_predicted` of the permutation, keyed by (sample, 0-based patch)."""
    logits = {}
    for sample in range(len(images)):
        order = permutation[sample].tolist()
        targets = order[objective.num_context :]
        rows = _query_rows(objective, images[sample], order, targets, kind)
        predicted = list(zip(targets, rows, strict=True))[len(targets) - objective.num_predicted :]
        for patch, row in predicted:
            logits[sample, patch] = objective.head(_norm(objective.backbone.norm, row))
    return logits


def masked_logits(objective: nn.Module, images: Tensor, mask: Tensor) -> dict[tuple[int, int], Tensor]:
    """MIM: every hidden patch replaced by the mask token, everything sees everything."""
    backbone, logits = objective.backbone, {}
    for sample in range(len(images)):
        rows = _embedded(backbone, images[sample])
        for patch in mask[sample].nonzero().flatten().tolist():
            rows[1 + patch] = objective.mask_token[0, 0] + backbone.pos_embed[0, 1 + patch]
        rows = torch.stack(rows)
        everything = torch.ones(len(rows), len(rows), dtype=torch.bool)
        for block in backbone.blocks:
            rows = _block(block, rows, rows, everything)
        for patch in mask[sample].nonzero().flatten().tolist():
            logits[sample, patch] = objective.head(_norm(backbone.norm, rows[1 + patch]))
    return logits


def _query_rows(objective: nn.Module, image: Tensor, order: list[int], targets: list[int], kind: str) -> Tensor:
    backbone = objective.backbone
    contents = _embedded(backbone, image)
    masks = [objective.mask_token[0, 0] + backbone.pos_embed[0, 1 + patch] for patch in targets]
    content = torch.stack([*contents, *masks])
    query = torch.stack(masks)
    names = [("content", -1), *[("content", patch) for patch in range(len(order))], *[("mask", patch) for patch in targets]]
    rank = {patch: position for position, patch in enumerate(order)} | {-1: -1}
    content_sees = torch.tensor([[_sees(row, column, rank, len(order) - len(targets), kind) for column in names] for row in names])
    query_sees = torch.tensor(
        [[_sees(("query", patch), column, rank, len(order) - len(targets), kind) for column in names] for patch in targets]
    )
    for block in backbone.blocks:
        query, content = _block(block, query, content, query_sees), _block(block, content, content, content_sees)
    return query


def _sees(row: tuple[str, int], column: tuple[str, int], rank: dict[int, int], num_context: int, kind: str) -> bool:
    """Whether a row may attend to a column, by the table of who sees what."""
    (row_stream, row_patch), (stream, patch) = row, column
    is_target = rank[patch] >= num_context
    if stream == "content" and not is_target:
        return True
    if stream == "mask" and kind == "pim":
        return row_stream == "mask" and patch == row_patch
    if row_stream == "mask" or (row_stream == "content" and rank[row_patch] < num_context):
        return stream == "mask"
    seen_content = rank[patch] < rank[row_patch] or (row_stream == "content" and rank[patch] == rank[row_patch])
    return seen_content if stream == "content" else not seen_content


def _embedded(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    projection = backbone.patch_embed.proj
    size = projection.weight.shape[-1]
    rows = [backbone.cls_token[0, 0] + backbone.pos_embed[0, 0]]
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            window = image[:, top : top + size, left : left + size]
            embedding = torch.einsum("dchw,chw->d", projection.weight, window) + projection.bias
            rows.append(embedding + backbone.pos_embed[0, len(rows)])
    return rows


def _block(block: nn.Module, rows: Tensor, keys: Tensor, sees: Tensor) -> Tensor:
    attn = block.attn
    q = _heads(attn, _norm(block.norm1, rows), 0)
    k, v = _heads(attn, _norm(block.norm1, keys), 1), _heads(attn, _norm(block.norm1, keys), 2)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~sees, -float("inf"))
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v).flatten(1)
    rows = rows + _scale(block.ls1) * (mixed @ attn.proj.weight.T + attn.proj.bias)
    hidden = gelu(_norm(block.norm2, rows) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
    return rows + _scale(block.ls2) * (hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias)


def _heads(attn: nn.Module, rows: Tensor, part: int) -> Tensor:
    width = rows.shape[-1]
    chosen = slice(part * width, (part + 1) * width)
    return (rows @ attn.qkv.weight[chosen].T + attn.qkv.bias[chosen]).unflatten(1, (attn.num_heads, -1))


def _norm(norm: nn.Module, rows: Tensor) -> Tensor:
    return layer_norm(rows, rows.shape[-1:], norm.weight, norm.bias, norm.eps)


def _scale(layer: nn.Module) -> Tensor | float:
    return getattr(layer, "gamma", 1.0)
