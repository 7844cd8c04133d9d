"""Every command that writes with --out, at its smallest, for tests of what goes wrong while it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from mapet.checkpoints.backbone_folder import save_backbone
from mapet.tokenizers.random_projection import RandomProjection
from tests.checkpoints.published import save
from tests.checkpoints.runs import SPEC
from tests.cli.test_commands import TINY as RUN
from tests.cli.test_commands import write_images
from tests.cli.test_evaluate_others import TINY as NETWORK
from tests.cli.test_tokenizer_train import SMALL, VIT
from tests.command import mapet
from tests.evaluation.segmentation.pictures import write_folder
from tests.golden import load_golden, with_prefix

FIT = ["--image-size", "16", "--patch-size", "4", "-k", "4", "--images", "20", "--points", "200", "--iterations", "1"]
QUICK = ["--workers", "0", "--no-random", "--set", "epochs=1", "--set", "min_steps=1"]
UPERNET = [
    f"--set={name}" for name in ("steps=1", "batch_size=2", "crop=16", "stride=8", "channels=8", "aux_channels=8", "scale=[32, 16]")
]
BACKBONE = ["random:vit_tiny_patch16_224", *NETWORK]

VERBS: dict[str, list[str]] = {
    "pretrain": ["pretrain", "{photos}", "--recipe", "digits", *RUN],
    "compare": ["compare", "{photos}", "--recipe", "digits", "--objectives", "mim", "--seeds", "1", "--protocols", "knn", *RUN],
    "tokenizer fit": ["tokenizer", "fit", "{photos}", "--features", "pixels", "--restarts", "1", "--workers", "0", *FIT],
    "tokenizer train": [
        *(
            "tokenizer",
            "train",
            "{photos}",
            "--teacher",
            "pixels",
            "--teacher-option",
            "dim=4",
            "--workers",
            "0",
            "--device",
            "cpu",
        ),
        *SMALL,
        *VIT,
    ],
    "tokenizer random": ["tokenizer", "random", "-k", "8", "--image-size", "16", "--patch-size", "8"],
    "tokenizer convert": ["tokenizer", "convert", "{published}", "--num-heads", "3"],
    "tokenize": ["tokenize", "{photos}", "--tokenizer", "{tokenizer}", "--workers", "0"],
    "tokenize --views": ["tokenize", "{photos}", "--tokenizer", "{tokenizer}", "--views", "2", "--workers", "0"],
    "codebook": ["codebook", "{tokenizer}", "{photos}", "--images", "8", "--workers", "0"],
    "evaluate knn": ["evaluate", "knn", *BACKBONE, "{photos}", "--no-random"],
    "evaluate finetune": ["evaluate", "finetune", *BACKBONE, "{photos}", *QUICK],
    "evaluate segment": [
        "evaluate",
        "segment",
        *[word.replace("depth=1", "depth=4") for word in BACKBONE],
        "{scenes}",
        "--no-random",
        *UPERNET,
    ],
    "evaluate tokens": ["evaluate", "tokens", "{tokenizer}", "{photos}", *QUICK[:2], *QUICK[3:]],
    "evaluate transfer": ["evaluate", "transfer:knn", *BACKBONE, "{photos}", "--no-random"],
    "export timm": ["export", *BACKBONE[:-2], "--to", "timm"],
    "export hf": ["export", *BACKBONE[:-2], "--to", "hf"],
    "export onnx": ["export", *BACKBONE[:-2], "--to", "onnx"],
    "export safetensors": ["export", *BACKBONE[:-2], "--to", "safetensors"],
    "report": ["report", "{run}"],
    "validate": ["validate", "{photos}", "--checkpoint", "{model}", "--workers", "0"],
    "objectives": ["objectives", "mim"],
}
OUT = {"validate": "--json"}
ENDING = {"report": ".html", "validate": ".json", "objectives": ".png"}


def write_inputs(folder: Path) -> dict[str, Path]:
    """What the commands read, by the name that stands for it in `VERBS`."""
    place = {name: folder / name for name in ("photos", "tokenizer", "scenes", "published", "run", "model")}
    write_images(place["photos"])
    write_folder(place["scenes"], names=("training", "validation"))
    RandomProjection(image_size=16, patch_size=8, vocab_size=20).save(place["tokenizer"])
    save({"model": with_prefix(load_golden("mim/vqkd_tiny_a")[1], "sd.")}, place["published"])
    assert mapet("pretrain", place["photos"], "--recipe", "digits", "--out", place["run"], *RUN) == 0
    classifier = replace(SPEC, options=SPEC.options | {"num_classes": 2})
    save_backbone(place["model"], classifier, classifier.build())
    (folder / "classes.json").write_text(json.dumps(["left", "right"]))
    return place


def command(verb: str, place: dict[str, Path], out: Path) -> list[str]:
    """The words of a command that writes to `out`, which gets the ending that the command wants."""
    words = [word.format(**place) if word in {f"{{{name}}}" for name in place} else word for word in VERBS[verb]]
    return [*words, OUT.get(verb, "--out"), str(target(verb, out))]


def target(verb: str, out: Path) -> Path:
    return out.with_suffix(ENDING.get(verb, ""))
