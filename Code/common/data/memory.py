"""Pictures that are decoded and resized once, in place of once in every epoch."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

GIGABYTE = 1e9
FREE_SHARE = 0.25  # of the memory that is free when the data are opened; the rest is the network's


class PictureMemory:
    """Room for ``count`` pictures of the size and mode of ``first``, each filled when it is asked for the first time.

    Processes that are forked later, as the workers of a loader are, share it: what one has made none makes again. A
    process that starts from a pickle (Windows, macOS) begins with an empty one of its own. The kernel gives memory for
    what is filled only.

    Examples:
        >>> from PIL import Image
        >>> white = Image.new("RGB", (4, 2), "white")
        >>> memory = PictureMemory(10, white)
        >>> memory.picture(3, lambda: white).size, memory.picture(3, lambda: 1 / 0).getpixel((0, 0))
        ((4, 2), (255, 255, 255))
    """

    def __init__(self, count: int, first: Image.Image) -> None:
        self._given = count, first
        pixels = np.asarray(first)
        self._pixels = np.frombuffer(mmap.mmap(-1, count * pixels.nbytes), np.uint8).reshape(count, *pixels.shape)
        self._filled = np.frombuffer(mmap.mmap(-1, count), bool)

    @staticmethod
    def fits(count: int, picture: Image.Image, gigabytes: float) -> bool:
        """Whether ``count`` pictures like this one take at most ``gigabytes``, and a quarter of the free memory."""
        free = FREE_SHARE * psutil.virtual_memory().available
        return count * np.asarray(picture).nbytes <= min(gigabytes * GIGABYTE, free)

    def picture(self, index: int, make: Callable[[], Image.Image]) -> Image.Image:
        """The picture at ``index``, by ``make`` where it is not there yet; changing it changes nothing here.

        Raises:
            ValueError: ``make`` gives another size or mode than the first picture has.
        """
        if not self._filled[index]:
            made = np.asarray(make())
            if made.shape != self._pixels.shape[1:]:
                raise ValueError(f"a picture of shape {made.shape} among those of shape {self._pixels.shape[1:]}")
            self._pixels[index] = made
            self._filled[index] = True
        return Image.fromarray(self._pixels[index])

    def __reduce__(self) -> tuple[type, tuple[int, Image.Image]]:
        return PictureMemory, self._given
