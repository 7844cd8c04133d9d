"""Two-stream attention over unmodified timm blocks, in permuted order.

The released code of MaPeT keeps raster order and ships one dense mask per sample and head. Gathering the sequence into the order of
its permutation once makes the masks the same for every sample, head, layer and step. The rows are laid out as

    open rows     context, and for MaPeT the mask tokens: every one sees all of them, with no mask at all
    contents      the target patches, in the order of the permutation: the content stream
    queries       one for every target that is predicted, in the same order: the query stream, whose outputs predict

and one boolean matrix `visible` of shape (contents + queries, open rows + contents) has the keys that the last two groups see.
Keys and values come from open rows and contents only: nothing ever reads a query. In the last block only the queries are used,
so open rows and contents give their keys and values there and nothing else.

Source: MaPeT, section 3.2 (XLNet's two streams, with mask tokens among the keys).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from mapet.compat import Attention, Block


def mapet_visibility(prefix_length: int, num_targets: int) -> Tensor:
    """Who sees what in MaPeT; the open rows end with the mask tokens of the targets.

    A content at rank t sees the context, contents up to t and mask tokens after t; a query at rank t sees the context, contents
    before t and mask tokens from t on. Every row so sees exactly one of content and mask token of every target.

    Args:
        prefix_length: Prefix tokens + context patches + mask tokens.
        num_targets: T.

    Returns:
        (2T, num_open + T) bool, True = may attend; rows are contents then queries, columns open rows then contents.
    """
    contents, queries = _contents_up_to(num_targets), _contents_before(num_targets)
    context = torch.ones(num_targets, prefix_length - num_targets, dtype=torch.bool)
    return torch.cat([torch.cat([context, ~seen, seen], dim=1) for seen in (contents, queries)])


def pim_visibility(prefix_length: int, num_targets: int) -> Tensor:
    """Who sees what in PIM: as MaPeT without mask tokens, so that early targets see less of the image.

    Returns:
        (2T, num_open + T) bool, True = may attend; rows are contents then queries, columns open rows then contents.
    """
    context = torch.ones(num_targets, prefix_length, dtype=torch.bool)
    streams = (_contents_up_to(num_targets), _contents_before(num_targets))
    return torch.cat([torch.cat([context, seen], dim=1) for seen in streams])


def two_stream(
    blocks: Iterable[Block],
    prefix: Tensor,
    contents: Tensor,
    queries: Tensor,
    visible: Tensor,
    *,
    checkpointing: bool = False,
) -> Tensor:
    """Runs timm blocks over both streams.

    Args:
        blocks: The blocks of a timm VisionTransformer.
        prefix: (B, O, D) prefix, context and mask tokens; they attend to each other.
        contents: (B, T, D) target patches in the order of the permutation.
        queries: (B, Q, D) one query for every target, or every one of the last Q, in the same order.
        visible: (T + Q, O + T) bool from `mapet_visibility` or `pim_visibility`, perhaps without the first queries.
        checkpointing: Recompute each block in the backward pass instead of keeping its activations.

    Returns:
        (B, Q, D) outputs of the queries, before the final norm.
    """
    rows = torch.cat([prefix, contents, queries], dim=1)
    prefix_length, num_queries = prefix.shape[1], queries.shape[1]
    blocks = list(blocks)
    for block in blocks:
        run = getattr(block, "both_streams", None) or partial(run_block, block)  # a block may compute them in its own way
        arguments = (rows, prefix_length, num_queries, visible, block is blocks[-1])
        rows = checkpoint(run, *arguments, use_reentrant=False) if checkpointing else run(*arguments)
    return rows


def run_block(block: Block, rows: Tensor, prefix_length: int, num_queries: int, visible: Tensor, queries_only: bool) -> Tensor:
    """One block over both streams.

    Args:
        block: A timm block.
        rows: (B, O + T + Q, D) open rows, contents, queries.
        prefix_length: O.
        num_queries: Q.
        visible: (T + Q, O + T) bool.
        queries_only: Compute the outputs of the queries alone, as the last block does.

    Returns:
        (B, O + T + Q, D), or (B, Q, D).
    """
    attn = cast(Attention, block.attn)
    attend = _attend_queries if queries_only else _attend_all
    attended = attend(attn, block.norm1(rows), prefix_length, num_queries, visible)
    rows = rows[:, -attended.shape[1] :] + block.drop_path1(block.ls1(attended))
    return rows + block.drop_path2(block.ls2(block.mlp(block.norm2(rows))))


def _attend_all(attn: Attention, rows: Tensor, prefix_length: int, num_queries: int, visible: Tensor) -> Tensor:
    q = _project_queries(attn, rows)
    k, v = _project_keys_and_values(attn, rows[:, :-num_queries])
    seen_by_all = _attention(attn, q[:, :, :prefix_length], k[:, :, :prefix_length], v[:, :, :prefix_length], None)
    in_order = _attention(attn, q[:, :, prefix_length:], k, v, visible)
    return _leave_heads(attn, torch.cat([seen_by_all, in_order], dim=2))


def _attend_queries(attn: Attention, rows: Tensor, prefix_length: int, num_queries: int, visible: Tensor) -> Tensor:
    q = _project_queries(attn, rows[:, -num_queries:])
    k, v = _project_keys_and_values(attn, rows[:, :-num_queries])
    return _leave_heads(attn, _attention(attn, q, k, v, visible[-num_queries:]))


def _project_queries(attn: Attention, rows: Tensor) -> Tensor:
    """The q part of timm's joint projection: (B, rows, D) to (B, heads, rows, head size)."""
    width = attn.attn_dim
    bias = None if attn.qkv.bias is None else attn.qkv.bias[:width]
    q = linear(rows, attn.qkv.weight[:width], bias)
    return attn.q_norm(q.unflatten(2, (attn.num_heads, attn.head_dim)).transpose(1, 2))


def _project_keys_and_values(attn: Attention, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The k and v parts of timm's joint projection, each (B, heads, rows, head size)."""
    width = attn.attn_dim
    bias = None if attn.qkv.bias is None else attn.qkv.bias[width:]
    kv = linear(rows, attn.qkv.weight[width:], bias)
    k, v = kv.unflatten(2, (2, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.k_norm(k), v


def _attention(attn: Attention, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    dropout = attn.attn_drop.p if attn.training else 0.0
    return scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)


def _leave_heads(attn: Attention, rows: Tensor) -> Tensor:
    """(B, heads, rows, head size) through the norm and the output projection to (B, rows, D)."""
    return attn.proj_drop(attn.proj(attn.norm(rows.transpose(1, 2).flatten(2))))


def _contents_up_to(num_targets: int) -> Tensor:
    return torch.ones(num_targets, num_targets, dtype=torch.bool).tril()


def _contents_before(num_targets: int) -> Tensor:
    return torch.ones(num_targets, num_targets, dtype=torch.bool).tril(diagonal=-1)
