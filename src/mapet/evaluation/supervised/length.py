"""How long something is trained on labels."""

from __future__ import annotations


def note_if_longer(images: int, batch_size: int, epochs: float, min_steps: int) -> str:
    """What few images change: the size of a batch, and the epochs, for as many steps as `min_steps` demands; "" for nothing."""
    per_epoch = max(1, images // min(batch_size, images))
    told = []
    if images < batch_size:
        told.append(f"{images} images are fewer than a batch of {batch_size:,}, and are one batch.")
    if min_steps > epochs * per_epoch:
        told.append(f"{min_steps / per_epoch:.4g} epochs in place of {epochs:g}, to take at least {min_steps:,} steps (min_steps).")
    return " ".join(told)
