"""Where the optional real images lie: the variable MAPET_DATA, or a folder shared/data beside the checkout or in it."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def data_root() -> Path | None:
    """The folder that holds cifar10/ and its neighbours, or None."""
    candidates = [CHECKOUT.parent / "shared" / "data", CHECKOUT / "shared" / "data"]
    if "MAPET_DATA" in os.environ:
        candidates.insert(0, Path(os.environ["MAPET_DATA"]))
    return next((folder for folder in candidates if folder.is_dir()), None)
