"""`mapet tokenize`: tokens once, for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers

if TYPE_CHECKING:
    from mapet.data.regions import Regions


Tokenizer = Annotated[Path, typer.Option(help="A fitted tokenizer.")]
Out = Annotated[Path, typer.Option(help="Folder of the token store; an unfinished or older one is completed.")]
SplitOption = Annotated[str, typer.Option(help="train, test or all.")]
Views = Annotated[
    int | None, typer.Option(min=1, help="Store tokens of so many random crops of every image, in place of the central square.")
]
Scale = Annotated[
    tuple[float, float] | None, typer.Option(help="Of random crops: smallest and largest share of the area (0.2 1.0).")
]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the random crops (yes).")]
Verify = Annotated[
    int | None, typer.Option(min=1, help="Build nothing: tokenise so many random crops again and compare them with the store.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per call of the tokenizer.")]


def tokenize(
    data: Data,
    tokenizer: Tokenizer,
    out: Out,
    split: SplitOption = "train",
    views: Views = None,
    scale: Scale = None,
    flip: Flip = None,
    seed: Seed = 0,
    verify: Verify = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Store the visual tokens of every image in DATA, found again by what an image contains.

    Several processes share the work: torchrun --nproc-per-node 8 -m mapet tokenize ...
    """
    from mapet.tokenizers.place import require_place

    require_place(tokenizer)

    from mapet.data.skipped import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.runtime.device import choose_device
    from mapet.runtime.processes import this_process
    from mapet.token_store.build import build_store
    from mapet.token_store.read import TokenStore
    from mapet.token_store.verify import verify_store
    from mapet.tokenizers.load import load_tokenizer

    regions, processes = _regions(views, scale, flip, seed), this_process()
    if verify and processes.rank:
        return
    unreadable = UnreadableImages(max_unreadable)
    work = {
        "batch_size": batch_size,
        "workers": workers,
        "device": choose_device(str(processes.device(choose_device(device)))),
        "unreadable": unreadable,
    }
    with _silence() if processes.rank else nullcontext():
        source, loaded = open_source(data, split), load_tokenizer(tokenizer)
        if verify:
            store = TokenStore.open(out)
            store.check(view=regions.describe() if views else None)
            verification = verify_store(store, source, loaded, verify, seed=seed, **work)
            verification.require()
            print(verification.summary())
        else:
            store = build_store(source, loaded, out, regions=regions, rank=processes.rank, world=processes.world, **work)
            rows, columns = store.grid_size
            each = (
                f"{rows} x {columns} tokens each" if not store.num_views else f"{store.num_views} x {rows} x {columns} tokens each"
            )
            print(f"Token store: {out}  {len(store)} images, {each}, vocabulary {store.vocab_size}")
        if unreadable.summary():
            print(unreadable.summary())


def _regions(views: int | None, scale: tuple[float, float] | None, flip: bool | None, seed: int) -> Regions:
    """The requested regions; without --views, the fixed crop."""
    from mapet.data.regions import FixedCrop, RandomCrops
    from mapet.errors import SettingsError

    if views is not None:
        return RandomCrops(views, scale or (0.2, 1.0), flip is not False, seed)
    if scale is not None or flip is not None:
        option = "--scale" if scale is not None else "--flip" if flip else "--no-flip"
        raise SettingsError(f"{option} is about random crops, and without --views the central square is tokenised. Add --views K.")
    return FixedCrop()


@contextmanager
def _silence() -> Iterator[None]:
    """Only the first process prints; errors of the others are raised, and printed after this."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
