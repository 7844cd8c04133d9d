"""Randomness without state: every draw is a pure function of what it is for.

A seed is derived from (seed, purpose, epoch or step, rank or sample key, ...), so that resuming needs no saved generator, results
do not depend on the number of loader workers, and two objectives in a comparison see the same images with the same jitter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`; any change in any part gives an unrelated seed."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seeded_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded by `parts`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def seed_all_devices(*parts: int | str) -> None:
    """Seeds torch's global generators, those of the CPU and of every accelerator, by `parts`.

    Without an accelerator `torch.manual_seed` would keep the seed for each kind that might come, with a printed stack: a fifth of a
    small step.
    """
    seed = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed(derive_seed(*parts))


@contextmanager
def seeded_globally(*parts: int | str) -> Iterator[None]:
    """Seeds torch's global CPU generator by `parts` inside the block and restores it afterwards."""
    with torch.random.fork_rng(devices=[]):
        seed_all_devices(*parts)
        yield
