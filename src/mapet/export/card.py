"""README.md of an export: what the backbone is, what it was found to be worth, how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapet.checkpoints.address import LoadedBackbone
from mapet.errors import CheckpointError
from mapet.evaluation.protocol import Result
from mapet.evaluation.result_files import read_result, read_results
from mapet.runtime.run_directory import RunDirectory

_MOST_CLASSES = 100


def model_card(loaded: LoadedBackbone, *, library: str, usage: str, notes: tuple[str, ...], difference: float | None) -> str:
    """The card in Markdown, with the Hub's header. Of paths only the last name is in it.

    Args:
        loaded: The backbone.
        library: That reads the export.
        usage: Lines of Python that load it.
        notes: What was changed in the export.
        difference: Of its outputs from the backbone's.
    """
    backbone, spec = loaded.backbone, loaded.spec
    task = "image-classification" if backbone.num_classes else "image-feature-extraction"
    height = spec.image_size
    sections = [
        f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags:\n- vision\n- mapet\n---",
        f"# {_last_name(loaded.title) if _fine_tuning_result(loaded) is None else Path(loaded.title).resolve().parent.name}",
        _what_it_is(loaded),
        f"Images: {height} x {height} pixels (shorter side resized bicubic, centre cropped), values in [0, 1], normalised by mean "
        f"{_numbers(spec.mean)} and standard deviation {_numbers(spec.std)}.",
        f"## Loading\n\nFOLDER is where these files lie.\n\n```python\n{usage}\n```",
        *_pre_training(loaded.run),
        *_fine_tuning(loaded),
        *_evaluations(_results(loaded)),
        _export(notes, difference),
        "## Licence\n\nNone is stated here. Before you publish these weights, add one that the images, the tokenizer and any "
        "weights that this model started from allow.",
    ]
    return "\n\n".join(sections) + "\n"


def _what_it_is(loaded: LoadedBackbone) -> str:
    backbone, spec = loaded.backbone, loaded.spec
    count = sum(parameter.numel() for parameter in backbone.parameters())
    classes = f", with a classifier of {backbone.num_classes} classes" if backbone.num_classes else ""
    origin = "It was pre-trained with mapet." if loaded.run else ""
    if loaded.conversion:
        origin = f"It was converted from a published checkpoint. {loaded.conversion.summary()}"
    if loaded.untrained:
        origin = "It is at its random initialisation: it has learned nothing."
    kind = f"`{spec.name}` of timm with {json.dumps(spec.options)}"
    return f"A vision transformer of {count:,} parameters{classes}: {kind}. {origin}".rstrip()


def _pre_training(run: RunDirectory | None) -> Iterator[str]:
    if run is None:
        return
    config = run.read_config()
    science = config.get("science", {})
    training, objective, view = (_object(science.get(name)) for name in ("training", "objective", "view"))
    images = _object(config.get("images"))
    steps = [entry["step"] for entry in run.read_metrics() if isinstance(entry, dict) and isinstance(entry.get("step"), int)]
    facts = {
        "Objective": _with_options(objective),
        "Data": _last_name(config["data"]) if "data" in config else None,
        "Images": _readable(images.get("count"), config.get("unreadable_images", 0)),
        "Optimizer steps": f"{max(steps):,}" if steps else None,
        "Images per step": training.get("batch_size"),
        "Learning rate": training.get("lr"),
        "Weight decay": training.get("weight_decay"),
        "Image size": science.get("image_size"),
        "View": view.get("name"),
        "Seed": science.get("seed"),
        "Tokenizer": f"fingerprint `{config['tokenizer_fingerprint']}`" if config.get("tokenizer_fingerprint") else None,
        "Settings": f"hash `{config['science_hash']}`" if config.get("science_hash") else None,
        "Software": _software(run),
    }
    lines = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    yield "\n".join(["## Pre-training\n", "| | |", "|---|---|", *lines])


def _fine_tuning(loaded: LoadedBackbone) -> Iterator[str]:
    """What a fine-tuned model was trained for: protocol and images, if its result lies there, and its classes."""
    result = _fine_tuning_result(loaded)
    facts: dict[str, Any] = {}
    if result is not None:
        facts = {
            "Protocol": _with_preset(result),
            "Hash of the protocol": f"`{result.protocol_hash}`",
            "Started from": _start(result),
            "Data": _last_name(result.data),
            "Training images": f"{result.train_images:,}",
            "Test images": f"{result.test_images:,}",
        }
    if loaded.classes:
        class_list = ", ".join(loaded.classes[:_MOST_CLASSES])
        left = len(loaded.classes) - _MOST_CLASSES
        facts["Classes, in the order of the outputs"] = f"{class_list} and {left} more" if left > 0 else class_list
    lines = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    if lines:
        yield "\n".join(["## Fine-tuning\n", "| | |", "|---|---|", *lines])


def _start(result: Result) -> str | None:
    """Whose weights the training began with."""
    if result.protocol.get("scratch"):
        return "random initialisation"
    return _last_name(result.backbone) if result.backbone else None


def _fine_tuning_result(loaded: LoadedBackbone) -> Result | None:
    """What a fine-tuning found of its model, which it keeps beside: STEM.json of STEM/model."""
    model = Path(loaded.title)
    if loaded.run is not None or not (model / "model.json").is_file():
        return None
    stem = model.resolve().parent
    try:
        return read_result(stem.parent / f"{stem.name}.json")
    except CheckpointError:
        return None


def _results(loaded: LoadedBackbone) -> list[Result]:
    """Of the evaluations that are kept with the run, or of the fine-tuning that the model comes from."""
    if loaded.run is None:
        result = _fine_tuning_result(loaded)
        return [] if result is None else [result]
    return [*read_results(loaded.run.evaluations)[0].values()]


def _evaluations(results: list[Result]) -> Iterator[str]:
    """Every figure with the hash of its protocol."""
    rows = [_row(result) for result in results]
    if rows:
        head = ["| Protocol | Hash | Images | Figure | At random initialisation | Gain | Pool |", "|---|---|---|---|---|---|---|"]
        notes = [
            "\nFigures compare only where the hash of the protocol is the same. Brackets: 95 % interval, paired over test images."
        ]
        yield "\n".join(["## Evaluation\n", *head, *rows, *notes, *_copies(results)])


def _row(result: Result) -> str:
    random = "" if result.random_value is None else _percent(result.random_value)
    figure = f"{result.metric} {_percent(result.value)}"
    cells = [_with_preset(result), f"`{result.protocol_hash}`", _last_name(result.data), figure, random]
    return f"| {' | '.join([*cells, _gain(result), result.pool or ''])} |"


def _gain(result: Result) -> str:
    """Against random initialisation, in points; in words where the interval holds 0."""
    if result.gain is None:
        return ""
    gain = f"{100 * result.gain:+.1f}"
    if result.gain_interval is None:
        return gain
    low, high = result.gain_interval
    return f"{gain} [{100 * low:.1f}, {100 * high:.1f}]{', not distinguishable' if low <= 0 <= high else ''}"


def _copies(results: list[Result]) -> Iterator[str]:
    """How many test images were learned from, for every data set where there are any."""
    shared_counts = {_last_name(result.data): _object(result.details.get("copies")).get("shared") for result in results}
    for data, count in shared_counts.items():
        if isinstance(count, int) and count > 0:
            yield f"\n{count:,} test images of {data} are also training images: the figures are partly of memory."


def _with_preset(result: Result) -> str:
    return str(result.protocol["name"]) + (f":{result.preset}" if result.preset else "")


def _readable(images: Any, unreadable: Any) -> str | None:
    """The images that were learned from; None where the run does not count them."""
    return f"{images - unreadable:,}" if isinstance(images, int) and isinstance(unreadable, int) else None


def _object(value: Any) -> dict[str, Any]:
    """`value` where it is an object, as it is in a run that nobody changed."""
    return value if isinstance(value, dict) else {}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _export(notes: tuple[str, ...], difference: float | None) -> str:
    measured = "" if difference is None else f"Its outputs differ from the original's by {difference:.1e} at most (on noise)."
    return " ".join(["## Export\n\nWritten by `mapet export`.", measured, *notes]).strip()


def _with_options(section: dict[str, Any]) -> str | None:
    options = section.get("options")
    return None if not section else str(section.get("name", "?")) + (f" with {json.dumps(options)}" if options else "")


def _software(run: RunDirectory) -> str | None:
    try:
        starts = run.read_environments()
    except CheckpointError:
        return None
    packages = _object(starts[-1].get("packages")) if starts else {}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version) or None


def _last_name(location: str) -> str:
    """A path without the folders that it lies in; an address on the Hub or at timm as it is."""
    return location if ":" in location and not Path(location).exists() else Path(location).name or location


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
