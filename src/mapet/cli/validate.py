"""`mapet validate`: whether a published checkpoint gives its published figures, here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapet.cli.options import ClassDepth, Device, MaxUnreadable, Split, located

_WITHOUT_MEANING = {
    "--pin-mem": "memory is pinned where there is a CUDA device",
    "--no-prefetcher": "images are normalised on the device either way",
}


Checkpoint = Annotated[Path, typer.Option(help="A published checkpoint, or the model/ folder of a fine-tuning.")]
DataOption = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="Folder with val/ in it, or of class folders (ImageNet's layout), or any other location of labelled images.",
    ),
]
DataDir = Annotated[str | None, typer.Option(help="The same as DATA.")]
Model = Annotated[
    str | None,
    typer.Option(help="A name of MaPeT's release such as vit_standard_base_patch16_224, which can be left out, or any timm name."),
]
Gp = Annotated[str | None, typer.Option(help="avg (mean of the patches) or token (CLS); by default as in the checkpoint.")]
Interpolation = Annotated[str | None, typer.Option(help="bicubic, bilinear or lanczos.")]
CropPct = Annotated[float | None, typer.Option(help="The shorter side is resized to image size / crop_pct. (0.9)")]
Mean = Annotated[tuple[float, float, float] | None, typer.Option(metavar="R G B", help="Subtracted from images in [0, 1].")]
Std = Annotated[tuple[float, float, float] | None, typer.Option(metavar="R G B", help="Divided by; above 0.")]
ImgSize = Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels; positions are resized to it.")]
NumClasses = Annotated[int | None, typer.Option(min=1, help="Refuse a head with another number of classes.")]
ClassMap = Annotated[Path | None, typer.Option(help="Names of the head's classes in order, one a line.")]
ModelKwargs = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Further arguments of timm.create_model; repeatable.")
]
UseEma = Annotated[bool, typer.Option("--use-ema", help="Evaluate the moving average of the weights in the checkpoint.")]
Amp = Annotated[bool, typer.Option("--amp", help="bf16 autocast (timm's script: fp16).")]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Images a forward pass.")]
WorkersOption = Annotated[int, typer.Option("--workers", "-j", min=0, help="Processes that load images.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the result as `mapet evaluate classify` keeps it.")]
PinMem = Annotated[bool, typer.Option("--pin-mem", help="Of the released command: nothing to do.")]
NoPrefetcher = Annotated[bool, typer.Option("--no-prefetcher", help="Of the released command: nothing to do.")]


def validate(
    checkpoint: Checkpoint,
    data: DataOption = None,
    data_dir: DataDir = None,
    split: Split = None,
    class_depth: ClassDepth = None,
    model: Model = None,
    gp: Gp = None,
    interpolation: Interpolation = None,
    crop_pct: CropPct = None,
    mean: Mean = None,
    std: Std = None,
    img_size: ImgSize = None,
    num_classes: NumClasses = None,
    class_map: ClassMap = None,
    model_kwargs: ModelKwargs = None,
    use_ema: UseEma = False,
    amp: Amp = False,
    batch_size: BatchSize = 256,
    workers: WorkersOption = 2,
    device: Device = "auto",
    json: Json = None,
    out: Out = None,
    max_unreadable: MaxUnreadable = 0,
    pin_mem: PinMem = False,
    no_prefetcher: NoPrefetcher = False,
) -> None:
    """Top-1 and top-5 of a published classifier, by the published preprocessing: `mapet evaluate classify` with more options.

    The command of MaPeT's README works as it is: mapet validate IMAGENET --model vit_standard_base_patch16_224 --checkpoint FILE
    --interpolation bicubic --amp --gp avg --pin-mem --no-prefetcher
    """
    from mapet.checkpoints.classifier import ModelChoice, load_classifier
    from mapet.config.recipes import parse_options
    from mapet.evaluation.classify.classes import read_class_map
    from mapet.evaluation.classify.protocol import Classify
    from mapet.evaluation.evaluate import evaluate
    from mapet.runtime.device import choose_device
    from mapet.runtime.files import write_json
    from mapet.runtime.lock import only_writer

    location, torch_device = str(located(_location(data, data_dir), "", split, class_depth)), choose_device(device)
    protocol = Classify(
        interpolation=interpolation,
        crop_pct=crop_pct,
        mean=mean,
        std=std,
        precision="bf16" if amp else "fp32",
        batch_size=batch_size,
    )
    _say_without_meaning(pin_mem, no_prefetcher)
    choice = ModelChoice(model, gp, num_classes, img_size, parse_options(model_kwargs or []))
    with only_writer(*([json] if json else [])):
        classifier = load_classifier(checkpoint, choice, use_ema=use_ema, names=class_map and read_class_map(class_map))
        work = {"device": torch_device, "folder": out, "workers": workers, "max_unreadable": max_unreadable}
        (result,) = evaluate(classifier, location, [protocol], **work)
        print(protocol.line(result))
        if json is not None:
            write_json(json, protocol.facts(result))


def _location(data: str | None, data_dir: str | None) -> str:
    from mapet.errors import SettingsError

    if (data is None) == (data_dir is None):
        raise SettingsError("Give the images once: mapet validate DATA --checkpoint FILE, or with --data-dir DATA.")
    return data or data_dir or ""


def _say_without_meaning(pin_mem: bool, no_prefetcher: bool) -> None:
    from mapet.runtime.progress import say

    flags = [name for name, is_given in zip(_WITHOUT_MEANING, (pin_mem, no_prefetcher), strict=True) if is_given]
    if flags:
        say("Accepted, and nothing to do: " + "; ".join(f"{name} ({_WITHOUT_MEANING[name]})" for name in flags) + ".")
