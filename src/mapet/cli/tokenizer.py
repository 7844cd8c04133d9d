"""`mapet tokenizer`: visual vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Data, Device, MaxUnreadable, Seed, Workers

app = typer.Typer(help="Fit a visual vocabulary.", no_args_is_help=True)


@app.callback()
def verbs() -> None:
    """Fit a visual vocabulary."""


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer.")],
    features: Annotated[str, typer.Option(help="coates, pixels, or a timm model such as resnet50x64_clip.openai.")] = "coates",
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-k", min=2, help="Number of visual tokens.")] = 512,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them.")] = 224,
    patch_size: Annotated[int, typer.Option(min=1, help="Side of a patch in pixels; image size / patch size is the grid.")] = 16,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the features; repeatable.")
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Patches that are clustered.")] = 200_000,
    images: Annotated[int, typer.Option(min=1, help="Images that they are taken from, at most.")] = 20_000,
    iterations: Annotated[int, typer.Option(min=1, help="Of k-means.")] = 20,
    restarts: Annotated[int, typer.Option(min=1, help="Of k-means; the lowest inertia wins.")] = 3,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
) -> None:
    """Fit a k-means tokenizer on features of the patches of DATA."""
    from mapet.config.recipes import parse_options
    from mapet.data.loader import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.runtime.device import choose_device
    from mapet.tokenizers.fit import fit_tokenizer

    unreadable = UnreadableImages(max_unreadable)
    tokenizer = fit_tokenizer(
        open_source(data, "train"),
        features=features,
        feature_options=parse_options(option or []),
        image_size=image_size,
        patch_size=patch_size,
        vocab_size=vocab_size,
        num_points=points,
        max_images=images,
        iterations=iterations,
        restarts=restarts,
        seed=seed,
        device=choose_device(device),
        workers=workers,
        unreadable=unreadable,
    )
    tokenizer.save(out)
    print(f"Tokenizer: {out}  {json.dumps(tokenizer.fit_report)}")
    if unreadable.summary():
        print(unreadable.summary())
