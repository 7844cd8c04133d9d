"""Set before torch and datasets are imported, and passed on to the processes that tests start."""

import gc
import os
import tempfile

# Test processes side by side, each with a thread a core, are many times slower than with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mapet-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the garbage collector need not walk through it again and again."""
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
    """Filters from a few thousand windows, coarse pixels and few tiles: as right or wrong as the full ones, and quick."""
    from mapet.report import drawing, gallery
    from mapet.tokenizers.features import coates

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coates, "FIT_WINDOWS", 3000)
        patch.setattr(drawing, "DPI", 50)
        patch.setattr(gallery, "CODES", 3)
        patch.setattr(gallery, "PATCHES", 4)
        yield


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
