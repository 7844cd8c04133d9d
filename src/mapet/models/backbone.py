"""The backbone: a plain timm VisionTransformer, never wrapped and never changed.

Pre-training reaches into it from outside, through the functions below, so that its state_dict loads into `timm.create_model` of the
same name before and after.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mapet.compat import Attention, Block, VisionTransformer, timm
from mapet.errors import ModelError, in_one_line, nearest
from mapet.runtime.device import without_memory

_REFUSED_BY_TIMM = (TypeError, AssertionError, ValueError, ArithmeticError, RuntimeError, LookupError)


def create_backbone(name: str, **timm_kwargs: Any) -> VisionTransformer:
    """`timm.create_model(name, **timm_kwargs)`, checked to be a ViT that can be pre-trained here.

    The paper's ViTs are `vit_{tiny,small,base}_patch16_224` with `init_values=0.1`.

    Raises:
        ModelError: The name is unknown to timm, timm refuses the arguments, or the model is not a plain ViT.
    """
    return check_backbone(build_by_timm(name, **timm_kwargs))


def build_by_timm(name: str, **timm_kwargs: Any) -> nn.Module:
    """`timm.create_model(name, **timm_kwargs)`, with what timm and the Hub raise in words.

    Raises:
        ModelError: The name is unknown to timm, timm refuses the arguments, or `pretrained` weights cannot be had.
    """
    if not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model '{name}'. {nearest(name, timm.list_models('vit_*'))}")
    _check_memory(name, timm_kwargs)
    try:
        return timm.create_model(name, **timm_kwargs)
    except Exception as error:  # what options of a wrong type raise, or network and Hub's cache, comes through timm as it is
        words, refused = in_one_line(error), isinstance(error, _REFUSED_BY_TIMM) and not isinstance(error, OSError)
        if refused or not timm_kwargs.get("pretrained"):
            raise ModelError(f"timm cannot build '{name}' with {timm_kwargs}: {words}.") from error
        raise ModelError(
            f"Cannot fetch timm's weights for '{name}': {words}. Try again with a connection to the Hugging Face Hub, give a file "
            f"or folder with the weights (with --model {name}), or random:{name} for a random initialisation."
        ) from error


# Sizes above which a model might not fit into memory.
_LARGE = {"depth": 64, "embed_dim": 2048, "mlp_ratio": 8, "num_classes": 2**20, "img_size": 4096, "reg_tokens": 1024}
_BLOCK_BYTES = 50_000  # of a block's objects in Python, whatever its width


def _check_memory(name: str, options: Mapping[str, Any]) -> None:
    """Refuses sizes whose model would not fit into this machine's memory, before any is taken.

    Raises:
        ModelError: Names the sizes and both amounts.
    """
    large = {key: value for key, value in options.items() if key in _LARGE and _number(value) > _LARGE[key]}
    if not large:
        return
    with without_memory():
        usual = cast(Any, timm.create_model(name))
    sizes = {
        "depth": len(getattr(usual, "blocks", ())),
        "embed_dim": getattr(usual, "embed_dim", 1),
        "mlp_ratio": 4,
        "patch_size": 16,
    }
    sizes |= {"img_size": 224, "num_classes": 1000, "reg_tokens": 0}
    depth, width, ratio, patch, side, classes, registers = (_number(options.get(key, size)) for key, size in sizes.items())
    rows = (side / max(patch, 1)) ** 2 + registers + classes
    weights = 4 * width * (depth * (4 + 2 * ratio) * width + rows)
    needed = weights * (torch.get_default_device().type != "meta") + _BLOCK_BYTES * depth
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        words = ", ".join(f"{key}={value}" for key, value in large.items())
        raise ModelError(
            f"'{name}' with {words} would take {needed / 2**30:,.0f} GiB for its weights, and this machine has "
            f"{there / 2**30:,.0f} GiB of memory. Give smaller sizes."
        )


def _number(value: Any) -> float:
    """The largest number in an option; 0 where it is none, which timm rejects with an error."""
    values = value if isinstance(value, list | tuple) else [value]
    return max((float(one) for one in values if isinstance(one, int | float) and abs(one) < 2**200), default=0.0)


def check_backbone(backbone: nn.Module) -> VisionTransformer:
    """Returns the model it is given, and refuses one whose blocks, attention or positions are not those of a plain ViT.

    Raises:
        ModelError: Names the part that does not fit.
    """
    if not isinstance(backbone, VisionTransformer):
        raise ModelError(
            f"{type(backbone).__name__} is not a timm VisionTransformer. Use a plain ViT such as 'vit_small_patch16_224'."
        )
    if backbone.pos_embed is None or backbone.dynamic_img_size:
        raise ModelError("The backbone needs learned position embeddings of one fixed size (not dynamic_img_size).")
    if not isinstance(backbone.patch_drop, nn.Identity):
        raise ModelError("The backbone drops patches (patch_drop_rate); what is hidden is the objective's business. Leave it at 0.")
    for block in blocks_of(check_parts(backbone)):
        attention = getattr(block, "attn", None)
        plain = type(block) is Block and type(attention) is Attention and getattr(attention, "gate", None) is None
        if not plain:
            raise ModelError(
                f"The backbone has {type(block).__name__} blocks with {type(attention).__name__}; two-stream attention "
                "runs timm's plain Block with its plain Attention. Use a plain ViT such as 'vit_small_patch16_224'."
            )
    return backbone


def check_parts(backbone: VisionTransformer) -> VisionTransformer:
    """Returns the model it is given, and refuses one without blocks, or whose patches leave a remainder.

    Raises:
        ModelError: Names the numbers.
    """
    check_grid(backbone.patch_embed)
    if not list(blocks_of(backbone)):
        raise ModelError("The backbone has no blocks (depth). Give a depth of 1 or more.")
    return backbone


def check_grid(patch_embed: Any) -> None:
    """Refuses a patch embedding of timm's whose patches do not cover the image.

    Raises:
        ModelError: Names both sizes.
    """
    image, patch, grid = patch_embed.img_size, patch_embed.patch_size, patch_embed.grid_size
    if image is None or any(cells * size != pixels for cells, size, pixels in zip(grid, patch, image, strict=True)):
        raise ModelError(f"The image size {image} is not a multiple of the patch size {patch}: pixels at the border would be lost.")


def blocks_of(backbone: VisionTransformer) -> Iterable[Block]:
    """The transformer blocks, first to last."""
    return cast(Iterable[Block], backbone.blocks)


def num_heads(backbone: VisionTransformer) -> int:
    """Heads of every attention."""
    return cast(Attention, next(iter(blocks_of(backbone))).attn).num_heads


def grid_size(backbone: VisionTransformer) -> tuple[int, int]:
    """Rows and columns of patches in an image."""
    rows, columns = backbone.patch_embed.grid_size  # type: ignore[misc]
    return rows, columns


def image_size(backbone: VisionTransformer) -> tuple[int, int]:
    """Height and width in pixels of the images it is built for."""
    height, width = backbone.patch_embed.img_size  # type: ignore[misc]
    return height, width


def patch_size(backbone: VisionTransformer) -> int:
    """Side of a patch in pixels.

    Raises:
        ModelError: Patches are not square.
    """
    height, width = backbone.patch_embed.patch_size
    if height != width:
        raise ModelError(f"The patches are {height} x {width} pixels; visual tokens need square ones.")
    return height


def embed_patches(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Patch embeddings without positions.

    Args:
        backbone: The ViT.
        images: (B, 3, H, W), normalised.

    Returns:
        (B, N_p, D) in raster order.
    """
    expected = tuple(backbone.patch_embed.img_size or ())
    if tuple(images.shape[-2:]) != expected:
        raise ModelError(
            f"The images are {tuple(images.shape[-2:])} pixels, the backbone was built for {expected}. "
            "Create it with img_size=..., or change the size of the view."
        )
    return backbone.patch_embed(images)


def patch_positions(backbone: VisionTransformer) -> Tensor:
    """Position embeddings of the patches, (1, N_p, D) in raster order."""
    table = backbone.pos_embed
    assert table is not None
    return table if backbone.no_embed_class else table[:, backbone.num_prefix_tokens :]


def prefix_tokens(backbone: VisionTransformer, batch_size: int) -> Tensor:
    """CLS and register tokens with their positions, (B, P, D); P may be 0."""
    tokens: list[Tensor] = [token for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    if not tokens:
        return patch_positions(backbone)[:, :0].expand(batch_size, -1, -1)
    prefix = torch.cat(tokens, dim=1)
    if not backbone.no_embed_class:
        assert backbone.pos_embed is not None
        prefix = prefix + backbone.pos_embed[:, : backbone.num_prefix_tokens]
    return prefix.expand(batch_size, -1, -1)


def enter_blocks(backbone: VisionTransformer, tokens: Tensor) -> Tensor:
    """What timm does between adding positions and the first block, (B, rows, D) to the same."""
    return backbone.norm_pre(backbone.pos_drop(tokens))


def final_norm(backbone: VisionTransformer) -> nn.Module:
    """The norm behind the last block; timm calls it `fc_norm` where the backbone averages its patches."""
    return backbone.fc_norm if isinstance(backbone.norm, nn.Identity) else backbone.norm


def normed_tokens(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """All tokens behind the final norm, (B, N, D), of normalised images (B, 3, H, W)."""
    tokens = backbone.forward_features(images)  # where the patches are averaged, timm's norm stands behind the average
    return final_norm(backbone)(tokens) if isinstance(backbone.norm, nn.Identity) else tokens
