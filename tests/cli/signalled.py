"""Images whose reading sends a signal to this process, as Ctrl-C or a scheduler would; NUMBER comes from the environment."""

from __future__ import annotations

import os

from mapet.data.digits import DigitImages


class Images(DigitImages):
    def read(self, index: int) -> bytes:
        if index == 40:
            os.kill(os.getpid(), int(os.environ["NUMBER"]))
        return super().read(index)


def images(location: str, split: str) -> Images:
    return Images()
