"""`mapet tokenizer`: visual vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers

app = typer.Typer(help="Make visual vocabularies.", no_args_is_help=True)


@app.callback()
def verbs() -> None:
    """Make visual vocabularies."""


@app.command()
def fit(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer; until it is done, .OUT.features beside it is continued.")],
    preset: Annotated[str | None, typer.Option(help="k-clip: the paper's settings; other options overrule it.")] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="coates, pixels, a timm model such as resnet50x64_clip.openai, timm:NAME@FILE, or the folder of a run (coates)."
        ),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Of a network: block of a ViT or stage, -1 the last. (what its head would see)")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", "-k", help="Number of visual tokens. (512)")] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them. (224, or that of the run)"),
    ] = None,
    patch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of a patch in pixels; image size / patch size is the grid. (16, or that of the run)"),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the features; repeatable.")
    ] = None,
    points: Annotated[int | None, typer.Option(min=1, help="Patches that are clustered. (200,000)")] = None,
    share: Annotated[float | None, typer.Option(help="Share of all patches that are clustered, such as 0.02.")] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="Images they are taken from, 0 for all. (20,000, or all with --share)")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Of k-means. (20)")] = None,
    restarts: Annotated[int | None, typer.Option(min=1, help="Of k-means; the lowest inertia wins. (3)")] = None,
    memory: Annotated[
        float, typer.Option(min=0.0, help="GiB of main memory for features; more are read from disk in every pass.")
    ] = 4,
    keep_features: Annotated[bool, typer.Option("--keep-features", help="Leave .OUT.features for another clustering.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Fit a k-means tokenizer on features of the patches of DATA.

    The same command continues an interrupted fit; torchrun shares it among processes.
    """
    from mapet.config.recipes import parse_options
    from mapet.data.skipped import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.registry import allow as typed
    from mapet.runtime.device import choose_device
    from mapet.runtime.processes import this_process
    from mapet.tokenizers.fit import fit_tokenizer
    from mapet.tokenizers.fit_settings import preset_settings

    typed(features or "")
    options = parse_options(option or []) | ({} if layer is None else {"layer": layer})
    settings = preset_settings(
        preset,
        features=features,
        feature_options=options or None,
        vocab_size=vocab_size,
        image_size=image_size,
        patch_size=patch_size,
        num_points=points,
        share=share,
        max_images=images,
        iterations=iterations,
        restarts=restarts,
        seed=seed,
    )
    unreadable = UnreadableImages(max_unreadable)
    tokenizer = fit_tokenizer(
        open_source(data, "train"),
        settings,
        out=out,
        keep_features=keep_features,
        memory=int(memory * 2**30),
        device=choose_device(device),
        workers=workers,
        unreadable=unreadable,
    )
    if this_process().rank == 0:
        print(f"Tokenizer: {out}  {json.dumps(tokenizer.fit_report)}")
    if unreadable.summary():
        print(unreadable.summary())
