"""Schedules at equal cost: what is tried, how it is judged, what is kept, and the comparison on other images."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from backbones import images, make
from documents import part
from torch.utils.data import DataLoader, TensorDataset

import common
from common.budget import BudgetSolver, search, search_schedule
from common.cost.counter import count_macs
from common.errors import UsageError
from common.reducers import Schedule
from common.reducers.base import divergence, divergence_by_image
from common.schedule_search import main

HOW = {"mac_cut": 0.3, "candidates": 7, "batch_size": 4}


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    """64 patches: 0.5 % of the cost is less than a token in one block."""
    return timm.create_model("vit_tiny_patch16_224", img_size=128, embed_dim=48, num_heads=3, depth=6).eval()


@pytest.fixture(scope="module")
def some(vit) -> torch.Tensor:
    return images(vit, batch=8)


@pytest.fixture(scope="module")
def found(vit, some):
    return search_schedule(vit, "topk", some, **HOW)


def test_every_candidate_costs_the_same(vit, found):
    whole = count_macs(vit, 128).total
    for each in found.tried:
        cost = count_macs(common.reduce_tokens(vit, "topk", keep_rate=each.keep_rate), 128).total
        assert each.mac_cut == pytest.approx(1 - cost / whole) == pytest.approx(0.3, abs=search.CLOSE)
    schedules = [each.schedule for each in found.tried]
    assert len(set(schedules)) == len(schedules) >= 4 and {len(each.reduction_loc) for each in schedules} > {3}


def test_the_default_is_that_of_the_one_ratio_and_the_best_is_no_worse(vit, some, found):
    default = common.keep_rate_for(vit, "topk", mac_cut=0.3)
    assert found.default.schedule.reduction_loc == (1, 3, 4) and found.default == found.tried[0]
    assert found.default.schedule.counts(64) == default.counts
    finished = [each for each in found.tried if each.images == 8]
    assert found.best in finished and found.best.divergence == min(each.divergence for each in finished)
    with torch.inference_mode():
        model = common.reduce_tokens(vit, "topk", keep_rate=found.best.keep_rate).eval()
        assert divergence(model(some), vit(some)).item() == pytest.approx(found.best.divergence, rel=1e-3)


def test_a_seed_decides_what_is_tried(vit, some, found):
    same, other = (search_schedule(vit, "topk", some, **{**HOW, "candidates": 5}, seed=seed) for seed in (0, 1))
    assert same.tried == found.tried[: len(same.tried)] and len(same.tried) > 3
    assert {each.schedule for each in other.tried} != {each.schedule for each in same.tried}


def test_who_is_far_off_on_the_first_batch_sees_no_other(vit, some, monkeypatch):
    monkeypatch.setattr(search, "RACE", 0.0)
    found = search_schedule(vit, "topk", some, **{**HOW, "candidates": 3})
    assert found.best == found.default and {each.images for each in found.tried[1:]} == {4}


def test_the_model_stays_as_it_was(some):
    vit = make("vit").train()
    vit.head.weight.requires_grad_(False)
    search_schedule(vit, "topk", torch.randn(2, 3, 64, 64), mac_cut=0.3, candidates=2)
    assert all(module.training for module in vit.modules()) and not vit.head.weight.requires_grad
    assert vit.head.bias.requires_grad


def test_uneven_shares_are_solved_too(vit):
    """Twice the share is the ratio squared; equal ones are the ratio that compounds."""
    solver = BudgetSolver(vit, "topk")
    even, uneven = solver.shaped((1, 3, 4), (5.0, 5.0, 5.0)), solver.shaped((2, 4), (2.0, 1.0))
    assert even.solve(mac_cut=0.3).counts == solver.solve(mac_cut=0.3).counts
    first, last = uneven.solve(mac_cut=0.3).keep_rate
    assert first ** (3 / 2) == pytest.approx(last)


def test_divergences_by_image_have_the_divergence_as_their_mean():
    first, second = torch.randn(5, 7), torch.randn(5, 7)
    by_image = divergence_by_image(first, second)
    assert by_image.shape == (5,) and by_image.mean().item() == pytest.approx(divergence(first, second).item())


@pytest.mark.parametrize(("kept", "patches"), [(1, 196), (127, 196), (196, 196), (5, 9), (12_344, 12_345)])
def test_a_ratio_of_few_digits_leaves_as_many(kept, patches):
    ratio = search._ratio(kept, patches)
    assert Schedule((ratio,), (0,)).counts(patches) == (kept,) and len(f"{ratio:.9g}") <= 8


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("topk", {"mac_cut": 0.99}, r"topk in blocks \[1, 3, 4\] cannot save 99.0% of the MAC; at most "),
        ("topk", {}, "give one budget: mac_cut, gmac, latency_ms, speedup; given none"),
        ("topk", {"mac_cut": 0.3, "candidates": 0}, "candidates=0 is not allowed; give a whole number >= 1"),
        ("topk", {"mac_cutt": 0.3}, "search_schedule takes no 'mac_cutt'; allowed: vit, .*; did you mean 'mac_cut'"),
        ("idle_mlp", {"mac_cut": 0.3}, "'idle_mlp' has no keep rate to solve for"),
    ],
)
def test_what_cannot_be_searched_is_one_line(vit, some, method, given, message, monkeypatch):
    monkeypatch.setattr(search, "_Judge", lambda *_: pytest.fail("ran before it was refused"))
    with pytest.raises(UsageError, match=message) as caught:
        search_schedule(vit, method, some, **given)
    assert "\n" not in str(caught.value)


def test_images_must_be_images(vit):
    with pytest.raises(
        UsageError, match=r"images of shape \(3, 128, 128\) and torch.float32 are not allowed; give a tensor"
    ):
        search_schedule(vit, "topk", torch.zeros(3, 128, 128), mac_cut=0.3)
    with pytest.raises(UsageError, match="images of type str are not allowed; give a tensor"):
        search_schedule(vit, "topk", "photos/", mac_cut=0.3)


def test_images_may_be_a_dataset_or_a_loader(vit, some):
    """Of pairs with labels, which are not read: what is found is that of the tensor."""
    pairs = TensorDataset(some, torch.arange(len(some)))
    given = (some, pairs, DataLoader(pairs, batch_size=3))
    tensor, *others = (search_schedule(vit, "topk", each, mac_cut=0.3, candidates=3) for each in given)
    assert all(other == tensor for other in others)


def test_the_comparison_is_on_other_images_and_paired(tmp_path, capsys):
    """Of 30 digits: points and nats of the found schedule above the default, 0 where they are the same."""
    data = ["--backbone", "vit_digits", "--weights", "", "--dataset", "digits", "--img-size", "32"]
    few = ["--images", "10", "--limit", "30", "--candidates", "4", "--device", "cpu"]
    assert main([str(tmp_path / "a.csv"), *data, *few, "--methods", "tome", "--mac-cut", "0.3"]) in (None, 0)
    default, found = pd.read_csv(tmp_path / "a.csv").to_dict("records")
    assert (default["schedule"], found["schedule"], found["n_val"], found["n_search"]) == ("default", "found", 30, 10)
    assert found["divergence_change"] == pytest.approx(found["divergence"] - default["divergence"], abs=1e-6)
    assert found["divergence_change_low"] <= found["divergence_change"] <= found["divergence_change_high"]
    assert found["accuracy_change"] == pytest.approx(found["accuracy"] - default["accuracy"], abs=1e-3)
    assert found["divergence_searched"] <= default["divergence_searched"] and found["commit"] == default["commit"]
    assert "tome, found: divergence " in capsys.readouterr().out


def test_the_manual_has_the_numbers_of_the_real_comparison():
    root = Path(__file__).parents[1]
    lines = []
    for _, pair in pd.read_csv(root / "results/schedule_search.csv", keep_default_na=False).groupby(
        "method", sort=False
    ):
        default, found = pair.to_dict("records")
        name = ":".join(filter(None, (found["method"], found["options"])))
        nats, points = (_change(found, name, digits) for name, digits in (("divergence", 3), ("accuracy_full", 1)))
        numbers = f"{default['divergence']:.3f} | {found['divergence']:.3f} | {nats} | {points}"
        lines.append(f"| `{name}` | `{found['keep_rate']}` | {numbers} |")
    assert part("schedule search").splitlines()[2:] == lines


def _change(row: dict, name: str, digits: int) -> str:
    mean, low, high = (f"{float(row[f'{name}_change{end}']):+.{digits}f}" for end in ("", "_low", "_high"))
    return f"{mean} [{low}, {high}]"
