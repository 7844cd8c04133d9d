"""What `mapet objectives` prints and draws."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from mapet.config.recipes import parse_options
from mapet.data.decode import decode_image
from mapet.data.tree import read_file
from mapet.data.views import FixedView
from mapet.errors import DataError, SettingsError, UnreadableImageError
from mapet.models import create_backbone
from mapet.objectives import OBJECTIVES, create_objective
from mapet.objectives.base import Objective
from mapet.objectives.costs import CONDITIONS, TIMES_MIM
from mapet.registry import options_of
from mapet.report.objective_figure import objective_figure
from mapet.runtime.files import atomic_file
from mapet.runtime.lock import only_writer

WIDTH = 110
COLORS = 256
# What an objective is given here in place of tokens and teacher: neither rows nor figures depend on it.
VOCAB = 2
TEACHER = {"teacher": "test_vit", "teacher_options": {"pretrained": False}}
NOT_OPTIONS = ("backbone", "vocab_size", "mean", "std")


def table_of_objectives() -> Iterator[str]:
    """Lines: what every objective needs, how much of an image it encodes, what a step costs, what it is."""
    yield f"{'':16} {'needs':16} {'rows':>5} {'cost':>5}"
    for name in OBJECTIVES:
        objective = _create(name)
        cost = f"{TIMES_MIM[name]:.1f}" if name in TIMES_MIM else "-"
        needs = ", ".join(objective.needs) or "-"
        yield f"{name:16} {needs:16} {objective.sequence_length:5g} {cost:>5}  {objective.summary}"
    yield "\nrows: of an image, in the backbone's blocks, by default (ViT-Tiny/16, 224 px)."
    yield f"cost: time of a forward and backward pass, relative to mim; {CONDITIONS}."
    yield "`mapet objectives NAME` explains one, and draws it with --out FIGURE.png."


def explain_objective(name: str) -> Iterator[str]:
    """Lines: the description in its file, and all options."""
    kind = OBJECTIVES.get_or_import(name)
    yield inspect.getdoc(sys.modules[kind.__module__]) or kind.summary
    yield f"\nNeeds: {', '.join(kind.needs) or 'nothing but images'}.\n\nOptions (--set objective.options.NAME=VALUE):\n"
    meanings = _meanings(kind)
    for option, parameter in options_of(kind).items():
        if option not in NOT_OPTIONS:
            default = "must be given" if parameter.default is parameter.empty else f"default {parameter.default}"
            yield f"  {option} ({default})"
            yield textwrap.fill(meanings.get(option, ""), WIDTH, initial_indent=6 * " ", subsequent_indent=6 * " ")


def draw_objective(name: str, image: Path | None, out: Path, changes: list[str]) -> str:
    """Writes the figure, in few enough colours to be small.

    Args:
        name: Of the objective.
        image: What it is drawn on; by default scikit-learn's flower.
        out: The PNG file.
        changes: KEY=VALUE of the objective's options.

    Returns:
        What the figure shows, in words.

    Raises:
        SettingsError: `out` is no PNG file.
        DataError: The image cannot be read.
    """
    if out.suffix.lower() != ".png":
        raise SettingsError(f"The figure is a PNG file; {out} does not end in .png.")
    with only_writer(out):
        objective = _create(name, **parse_options(changes))
        view = FixedView(objective.view_size)(_flower() if image is None else _read(image))
        picture = objective_figure(name, objective, view.float() / 255)
        with atomic_file(out) as partial:
            decode_image(picture.png).quantize(COLORS).save(partial, format="PNG", optimize=True)
    return picture.alt


def _meanings(kind: type[Objective[Any]]) -> dict[str, str]:
    """The argument descriptions in the docstrings of a class and of its bases."""
    meanings: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, arguments = (inspect.cleandoc(each.__doc__ or "")).partition("Args:\n")
        section = re.split(r"\n(?=\S)", arguments)[0]
        for entry in re.split(r"^    (?=[\w*])", section, flags=re.MULTILINE)[1:]:
            option, _, meaning = entry.partition(":")
            meanings[option] = " ".join(meaning.split())
    return meanings


def _create(name: str, **options: Any) -> Objective[Any]:
    """The objective on a small ViT at 224 px, whose weights are not used."""
    teacher_options = TEACHER if "teacher" in OBJECTIVES.get_or_import(name).needs and "teacher" not in options else {}
    backbone = create_backbone("vit_tiny_patch16_224", num_classes=0, depth=2)
    return create_objective(name, backbone=backbone, vocab_size=VOCAB, **teacher_options, **options)


def _flower() -> Image.Image:
    """The photograph that comes with scikit-learn."""
    from sklearn.datasets import load_sample_image

    return Image.fromarray(load_sample_image("flower.jpg"))


def _read(path: Path) -> Image.Image:
    try:
        return decode_image(read_file(path))
    except UnreadableImageError as error:
        raise DataError(f"{path}: {error}. Give an image that can be read.") from error
