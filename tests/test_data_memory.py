"""Pictures kept in memory: the same items, decoded once."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from common.data import load_dataset, make_loader
from common.errors import UsageError


@pytest.fixture
def many_pictures(tmp_path):
    """Eight noisy PNG files of different sizes in two classes, as ``folder:``."""
    for number in range(8):
        path = tmp_path / f"train/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 50, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def opened(folder: Path, recipe: str, train: bool, memory_gb: float):
    return load_dataset(f"folder:{folder}", "train", img_size=32, recipe=recipe, train=train, memory_gb=memory_gb)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("recipe", "train"), [("pretrained", True), ("scratch", True), ("center_crop", False), ("which_tokens", False)]
)
def test_pictures_from_memory_are_those_from_files_in_every_epoch(many_pictures, recipe, train, workers):
    files, memory = (
        make_loader(opened(many_pictures, recipe, train, gb), 3, shuffle=True, seed=0, workers=workers) for gb in (0, 1)
    )
    for _ in range(2):
        for (images, labels), (kept, kept_labels) in zip(files, memory, strict=True):
            assert torch.equal(images, kept) and torch.equal(labels, kept_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_is_decoded_once_for_all_epochs_and_workers(many_pictures, workers):
    loader = make_loader(opened(many_pictures, "pretrained", True, 1.0), 4, shuffle=True, seed=0, workers=workers)
    first = torch.cat([images for images, _ in loader])
    shutil.rmtree(many_pictures / "train")
    second = torch.cat([images for images, _ in loader])
    # a flip, and the order, are all that differs between the epochs
    sums = [epoch.double().sum((1, 2, 3)).sort().values for epoch in (first, second)]
    assert_close(*sums, atol=1e-3, rtol=0)


def test_what_does_not_fit_or_begins_with_a_random_crop_comes_from_files(many_pictures):
    all_bytes = 8 * 32 * 32 * 3 / 1e9
    assert opened(many_pictures, "pretrained", True, all_bytes)._memory is not None
    assert opened(many_pictures, "pretrained", True, all_bytes * 0.99)._memory is None
    assert opened(many_pictures, "center_crop", True, 1.0)._memory is None
    assert opened(many_pictures, "pretrained", True, 0.0)._memory is None


def test_a_selection_has_pictures_of_its_own(many_pictures):
    data = opened(many_pictures, "center_crop", False, 1.0)
    for index in range(8):
        data[index]
    chosen = data.select(torch.tensor([5, 2]))
    assert torch.equal(chosen[0][0], data[5][0]) and torch.equal(chosen[1][0], data[2][0])


def test_memory_that_is_pickled_begins_empty(many_pictures):
    data = opened(many_pictures, "center_crop", False, 1.0)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3][0], data[3][0])
    shutil.rmtree(many_pictures / "train")
    assert torch.equal(again[3][0], data[3][0])
    with pytest.raises(UsageError, match="broken image"):
        again[4]
