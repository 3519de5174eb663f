"""Generated pictures in the layouts of the real data sets, a few of each class: what a rehearsal runs on."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = {"train": 8, "val": 4}  # images of a class
SIDES = (72, 96)  # height and width
BLOCK = 8  # pixels of one colour in a row
# Ten classes of ImageNet, those of Imagenette, under the names of their folders
SYNSETS = ["n01440764", "n02102040", "n02979186", "n03000684", "n03028079"]
SHOWN = (8598, 26910, 42426)
SYNSETS += ["n03394916", "n03417042", "n03425413", "n03445777", "n03888257"]


def write_datasets(root: Path, names: Iterable[str]) -> None:
    """Write those of the data sets ``names`` that are no folder below ``root`` yet; digits need nothing.

    ``folder:PATH`` is written only below ``root``: any other is the user's own.
    """
    for name in sorted(names):
        folder, write = _layout(root, name)
        if write and not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            write(partial, np.random.default_rng(0))
            partial.rename(folder)


def accept_generated_archives() -> None:
    """Let torchvision read archives without comparing them with the original ones."""
    from torchvision import datasets  # takes seconds, and every start of a profile imports this file

    for archive in (datasets.CIFAR10, datasets.CIFAR100):
        archive.train_list = [(file, None) for file, _ in archive.train_list]
        archive.test_list = [(file, None) for file, _ in archive.test_list]
        archive.meta = {**archive.meta, "md5": None}


def _layout(root: Path, name: str) -> tuple[Path, Callable[[Path, np.random.Generator], None] | None]:
    if name.startswith("folder:"):
        path = Path(name.removeprefix("folder:"))
        return path, _folders if path.is_relative_to(root) else None
    return {
        "imagenet": (root / "imagenet", _imagenet),
        "imagenette": (root / "imagenette2-160", _folders),
        "fashion-mnist": (root / "FashionMNIST", _fashion),
        "cifar10": (root / "cifar-10-batches-py", _cifar10),
        "cifar100": (root / "cifar-100-python", _cifar100),
        "nabirds": (root / "nabirds", _nabirds),
        "coco": (root / "coco", _coco),
        "nuswide": (root / "nuswide", _nuswide),
    }.get(name, (root, None))


def _picture(path: Path, random: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_blocks((*SIDES, 3), random)).save(path)


def _blocks(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Height, width and perhaps channels, in squares of one colour: what is drawn of them makes a small file."""
    height, width, *channels = shape
    colors = random.integers(0, 256, (-(-height // BLOCK), -(-width // BLOCK), *channels), dtype=np.uint8)
    return colors.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]


def _items() -> Iterator[tuple[str, int, int]]:
    """(split, class, number of the image in its class), one class after the other."""
    for split, count in SPLITS.items():
        for label in range(len(SYNSETS)):
            yield from ((split, label, number) for number in range(count))


def _folders(folder: Path, random: np.random.Generator) -> None:
    for split, label, number in _items():
        _picture(folder / split / SYNSETS[label] / f"{split}_{label}_{number}.JPEG", random)


def _imagenet(folder: Path, random: np.random.Generator) -> None:
    """With the validation images that MUTEX's authors show among those of the first class."""
    _folders(folder, random)
    for number, path in zip(SHOWN, sorted((folder / "val" / SYNSETS[0]).iterdir()), strict=False):
        path.rename(path.with_name(f"ILSVRC2012_val_{number:08}.JPEG"))


def _small_images(split: str, shape: tuple[int, ...], random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    labels = [label for its_split, label, _ in _items() if its_split == split]
    return np.stack([_blocks(shape, random) for _ in labels]), labels


def _cifar_images(split: str, random: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """Images (n, 3072), one channel after the other."""
    images, labels = _small_images(split, (32, 32, 3), random)
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels


def _fashion(folder: Path, random: np.random.Generator) -> None:
    (folder / "raw").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "t10k")):
        images, labels = _small_images(split, (28, 28), random)
        for what, content in ((f"{name}-images-idx3", images), (f"{name}-labels-idx1", np.array(labels, np.uint8))):
            header = bytes([0, 0, 8, content.ndim]) + b"".join(side.to_bytes(4, "big") for side in content.shape)
            (folder / "raw" / f"{what}-ubyte").write_bytes(header + content.tobytes())


def _cifar10(folder: Path, random: np.random.Generator) -> None:
    _pickle(folder / "batches.meta", {"label_names": [f"class {label}" for label in range(10)]})
    images, labels = _cifar_images("train", random)
    for number in range(5):
        _pickle(folder / f"data_batch_{number + 1}", {"data": images[number::5], "labels": labels[number::5]})
    images, labels = _cifar_images("val", random)
    _pickle(folder / "test_batch", {"data": images, "labels": labels})


def _cifar100(folder: Path, random: np.random.Generator) -> None:
    _pickle(folder / "meta", {"fine_label_names": [f"class {label}" for label in range(100)]})
    for split, name in (("train", "train"), ("val", "test")):
        images, labels = _cifar_images(split, random)
        _pickle(folder / name, {"data": images, "fine_labels": labels})


def _pickle(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def _nabirds(folder: Path, random: np.random.Generator) -> None:
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for split, label, _ in _items():
        name = uuid.UUID(bytes=random.bytes(16))
        file = f"{label:04}/{name.hex}.jpg"
        _picture(folder / "images" / file, random)
        for table, entry in zip(tables, (file, label, int(split == "train")), strict=True):
            tables[table].append(f"{name} {entry}")
    tables["classes"] = [f"{label} Bird {label}" for label in range(len(SYNSETS))]
    tables["hierarchy"] = [f"{label} 0" for label in range(1, len(SYNSETS))]
    for table, lines in tables.items():
        (folder / f"{table}.txt").write_text("".join(f"{line}\n" for line in lines))


def _coco(folder: Path, random: np.random.Generator) -> None:
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": label + 1, "name": f"thing {label}"} for label in range(len(SYNSETS))]
    for split in SPLITS:
        images, annotations = [], []
        for i, label in enumerate(label for its_split, label, _ in _items() if its_split == split):
            images.append({"id": i + 1, "file_name": f"COCO_{split}2014_{i + 1:012}.jpg"})
            _picture(folder / f"{split}2014" / images[-1]["file_name"], random)
            both = {label + 1, int(random.integers(len(SYNSETS))) + 1}
            annotations += [{"image_id": i + 1, "category_id": category} for category in sorted(both)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(content))


def _nuswide(folder: Path, random: np.random.Generator) -> None:
    lines = ["filepath,label,split_name"]
    for i, (split, label, _) in enumerate(_items()):
        _picture(folder / "images" / f"{i:04}.jpg", random)
        lines.append(f"images/{i:04}.jpg,\"['thing {label}', 'thing {(label + 1) % 10}']\",{split}")
    (folder / "nus_wid_data.csv").write_text("".join(f"{line}\n" for line in lines))
