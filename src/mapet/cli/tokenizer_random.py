"""`mapet tokenizer random`: tokens that mean little, for smoke runs and as the floor for better ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Seed


def random(
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-k", min=2, help="Number of visual tokens.")] = 512,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them.")] = 224,
    patch_size: Annotated[int, typer.Option(min=1, help="Side of a patch in pixels; image size / patch size is the grid.")] = 16,
    seed: Seed = 0,
) -> None:
    """Make a tokenizer of random projections: no images, no weights, the same one for the same seed."""
    from mapet.runtime.lock import only_writer
    from mapet.tokenizers.base import refuse_existing
    from mapet.tokenizers.random_projection import RandomProjection

    tokenizer = RandomProjection(image_size, patch_size, vocab_size, seed)
    with only_writer(out):
        refuse_existing(out)
        tokenizer.save(out)
    rows, columns = tokenizer.grid_size
    print(f"Tokenizer: {out}  vocabulary {vocab_size}, {rows} x {columns} tokens, fingerprint {tokenizer.fingerprint[:12]}")
