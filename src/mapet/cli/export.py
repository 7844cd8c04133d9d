"""`mapet export`: a backbone in forms that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            help="A run directory, a published checkpoint, a folder of Hugging Face or timm, hf://OWNER/NAME, timm:NAME or "
            "random:NAME.",
        ),
    ],
    to: Annotated[str, typer.Option(help="timm, hf (transformers), safetensors or onnx.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face Hub as well.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Of what is pushed: only you see it.")] = False,
    model: Annotated[str | None, typer.Option(help="Of a published checkpoint: timm's name of the model; else derived.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of timm.create_model, such as img_size=384; repeatable.")
    ] = None,
) -> None:
    """Write a backbone for timm, transformers, safetensors or ONNX, with a model card.

    What was written is loaded again, and its outputs are compared with the original's.
    """
    from mapet.checkpoints.place import require_place

    require_place(backbone)

    from mapet.checkpoints.address import load_backbone
    from mapet.config.recipes import parse_options
    from mapet.export.export import FORMATS
    from mapet.export.export import export as run_export
    from mapet.export.hub import push as run_push

    FORMATS.get_or_import(to)
    loaded = load_backbone(backbone, model=model, options=parse_options(option or []))
    written = run_export(loaded, to, out)
    difference = "not compared" if written.difference is None else f"within {written.difference:.1e} of the original"
    print(f"Written: {out} (outputs {difference})")
    for note in written.notes:
        print(note)
    print(written.usage.replace("FOLDER", str(out)))
    if push:
        print(f"Pushed: {run_push(out, push, private=private)}")
