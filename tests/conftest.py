"""Set before torch and datasets are imported, and passed on to the processes that tests start."""

import base64
import gc
import os
import sys
import tempfile
from collections.abc import Generator
from typing import Any

# Test processes side by side, each with a thread a core, are many times slower than with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mapet-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

# Many processes import the same modules, and compiling them, with rewritten assertions, takes a third of that time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Little of what is made while tests are collected is garbage."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        keep_what_was_imported()


def keep_what_was_imported() -> None:
    """Until the end: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of the tokens of the tiny images."""
    from tests.tiny import tiny_store

    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")


@pytest.fixture(scope="session", autouse=True)
def small_fits_and_figures():
    """Filters from a few thousand windows, coarse pixels, few images and tiles: as right or wrong as the full ones, and quick."""
    from mapet.report import drawing, gallery, sample
    from mapet.tokenizers.features import coates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coates, "FIT_WINDOWS", 3000)
        patch.setattr(drawing, "DPI", 50)
        patch.setattr(sample, "SAMPLED_IMAGES", 100)
        patch.setattr(gallery, "CODES", 3)
        patch.setattr(gallery, "PATCHES", 4)
        yield


@pytest.fixture
def blank_figures(monkeypatch):
    """For tests of what stands beside figures: a white pixel in place of each, since placing and painting text takes long."""
    from mapet.report import drawing

    monkeypatch.setattr(
        drawing, "_rendered", lambda figure, vectors: (PIXEL, b"<svg xmlns='http://www.w3.org/2000/svg'/>" * vectors)
    )


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_a_power_cut():
    """A test cannot take the power away; that what is written reaches the disk at once would only cost time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def nothing_is_allowed_yet():
    """A name that one test types, and so allows, is not allowed in the next test. The tiny images always are."""
    from mapet import registry
    from tests.tiny import LOCATION

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_typed", type(registry._typed)("typed", default=frozenset({LOCATION})))
        yield
