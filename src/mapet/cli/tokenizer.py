"""`mapet tokenizer`: visual vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers, print_tokenizer

app = typer.Typer(help="Make visual vocabularies.", no_args_is_help=True)


@app.callback()
def verbs() -> None:
    """Make visual vocabularies."""


Out = Annotated[Path, typer.Option(help="Folder for the tokenizer; until it is done, .OUT.features beside it is continued.")]
Preset = Annotated[str | None, typer.Option(help="k-clip: the paper's settings; other options overrule it.")]
Features = Annotated[
    str | None,
    typer.Option(
        help="coates, pixels, a timm model such as resnet50x64_clip.openai, timm:NAME@FILE, or the folder of a run (coates)."
    ),
]
Layer = Annotated[int | None, typer.Option(help="Of a network: block of a ViT or stage, -1 the last. (what its head would see)")]
VocabSize = Annotated[int | None, typer.Option("--vocab-size", "-k", help="Number of visual tokens. (512)")]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them. (224, or that of the run)")
]
PatchSize = Annotated[
    int | None, typer.Option(min=1, help="Side of a patch in pixels; image size / patch size is the grid. (16, or that of the run)")
]
Option = Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the features; repeatable.")]
Points = Annotated[int | None, typer.Option(min=1, help="Patches that are clustered. (200,000)")]
Share = Annotated[float | None, typer.Option(help="Share of all patches that are clustered, such as 0.02.")]
Images = Annotated[int | None, typer.Option(min=0, help="Images they are taken from, 0 for all. (20,000, or all with --share)")]
Iterations = Annotated[int | None, typer.Option(min=1, help="Of k-means. (20)")]
Restarts = Annotated[int | None, typer.Option(min=1, help="Of k-means; the lowest inertia wins. (3)")]
Memory = Annotated[float, typer.Option(min=0.0, help="GiB of main memory for features; more are read from disk in every pass.")]
KeepFeatures = Annotated[bool, typer.Option("--keep-features", help="Leave .OUT.features for another clustering.")]


@app.command()
def fit(
    data: Data,
    out: Out,
    preset: Preset = None,
    features: Features = None,
    layer: Layer = None,
    vocab_size: VocabSize = None,
    image_size: ImageSize = None,
    patch_size: PatchSize = None,
    option: Option = None,
    points: Points = None,
    share: Share = None,
    images: Images = None,
    iterations: Iterations = None,
    restarts: Restarts = None,
    memory: Memory = 4,
    keep_features: KeepFeatures = False,
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
    source, where = open_source(data, "train"), choose_device(device)
    work = {"keep_features": keep_features, "memory": int(memory * 2**30), "workers": workers, "unreadable": unreadable}
    tokenizer = fit_tokenizer(source, settings, out=out, device=where, **work)
    print_tokenizer(out, tokenizer, unreadable)
