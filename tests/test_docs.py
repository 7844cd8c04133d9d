"""Every command and every Python example in the documentation runs."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.tokenizers.features.coates import CoatesFeatures
from tests.command import mapet
from tests.data_root import CHECKOUT

PAGES = sorted([CHECKOUT / "README.md", *(CHECKOUT / "docs").rglob("*.md")])
TEXTS = [*PAGES, CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "src" / "mapet" / "config" / "recipes").glob("*.yaml"))]
TRAINING = (
    "--set training.steps=2 --set training.batch_size=4 --set training.warmup_epochs=0 --set training.warmup_steps=0 "
    "--set backbone.options.depth=2 --set backbone.options.embed_dim=48 "
    "--set tokenizer.vocab_size=8 --set tokenizer.max_images=16 --set mechanics.workers=0"
)
SHORTER = {
    "pretrain": TRAINING,
    "compare": f"{TRAINING} --seeds 1",
    "fit": "--images 16 --points 900 --workers 0",
    "tokenize": "--workers 0",
    "evaluate": "--workers 0",
    "finetune": "--workers 0 --set epochs=2 --set min_steps=0",
    "codebook": "--images 12 --workers 0",
    "train": "--workers 0 --device cpu --encoder-option depth=1 --encoder-option embed_dim=48 --encoder-option num_heads=3 "
    "--decoder-depth 1",
}
SHORTER_PROTOCOLS = {
    "linear": "--set epochs=2 --set min_steps=1",
    "tokens": "--set epochs=2 --set min_steps=1",
    "fewshot": "--no-random",
}


def commands(page: Path) -> list[str]:
    """Lines of code blocks that begin with `mapet`."""
    return re.findall(r"^    (mapet .*)$", page.read_text(), re.MULTILINE)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def few_filters():
    """Tokenizers with 32 filters where the documentation names no other number."""
    names = [*inspect.signature(CoatesFeatures.__init__).parameters]
    with pytest.MonkeyPatch.context() as patch:
        defaults = list(CoatesFeatures.__init__.__defaults__)
        defaults[names.index("num_filters") - len(names)] = 32
        patch.setattr(CoatesFeatures.__init__, "__defaults__", tuple(defaults))
        yield


@pytest.fixture(scope="module")
def after_the_first_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documentation mentions: two class folders of photographs, called photos and cifar10, and RUN."""
    folder = tmp_path_factory.mktemp("docs")
    draws = np.random.default_rng(0)
    for name in ("photos", "cifar10"):
        for index in range(40):
            path = folder / name / ("cat", "dog")[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(commands(CHECKOUT / "README.md")[0])
    return folder


@pytest.fixture
def workplace(after_the_first_command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is the current one: no page meets what another page left."""
    monkeypatch.chdir(shutil.copytree(after_the_first_command, tmp_path / "docs"))
    return tmp_path / "docs"


def run(line: str) -> None:
    words = shlex.split(line, comments=True)
    shorter = next((SHORTER[word] for word in reversed(words[1:3]) if word in SHORTER), "")
    if words[1] == "evaluate" and "--set" not in words:
        protocols = {protocol.partition(":")[0] for protocol in words[2].split(",")}
        shorter = " ".join([shorter, *(more for name, more in SHORTER_PROTOCOLS.items() if name in protocols)])
    if "folder_tiny" in words:  # of images of 224 pixels
        shorter += " --set image_size=128"
    if words[1:3] == ["tokenizer", "fit"]:
        words[words.index("-k") + 1] = "8"
    assert mapet(*words[1:], *shorter.split()) == 0, line


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert re.findall(r"\bTBD\b|\bTODO\b|COST_|^FIGURES$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", [page for page in TEXTS if page.suffix == ".md"], ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(<?([^)>\s#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) or python_blocks(page)], ids=lambda page: page.stem)
@pytest.mark.usefixtures("workplace", "blank_figures")
def test_documented_commands_and_python_run(page: Path) -> None:
    from mapet.data.source import sample_keys
    from mapet.data.sources import open_source

    lines = commands(page)
    for line in lines[1:] if page.name == "README.md" else lines:
        run(line)
    for block in python_blocks(page):
        exec(block, {"images": torch.rand(2, 3, 32, 32), "sample_keys": sample_keys(open_source("photos"))})


def test_pages_hold_python() -> None:
    assert len([block for page in PAGES for block in python_blocks(page)]) >= 3


def test_tests_that_pages_name_are_there() -> None:
    named = {(page.name, path) for page in PAGES for path in re.findall(r"`(tests/[\w/.]+?)(?:::\w+)?`", page.read_text())}
    assert len(named) > 20
    assert not [pair for pair in sorted(named) if not (CHECKOUT / pair[1]).exists()]
