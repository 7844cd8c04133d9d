"""Set before torch and datasets are imported, and passed on to the processes that tests start."""

import os
import tempfile

# Test processes side by side, each with a thread a core, are many times slower than with one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="mapet-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A store of the tokens of the tiny images."""
    from tests.tiny import tiny_store

    return tiny_store(tmp_path_factory.mktemp("tiny") / "store")
