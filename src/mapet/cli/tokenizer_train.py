"""`mapet tokenizer train`: a VQ-KD vocabulary, learned from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import Allow, Data, Device, MaxUnreadable, Seed, Workers, print_tokenizer

Teacher = Annotated[
    str,
    typer.Option(
        help="Features that the decoder reconstructs: as --features of `fit`, such as vit_base_patch16_clip_quickgelu_224.openai."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the tokenizer; OUT.training beside it is continued exactly.")]
VocabSize = Annotated[int, typer.Option("--vocab-size", "-k", min=2, help="Number of visual tokens.")]
ImageSize = Annotated[int, typer.Option(min=1, help="Side of the images in pixels, as the tokenizer sees them.")]
Encoder = Annotated[str, typer.Option(help="A plain timm ViT; its patches are the grid.")]
EncoderOption = Annotated[
    list[str] | None, typer.Option("--encoder-option", metavar="KEY=VALUE", help="Of timm's ViT, e.g. depth=2; repeatable.")
]
DecoderDepth = Annotated[int, typer.Option(min=1, help="Blocks of the decoder; published: 1 and 3.")]
CodeDim = Annotated[int, typer.Option(min=1, help="Length of a code.")]
TeacherImageSize = Annotated[
    int | None, typer.Option(min=1, help="Side of the images as the teacher sees them; by default the image size.")
]
TeacherOption = Annotated[
    list[str] | None, typer.Option("--teacher-option", metavar="KEY=VALUE", help="An option of the features; repeatable.")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimizer steps; or give --epochs.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the images (100).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per step, over all processes.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate (2e-4 for 512 images, in proportion to the batch).")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16, of the ViTs; codes and codebook are float32.")]
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between two states on disk.")]


def train(
    data: Data,
    teacher: Teacher,
    out: Out,
    vocab_size: VocabSize = 8192,
    image_size: ImageSize = 224,
    encoder: Encoder = "vit_base_patch16_224",
    encoder_option: EncoderOption = None,
    decoder_depth: DecoderDepth = 3,
    code_dim: CodeDim = 32,
    teacher_image_size: TeacherImageSize = None,
    teacher_option: TeacherOption = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = 512,
    lr: Lr = None,
    precision: Precision = "fp32",
    save_every: SaveEvery = 500,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    max_unreadable: MaxUnreadable = 0,
    allow: Allow = None,
) -> None:
    """Train a VQ-KD tokenizer: codes of a ViT from which a decoder reconstructs a teacher's features of DATA.

    The same command continues an interrupted training exactly.
    """
    from mapet.config.recipes import parse_options
    from mapet.data.skipped import UnreadableImages
    from mapet.data.sources import open_source
    from mapet.registry import allow as typed
    from mapet.runtime.device import choose_device
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
    work = {"device": choose_device(device), "workers": workers, "unreadable": unreadable, "save_every": save_every}
    tokenizer = train_vq_kd(open_source(data, "train"), out, settings, **work)
    print_tokenizer(out, tokenizer, unreadable)
