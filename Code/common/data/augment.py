"""Augmentations beyond torchvision's. They draw from the global random states, which the loader seeds per item."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
TRANSLATE_FRACTION = 0.45  # of the side; at 224 px these are the usual 100 px
CUTOUT_FRACTION = 0.5
ERASING_PROBABILITY = 0.25


class Cutout:
    """Fills a square of one random colour; its centre is any pixel, what lies outside the picture is cut off.

    The square's side is half of the picture's shorter one (DeVries and Taylor 2017; the random colour in place of zeros
    as Ridnik et al. 2021 train on multi-label data).
    """

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        side = round(CUTOUT_FRACTION * min(width, height))
        left = int(torch.randint(width, ())) - side // 2
        top = int(torch.randint(height, ())) - side // 2
        colour = tuple(torch.randint(256, (3,)).tolist())
        covered = image.copy()
        covered.paste(colour, (max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)))
        return covered


def rand_augment(img_size: int, mean: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment as DeiT uses it, for RGB pictures of ``img_size``; uncovered places get the colour ``mean``.

    Two operations, each applied with probability 1/2, magnitude 9 +- 0.5 of 10, those that grow with the magnitude;
    translations reach 45 % of the side.
    """
    fill = tuple(min(255, max(0, round(255 * value))) for value in mean)
    settings = {
        "translate_const": int(TRANSLATE_FRACTION * img_size),
        "img_mean": fill,
        "interpolation": Image.Resampling.BICUBIC,
    }
    augment = auto_augment.rand_augment_transform(RAND_AUGMENT, settings)
    for operation in augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize
    return augment


def posterize(image: Image.Image, bits_to_keep: int, **settings: object) -> Image.Image:
    """timm's, which asks for 0 bits at the largest magnitude: a black picture, that newer versions of Pillow refuse."""
    if bits_to_keep == 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **settings)


def random_erasing() -> Callable[[torch.Tensor], torch.Tensor]:
    """A quarter of the normalised images get one rectangle of 2 to 33 % of their area filled with Gaussian noise."""
    return RandomErasing(ERASING_PROBABILITY, mode="pixel", max_count=1, device="cpu")
