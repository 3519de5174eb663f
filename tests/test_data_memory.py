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

from common.data import load_dataset, make_loader, set_epoch
from common.data.memory import SHARED, PictureMemory
from common.data.on_device import DeviceLoader, on_device, takes
from common.errors import UsageError
from rehearsal_data import write_datasets


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


@pytest.mark.parametrize(("recipe", "train"), [("pretrained", True), ("pretrained", False), ("center_crop", False)])
def test_batches_made_on_the_device_are_those_of_the_loader_bit_for_bit(many_pictures, recipe, train):
    data = opened(many_pictures, recipe, train, 1.0)
    loader = make_loader(data, 3, shuffle=train, seed=5)
    device = DeviceLoader(make_loader(data, 3, shuffle=train, seed=5), torch.device("cpu"))
    assert len(device) == len(loader) == 3
    for epoch in (0, 1, 4):
        set_epoch(loader, epoch), set_epoch(device, epoch)
        for (images, labels), (made, their_labels) in zip(loader, device, strict=True):
            assert torch.equal(images, made) and torch.equal(labels, their_labels)


def test_grey_pictures_become_three_channels_on_the_device(tmp_path):
    write_datasets(tmp_path, ["fashion-mnist"])
    data = load_dataset("fashion-mnist", "val", root=tmp_path, img_size=32, memory_gb=1.0, limit=10)
    for (images, _), (made, _) in zip(
        make_loader(data, 5, shuffle=False, seed=0),
        DeviceLoader(make_loader(data, 5, shuffle=False, seed=0), torch.device("cpu")),
        strict=True,
    ):
        assert made.shape == (5, 3, 32, 32) and torch.equal(images, made)


@pytest.mark.parametrize(
    ("recipe", "train", "gb", "can"),
    [
        ("pretrained", True, 1.0, True),
        ("pretrained", True, 0.0, False),  # nothing is remembered
        ("scratch", True, 1.0, False),  # colours are drawn
        ("center_crop", True, 1.0, False),  # a crop is drawn before the resizing
        ("which_tokens", False, 1.0, True),
    ],
)
def test_only_what_is_remembered_and_flipped_at_most_goes_to_the_device(many_pictures, recipe, train, gb, can):
    assert takes(opened(many_pictures, recipe, train, gb)) == can


def test_on_a_cpu_the_loader_stays(many_pictures):
    loader = make_loader(opened(many_pictures, "pretrained", True, 1.0), 4, shuffle=True, seed=0)
    assert on_device(loader, torch.device("cpu")) is loader


def test_processes_share_the_pictures_of_a_file(tmp_path):
    white, black = (Image.new("RGB", (4, 2), colour) for colour in ("white", "black"))
    first = PictureMemory(3, white, tmp_path / "a.pictures")
    first.picture(1, lambda: white)
    second = pickle.loads(pickle.dumps(PictureMemory(3, white, tmp_path / "a.pictures")))
    assert second.picture(1, lambda: 1 / 0).getpixel((0, 0)) == (255, 255, 255)
    second.picture(2, lambda: black)
    assert first.picture(2, lambda: 1 / 0).getpixel((3, 1)) == (0, 0, 0)
    assert first.all(lambda index: black, threads=2).max(axis=(1, 2, 3)).tolist() == [0, 255, 0]


def test_the_shared_file_is_one_for_each_size_and_choice_of_images(many_pictures, tmp_path, monkeypatch):
    monkeypatch.setenv(SHARED, str(tmp_path / "shared"))
    data = opened(many_pictures, "pretrained", True, 1.0)
    data.pixels(threads=1), opened(many_pictures, "pretrained", False, 1.0)
    files = list((tmp_path / "shared").iterdir())
    assert len(files) == 1  # training and evaluation remember the same pictures
    assert files[0].stat().st_size == 8 * 32 * 32 * 3 + 8
    data.select(torch.tensor([2, 1])).remembered(1.0)
    assert len(list((tmp_path / "shared").iterdir())) == 2
