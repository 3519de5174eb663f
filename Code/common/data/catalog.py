"""The datasets by name."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from common.data.base import ImageData, LabelledDataset
from common.data.check import check_dataset
from common.data.digits import Digits
from common.data.loading import subset
from common.data.sources import ANNOTATED, FOLDER_PREFIX, TILES, open_source
from common.data.transforms import Mean, Recipe, Std, make_transform, normalisation
from common.errors import require_choice
from common.options import Count, NonNegative, Whole, accepted_by, check, checked
from common.processes import is_first_on_machine

NAMES = ("digits", TILES, "imagenette", "fashion-mnist", "cifar10", "cifar100", "imagenet", *ANNOTATED)


def list_datasets() -> list[str]:
    """The names ``load_dataset`` knows; ``folder:PATH`` stands for any image folder."""
    return sorted([*NAMES, f"{FOLDER_PREFIX}PATH"])


@checked
def load_dataset(
    name: str,
    split: str,
    *,
    root: str | os.PathLike | None = None,
    img_size: Count,
    train: bool = False,
    recipe: Recipe = "pretrained",
    mean: Mean | None = None,
    std: Std | None = None,
    limit: Count | None = None,
    skip: Whole = 0,
    seed: int = 0,
    memory_gb: NonNegative = 0.0,
) -> LabelledDataset:
    """Open a dataset; its items are (image float tensor (3, img_size, img_size), label).

    The label is an int, for ``coco`` and ``nuswide`` a float tensor (num_classes,) of zeros and ones. What else
    it knows of them: :class:`common.data.base.LabelledDataset`.

    Args:
        name: one of ``list_datasets()``. ``folder:PATH`` reads PATH/train and PATH/val, one folder per class with all
            that is below it, hidden files and folders left out; ``imagenet`` the same under ``root``/imagenet.
            ``nabirds``, ``coco`` (2014) and ``nuswide`` (its CSV form) are read from ``root``/nabirds, /coco and
            /nuswide as they are published. None of these is ever downloaded; the others are, by torchvision, when they
            are not under ``root``. ``digits`` comes with scikit-learn, and so do the two photographs of which
            ``photo-tiles`` are 32-pixel squares (:func:`common.data.tiles.open_tiles`). What becomes of grey,
            transparent or 16-bit pictures: :func:`common.data.pictures.as_rgb`.
        split: ``train`` or ``val``; a test set counts as ``val``.
        root: where the data are; default: environment variable DATA_ROOT, else ~/.cache/token-reduction.
            Imagenette may lie there as imagenette2, imagenette2-320 or imagenette2-160 (the first one found counts).
        img_size: side of the images in pixels.
        train: augment as ``recipe`` does in training. False gives the evaluation transform, whatever the split.
        recipe: ``pretrained`` or ``center_crop`` (mean and standard deviation 0.5), ``scratch`` or ``which_tokens``
            (ImageNet's); :func:`common.data.transforms.make_transform` says what each does to which dataset. Digits
            are drawn at ``img_size`` and normalised by 0.5/0.5 under every recipe.
        mean, std: three values each, in place of the recipe's: those that a model's weights expect.
        limit: number of images, classes as even as possible (at random with several labels per image); None is all.
        skip: leave out the images that ``limit=skip`` keeps: two sets that share none.
        seed: decides which images ``limit`` keeps, and the places of evaluation digits.
        memory_gb: where all pictures, decoded and resized, fit into so many gigabytes (and a quarter of the memory that
            is free), they are kept there, and every epoch after the first finds them; the items are the same. Nothing
            is kept of digits, which are drawn, and of pictures that are cut at random before they are resized.

    Raises:
        UsageError: for an argument that is not allowed (before the disk is touched), data that are not there and
            cannot be downloaded, a class without an image, label files that cannot be read, and an image file that is
            missing, empty, cut off, or of 32-bit numbers (of the processes on a machine, the first looks at the files).

    Examples:
        >>> digits = load_dataset("digits", "val", img_size=32, limit=100)
        >>> len(digits), digits.num_classes, digits.labels.bincount().tolist()
        (100, 10, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        >>> image, label = digits[0]
        >>> image.shape, image.min().item(), digits.mean
        (torch.Size([3, 32, 32]), -1.0, (0.5, 0.5, 0.5))
    """
    _require_name(name)
    check("split", split, Literal["train", "val"])
    norm = normalisation("pretrained" if name == "digits" else recipe, mean, std)
    if name == "digits":
        dataset = Digits(split, img_size, norm, train=train, seed=seed)
    else:
        transform = make_transform(recipe, img_size, train, norm, name)
        dataset = ImageData(name, open_source(name, split, root), transform, norm)
    dataset = subset(dataset, limit, seed, skip)
    if is_first_on_machine():
        check_dataset(dataset)
    return dataset.remembered(memory_gb) if memory_gb else dataset


def dataset_classes(name: str, *, root: str | os.PathLike | None = None) -> list[str]:
    """Readable class names of a dataset, one per label, without reading an image; arguments as in ``load_dataset``."""
    _require_name(name)
    if name == "digits":
        return [str(digit) for digit in range(10)]
    return list(open_source(name, "val", root).classes)


def _require_name(name: str) -> None:
    if not name.startswith(FOLDER_PREFIX) or name == FOLDER_PREFIX:
        require_choice(name, list_datasets(), "dataset")


Dataset = Annotated[str, accepted_by(_require_name)]
