"""Image -> tensor, one recipe per protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.transforms import ToTensor

from common.errors import UsageError, require_choice

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROP_FRACTION = 0.9  # timm's crop_pct of the augreg ViT weights
RECIPES = {
    "pretrained": (HALF, HALF),
    "scratch": (IMAGENET_MEAN, IMAGENET_STD),
    "center_crop": (HALF, HALF),
}


@dataclass(frozen=True)
class Normalisation:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def normalisation(recipe: str, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalisation:
    """The recipe's normalisation, with ``mean`` and ``std`` put over it where they are given."""
    require_choice(recipe, RECIPES, "recipe")
    default_mean, default_std = RECIPES[recipe]
    chosen = Normalisation(_three(default_mean if mean is None else mean), _three(default_std if std is None else std))
    if min(chosen.std) <= 0:
        raise UsageError(f"std {chosen.std} has a value that is not positive")
    return chosen


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) != 3:
        raise UsageError(f"mean and std need 3 values, one per channel; given {list(values)}")
    return tuple(float(value) for value in values)


def make_transform(recipe: str, img_size: int, train: bool, norm: Normalisation) -> v2.Compose:
    """The transform from PIL image (grey or RGB) to float tensor (3, img_size, img_size).

    - ``pretrained``: squashed to the square; training flips horizontally.
    - ``scratch``: squashed; training adds rotation, colour jitter, both flips and a random resized crop.
    - ``center_crop``: shorter side to floor(img_size / 0.9), bicubic, then the centre, as timm evaluates the augreg
      ViT weights; training takes a random resized crop and flips.
    """
    geometry = {"pretrained": _pretrained, "scratch": _scratch, "center_crop": _center_crop}[recipe]
    tail = [ToTensor(), v2.RGB(), v2.Normalize(norm.mean, norm.std)]
    return v2.Compose([*geometry(img_size, train), *tail])


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


def _center_crop(size: int, train: bool) -> list:
    bicubic = InterpolationMode.BICUBIC
    if train:
        return [v2.RandomResizedCrop(size, interpolation=bicubic), v2.RandomHorizontalFlip()]
    return [v2.Resize(math.floor(size / CROP_FRACTION), interpolation=bicubic), v2.CenterCrop(size)]
