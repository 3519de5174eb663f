"""What every dataset of this package has in common: labels at hand, and a selection that keeps everything else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset

from common.data.transforms import Normalisation
from common.errors import UsageError


class LabelledDataset(Dataset):
    """Images with labels; items are ``(image, label)``, the image a float tensor (3, img_size, img_size), normalised.

    Attributes:
        name: the dataset's name as given to ``load_dataset``.
        classes: readable class names, one per label.
        imagenet_indices: class -> index among the 1000 ImageNet-1k classes, or None where there is no such mapping.
        mean, std: the three-channel normalisation of the images, needed to show them.
        labels: long tensor (n,), readable without decoding an image.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        labels: torch.Tensor,
        norm: Normalisation,
        imagenet_indices: Sequence[int] | None = None,
    ) -> None:
        self.name = name
        self.classes = list(classes)
        self.labels = labels
        self.mean, self.std = norm.mean, norm.std
        self.imagenet_indices = None if imagenet_indices is None else list(imagenet_indices)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: torch.Tensor) -> LabelledDataset:
        """The same dataset reduced to ``indices`` (long, in that order); every attribute stays."""
        chosen = copy.copy(self)
        chosen.labels = self.labels[indices]
        return chosen


def head_classes(num_outputs: int, dataset: LabelledDataset) -> list[int] | None:
    """Which outputs of a head are the dataset's classes: None when the head is the dataset's own.

    Raises:
        UsageError: the head has other classes and the dataset is no part of ImageNet-1k.
    """
    if num_outputs == dataset.num_classes:
        return None
    if num_outputs == 1000 and dataset.imagenet_indices is not None:
        return dataset.imagenet_indices
    raise UsageError(
        f"the head has {num_outputs} outputs, dataset {dataset.name!r} has {dataset.num_classes} classes; allowed: "
        f"a head trained on the dataset, or one of 1000 ImageNet classes and a dataset whose classes are among them"
    )


@dataclass(frozen=True)
class Source:
    """A dataset as torchvision reads it (PIL image, label), with what is known about its classes and files.

    ``files`` has one path per image, or is None where the images share an archive.
    """

    images: Dataset
    classes: Sequence[str]
    labels: torch.Tensor
    files: Sequence[Path] | None = None
    imagenet_indices: Sequence[int] | None = None


class ImageData(LabelledDataset):
    """A :class:`Source` seen through a transform."""

    def __init__(
        self, name: str, source: Source, transform: Callable[[Image.Image], torch.Tensor], norm: Normalisation
    ) -> None:
        super().__init__(name, source.classes, source.labels, norm, source.imagenet_indices)
        self._source, self._transform = source, transform
        self._indices = torch.arange(len(source.labels))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = self._source.images[int(self._indices[index])]
        return self._transform(image), int(label)

    def select(self, indices: torch.Tensor) -> ImageData:
        chosen = super().select(indices)
        chosen._indices = self._indices[indices]
        return chosen

    @property
    def files(self) -> list[Path] | None:
        """The image files in the order of the items."""
        files = self._source.files
        return None if files is None else [files[i] for i in self._indices.tolist()]
