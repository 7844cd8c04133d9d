"""Which files are images, by their names: one rule for folders, tars and masks; what is left out is counted and named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from mapet.runtime.printable import few
from mapet.runtime.progress import say

# Pillow's names of the formats that are read, with the suffixes of their files.
SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
# What usually lies beside images and is none.
_COMPANY = (
    *(".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".html", ".htm", ".pdf"),
    *(".npy", ".npz", ".mat", ".pkl", ".pickle", ".py", ".ipynb", ".sh", ".log", ".lst", ".idx", ".db", ".url", ".lnk", ".bak"),
    *(".parquet", ".arrow", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar", ".sha256", ".md5", ".lock"),
    *(".cls", ".tmp", ".part", ".partial"),
)
_COMPANY_NAMES = ("thumbs.db", "desktop.ini", "license", "readme", "makefile", "changelog", "notice", "citation", "version")
_NAMED = 3


def is_hidden(path: str) -> bool:
    """Whether a file or a folder on the way to it has a name that begins with a dot; `.` and `..` are not such names."""
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def is_image_name(path: str) -> bool:
    """Whether a file of that path counts as an image: by its suffix, in any case, and not hidden."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(path)


def is_left_out(path: str) -> bool:
    """Whether a file that is no image might have been meant as one: it is not hidden and not of a kind that lies beside images."""
    name = PurePosixPath(path).name.lower()
    company = name.endswith(_COMPANY) or name in _COMPANY_NAMES
    return not (is_hidden(path) or is_image_name(path) or company)


def say_left_out(location: str, paths: Iterable[str]) -> None:
    """One line with the count and examples of the files that `is_left_out`; none where there are none."""
    names = [path for path in paths if is_left_out(path)]
    if names:
        say(
            f"{location}: {len(names):,} files are left out ({few(names, _NAMED)}). "
            f"Files ending in {suffixes_in_words()} count as images."
        )


def suffixes_in_words() -> str:
    """The suffixes of images, for messages."""
    return " ".join(IMAGE_SUFFIXES)
