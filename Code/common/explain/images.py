"""Which images are explained, and what they and the outputs of a model are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.data import ImageNetInfo

from common.data import head_classes
from common.data.base import LabelledDataset
from common.errors import UsageError
from common.setup import Setup
from common.yaml_files import read_yaml


def choose_images(setup: Setup, images: int | str | Sequence[int] | None) -> LabelledDataset:
    """Validation images of ``setup``.

    Args:
        images: how many, the classes as even as possible (None = all); or their places among the validation images,
            from 0; or the path of a list for :func:`imagenet_files`.
    """
    if images is None or isinstance(images, int):
        return setup.some(images)
    if isinstance(images, str):
        return setup.val_set.select(torch.tensor(imagenet_files(images, setup.val_set)))
    outside = [place for place in images if type(place) is not int or not 0 <= place < len(setup.val_set)]
    if outside or not images:
        allowed = f"places 0 to {len(setup.val_set) - 1}"
        raise UsageError(f"images {outside or list(images)} are not allowed; allowed: {allowed}")
    return setup.val_set.select(torch.tensor(list(images)))


def imagenet_files(path: str | Path, dataset: LabelledDataset) -> list[int]:
    """Positions in ``dataset`` of the ImageNet validation images that a list names.

    Args:
        path: a YAML list of 1-based file numbers, as published with MUTEX: 42426 is ILSVRC2012_val_00042426.

    Raises:
        UsageError: the file is missing or no such list, or names an image that ``dataset`` does not have.
    """
    numbers = read_yaml(path)
    if not isinstance(numbers, list) or not numbers or any(type(number) is not int for number in numbers):
        raise UsageError(f"{str(path)!r} is no list of images; allowed: a YAML list of file numbers, 1 to 50000")
    places = {Path(image).stem: place for place, image in enumerate(dataset.image_ids)}
    names = [f"ILSVRC2012_val_{number:08d}" for number in numbers]
    missing = [name for name in names if name not in places]
    if missing:
        raise UsageError(f"{dataset.name!r} has no image {missing[0]} ({len(missing)} of {len(names)} are missing)")
    return [places[name] for name in names]


def output_names(num_outputs: int, dataset: LabelledDataset) -> list[str]:
    """Readable names of a head's outputs: the dataset's classes, or the 1000 of ImageNet-1k."""
    if head_classes(num_outputs, dataset) is None:
        return list(dataset.classes)
    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(num_outputs)]


def class_names(num_outputs: int, dataset: LabelledDataset) -> list[str]:
    """The true class of every image of ``dataset``, under the name that the output of the head has."""
    names, outputs = output_names(num_outputs, dataset), head_classes(num_outputs, dataset)
    labels = [int(label) for label in dataset.labels]
    return [names[label if outputs is None else outputs[label]] for label in labels]
