"""Images in tar files, as WebDataset packs them: read from where they lie, in any order, by any number of threads and processes.

`datasets` reads such tars too, but copies every image into an Arrow cache first, which takes as much disk again. Here the headers
are gone through once (`tar_index`), and an image is then one read at its place. The index is not kept on disk: it takes a minute
for ImageNet, less than reading its images for their keys does. No file stays open, so forked workers share no position in it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mapet.data.image_names import suffixes_in_words
from mapet.data.labels import labels_of_texts, listed_classes, number_labels
from mapet.data.tar_index import index_tars, stamp
from mapet.data.tree import MOST_BYTES
from mapet.errors import DataError, UnreadableImageError
from mapet.runtime.printable import on_one_line
from mapet.runtime.progress import say
from mapet.runtime.regular import open_regular

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
                f"{self.location} holds no images: no file in its tars ends in {suffixes_in_words()}. Files and folders whose "
                "names begin with a dot are passed over. Tars within a tar are not looked into: unpack them."
            )
        repeated = len({file.name for file in self._files}) < len(self._files)
        self._titles = [str(file) if repeated else file.name for file in self._files]
        if self._index.passed_over:
            examples = ", ".join(self._index.examples)
            more = ", ..." if self._index.passed_over > len(self._index.examples) else ""
            say(f"{self.location}: {self._index.passed_over:,} files in its tars are not used ({examples}{more}).")
        labels = labels_of_texts(self._index.labels, listed_classes(self._files[0].parent), self.describe)
        self.labels, self.classes = number_labels(labels, classes, self.describe)
        self.label_kind = labels.kind

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> bytes:
        """The content of one image."""
        tar, size = self._index.tars[index], self._index.sizes[index]
        if size > MOST_BYTES:
            raise UnreadableImageError(f"it has {size:,} bytes, and at most {MOST_BYTES:,} are read")
        try:
            with open_regular(self._files[tar]) as file:
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
        return on_one_line(f"{self._titles[self._index.tars[index]]}: {self._index.name(index)}")
