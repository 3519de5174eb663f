"""A model, the images that it is asked about, and what it says of them: what explanations start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.data import head_classes, subset
from common.data.base import LabelledDataset
from common.errors import UsageError
from common.explain.comparison import predictions
from common.setup import Setup
from common.yaml_files import read_yaml


@dataclass(frozen=True)
class Subject:
    """What is explained.

    Attributes:
        model: unreduced, in eval mode.
        dataset: the n images, normalised as the model's own weights expect.
        labels, probabilities: (n,) what the model predicts.
        names: of the model's outputs.
    """

    backbone: str
    model: VisionTransformer
    dataset: LabelledDataset
    labels: Tensor
    probabilities: Tensor
    names: list[str]


def open_subject(
    backbone: str,
    weights: str,
    dataset: str,
    *,
    img_size: int,
    recipe: str,
    images: int | str | Sequence[int],
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
) -> Subject:
    """Load ``backbone`` and the images that it is asked about.

    Args:
        weights: see :func:`common.training.digits_backbone.resolve_weights`.
        images: a number of validation images, the classes as even as possible; or their positions in the validation
            set; or the path of a list for :func:`imagenet_files`.
        seed: decides which images a number means.
    """
    setup = Setup(backbone, weights, dataset, img_size, recipe, batch_size=batch_size, seed=seed, device=device)
    model, val_set = setup.vit, setup.val_set
    if isinstance(images, int):
        val_set = subset(val_set, images, seed)
    else:
        val_set = val_set.select(torch.tensor(_positions(images, val_set)))
    labels, probabilities = predictions(model, val_set, batch_size=batch_size)
    return Subject(backbone, model, val_set, labels, probabilities, output_names(model.num_classes, val_set))


def _positions(images: str | Sequence[int], dataset: LabelledDataset) -> list[int]:
    if isinstance(images, str):
        return imagenet_files(images, dataset)
    outside = [place for place in images if type(place) is not int or not 0 <= place < len(dataset)]
    if outside or not images:
        raise UsageError(f"images {outside or list(images)} are not allowed; allowed: places 0 to {len(dataset) - 1}")
    return list(images)


def output_names(num_outputs: int, dataset: LabelledDataset) -> list[str]:
    """Readable names of a head's outputs: the dataset's classes, or the 1000 of ImageNet-1k."""
    if head_classes(num_outputs, dataset) is None:
        return list(dataset.classes)
    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(num_outputs)]


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
