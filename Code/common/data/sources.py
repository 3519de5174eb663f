"""Where each file-based dataset lies, how it is read, and how it is fetched when it is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch.utils.data import Dataset
from torchvision import datasets as tv
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.data.annotated import open_coco, open_nabirds, open_nuswide, unique_ids
from common.data.base import Source
from common.data.check import check_idx
from common.data.ilsvrc import is_flat, open_flat
from common.data.pictures import ImageFiles, class_folders, image_files
from common.data.tiles import open_tiles
from common.errors import UsageError

DEFAULT_ROOT = "~/.cache/token-reduction"
FOLDER_PREFIX = "folder:"
TILES = "photo-tiles"
ANNOTATED = {"nabirds": open_nabirds, "coco": open_coco, "nuswide": open_nuswide}
ARCHIVES = {"fashion-mnist": tv.FashionMNIST, "cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}
IMAGENETTE_FOLDERS = ("imagenette2", "imagenette2-320", "imagenette2-160")


def data_root(root: str | os.PathLike | None = None) -> Path:
    """``root``, or the folder that the environment variable DATA_ROOT names, or the default one."""
    return Path(root or os.environ.get("DATA_ROOT") or DEFAULT_ROOT).expanduser()


def open_source(name: str, split: str, root: str | os.PathLike | None) -> Source:
    """Open ``name`` (already validated, not ``digits``), downloading it where that is allowed and needed."""
    place = data_root(root)
    if name.startswith(FOLDER_PREFIX):
        return _folder(name, Path(name.removeprefix(FOLDER_PREFIX)).expanduser(), split)
    if name == TILES:
        return open_tiles(split)
    if name in ANNOTATED:
        return ANNOTATED[name](place / name, split)
    if name in ARCHIVES:
        return _archive(name, place, split)
    folder = place / name if name == "imagenet" else _find_imagenette(place, split)
    if name == "imagenet" and split == "val" and is_flat(folder):
        return open_flat(folder, _describe)
    return _folder(name, folder, split)


def _find_imagenette(root: Path, split: str) -> Path:
    for folder in IMAGENETTE_FOLDERS:
        if (root / folder).is_dir():
            return root / folder
    _download("imagenette", root, lambda: tv.Imagenette(root, split, download=True))
    return root / IMAGENETTE_FOLDERS[0]


def _archive(name: str, root: Path, split: str) -> Source:
    """All images of a split in one file, where they have no names of their own."""
    for path in sorted((root / "FashionMNIST" / "raw").glob("[!.]*-ubyte")) if name == "fashion-mnist" else ():
        check_idx(path)
    train = split == "train"
    try:
        images = ARCHIVES[name](root, train, download=False)
    except RuntimeError:  # torchvision's way to say that the files are not there or fail their checksum
        images = _download(name, root, lambda: ARCHIVES[name](root, train, download=True))
    ids = [f"{split}-{i}" for i in range(len(images))]
    return Source(images, images.classes, torch.as_tensor(images.targets), ids)


def _download(name: str, root: Path, fetch: Callable[[], Dataset]) -> Dataset:
    try:
        return fetch()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"no complete {name} under {root}, and downloading it failed ({reason}); "
            "name the folder that holds it with the environment variable DATA_ROOT"
        ) from error


def _folder(name: str, folder: Path, split: str) -> Source:
    """One folder per class under ``folder``/train and ``folder``/val; folders inside of these belong to the class."""
    classes = _classes(name, folder, split)
    by_class = [image_files(folder / split / each) for each in classes]
    empty = [each for each, found in zip(classes, by_class, strict=True) if not found]
    if empty:
        raise UsageError(
            f"{name}: no image of class {', '.join(map(repr, empty[:5]))} in {folder / split}; "
            f"fill the folder, or remove it from train and val; allowed: {', '.join(IMG_EXTENSIONS)}"
        )
    names, indices = _describe(classes)
    files = [file for found in by_class for file in found]
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in by_class]))
    ids = unique_ids(files, folder / split, lambda file: file.name)
    return Source(ImageFiles(files), names, labels, ids, files, indices)


def _classes(name: str, folder: Path, split: str) -> list[str]:
    """Folder names of the classes, which must be the same in both splits where both are there."""
    folders = [each for each in ("train", "val") if (folder / each).is_dir()]
    there = {each: found for each in folders if (found := set(class_folders(folder / each)))}
    if split not in there:
        hint = "" if name.startswith(FOLDER_PREFIX) else "; name the folder that holds it with DATA_ROOT"
        what = "class folder in" if split in folders else "folder"
        raise UsageError(f"{name}: no {what} {folder / split} (wanted: one folder per class in it){hint}")
    if unmatched := set.symmetric_difference(*there.values()) if len(there) == 2 else ():
        raise UsageError(f"{name}: {folder}/train and val have different classes: {', '.join(sorted(unmatched)[:5])}")
    return sorted(there[split])


def _describe(folders: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """Readable names, and ImageNet-1k indices when every folder is one of ImageNet's synsets."""
    info = ImageNetInfo("imagenet-1k")
    index = {synset: i for i, synset in enumerate(info.label_names())}
    if any(folder not in index for folder in folders):
        return list(folders), None
    names = [info.label_name_to_description(folder).split(",")[0] for folder in folders]
    return names, [index[folder] for folder in folders]
