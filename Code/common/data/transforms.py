"""Image -> tensor, one recipe per protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Strict
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.transforms import ToTensor

from common.data.augment import Cutout, rand_augment, random_erasing
from common.options import Positive, check, check_fields

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.9  # timm's crop_pct of the augreg ViT weights
DEIT_CROP_FRACTION = 0.875
BICUBIC = InterpolationMode.BICUBIC
RECIPES = {
    "pretrained": (HALF, HALF),
    "scratch": (IMAGENET_MEAN, IMAGENET_STD),
    "center_crop": (HALF, HALF),
    "which_tokens": (IMAGENET_MEAN, IMAGENET_STD),
}
Recipe = Literal[tuple(RECIPES)]
Mean = Annotated[tuple[float, float, float], Strict(False), "three numbers, one per channel"]
Std = Annotated[tuple[Positive, Positive, Positive], Strict(False), "three numbers > 0, one per channel"]


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: Mean
    std: Std

    def __post_init__(self) -> None:
        check_fields(self)


def normalisation(recipe: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation:
    """The recipe's normalisation, with ``mean`` and ``std`` put over it where they are given."""
    default_mean, default_std = RECIPES[check("recipe", recipe, Recipe)]
    return Normalisation(default_mean if mean is None else mean, default_std if std is None else std)


def denormalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalised images (..., 3, H, W) back in [0, 1].

    >>> denormalise(torch.tensor([-9.0, 0.0, 1.0]).view(3, 1, 1), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).flatten()
    tensor([0.0000, 0.5000, 0.7500])
    """
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images * std + mean).clamp(0, 1)


def make_transform(
    recipe: str, img_size: int, train: bool, norm: Normalisation, dataset: str = "imagenet"
) -> v2.Compose:
    """The transform from PIL image (grey or RGB) to float tensor (3, img_size, img_size).

    - ``pretrained``: squashed to the square, bilinear; training flips horizontally.
    - ``scratch``: squashed, bilinear; training adds rotation, colour jitter, both flips and a random resized crop.
    - ``center_crop``: shorter side to floor(img_size / 0.9), bicubic, then the centre, as timm evaluates the augreg
      ViT weights; training takes a random resized crop and flips.
    - ``which_tokens`` depends on ``dataset``, as Haurum et al. 2023 fine-tune:
      ``coco`` and ``nuswide`` are squashed, bicubic; training adds Cutout and RandAugment.
      All others: shorter side to floor(img_size / 0.875), bicubic, then the centre; training takes a bicubic random
      resized crop, flips, applies RandAugment (``nabirds``: colour jitter in its place) and erases a rectangle in a
      quarter of the images.
    """
    if recipe == "which_tokens":
        return v2.Compose(_which_tokens(img_size, train, norm, dataset))
    geometry = {"pretrained": _pretrained, "scratch": _scratch, "center_crop": _center_crop}[recipe]
    return v2.Compose([*geometry(img_size, train), *_to_tensor(norm)])


def split_transform(transform: v2.Compose) -> tuple[v2.Compose | None, v2.Compose]:
    """The steps at the beginning that make the same picture every time, None where the first one draws; all others."""
    steps = transform.transforms
    same = next(place for place, step in enumerate(steps) if not isinstance(step, v2.Resize | v2.CenterCrop))
    return v2.Compose(steps[:same]) if same else None, v2.Compose(steps[same:])


def _to_tensor(norm: Normalisation) -> list:
    return [ToTensor(), v2.RGB(), v2.Normalize(norm.mean, norm.std)]


def _pretrained(size: int, train: bool) -> list:
    return [v2.Resize((size, size))] + [v2.RandomHorizontalFlip()] * train


def _scratch(size: int, train: bool) -> list:
    augmentation = [
        v2.RandomRotation(10),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1),
        v2.RandomVerticalFlip(),
        v2.RandomResizedCrop(size),
        v2.RandomHorizontalFlip(),
    ]
    return [v2.Resize((size, size))] + augmentation * train


def _center_crop(size: int, train: bool, fraction: float = CROP_FRACTION) -> list:
    if train:
        return [v2.RandomResizedCrop(size, interpolation=BICUBIC), v2.RandomHorizontalFlip()]
    return [v2.Resize(math.floor(size / fraction), interpolation=BICUBIC), v2.CenterCrop(size)]


def _which_tokens(size: int, train: bool, norm: Normalisation, dataset: str) -> list:
    if dataset in ("coco", "nuswide"):
        augmentation = [v2.RGB(), Cutout(), rand_augment(size, norm.mean)] * train
        return [v2.Resize((size, size), interpolation=BICUBIC), *augmentation, *_to_tensor(norm)]
    jitter = v2.ColorJitter(0.3, 0.3, 0.3) if dataset == "nabirds" else rand_augment(size, norm.mean)
    augmentation = [v2.RGB(), jitter] * train
    geometry = _center_crop(size, train, DEIT_CROP_FRACTION)
    return [*geometry, *augmentation, *_to_tensor(norm), *[random_erasing()] * train]
