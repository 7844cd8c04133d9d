"""The forms of a backbone's address, and whether anything is at one; without torch, so that a wrong address is refused at once."""

from __future__ import annotations

from pathlib import Path

from mapet.errors import ModelError

RANDOM, TIMM, HUB = "random:", "timm:", "hf://"
ADDRESSES = (
    "a run directory (the --out of `mapet pretrain`), a published checkpoint (a file), a folder of Hugging Face or timm, "
    "hf://OWNER/NAME, timm:NAME for timm's weights, or random:NAME for a random initialisation"
)


def require_place(address: str | Path) -> None:
    """Refuses a path at which there is nothing.

    Raises:
        ModelError: There is nothing; the message has the forms of an address.
    """
    if not str(address).startswith((RANDOM, TIMM, HUB)) and not Path(address).exists():
        raise ModelError(f"There is no backbone at {address}. Give {ADDRESSES}.")
