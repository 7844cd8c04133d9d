from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.segmentation.pictures import write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images to train on and two to be tested on."""
    return write_folder(tmp_path / "pictures")
