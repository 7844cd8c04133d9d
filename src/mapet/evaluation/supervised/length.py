"""How long something is trained on labels."""

from __future__ import annotations

from mapet.runtime.progress import say


def say_if_longer(title: str, epochs: float, wanted: float) -> None:
    """Says that few images are passed more often than the `wanted` epochs, for as many steps as `min_steps` demands."""
    if epochs > wanted:
        say(f"{title}: {epochs:.4g} epochs in place of {wanted:g}, to take the least number of steps (min_steps).")
