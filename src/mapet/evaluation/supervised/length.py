"""How long something is trained on labels."""

from __future__ import annotations


def describe_extended_schedule(images: int, batch_size: int, epochs: float, min_steps: int, warmup_epochs: float = 0) -> str:
    """What is not as the settings have it; "" for nothing.

    With few images, the size of a batch, and the epochs for as many steps as `min_steps` demands; a warm-up that does not end.
    """
    per_epoch = max(1, images // min(batch_size, images))
    sentences = []
    if images < batch_size:
        sentences.append(f"{images} images are fewer than a batch of {batch_size:,}, and are one batch.")
    if min_steps > epochs * per_epoch:
        sentences.append(
            f"{min_steps / per_epoch:.4g} epochs in place of {epochs:g}, to take at least {min_steps:,} steps (min_steps)."
        )
    longest = max(epochs, min_steps / per_epoch)
    if warmup_epochs >= longest:
        sentences.append(
            f"The warm-up of {warmup_epochs:g} epochs does not end within {longest:.4g} epochs, so that the learning rate never "
            "reaches lr. Set warmup_epochs lower."
        )
    return " ".join(sentences)
