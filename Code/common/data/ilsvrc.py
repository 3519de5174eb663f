"""ImageNet's validation images as they are published: all in one folder, their labels in the development kit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from scipy.io import loadmat

from common.data.base import Source
from common.data.pictures import ImageFiles
from common.errors import UsageError

PICTURE = "ILSVRC2012_val_{:08}.JPEG"
KIT = Path("ILSVRC2012_devkit_t12", "data")
SYNSETS, LABELS = KIT / "meta.mat", KIT / "ILSVRC2012_validation_ground_truth.txt"


def is_flat(folder: Path) -> bool:
    """Whether ``folder``/val holds the pictures themselves, in place of a folder for each class."""
    return any((folder / "val").glob("ILSVRC2012_val_*.JPEG"))


def open_flat(folder: Path, describe: Callable[[list[str]], tuple[list[str], list[int] | None]]) -> Source:
    """The pictures in ``folder``/val, by the kit that lies extracted in ``folder``.

    Args:
        describe: from the synsets, sorted, to readable names and indices among ImageNet's classes.

    Raises:
        UsageError: the kit is not there, or it names another number of pictures than are there.
    """
    missing = [path for path in (folder / SYNSETS, folder / LABELS) if not path.is_file()]
    if missing:
        raise UsageError(
            f"imagenet: {folder / 'val'} has no folder for each class, and there is no "
            f"{' and no '.join(map(str, missing))}; extract ILSVRC2012_devkit_t12.tar.gz in {folder}"
        )
    synset_of = {
        int(entry["ILSVRC2012_ID"]): str(entry["WNID"])
        for entry in loadmat(folder / SYNSETS, squeeze_me=True)["synsets"]
        if int(entry["num_children"]) == 0  # the others are groups of classes
    }
    synsets = sorted(synset_of.values())
    place = {number: synsets.index(synset) for number, synset in synset_of.items()}
    labels = [place[int(number)] for number in (folder / LABELS).read_text().split()]
    files = sorted((folder / "val").glob("ILSVRC2012_val_*.JPEG"))
    if [file.name for file in files] != [PICTURE.format(number) for number in range(1, len(labels) + 1)]:
        raise UsageError(
            f"imagenet: {folder / LABELS} has labels of {len(labels)} pictures, {folder / 'val'} {len(files)}"
        )
    names, indices = describe(synsets)
    return Source(ImageFiles(files), names, torch.tensor(labels), [file.name for file in files], files, indices)
