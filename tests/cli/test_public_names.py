"""What `import mapet` offers is exactly what it says."""

from __future__ import annotations

import mapet


def test_public_names_are_the_exported_ones() -> None:
    assert sorted(mapet.__all__) == sorted({*mapet._PUBLIC, "__version__"})
    assert all(getattr(mapet, name) is not None for name in mapet.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(mapet, "create_backbon")
