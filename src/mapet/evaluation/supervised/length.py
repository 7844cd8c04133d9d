"""How long something is trained on labels."""

from __future__ import annotations


def note_if_longer(images: int, batch_size: int, epochs: float, min_steps: int) -> str:
    """Says that few images are passed more often than the wanted `epochs`, for as many steps as `min_steps` demands; else ""."""
    per_epoch = max(1, images // min(batch_size, images))
    if min_steps <= epochs * per_epoch:
        return ""
    return f"{min_steps / per_epoch:.4g} epochs in place of {epochs:g}, to take at least {min_steps:,} steps (min_steps)."
