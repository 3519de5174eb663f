"""Datasets whose labels stand in files of their own, read from the folders as their publishers lay them out."""

from __future__ import annotations

import ast
import csv
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.data.base import Source
from common.data.pictures import ImageFiles
from common.errors import UsageError

NABIRDS_SPLITS = {"0": "val", "1": "train"}
NUSWIDE_FILE = "nus_wid_data.csv"
# What a column of the CSV holds -> the headers it may have, in lower case and letters only.
NUSWIDE_COLUMNS = {
    "file path": ("filepath", "path"),
    "label list": ("label", "labels", "labellist"),
    "split": ("split", "splitname"),
}


def unique_ids(files: Sequence[Path], folder: Path, short: Callable[[Path], str]) -> list[str]:
    """``short`` of every file where that tells them all apart, else their paths in ``folder``."""
    ids = [short(file) for file in files]
    return ids if len(set(ids)) == len(ids) else [os.path.relpath(file, folder) for file in files]


def open_nabirds(folder: Path, split: str) -> Source:
    """NABirds (Van Horn et al. 2015): one of 555 visual categories per image; the test images are ``val``.

    Classes are those which an image of either split has, in ascending order of their published numbers. Images come
    in the order of images.txt, by their UUID. The hierarchy is not read; its absence means an incomplete copy.
    """
    images, image_labels, splits, names = (
        folder / name for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    _require_files("nabirds", [images, image_labels, splits, names, folder / "hierarchy.txt", folder / "images"])
    path_of = _two_columns(images, str, str)
    number_of = _two_columns(image_labels, str, int)
    split_of = _two_columns(splits, str, NABIRDS_SPLITS.__getitem__)
    name_of = _two_columns(names, int, str)
    for table, known in ((image_labels, number_of), (splits, split_of)):
        _require_entries("nabirds", table, path_of, known)
    numbers = sorted({number_of[image] for image in path_of})
    _require_entries("nabirds", names, numbers, name_of)
    index = {number: i for i, number in enumerate(numbers)}
    ids = [image for image in path_of if split_of[image] == split]
    labels = torch.tensor([index[number_of[image]] for image in ids])
    files = [folder / "images" / path_of[image] for image in ids]
    return _source("nabirds", split, [name_of[number] for number in numbers], labels, ids, files)


def _two_columns(table: Path, key: Callable[[str], Any], value: Callable[[str], Any]) -> dict[Any, Any]:
    """A file of lines ``KEY VALUE``, the value may hold blanks, in the order of the file."""
    content = {}
    with open(table, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                first, rest = line.split(maxsplit=1)
                content[key(first)] = value(rest.strip())
            except (KeyError, ValueError) as error:
                raise UsageError(f"nabirds: {table}, line {number}: cannot read {line.strip()!r}") from error
    return content


def open_coco(folder: Path, split: str) -> Source:
    """COCO 2014 (Lin et al. 2014): which of the 80 categories appear in an image, at any size, crowds included.

    Classes and images in ascending order of their published numbers; images without any annotation are left out.
    """
    pictures = f"{split}2014"
    path = folder / "annotations" / f"instances_{pictures}.json"
    _require_files("coco", [folder / pictures, path])
    names, categories, found = _read_instances(path)
    numbers, images = sorted(categories), sorted({image for image, _ in found})
    labels = torch.tensor([[float((image, number) in found) for number in numbers] for image in images])
    files = [folder / pictures / names[image] for image in images]
    classes = [categories[number] for number in numbers]
    return _source("coco", split, classes, labels, [str(image) for image in images], files)


def _read_instances(path: Path) -> tuple[dict[int, str], dict[int, str], set[tuple[int, int]]]:
    """File name per image, name per category, and every (image, category) that an annotation mentions."""
    try:
        content = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        found = {(annotation["image_id"], annotation["category_id"]) for annotation in content["annotations"]}
    except ValueError as error:
        raise UsageError(f"coco: {path} is no valid JSON: {error}") from error
    except (KeyError, TypeError) as error:
        raise UsageError(f"coco: {path} is not laid out as COCO's annotations: {error!r}") from error
    _require_entries("coco", path, {image for image, _ in found}, names)
    _require_entries("coco", path, {category for _, category in found}, categories)
    return names, categories, found


def open_nuswide(folder: Path, split: str) -> Source:
    """NUS-WIDE (Chua et al. 2009) in the form of one CSV: a file path, a list of labels as text, and a split per line.

    Paths are relative to ``folder``. Classes are all labels of the file, both splits together, sorted as text. Images
    come in the order of the file, by the file's stem (by their path where stems are not unique).
    """
    table = folder / NUSWIDE_FILE
    _require_files("nuswide", [table])
    rows = _read_rows(table)
    classes = sorted({label for _, labels, _ in rows for label in labels})
    chosen = [(folder / path, set(labels)) for path, labels, its_split in rows if its_split == split]
    targets = torch.tensor([[float(label in labels) for label in classes] for _, labels in chosen])
    files = [file for file, _ in chosen]
    return _source("nuswide", split, classes, targets, unique_ids(files, folder, lambda file: file.stem), files)


def _read_rows(table: Path) -> list[tuple[str, list[str], str]]:
    """(path, labels, split) of every line."""
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        path, labels, split = _find_columns(table, reader.fieldnames or [])
        rows = []
        for row in reader:
            where = f"nuswide: {table}, line {reader.line_num}"
            if not row[path] or row[split] not in ("train", "val"):
                raise UsageError(f"{where}: path {row[path]!r} and split {row[split]!r}; allowed: a path, train or val")
            rows.append((row[path], _label_list(row[labels], where), row[split]))
    return rows


def _find_columns(table: Path, headers: Sequence[str]) -> list[str]:
    """The headers of the columns with path, labels and split."""
    plain = {"".join(filter(str.isalpha, header.lower())): header for header in headers}
    columns = []
    for content, allowed in NUSWIDE_COLUMNS.items():
        known = [plain[name] for name in allowed if name in plain]
        if not known:
            raise UsageError(
                f"nuswide: {table} has no column with the {content}; allowed: {', '.join(allowed)}; "
                f"given: {', '.join(headers) or 'none'}"
            )
        columns.append(known[0])
    return columns


def _label_list(text: str, where: str) -> list[str]:
    try:
        labels = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UsageError(f"{where}: labels {text!r} are no list like ['sky', 'water']")
    return labels


def _source(
    name: str, split: str, classes: Sequence[str], labels: torch.Tensor, ids: Sequence[str], files: Sequence[Path]
) -> Source:
    if not ids:
        raise UsageError(f"{name}: its label files hold no image of split {split!r}")
    return Source(ImageFiles(files), classes, labels, ids, files)


def _require_files(name: str, wanted: Sequence[Path]) -> None:
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise UsageError(
            f"{name}: no {' and no '.join(map(str, missing))}; {name} is never downloaded, name the folder that holds "
            f"the folder {name!r} with DATA_ROOT"
        )


def _require_entries(name: str, table: Path, wanted: Iterable, known: Collection) -> None:
    missing = sorted({entry for entry in wanted if entry not in known})
    if missing:
        others = f" (and {len(missing) - 1} more like it)" if len(missing) > 1 else ""
        raise UsageError(f"{name}: {table} has no entry for {missing[0]}{others}")
