from __future__ import annotations

import pytest

from mapet.pretraining.pretrain import pretrain
from mapet.runtime.run_directory import RunDirectory
from tests.tiny import LOCATION, tiny_settings, tiny_store


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("evaluated")
    tiny_store(folder / "tokens")
    return pretrain(LOCATION, tiny_settings(training__steps=4), folder / "run", tokens=folder / "tokens")
