"""What a study opens: images as the weights expect them, and how many of them."""

import pytest
import torch
from small_training import Pictures, config, killed_at, small_vit

from common.cost.counter import count_macs, mean_macs
from common.data import load_dataset
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.setup import Setup
from common.weights import save_state


def test_images_are_normalised_as_the_weights_expect():
    """Those of DeiT not as the recipe has it."""
    limits = {"limit_train": 30, "limit_val": 20, "limit_calibration": 10}
    opened = {"img_size": 32, "recipe": "pretrained"}
    setup = Setup("deit_tiny_patch16_224", "", "digits", **opened, **limits, batch_size=8, seed=3, device="cpu")
    norm = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    expected = load_dataset("digits", "train", limit=10, seed=3, **opened, **norm)
    assert torch.equal(setup.calibration_images, expected.stack()) and len(setup.train_set) == 30
    assert torch.equal(setup.val_set.stack([4]), load_dataset("digits", "val", limit=20, **opened, **norm).stack([4]))
    assert (len(setup.some(None)), len(setup.some(5)), len(setup.training(12)[0])) == (20, 5, 12)
    assert setup.conditions["device"] == "cpu" and setup.conditions["batch"] == 8 and setup.place("a") is None


def test_images_are_normalised_as_a_checkpoint_says(tmp_path):
    vit, unusual = create_backbone("vit_digits"), {"mean": (0.2, 0.3, 0.4), "std": (0.25, 0.5, 0.125)}
    vit.pretrained_cfg |= unusual
    save_state(vit, tmp_path / "w.safetensors")
    given = {"img_size": 32, "recipe": "pretrained", "limit_val": 10, "batch_size": 8, "seed": 0, "device": "cpu"}
    setup = Setup("vit_digits", str(tmp_path / "w.safetensors"), "digits", **given)
    expected = load_dataset("digits", "val", img_size=32, limit=10, **unusual)
    assert (setup.val_set.mean, setup.train_set.std) == (unusual["mean"], unusual["std"])
    assert torch.equal(setup.val_set.stack(), expected.stack())


def test_a_budget_in_place_of_a_keep_rate_is_solved():
    """For ATS on validation images; none of it for what has no keep rate."""
    setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=2, device="cpu")
    for text in ("tome", "ats"):
        model = setup.reduced(text, keep_rate="mac_cut=0.2")
        cost = mean_macs(model, setup.cost_images()) / count_macs(setup.vit, 32).total
        assert cost == pytest.approx(0.8, abs=0.02) and 0 < model.reducer.schedule.keep_rate < 1
    with pytest.raises(UsageError, match="'idle_mlp' has no keep rate to solve for"):
        setup.reduced("idle_mlp", keep_rate="mac_cut=0.2")


def test_what_weights_leave_open_is_drawn_by_the_seed(tmp_path):
    given = {"img_size": 32, "recipe": "pretrained", "limit_val": 10, "batch_size": 8, "folder": tmp_path}
    first, again, other = (Setup("vit_digits", "", "digits", **given, seed=seed).vit for seed in (1, 1, 2))
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert Setup("vit_digits", "", "digits", **given, seed=1).place("idle:a=b,c") == tmp_path / "idle-a-b-c"


def test_a_training_that_goes_on_prints_only_what_is_new(tmp_path, monkeypatch, capsys):
    pictures = {"train_set": Pictures(8), "val_set": Pictures(4)}

    def learn():
        setup = Setup.around(small_vit().eval(), pictures, batch_size=4, device="cpu")
        setup.learn(reduce_tokens(setup.vit, "none"), setup.training(), config(epochs=3), folder=tmp_path / "run")
        return [line.partition(", loss")[0] for line in capsys.readouterr().out.splitlines()]

    killed_at(monkeypatch, 2, 0, learn)
    assert capsys.readouterr().out.startswith("fine-tuned: epoch 1 of 3, loss")
    goes_on = ["goes on after epoch 1 of 3", "epoch 2 of 3", "epoch 3 of 3"]
    assert learn() == [f"fine-tuned: {line}" for line in goes_on]
    assert learn() == ["fine-tuned: was trained already: epoch 3 of 3"]
