"""`mapet tokenizer train`: a VQ-KD vocabulary, learned from a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers


def train(
    data: Data,
    teacher: Annotated[
        str,
        typer.Option(
            help="Features the tokens are to tell: as --features of `fit`, such as vit_base_patch16_clip_quickgelu_224.openai."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer; OUT.training beside it is continued exactly.")],
    vocab_size: Annotated[int, typer.Option("--vocab-size", "-k", min=2, help="Number of visual tokens.")] = 8192,
    image_size: Annotated[int, typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them.")] = 224,
    encoder: Annotated[str, typer.Option(help="A plain timm ViT; its patches are the grid.")] = "vit_base_patch16_224",
    encoder_option: Annotated[
        list[str] | None, typer.Option("--encoder-option", metavar="KEY=VALUE", help="Of timm's ViT, e.g. depth=2; repeatable.")
    ] = None,
    decoder_depth: Annotated[int, typer.Option(min=1, help="Blocks of the decoder; published: 1 and 3.")] = 3,
    code_dim: Annotated[int, typer.Option(min=1, help="Length of a code.")] = 32,
    teacher_image_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images as the teacher sees them; by default the image size.")
    ] = None,
    teacher_option: Annotated[
        list[str] | None, typer.Option("--teacher-option", metavar="KEY=VALUE", help="An option of the features; repeatable.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps; or give --epochs.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the images (100).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, over all processes.")] = 512,
    lr: Annotated[float | None, typer.Option(help="Learning rate (2e-4 for 512 images, in proportion to the batch).")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the ViTs; codes and codebook are float32.")] = "fp32",
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two states on disk.")] = 500,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Train a VQ-KD tokenizer: codes of a ViT from which a decoder can tell a teacher's features of DATA.

    The same command continues an interrupted training exactly.
    """
    from mapet.config.recipes import parse_options
    from mapet.data.skipped import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.registry import allow as typed
    from mapet.runtime.device import choose_device
    from mapet.runtime.processes import this_process
    from mapet.tokenizers.vq_kd.settings import VQKDSettings
    from mapet.tokenizers.vq_kd.training import train_vq_kd

    typed(teacher)
    settings = VQKDSettings(
        teacher=teacher,
        teacher_options=parse_options(teacher_option or []),
        teacher_image_size=teacher_image_size,
        image_size=image_size,
        vocab_size=vocab_size,
        code_dim=code_dim,
        encoder=encoder,
        encoder_options=parse_options(encoder_option or []),
        decoder_depth=decoder_depth,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        precision=precision,
        seed=seed,
    )
    unreadable = UnreadableImages(max_unreadable)
    tokenizer = train_vq_kd(
        open_source(data, "train"),
        out,
        settings,
        device=choose_device(device),
        workers=workers,
        unreadable=unreadable,
        save_every=save_every,
    )
    if this_process().rank == 0:
        print(f"Tokenizer: {out}  {json.dumps(tokenizer.fit_report)}")
    if unreadable.summary():
        print(unreadable.summary())
