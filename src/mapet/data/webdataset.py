"""Images in tar files, as WebDataset packs them: read from where they lie, in any order, by any number of threads and processes.

`datasets` reads such tars too, but copies every image into an Arrow cache first, which takes as much disk again. Here the headers
are gone through once (`tar_index`), and an image is then one read at its place. The index is not kept on disk: it takes a minute
for ImageNet, less than reading its images for their keys does. No file stays open, so forked workers share no position in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mapet.data.folder import IMAGE_SUFFIXES
from mapet.data.labels import listed_classes, number_labels
from mapet.data.tar_index import index_tars, stamp
from mapet.errors import DataError, UnreadableImageError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # compressed ones are refused in words


class TarImages:
    """The images in tar files, file after file, in the order in which they lie there.

    Args:
        files: Uncompressed tars.
        location: What the user gave, for messages; the first file by default.
        classes: Class names to number labels by (those of the training part); by default those listed beside the tars.

    Raises:
        DataError: A compressed, damaged or incomplete tar, no images, or labels that do not fit.
    """

    def __init__(self, files: Sequence[Path], location: str | None = None, classes: tuple[str, ...] | None = None) -> None:
        self._files = [Path(file) for file in files]
        self.location = location or str(files[0])
        self._index = index_tars(self._files)
        if not len(self._index):
            raise DataError(
                f"{self.location} holds no images: no file in its tars ends in {' '.join(IMAGE_SUFFIXES)}. Tars within a tar are "
                "not looked into: unpack it."
            )
        repeated = len({file.name for file in self._files}) < len(self._files)
        self._titles = [str(file) if repeated else file.name for file in self._files]
        classes = classes or listed_classes(self._files[0].parent)
        self.labels, known = number_labels(self._index.labels, classes, self.describe)
        self.classes = None if self.labels is None else known

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> bytes:
        """The content of one image."""
        tar, size = self._index.tars[index], self._index.sizes[index]
        try:
            with self._files[tar].open("rb", buffering=0) as file:
                if stamp(file) != self._index.stamps[tar]:
                    raise UnreadableImageError("its tar was changed since this command began; start the command again")
                content = os.pread(file.fileno(), size, self._index.offsets[index])
        except OSError as error:
            raise UnreadableImageError(f"its tar cannot be opened: {error.strerror}") from error
        if len(content) != size:
            raise UnreadableImageError(f"its tar ends after {len(content)} of its {size} bytes")
        return content

    def describe(self, index: int) -> str:
        """Tar and member: "train-0003.tar: n01440764_10026.jpg"."""
        return f"{self._titles[self._index.tars[index]]}: {self._index.name(index)}"
