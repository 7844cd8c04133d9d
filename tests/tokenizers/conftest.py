from __future__ import annotations

import pytest

from mapet.tokenizers.features import coates as coates_features


@pytest.fixture(scope="session", autouse=True)
def few_windows():
    """Filters from a few thousand windows: enough to be right or wrong, and quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coates_features, "FIT_WINDOWS", 3000)
        yield
