"""`mapet tokenize`: tokens once, for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Data, Device, MaxUnreadable, Workers


def tokenize(
    data: Data,
    tokenizer: Annotated[Path, typer.Option(help="A fitted tokenizer.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store; an unfinished or older one is completed.")],
    split: Annotated[str, typer.Option(help="train, test or all.")] = "train",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call of the tokenizer.")] = 64,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
) -> None:
    """Store the visual tokens of every image in DATA, found again by what an image contains."""
    from mapet.data.loader import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.runtime.device import choose_device
    from mapet.token_store.build import build_store
    from mapet.tokenizers.base import load_tokenizer

    unreadable = UnreadableImages(max_unreadable)
    store = build_store(
        open_source(data, split),
        load_tokenizer(tokenizer),
        out,
        batch_size=batch_size,
        workers=workers,
        device=choose_device(device),
        unreadable=unreadable,
    )
    rows, columns = store.grid_size
    print(f"Token store: {out}  {len(store)} images, {rows} x {columns} tokens each, vocabulary {store.vocab_size}")
    if unreadable.summary():
        print(unreadable.summary())
