"""F1, F2, F3, F4, F17, F18, F19: no verb runs code, uses the network or opens files because a file says so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from mapet.checkpoints.address import load_backbone
from mapet.errors import MapetError
from mapet.token_store.read import TokenStore
from mapet.tokenizers.load import load_tokenizer
from tests.command import mapet
from tests.data.images import write_images
from tests.fuzz.readers import read_run
from tests.safety import folders
from tests.safety.guard import watched

RECIPE = """
image_size: 16
backbone: {options: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, num_classes: 0}}
objective: {name: mim, options: {num_context: 1}}
tokenizer: {features: pixels, vocab_size: 8}
training: {steps: 1, batch_size: 4}
mechanics: {workers: 0, device: cpu, log_every: 1}
"""
SHORT = ("--workers", "0", "--device", "cpu")
FEW_STEPS = ("--set", "min_steps=1", "--set", "epochs=1")
Verb = Callable[["Place"], Any]


class Place:
    """A healthy run and what belongs to it, and a folder that nothing may open.

    Args:
        root: Where it is made.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.run, self.out = root, root / "run", root / "out"
        self.data, self.recipe, self.foreign = root / "images", root / "tiny.yaml", root / "elsewhere"
        self.tokenizer, self.store, self.model = self.run / "tokenizer", self.run / "tokens", self.run / "backbone"
        self.hugging_face, self.transformers, self.other = root / "hf", root / "transformers", root / "other_tokenizer"
        self.own = root / "own.yaml"

    def fill(self) -> Place:
        """Makes everything."""
        self.foreign.mkdir()
        (self.root / "canary.py").write_text("raise SystemExit('the canary sang')", encoding="utf-8")
        names = [f"{split}/{label}/{n}.png" for split in ("train", "val") for label in "ab" for n in range(4)]
        write_images(self.data, " ".join(names))
        self.recipe.write_text(RECIPE, encoding="utf-8")
        assert mapet("pretrain", self.data, "--recipe", self.recipe, "--out", self.run) == 0
        assert mapet("evaluate", "knn", self.run, "--no-random", *SHORT) == 0
        assert mapet("export", self.run, "--to", "timm", "--out", self.hugging_face) == 0
        assert mapet("export", self.run, "--to", "hf", "--out", self.transformers) == 0
        shutil.copytree(self.tokenizer, self.other)
        self.own.write_text(RECIPE, encoding="utf-8")
        return self

    @property
    def result(self) -> Path:
        """The one evaluation that is kept."""
        (path,) = (self.run / "evaluations").glob("*.json")
        return path


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("healthy")).fill()


@pytest.fixture
def place(healthy: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A copy, whose run says that it lies there."""
    root = tmp_path / "place"
    shutil.copytree(healthy.root, root)
    config = root / "run" / "config.json"
    config.write_text(config.read_text(encoding="utf-8").replace(str(healthy.root), str(root)), encoding="utf-8")
    monkeypatch.syspath_prepend(root)
    return Place(root)


def command(*words: str) -> Verb:
    """A verb of the command line; words in braces are places."""

    def verb(place: Place) -> int:
        shutil.rmtree(place.out, ignore_errors=True)
        return mapet(*(word.format(**vars(place)) for word in words))

    verb.__name__ = " ".join(words[:2])
    return verb


def python(function: Callable[..., Any], which: str) -> Verb:
    """A function of Python."""

    def verb(place: Place) -> int:
        try:
            copy_context().run(function, getattr(place, which))
        except MapetError:
            return 2
        return 0

    verb.__name__ = function.__name__
    return verb


PRETRAIN = ("pretrain", "{data}", "--recipe", "{recipe}", "--out", "{out}")
OF_A_TOKENIZER = [
    python(load_tokenizer, "tokenizer"),
    command("codebook", "{tokenizer}", "{data}", "--out", "{out}", "--images", "4", *SHORT),
    command("tokenize", "{data}", "--tokenizer", "{tokenizer}", "--out", "{out}", *SHORT),
    command("evaluate", "tokens", "{tokenizer}", "{data}", *FEW_STEPS, *SHORT),
    command(*PRETRAIN, "--tokenizer", "{tokenizer}"),
    command(*PRETRAIN, "--set", "objective.name=mvp", "--set", "objective.options={{teacher: {tokenizer}}}"),
]
OF_A_MODEL = [
    python(load_backbone, "model"),
    command("evaluate", "knn", "{model}", "{data}", *SHORT),
    command("export", "{model}", "--to", "safetensors", "--out", "{out}"),
    command("validate", "{data}", "--checkpoint", "{model}", *SHORT),
    command("tokenizer", "fit", "{data}", "--features", "{run}", "-k", "4", "--out", "{out}", *SHORT),
]
OF_A_RUN = [
    command("evaluate", "knn", "{run}", "--no-random", *SHORT),
    command("report", "{run}"),
    command("evaluate", "tokens", "{run}", *FEW_STEPS, *SHORT),
    command("export", "{run}", "--to", "safetensors", "--out", "{out}"),
    command("validate", "{data}", "--checkpoint", "{run}", *SHORT),
    command("pretrain", "{data}", "--recipe", "{recipe}", "--out", "{run}"),
]
OF_A_REPORT = [python(read_run, "root"), OF_A_RUN[1], OF_A_RUN[3]]
OF_A_STORE = [
    python(TokenStore.open, "store"),
    command("evaluate", "tokens", "{store}", "{data}", *FEW_STEPS, *SHORT),
    command("tokenize", "{data}", "--tokenizer", "{other}", "--out", "{store}", "--verify", "2", *SHORT),
    command(*PRETRAIN, "--tokens", "{store}"),
]
OF_HUGGING_FACE = [
    python(load_backbone, "hugging_face"),
    command("evaluate", "knn", "{hugging_face}", "{data}", *SHORT),
    command("export", "{hugging_face}", "--to", "safetensors", "--out", "{out}"),
    command("validate", "{data}", "--checkpoint", "{hugging_face}", *SHORT),
]


def attack(place: Place, path: Path, changes: Sequence[folders.Change], verbs: Sequence[Verb]) -> None:
    """Every change with every verb: nothing forbidden happens, and no foreign exception comes through."""
    text = path.read_text(encoding="utf-8")
    problems: list[str] = []
    for change in changes:
        for verb in verbs:
            folders.write(path, change(text), place.foreign)
            try:
                with watched(place.foreign) as seen:
                    code = verb(place)
            except Exception as error:  # what a user would see as a traceback
                seen, code = [f"{type(error).__name__}: {error!s:.200}"], -1
            if seen or code not in (0, 1, 2):
                problems.append(f"{path.name} {change.__name__} | {verb.__name__} | {code} {seen}")
    assert not problems, "\n".join(problems)


def all_or_few(changes: Sequence[folders.Change], verb: Verb, verbs: Sequence[Verb]) -> Sequence[folders.Change]:
    """The first verb meets all changes, the others some of every sort: behind them is the same reader.

    A report takes seconds. It meets files that can be read as JSON, whose values it draws.
    """
    chosen = changes if verb is verbs[0] else folders.few(changes)
    return [change for change in chosen if change not in folders.ODD] if verb is OF_A_RUN[1] else chosen


def named(change: folders.Change) -> str:
    return change.__name__


def test_a_healthy_folder_passes_every_verb(place: Place) -> None:
    """The verbs below reach what they are meant to reach."""
    for verb in [*OF_A_TOKENIZER, *OF_A_STORE, *OF_HUGGING_FACE, *OF_A_RUN, *OF_A_MODEL]:
        with watched(place.foreign) as seen:
            code = verb(place)
        refused = verb is OF_A_STORE[1] or verb.__name__ == "validate {data}" or "pretrain" in verb.__name__
        assert not seen
        assert code == 0 or refused, verb.__name__


@pytest.mark.parametrize("verb", OF_A_TOKENIZER, ids=named)
def test_tokenizers(place: Place, verb: Verb) -> None:
    attack(place, place.tokenizer / "tokenizer.json", all_or_few(folders.TOKENIZER, verb, OF_A_TOKENIZER), [verb])


def test_other_kinds_of_tokenizers(place: Place) -> None:
    changes = [folders.raw(json.dumps(one)[:80], json.dumps({"format": 1, **one})) for one in folders.OTHER_TOKENIZERS]
    attack(place, place.tokenizer / "tokenizer.json", changes, OF_A_TOKENIZER[:1])


@pytest.mark.parametrize("verb", OF_A_MODEL, ids=named)
def test_models(place: Place, verb: Verb) -> None:
    """The checksum of the description is taken out, as whoever changes the file would."""
    path = place.model / "model.json"
    path.write_text(put_out(path, "own_sha256"), encoding="utf-8")
    attack(place, path, all_or_few(folders.MODEL, verb, OF_A_MODEL), [verb])


@pytest.mark.parametrize("verb", OF_A_RUN, ids=named)
def test_runs(place: Place, verb: Verb, blank_figures: None) -> None:
    """The hash of the science is taken out, as whoever changes the file would."""
    path = place.run / "config.json"
    path.write_text(put_out(path, "science_hash"), encoding="utf-8")
    attack(place, path, all_or_few(folders.RUN, verb, OF_A_RUN), [verb])


@pytest.mark.parametrize("verb", OF_A_REPORT, ids=named)
def test_results(place: Place, verb: Verb) -> None:
    attack(place, place.result, all_or_few(folders.RESULT, verb, OF_A_REPORT), [verb])


@pytest.mark.parametrize("verb", OF_A_REPORT, ids=named)
@pytest.mark.parametrize("name", ["metrics.jsonl", "warnings.jsonl", "environment.json"])
def test_what_a_report_reads(place: Place, name: str, verb: Verb) -> None:
    path = place.run / name
    path.touch()
    odd = [*folders.ODD[:-1], folders.raw("steps", '{"step": "x", "loss": "y", "name": 1, "message": 2}')]
    attack(place, path, all_or_few(odd, verb, OF_A_REPORT), [verb])


@pytest.mark.parametrize("verb", OF_A_STORE, ids=named)
def test_stores(place: Place, verb: Verb) -> None:
    attack(place, place.store / "header.json", all_or_few(folders.STORE, verb, OF_A_STORE), [verb])


@pytest.mark.parametrize("verb", OF_HUGGING_FACE, ids=named)
def test_folders_of_timm(place: Place, verb: Verb) -> None:
    attack(place, place.hugging_face / "config.json", all_or_few(folders.HUGGING_FACE, verb, OF_HUGGING_FACE), [verb])


def test_folders_of_transformers(place: Place) -> None:
    path = place.transformers / "config.json"
    changes = [folders.put(name, value) for one in folders.TRANSFORMERS for name, value in one.items()]
    attack(place, path, [*folders.ODD, *changes], [python(load_backbone, "transformers")])


def test_recipes(place: Place) -> None:
    changes = [folders.raw(text[:60], merged(text)) for text in folders.RECIPES]
    attack(place, place.own, changes, [command("pretrain", "{data}", "--recipe", "{own}", "--out", "{out}")])


def merged(text: str) -> str:
    """The recipe with one section replaced."""
    section = text.partition(":")[0]
    return "\n".join([line for line in RECIPE.splitlines() if not line.startswith(f"{section}:")] + [text])


def put_out(path: Path, name: str) -> str:
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[name]
    return json.dumps(content)
