"""What a study opens: images as the weights expect them, and how many of them."""

import torch

from common.bench import open_bench
from common.data import load_dataset
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD


def test_images_are_normalised_as_the_weights_expect():
    """Those of DeiT not as the recipe has it."""
    limits = {"limit_train": 30, "limit_val": 20, "limit_calibration": 10}
    opened = {"img_size": 32, "recipe": "pretrained"}
    bench = open_bench("deit_tiny_patch16_224", "", "digits", **opened, **limits, batch_size=8, seed=3, device="cpu")
    norm = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    expected = load_dataset("digits", "train", limit=10, seed=3, **opened, **norm)
    assert torch.equal(bench.calibration_images, expected.stack()) and len(bench.train_set) == 30
    assert torch.equal(bench.val_set.stack([4]), load_dataset("digits", "val", limit=20, **opened, **norm).stack([4]))
    assert (len(bench.some(None)), len(bench.some(5)), len(bench.training(12)[0])) == (20, 5, 12)
    assert bench.conditions["device"] == "cpu" and bench.conditions["batch"] == 8 and bench.place("a") is None


def test_what_weights_leave_open_is_drawn_by_the_seed(tmp_path):
    given = {"img_size": 32, "recipe": "pretrained", "limit_val": 10, "batch_size": 8, "folder": tmp_path}
    first, again, other = (open_bench("vit_digits", "", "digits", **given, seed=seed).vit for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert open_bench("vit_digits", "", "digits", **given, seed=1).place("idle:a=b,c") == tmp_path / "idle-a-b-c"
