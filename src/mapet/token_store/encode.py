"""From crops to tokens: what building, verifying and training on the fly have in common."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mapet.data.regions import Regions
from mapet.data.views import Rendering
from mapet.errors import TokenizerError
from mapet.token_store.format import TokenSpace, as_json
from mapet.tokenizers.base import Tokenizer


def token_space(tokenizer: Tokenizer, regions: Regions) -> TokenSpace:
    """What the ids of `tokenizer` mean for images cropped to `regions`."""
    rows, columns = tokenizer.grid_size
    settings = as_json({"kind": tokenizer.kind, **tokenizer.settings(), "preprocess": tokenizer.preprocess})
    return TokenSpace(tokenizer.fingerprint, settings, as_json(regions.describe()), (rows, columns), tokenizer.vocab_size)


def rendering_for(tokenizer: Tokenizer) -> Rendering:
    """The rendering of a region for `tokenizer`."""
    return Rendering(tokenizer.image_size, tokenizer.interpolation)


def encode(tokenizer: Tokenizer, images: Tensor, device: torch.device | str) -> Tensor:
    """The tokens (B, gh, gw) int64, on `device`, of images (B, 3, H, W) uint8 as `rendering_for` makes them; B may be 0.

    Raises:
        TokenizerError: The tokenizer gives ids of another shape than it announces.
    """
    shape = (len(images), *tokenizer.grid_size)
    if not len(images):
        return torch.zeros(shape, dtype=torch.int64, device=device)
    ids = tokenizer.encode(images.to(device, non_blocking=True).float() / 255)
    if ids.shape != shape:
        raise _misannounced(tokenizer, ids, shape)
    return ids


def encode_for_storing(tokenizer: Tokenizer, images: Tensor, device: torch.device | str, dtype: np.dtype) -> np.ndarray:
    """As `encode`, in the type of a store; ids that would not survive storing are refused."""
    ids = encode(tokenizer, images, device).cpu()
    if ids.numel() and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
        raise _misannounced(tokenizer, ids, (*ids.shape,))
    return ids.numpy().astype(dtype)


def _misannounced(tokenizer: Tokenizer, ids: Tensor, shape: tuple[int, ...]) -> TokenizerError:
    return TokenizerError(
        f"The tokenizer '{tokenizer.kind}' gave ids {ids.min()} to {ids.max()} of shape {(*ids.shape,)}, but announces a "
        f"vocabulary of {tokenizer.vocab_size} and the shape {shape}. Correct its `encode`, or its `vocab_size` and `grid_size`."
    )
