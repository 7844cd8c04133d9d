"""The readers that are fuzzed: how each one's valid input is made, how it is damaged and how it is read."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from mapet.checkpoints.address import load_backbone
from mapet.checkpoints.archive import state_dict_of
from mapet.checkpoints.backbone_folder import save_backbone
from mapet.config import load_recipe
from mapet.config.recipes import parse_options, recipe_text
from mapet.data.decode import decode_image
from mapet.data.mask_files import read_ids
from mapet.data.skipped import UnreadableImages
from mapet.data.sources import open_source
from mapet.engine.checkpoint import newest_checkpoint, save_checkpoint
from mapet.errors import UnreadableImageError
from mapet.export.card import model_card
from mapet.models.spec import BackboneSpec
from mapet.report.facts import FEW, environment_tables, settings_tables
from mapet.report.html import overview, write_report
from mapet.runtime.run_directory import RunDirectory
from mapet.token_store.build import build_store
from mapet.token_store.read import TokenStore
from mapet.tokenizers.feature_kmeans import FeatureKMeans
from mapet.tokenizers.features.base import create_features
from mapet.tokenizers.load import load_tokenizer
from mapet.tokenizers.random_projection import RandomProjection
from tests.data.containers import Labelled, in_csv, in_parquet, in_tar
from tests.fuzz.mutations import damage_bytes, damage_json, damage_text, damage_zipped_pickle
from tests.report.conftest import TINY, result

Damage = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """One way into the project.

    Args:
        make: Writes valid input into an empty folder.
        damaged: The files of it that are damaged, one at a time, each with the kind of damage.
        read: Reads the folder; whatever it returns is right, and of what it raises only a MapetError.
        inputs: Of how many inputs a test makes, for readers that take long over each.
    """

    make: Callable[[Path], object]
    damaged: dict[str, Damage]
    read: Callable[[Path], object]
    inputs: int = 500


def _encoded(size: int = 12, mode: str = "RGB", kind: str = "PNG", seed: int = 0, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _samples() -> list[Labelled]:
    return [Labelled(f"{number}.png", _encoded(6, seed=number), number % 2) for number in range(4)]


def _read_all(location: Path) -> None:
    """Opens a source, reads and decodes every image; images that cannot be read are skipped as everywhere."""
    source = open_source(location, "all")
    for index in range(len(source)):
        try:
            decode_image(source.read(index))
        except UnreadableImageError:
            continue
        finally:
            source.describe(index)


def _make_images(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    formats: dict[str, dict[str, object]] = {
        "rgb.png": {},
        "grey16.png": {"mode": "I;16"},
        "palette.png": {"mode": "P", "transparency": 3},
        "photo.jpg": {"kind": "JPEG", "exif": exif},
        "cmyk.jpg": {"kind": "JPEG", "mode": "CMYK"},
        "still.gif": {"kind": "GIF", "mode": "P"},
        "plain.bmp": {"kind": "BMP"},
        "plain.ppm": {"kind": "PPM"},
        "photo.webp": {"kind": "WEBP"},
        "plain.tif": {"kind": "TIFF"},
        "packed.tif": {"kind": "TIFF", "compression": "tiff_lzw"},
    }
    for name, options in formats.items():
        if options.get("mode") == "I;16":
            Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 400).save(folder / name)
        else:
            (folder / name).write_bytes(_encoded(**options))  # type: ignore[arg-type]


def _read_images(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        decode_image(file.read_bytes())


def _make_mask(folder: Path) -> None:
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12)).save(folder / "mask.png")
    Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12) % 4, "P").save(folder / "palette.png")


def _read_masks(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        read_ids(file)


def _tensors() -> dict[str, torch.Tensor]:
    return {"blocks.0.weight": torch.arange(12.0).view(3, 4), "cls_token": torch.ones(1, 1, 4), "count": torch.tensor(3)}


def _make_backbone(folder: Path) -> None:
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 4, "depth": 1, "num_heads": 1, "num_classes": 0}
    recipe = BackboneSpec("vit_tiny_patch16_224", options, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), seed=0)
    save_backbone(folder / "backbone", recipe, recipe.build())


def _read_backbone(folder: Path) -> None:
    load_backbone(folder / "backbone")


def _make_tokenizer(folder: Path) -> None:
    features = create_features("pixels", image_size=8, patch_size=4)
    features.fit(torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0))
    FeatureKMeans(features, torch.rand(5, features.dim)).save(folder / "tokenizer")


def _make_store(folder: Path) -> None:
    (folder / "images").mkdir()
    for sample in _samples():
        (folder / "images" / sample.name).write_bytes(sample.content)
    tokenizer = RandomProjection(image_size=8, patch_size=4, vocab_size=20, seed=0)
    build_store(open_source(folder / "images", "all"), tokenizer, folder / "store", unreadable=UnreadableImages(0))


def _read_store(folder: Path) -> None:
    store = TokenStore.open(folder / "store", verify=True)
    store.lookup([*store.keys])


def _optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


def _make_checkpoint(folder: Path) -> None:
    save_checkpoint(folder / "checkpoints", 3, "0123456789abcdef", *_optimizer(), keep=1)


def _make_run(folder: Path) -> None:
    """A run of three steps, made once, with an evaluation."""
    from mapet.pretraining.pretrain import pretrain

    pretrain("digits", load_recipe("digits", TINY), folder / "run")
    shutil.rmtree(folder / "run" / "tensorboard")
    (folder / "run" / "evaluations").mkdir(exist_ok=True)
    (folder / "run" / "evaluations" / "knn.json").write_text(json.dumps(asdict(result())))
    (folder / "run" / "warnings.jsonl").write_text('{"step": 2, "name": "blind", "text": "words"}\n')


def read_run(folder: Path) -> None:
    """What a report reads, without drawing it."""
    from mapet.report.reading import open_runs
    from mapet.report.vitals import warning_texts

    (run,) = open_runs([RunDirectory.existing(folder / "run")])
    run.environments, run.metrics, run.images_seen, run.training_seconds, run.results, run.settings  # noqa: B018
    warning_texts(run)
    for runs in ([run], [run] * (FEW + 1)):
        for section in (overview, settings_tables, environment_tables):
            section(runs)


def _card(folder: Path) -> None:
    """What an export writes about the run that it comes from."""
    model_card(load_backbone(folder / "run"), library="timm", usage="", notes=(), difference=None)


def _report(folder: Path) -> None:
    write_report([RunDirectory.existing(folder / "run")])


_RUN_FILES: dict[str, Damage] = {
    "run/config.json": damage_json,
    "run/environment.json": damage_json,
    "run/metrics.jsonl": damage_text,
    "run/warnings.jsonl": damage_text,
    "run/evaluations/knn.json": damage_json,
}


def _make_settings(folder: Path) -> None:
    (folder / "set.txt").write_text("backbone.options={patch_size: 4, embed_dim: 16}\ntraining.lr=1e-3\nview.scale=[0.2, 1]\n")


def _read_settings(folder: Path) -> None:
    lines = (folder / "set.txt").read_bytes().decode(errors="surrogateescape").splitlines()
    load_recipe("digits", [line for line in lines if line])
    parse_options([line for line in lines if line])


def _image_files() -> dict[str, Damage]:
    names = "rgb.png grey16.png palette.png photo.jpg cmyk.jpg still.gif plain.bmp plain.ppm photo.webp plain.tif packed.tif"
    return dict.fromkeys(names.split(), damage_bytes)


READERS: dict[str, Reader] = {
    "images": Reader(_make_images, _image_files(), _read_images),
    "masks": Reader(_make_mask, {"mask.png": damage_bytes, "palette.png": damage_bytes}, _read_masks),
    "tar": Reader(
        lambda folder: in_tar(folder / "a.tar", _samples()),
        {"a.tar": damage_bytes, "labels.txt": damage_text},
        lambda folder: _read_all(folder / "a.tar"),
    ),
    "csv": Reader(
        lambda folder: in_csv(folder / "list.csv", _samples()),
        {"list.csv": damage_text},
        lambda folder: _read_all(folder / "list.csv"),
    ),
    "parquet": Reader(
        lambda folder: in_parquet(folder / "a.parquet", _samples()),
        {"a.parquet": damage_bytes, "labels.txt": damage_text},
        lambda folder: _read_all(folder / "a.parquet"),
    ),
    "torch weights": Reader(
        lambda folder: torch.save({"model": _tensors(), "epoch": 3}, folder / "w.pth"),
        {"w.pth": damage_bytes},
        lambda folder: state_dict_of(folder / "w.pth"),
    ),
    "pickle": Reader(
        lambda folder: torch.save({"model": _tensors(), "epoch": 3}, folder / "w.pth"),
        {"w.pth": damage_zipped_pickle},
        lambda folder: state_dict_of(folder / "w.pth"),
    ),
    "legacy torch weights": Reader(
        lambda folder: torch.save(_tensors(), folder / "w.pth", _use_new_zipfile_serialization=False),
        {"w.pth": damage_bytes},
        lambda folder: state_dict_of(folder / "w.pth"),
    ),
    "safetensors": Reader(
        lambda folder: save_file(_tensors(), folder / "w.safetensors"),
        {"w.safetensors": damage_bytes},
        lambda folder: state_dict_of(folder / "w.safetensors"),
    ),
    "backbone": Reader(
        _make_backbone, {"backbone/model.json": damage_json, "backbone/weights.safetensors": damage_bytes}, _read_backbone
    ),
    "tokenizer": Reader(
        _make_tokenizer,
        {"tokenizer/tokenizer.json": damage_json, "tokenizer/weights.safetensors": damage_bytes},
        lambda folder: load_tokenizer(folder / "tokenizer"),
    ),
    "store": Reader(_make_store, {"store/header.json": damage_json}, _read_store),
    "checkpoint": Reader(
        _make_checkpoint,
        {"checkpoints/step-00000003/checkpoint.json": damage_json, "checkpoints/step-00000003/optimizer.safetensors": damage_bytes},
        lambda folder: newest_checkpoint(folder / "checkpoints"),
    ),
    "run": Reader(_make_run, _RUN_FILES, read_run),
    "card": Reader(_make_run, _RUN_FILES, _card, inputs=25),
    "report": Reader(_make_run, _RUN_FILES, _report, inputs=5),
    "recipe": Reader(
        lambda folder: (folder / "r.yaml").write_text(recipe_text("digits")),
        {"r.yaml": damage_text},
        lambda folder: load_recipe(str(folder / "r.yaml")),
    ),
    "--set": Reader(_make_settings, {"set.txt": damage_text}, _read_settings),
}
