"""How an image is recognised: by its content, and only where no content can be had by its name."""

from __future__ import annotations

from mapet.data.source import ImageSource, sample_keys

_NO_CONTENT = "?"


def image_keys(source: ImageSource) -> list[str]:
    """The keys of all images of `source` in order; images without a known key are read."""
    return [key or unreadable_key(key, source.describe(index)) for index, key in enumerate(sample_keys(source))]


def unreadable_key(key: str, description: str) -> str:
    """What an image that cannot be decoded is recorded under: its sample key, or its name where not even its bytes can be read."""
    return key or f"{_NO_CONTENT}{description}"


def belongs_to_rank(key: str, rank: int, world: int) -> bool:
    """Whether this image is the work of process `rank` of `world`: a function of its key alone."""
    return (0 if key.startswith(_NO_CONTENT) else int(key, 16) % world) == rank


def is_content_key(key: str) -> bool:
    """Whether a key is of an image's content, and not of its name, for lack of content."""
    return bool(key) and not key.startswith(_NO_CONTENT)
