"""The recipe ``which_tokens``: geometry and statistics of what it does to each dataset."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from common.data import load_dataset, make_loader
from common.data.augment import Cutout, rand_augment, random_erasing
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD, make_transform, normalisation

NORM = normalisation("which_tokens", None, None)
IMAGE_LIKE = ("imagenet", "imagenette", "cifar10", "fashion-mnist", "folder:somewhere")


def noise(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    """(3, H, W) in 0 to 255."""
    return torch.tensor(np.array(image)).permute(2, 0, 1).float()


def pixels(image: torch.Tensor) -> torch.Tensor:
    """The normalised image back in 0 to 255."""
    return 255 * (image * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None])


def recipe(dataset: str, train: bool, size: int = 224):
    return make_transform("which_tokens", size, train, NORM, dataset)


def names(dataset: str, train: bool) -> list[str]:
    return [type(step).__name__ for step in recipe(dataset, train).transforms]


# the steps and their order


@pytest.mark.parametrize(
    ("dataset", "augmentation"),
    [
        *((name, ["RandomResizedCrop", "RandomHorizontalFlip", "RGB", "RandAugment"]) for name in IMAGE_LIKE),
        ("nabirds", ["RandomResizedCrop", "RandomHorizontalFlip", "RGB", "ColorJitter"]),
        ("coco", ["Resize", "RGB", "Cutout", "RandAugment"]),
        ("nuswide", ["Resize", "RGB", "Cutout", "RandAugment"]),
    ],
)
def test_training_steps(dataset, augmentation):
    erasing = [] if dataset in ("coco", "nuswide") else ["RandomErasing"]
    assert names(dataset, True) == [*augmentation, "ToTensor", "RGB", "Normalize", *erasing]


def test_evaluation_steps():
    assert (
        names("nabirds", False) == names("imagenet", False) == ["Resize", "CenterCrop", "ToTensor", "RGB", "Normalize"]
    )
    assert names("coco", False) == names("nuswide", False) == ["Resize", "ToTensor", "RGB", "Normalize"]


@pytest.mark.parametrize("dataset", ["imagenet", "nabirds", "coco"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_shape_and_grey_pictures(dataset, train, mode):
    assert (NORM.mean, NORM.std) == (IMAGENET_MEAN, IMAGENET_STD)
    for seed in range(8):
        image = recipe(dataset, train, 32)(noise((50, 40), mode, seed))
        assert image.shape == (3, 32, 32) and image.isfinite().all()


# evaluation geometry


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (384, 438), (32, 36)])
def test_evaluation_is_bicubic_to_the_shorter_side_then_the_centre(size, resized):
    picture = noise((600, 500))
    width = int(resized * 600 / 500)
    left, top = round((width - size) / 2), (resized - size) // 2
    expected = picture.resize((width, resized), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    assert_close(pixels(recipe("imagenet", False, size)(picture)), tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dataset", ["coco", "nuswide"])
def test_multi_label_pictures_are_squashed_bicubic_in_both_splits(dataset):
    picture = noise((600, 500))
    expected = picture.resize((224, 224), Image.Resampling.BICUBIC)
    assert_close(pixels(recipe(dataset, False)(picture)), tensor(expected), atol=1e-3, rtol=0)
    assert_close(tensor(recipe(dataset, True).transforms[0](picture)), tensor(expected), atol=0, rtol=0)


def test_the_dataset_decides_within_load_dataset(tmp_path):
    """White sides of a wide picture are kept by the squash and lost by the crop."""
    wide = np.zeros((64, 256, 3), dtype=np.uint8)
    wide[:, :64] = wide[:, -64:] = 255
    for path in (tmp_path / "nuswide/a.png", tmp_path / "imagenet/val/a/a.png"):
        path.parent.mkdir(parents=True)
        Image.fromarray(wide).save(path)
    (tmp_path / "nuswide/nus_wid_data.csv").write_text("path,label,split\na.png,['x'],val\n")
    options = {"root": tmp_path, "img_size": 32, "recipe": "which_tokens"}
    squashed, cropped = (load_dataset(name, "val", **options)[0][0] for name in ("nuswide", "imagenet"))
    assert pixels(squashed).mean().item() == pytest.approx(127.5, abs=1)
    assert pixels(cropped).max().item() == pytest.approx(0, abs=1e-3)


def test_mean_and_std_can_be_overridden():
    norm = normalisation("which_tokens", (0, 0, 0), (1, 1, 1))
    picture = noise((300, 256))
    plain = make_transform("which_tokens", 224, False, norm, "imagenet")(picture)
    assert_close(255 * plain, tensor(picture)[:, 16:240, 38:262], atol=1e-3, rtol=0)
    augment = make_transform("which_tokens", 224, True, norm, "coco").transforms[3]
    assert {op.kwargs["fillcolor"] for op in augment.ops} == {(0, 0, 0)}


# training statistics


def test_random_resized_crop_takes_8_to_100_percent():
    """A picture whose red is its column and whose green is its row tells which part of it is seen.

    Of a square, areas a above 3/4 fit only if the ratio is within a to 1/a, so they are drawn again more often: the
    mean is the integral of a w(a) over that of w(a), w = 1 up to 3/4 and log(a) / log(3/4) above, which is 0.478.
    """
    ramp = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    picture = Image.fromarray(np.stack([ramp, ramp.T, 0 * ramp], axis=2))
    crop, flip = recipe("imagenet", True, 64).transforms[:2]
    seen = [tensor(crop(picture)) for _ in range(400)]
    sides = torch.tensor([[image[c].max() - image[c].min() for c in (0, 1)] for image in seen]) / 255
    areas, ratios = sides.prod(1), sides[:, 0] / sides[:, 1]
    assert 0.07 < areas.min() < 0.11 and 0.92 < areas.max() <= 1
    assert areas.mean().item() == pytest.approx(0.478, abs=0.04)
    assert 0.73 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.37
    flipped = [tensor(flip(picture))[0, 0, 0] == 255 for _ in range(400)]
    assert sum(flipped) / 400 == pytest.approx(0.5, abs=0.08)


def test_cutout_covers_a_square_of_half_the_side_in_one_colour():
    """Mean coverage per axis, centre uniform over n pixels, is exactly 7/16 n: n/2 less the 1/16 n cut off."""
    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    shares = []
    for _ in range(1500):
        box = (tensor(Cutout()(picture)) != 128).any(0)
        rows, columns = box.any(1).sum(), box.any(0).sum()
        assert 16 <= rows <= 32 and 16 <= columns <= 32 and box.sum() == rows * columns
        shares.append(box.float().mean())
    assert max(shares) == 0.25
    assert torch.stack(shares).mean().item() == pytest.approx((7 / 16) ** 2, abs=0.006)
    assert np.array(picture).min() == np.array(picture).max() == 128


def test_cutout_colour_is_uniform_and_single():
    black = Image.new("RGB", (32, 32))
    drawn = [tensor(Cutout()(black)).flatten(1).unique(dim=1) for _ in range(600)]
    assert all(colours.shape[1] == 2 for colours in drawn)
    mean = torch.stack([colours.sum(1) for colours in drawn]).mean(0)
    assert mean.tolist() == pytest.approx([127.5] * 3, abs=10)


def test_rand_augment_is_m9_mstd05_inc1_with_two_operations():
    augment = rand_augment(224, IMAGENET_MEAN)
    assert augment.num_layers == 2 and len(augment.ops) == 15
    assert {(op.magnitude, op.magnitude_std, op.prob) for op in augment.ops} == {(9, 0.5, 0.5)}
    assert {op.hparams["translate_const"] for op in augment.ops} == {100}
    assert {op.kwargs["fillcolor"] for op in augment.ops} == {(124, 116, 104)}
    assert {"PosterizeIncreasing", "SolarizeIncreasing", "ColorIncreasing"} <= {op.name for op in augment.ops}
    assert rand_augment(32, IMAGENET_MEAN).ops[0].hparams["translate_const"] == 14
    # Either operation is skipped half of the time, so a quarter of the pictures stays as it is (a few more where an
    # operation happens to change nothing).
    picture = noise((16, 16))
    untouched = [np.array_equal(augment(picture), picture) for _ in range(600)]
    assert 0.2 < sum(untouched) / 600 < 0.35


def test_every_operation_of_rand_augment_takes_every_magnitude():
    """Also the largest, 2.3 % of the draws of 9 +- 0.5, at which posterising keeps no bit."""
    picture, black = noise((16, 16)), {}
    for operation in rand_augment(16, IMAGENET_MEAN).ops:
        operation.prob, operation.magnitude_std = 1, 0
        for operation.magnitude in range(11):
            augmented = operation(picture)
            assert augmented.size == (16, 16) and augmented.mode == "RGB"
        black[operation.name] = augmented.getextrema() == ((0, 0),) * 3
    assert [name for name, is_black in black.items() if is_black] == ["PosterizeIncreasing"]


def test_a_quarter_of_the_images_has_a_rectangle_of_noise():
    images = [random_erasing()(torch.full((3, 64, 64), 9.0)) for _ in range(1600)]
    erased = [image for image in images if (image != 9).any()]
    assert len(erased) / 1600 == pytest.approx(0.25, abs=0.04)
    areas = torch.tensor([(image[0] != 9).float().mean() for image in erased])
    assert 0.015 < areas.min() < 0.05 and 0.28 < areas.max() < 0.36
    values = torch.cat([image[image != 9] for image in erased])
    assert (values.mean().item(), values.std().item()) == pytest.approx((0, 1), abs=0.01)


def test_erasing_belongs_to_training_of_single_label_data():
    """A picture of one colour keeps it outside the erased rectangle; RandAugment is left out of the count."""
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    steps = recipe("nabirds", True, 32)
    erased = sum(len(steps(grey).flatten(1).unique(dim=1)[0]) > 1 for _ in range(400))
    assert erased / 400 == pytest.approx(0.25, abs=0.07)


def test_colour_jitter_of_nabirds_changes_brightness_contrast_and_saturation_by_30_percent():
    jitter = recipe("nabirds", True).transforms[3]
    assert (jitter.brightness, jitter.contrast, jitter.saturation) == ((0.7, 1.3),) * 3
    assert jitter.hue is None


# determinism


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(12):
            noise((40, 30), seed=i).save(tmp_path / "train" / name / f"{name}{i}.png")
    return tmp_path


def test_augmentation_follows_from_the_seed_whatever_the_number_of_workers(folder):
    data = load_dataset(f"folder:{folder}", "train", img_size=32, train=True, recipe="which_tokens")

    def epochs(workers: int) -> torch.Tensor:
        loader = make_loader(data, 5, shuffle=True, seed=3, workers=workers)
        return torch.stack([torch.cat([images for images, _ in loader]) for _ in range(2)])

    reference = epochs(0)
    random.seed(99), np.random.seed(98), torch.manual_seed(97)
    state = random.getstate()
    assert torch.equal(epochs(1), reference) and torch.equal(epochs(2), reference)
    assert random.getstate() == state
    assert len(reference.flatten(0, 1).flatten(1).unique(dim=0)) == 48


def test_multi_label_augmentation_is_seeded_too(tmp_path):
    lines = [f"{i}.png,\"['x']\",train" for i in range(8)]
    (tmp_path / "nuswide").mkdir()
    (tmp_path / "nuswide/nus_wid_data.csv").write_text("\n".join(["path,label,split", *lines]))
    for i in range(8):
        noise((30, 20), seed=i).save(tmp_path / "nuswide" / f"{i}.png")
    options = {"root": tmp_path, "img_size": 32, "train": True, "recipe": "which_tokens"}
    data = load_dataset("nuswide", "train", **options)
    first, again = (
        torch.cat([images for images, _ in make_loader(data, 3, shuffle=True, seed=1, workers=workers)])
        for workers in (0, 2)
    )
    assert torch.equal(first, again)


def test_digits_know_no_recipe():
    plain, other = (load_dataset("digits", "val", img_size=32, recipe=name) for name in ("pretrained", "which_tokens"))
    assert torch.equal(plain[5][0], other[5][0]) and other.mean == (0.5, 0.5, 0.5)
