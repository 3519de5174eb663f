"""Image files: which entries of a folder they are, and an RGB picture of 8 bits from each that can become one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.errors import UsageError

SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # left by archives of macOS and by network disks; not hidden, never data
UNSCALED = {"F": "32-bit float", "I": "32-bit integer"}  # no format says which of these numbers is white
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises


class ImageFiles(Dataset):
    """Image files as one-element tuples (RGB picture,)."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        path = self.files[index]
        try:
            with Image.open(path) as image:
                return (as_rgb(image),)
        except UNREADABLE as error:
            raise UsageError(f"broken image {path}: {' '.join(str(error).split())}; restore or remove it") from error


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in ``folder``, sorted; hidden ones and those of systems are left out."""
    return sorted(entry.name for entry in os.scandir(folder) if _is_data(entry.name) and entry.is_dir())


def image_files(folder: Path) -> list[Path]:
    """The image files in ``folder`` and in all folders below, hidden ones left out, in torchvision's order."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = filter(_is_data, folders)
        found += [(place, name) for name in names if _is_data(name) and name.lower().endswith(IMG_EXTENSIONS)]
    return [Path(place, name) for place, name in sorted(found)]


def _is_data(name: str) -> bool:
    return not name.startswith(".") and name not in SYSTEM_FOLDERS


def as_rgb(image: Image.Image) -> Image.Image:
    """An RGB picture of 8 bits per channel.

    Of 16 bits the higher byte counts, as where Pillow itself reads 16-bit RGB. What is transparent lies on white, as
    where it is shown; colours that nobody sees decide nothing. Palettes are looked up; grey is repeated; CMYK is
    converted without its colour profile, as torchvision and timm do.

    Raises:
        UsageError: the values are 32-bit numbers.
    """
    if fault := range_fault(image):
        raise UsageError(fault)
    if _is_16_bit_grey(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def range_fault(image: Image.Image) -> str | None:
    """Why the values of ``image`` cannot become 8 bits, known from its header."""
    if image.mode not in UNSCALED or _is_16_bit_grey(image):
        return None
    return (
        f"nothing says which of its {UNSCALED[image.mode]} numbers (mode {image.mode}) is white; allowed: 8 or 16 bits"
    )


def _is_16_bit_grey(image: Image.Image) -> bool:
    """Pillow keeps 16 bits in mode I;16, of PPM files and in older versions of PNG files in mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def header_fault(path: Path) -> str | None:
    """Why the image file ``path`` gives no picture, as far as its header tells; nothing is decoded."""
    try:
        with Image.open(path) as image:
            return range_fault(image)
    except UNREADABLE as error:
        return " ".join(str(error).split())
