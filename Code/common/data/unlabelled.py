"""Images without labels, as the calls take them that fit a method to a network: a tensor, a dataset or a loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.errors import UsageError
from common.images import check_images

Images = Tensor | Dataset | DataLoader  # what users give
Calibration = Tensor | LabelledDataset  # (n, 3, H, W), or a dataset whose images are decoded when they are needed


def as_calibration(images: Images, vit: VisionTransformer, *, least: int = 1) -> Calibration:
    """The images that a user gives, looked at before anything is computed on them.

    >>> from common.models.factory import create_backbone
    >>> vit, images = create_backbone("vit_digits"), torch.rand(4, 3, 32, 32)
    >>> loader = DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4)), batch_size=3)
    >>> torch.equal(as_calibration(loader, vit), images)
    True

    Args:
        images: (N, 3, H, W), normalised as the weights of ``vit`` expect; or a ``Dataset`` of images (3, H, W) or of
            tuples that begin with one, or a ``DataLoader`` of batches of either, which is gone through once.
        vit: the network that they are for.
        least: how many there must be.

    Returns:
        One float32 tensor on the CPU; a dataset of this package stays as it is.

    Raises:
        UsageError: anything else, images of another size, too few, or some that hold NaN or an infinite value.
    """
    if isinstance(images, LabelledDataset):
        _require(len(images), least)
        _check(vit, images[0][0][None], "image 0")
        return images
    if isinstance(images, DataLoader):
        found = _joined(_parts(vit, _firsts(images), "batch", batched=True))
    elif isinstance(images, Dataset):
        found = _joined(_parts(vit, _firsts(_items(images)), "image", batched=False))
    else:
        _check(vit, images)
        found = images
    _require(len(found), least)
    bad = (~found.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise UsageError(f"{len(bad)} of {len(found)} images hold NaN or an infinite value, first image {bad[0]}")
    return found.detach().to("cpu", torch.float32)


def as_tensor(images: Images, vit: VisionTransformer, *, least: int = 1) -> Tensor:
    """As :func:`as_calibration`, with all images of a dataset of this package decoded: (N, 3, H, W)."""
    found = as_calibration(images, vit, least=least)
    return found if isinstance(found, Tensor) else found.stack()


def _check(vit: VisionTransformer, images: object, what: str = "images") -> None:
    check_images(vit, images, what, others=", a Dataset of such images or a DataLoader")


def _parts(vit: VisionTransformer, values: Iterator[object], what: str, *, batched: bool) -> Iterator[Tensor]:
    """Batches (n, C, H, W) of ``values``, each of which is one or, if not ``batched``, a single image."""
    for number, value in zip(count(), values):
        part = value if batched or not isinstance(value, Tensor) else value[None]
        _check(vit, part, f"{what} {number}")
        yield part


def _items(dataset: Dataset) -> Iterator[object]:
    return iter(dataset) if isinstance(dataset, IterableDataset) else (dataset[place] for place in range(len(dataset)))


def _firsts(values: DataLoader | Iterator[object]) -> Iterator[object]:
    """What stands for images in items or batches: they themselves, or the first of a tuple."""
    return (value[0] if isinstance(value, (tuple, list)) and value else value for value in values)


def _joined(parts: Iterator[Tensor]) -> Tensor:
    parts = list(parts)
    if len({part.shape[1:] for part in parts}) > 1:
        raise UsageError("images of different sizes are not allowed; give one size")
    return torch.cat(parts) if parts else torch.empty(0)


def _require(number: int, least: int) -> None:
    if number < least:
        raise UsageError(f"{number} images are too few; give at least {least}")


def take(images: Calibration, places: Tensor) -> Tensor:
    """The images (k, 3, H, W) at ``places`` (k,)."""
    if isinstance(images, Tensor):
        return images[places]
    return images.stack(places.tolist())


def split(images: Calibration, held_out: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places of the images to tune on, and of those to measure errors on, drawn by ``seed``.

    Raises:
        UsageError: one of the two would be empty.
    """
    count = round(len(images) * held_out)
    if not 0 < count < len(images):
        raise UsageError(
            f"held_out={held_out} of {len(images)} images leaves one side empty; give more, or another share"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return order[count:].sort().values, order[:count].sort().values


def digest(vit: VisionTransformer, images: Calibration) -> str:
    """Changes with the weights or the images: by it a stopped search knows that it is the same one."""
    found = hashlib.sha256()
    for value in vit.state_dict().values():
        found.update(value.detach().cpu().float().numpy().tobytes())
    if isinstance(images, Tensor):
        found.update(images.cpu().float().contiguous().numpy().tobytes())
    else:
        found.update(repr((images.name, images.image_ids)).encode())
    return found.hexdigest()[:16]


class Unlabelled(LabelledDataset):
    """Images for a training that reads no labels; all are of the first class of a head.

    Args:
        images: see :func:`as_calibration`.
        vit: the network that they are for.
        name: of the dataset, which a stopped training knows its images by.
    """

    def __init__(self, images: Calibration, vit: VisionTransformer, name: str) -> None:
        known = getattr(vit, "pretrained_cfg", {})
        norm = Normalisation(known.get("mean", (0.0,) * 3), known.get("std", (1.0,) * 3))
        classes = [str(number) for number in range(vit.num_classes)]
        super().__init__(name, classes, torch.zeros(len(images), dtype=torch.long), norm)
        self._images, self._places = images, torch.arange(len(images))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = int(self._places[index])
        return (self._images[place] if isinstance(self._images, Tensor) else self._images[place][0]), 0

    def select(self, indices: Tensor) -> Unlabelled:
        chosen = super().select(indices)
        chosen._places = self._places[indices]
        return chosen
