"""What every dataset of this package has in common: labels at hand, and a selection that keeps everything else."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

from common.data.memory import PictureMemory, shared_file
from common.data.transforms import Normalisation, split_transform
from common.errors import UsageError


class LabelledDataset(Dataset):
    """Images with labels; items are ``(image, label)``, the image a float tensor (3, img_size, img_size), normalised.

    The label is an int, or with several labels per image a float tensor (num_classes,) of zeros and ones.

    Attributes:
        name: the dataset's name as given to ``load_dataset``.
        classes: readable class names, one per label.
        imagenet_indices: class -> index among the 1000 ImageNet-1k classes, or None where there is no such mapping.
        mean, std: the three-channel normalisation of the images, needed to show them.
        labels: readable without decoding an image: long tensor (n,), or float (n, num_classes) if ``multi_label``.
        image_ids: one text per item, unique among them, by which an image is found again in any result.
    """

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        labels: torch.Tensor,
        norm: Normalisation,
        imagenet_indices: Sequence[int] | None = None,
        image_ids: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.classes = list(classes)
        self.labels = labels
        self.image_ids = [str(i) for i in range(len(labels))] if image_ids is None else list(image_ids)
        self.mean, self.std = norm.mean, norm.std
        self.imagenet_indices = None if imagenet_indices is None else list(imagenet_indices)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def multi_label(self) -> bool:
        """Whether an image has any number of the classes in place of exactly one."""
        return self.labels.dim() == 2

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: torch.Tensor) -> LabelledDataset:
        """The same dataset reduced to ``indices`` (long, in that order); every attribute stays."""
        chosen = copy.copy(self)
        chosen.labels = self.labels[indices]
        chosen.image_ids = [self.image_ids[i] for i in indices.tolist()]
        return chosen

    def remembered(self, gigabytes: float) -> LabelledDataset:
        """The same data, each picture decoded and resized once, if all of them fit into ``gigabytes`` of memory.

        What changes from epoch to epoch is never remembered: of pictures that are drawn, or whose transform begins with
        a random crop, nothing is.
        """
        return self

    def stack(self, places: Iterable[int] | None = None) -> torch.Tensor:
        """The images (k, 3, H, W) at ``places``, by default all, decoded now."""
        return torch.stack([self[place][0] for place in (range(len(self)) if places is None else places)])


def has_classes_of(num_outputs: int, dataset: LabelledDataset) -> bool:
    """Whether a head has the dataset's classes: as its own, or among those of ImageNet-1k."""
    return num_outputs == dataset.num_classes or (num_outputs == 1000 and dataset.imagenet_indices is not None)


def head_classes(num_outputs: int, dataset: LabelledDataset) -> list[int] | None:
    """Which outputs of a head are the dataset's classes: None when the head is the dataset's own.

    Raises:
        UsageError: the head has other classes and the dataset is no part of ImageNet-1k.
    """
    if has_classes_of(num_outputs, dataset):
        return None if num_outputs == dataset.num_classes else dataset.imagenet_indices
    raise UsageError(
        f"the head has {num_outputs} outputs, dataset {dataset.name!r} has {dataset.num_classes} classes; allowed: "
        f"a head trained on the dataset, or one of 1000 ImageNet classes and a dataset whose classes are among them"
    )


@dataclass(frozen=True)
class Source:
    """Pictures, with what is known about their labels, classes and files.

    The items of ``images`` are tuples that begin with a PIL image, as torchvision's are. ``labels`` and ``image_ids``
    as in :class:`LabelledDataset`. ``files`` has one path per image, or is None where the images share an archive.
    """

    images: Dataset
    classes: Sequence[str]
    labels: torch.Tensor
    image_ids: Sequence[str]
    files: Sequence[Path] | None = None
    imagenet_indices: Sequence[int] | None = None


class ImageData(LabelledDataset):
    """A :class:`Source` seen through a transform."""

    def __init__(self, name: str, source: Source, transform: v2.Compose, norm: Normalisation) -> None:
        super().__init__(name, source.classes, source.labels, norm, source.imagenet_indices, source.image_ids)
        self._source = source
        self._same, self._rest = split_transform(transform)
        self._indices = torch.arange(len(source.labels))
        self._memory: PictureMemory | None = None

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int | torch.Tensor]:
        make = partial(self._picture, index)
        picture = make() if self._memory is None else self._memory.picture(index, make)
        label = self.labels[index]
        return self._rest(picture), label if self.multi_label else int(label)

    def _picture(self, index: int) -> Image.Image:
        """The picture as every epoch begins with it."""
        picture = self._source.images[int(self._indices[index])][0]
        return picture if self._same is None else self._same(picture)

    def select(self, indices: torch.Tensor) -> ImageData:
        chosen = super().select(indices)
        chosen._indices, chosen._memory = self._indices[indices], None
        return chosen

    def remembered(self, gigabytes: float) -> ImageData:
        if self._same is None or not PictureMemory.fits(len(self), first := self._picture(0), gigabytes):
            return self
        remembering = copy.copy(self)
        remembering._memory = PictureMemory(len(self), first, shared_file(self._fingerprint()))
        return remembering

    def _fingerprint(self) -> str:
        """Of everything that decides the pictures as they are remembered: images, files, and the steps to each."""
        files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files or ()]
        decisive = self.name, self.image_ids, files, str(self._same), PIL.__version__, torchvision.__version__
        return hashlib.sha256(repr(decisive).encode()).hexdigest()[:32]

    @property
    def remembers(self) -> bool:
        """Whether pictures are remembered."""
        return self._memory is not None

    @property
    def remembered_bytes(self) -> int:
        """Of all pictures that are remembered, decoded yet or not; 0 where none are."""
        return self._memory.nbytes if self.remembers else 0

    def pixels(self, threads: int) -> np.ndarray:
        """All pictures that are remembered, see :meth:`PictureMemory.all`."""
        return self._memory.all(self._picture, threads)

    @property
    def remaining_steps(self) -> Sequence[Callable]:
        """Those of the transform from a remembered picture to an item."""
        return self._rest.transforms

    @property
    def files(self) -> list[Path] | None:
        """The image files in the order of the items."""
        files = self._source.files
        return None if files is None else [files[i] for i in self._indices.tolist()]
