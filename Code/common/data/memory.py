"""Pictures that are decoded and resized once, in place of once in every epoch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

GIGABYTE = 1e9
FREE_SHARE = 0.25  # of the memory that is free when the data are opened; the rest is the network's
SHARED = "PICTURES_ROOT"  # environment: the folder, such as one in /dev/shm, whose files all processes share


def shared_file(name: str) -> Path | None:
    """Where the processes of this machine share the pictures called ``name``, None where each has its own."""
    root = os.environ.get(SHARED)
    return Path(root).expanduser() / f"{name}.pictures" if root else None


class PictureMemory:
    """Room for ``count`` pictures of the size and mode of ``first``, each filled when it is asked for the first time.

    Processes that are forked later, as the workers of a loader are, share it: what one has made none makes again. A
    process that starts from a pickle (Windows, macOS) begins with an empty one of its own. The kernel gives memory for
    what is filled only.

    Args:
        file: shared by all processes that give the same one, also those that start later, and never removed. Two that
            make a picture at the same time write the same bytes.

    Examples:
        >>> from PIL import Image
        >>> white = Image.new("RGB", (4, 2), "white")
        >>> memory = PictureMemory(10, white)
        >>> memory.picture(3, lambda: white).size, memory.picture(3, lambda: 1 / 0).getpixel((0, 0))
        ((4, 2), (255, 255, 255))
    """

    def __init__(self, count: int, first: Image.Image, file: Path | None = None) -> None:
        self._given = count, first, file
        pixels = np.asarray(first)
        size = count * pixels.nbytes
        room = _room(size + count, file)
        self._pixels = np.frombuffer(room, np.uint8, size).reshape(count, *pixels.shape)
        self._filled = np.frombuffer(room, bool, count, offset=size)

    @staticmethod
    def fits(count: int, picture: Image.Image, gigabytes: float) -> bool:
        """Whether ``count`` pictures like this one take at most ``gigabytes``, and a quarter of the free memory."""
        free = FREE_SHARE * psutil.virtual_memory().available
        return count * np.asarray(picture).nbytes <= min(gigabytes * GIGABYTE, free)

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures, filled or not."""
        return self._pixels.nbytes

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

    def all(self, make: Callable[[int], Image.Image], threads: int) -> np.ndarray:
        """All pictures (n, H, W) or (n, H, W, 3), bytes; those that are not there by ``make`` of their index.

        Args:
            threads: that make pictures at the same time. Decoding and resizing leave the interpreter free.
        """
        with ThreadPoolExecutor(threads) as pool:
            missing = np.flatnonzero(~self._filled).tolist()
            list(pool.map(lambda index: self.picture(index, lambda: make(index)), missing))
        return self._pixels

    def __reduce__(self) -> tuple[type, tuple[int, Image.Image, Path | None]]:
        return PictureMemory, self._given


def _room(size: int, file: Path | None) -> mmap.mmap:
    """``size`` bytes of memory, zeros at first, or those of ``file``."""
    if file is None:
        return mmap.mmap(-1, size)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        opened.truncate(size)  # leaves what is there; a new file is all zeros and takes no room yet
        return mmap.mmap(opened.fileno(), size)
