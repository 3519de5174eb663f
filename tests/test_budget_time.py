"""Budgets of time, on a made-up clock that goes down in steps, and once on the real one."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import timm
import torch

from common.budget import BudgetSolver, OutOfReachError, reduce_tokens, timing
from common.budget.timing import CLOSE, GRID, TOLERANCE, Timed
from common.errors import UsageError
from common.reducers import Schedule
from common.schedule import read_keep_rate

BLOCKS = (3, 6, 9)


def milliseconds(counts: tuple[int, ...]) -> float:
    """Of 196 patches 200; kernels take 16 tokens at a time."""
    return 8 + 4 * sum(math.ceil(count / 16) for count in (*counts, 196)) - 16


class Clock:
    """Measures models by their schedule; ``drift`` has a factor for each call after the first ones, which are right."""

    def __init__(self, *drift: float) -> None:
        self.calls, self.drift = [], list(drift)

    def __call__(self, models, images):
        self.calls.append(sorted(models))
        factor = self.drift.pop(0) if self.drift else 1.0
        whole = milliseconds((196,) * 3)
        times = {rate: whole if rate == 1 else milliseconds(_counts(model)) * factor for rate, model in models.items()}
        return {rate: Timed(time * len(images), whole / time) for rate, time in times.items()}

    @property
    def confirmations(self) -> int:
        return sum(len(call) <= 2 for call in self.calls)


def _counts(model: torch.nn.Module) -> tuple[int, ...]:
    return model.reducer.schedule.counts(196)


@pytest.fixture(scope="module")
def vit() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", embed_dim=48, num_heads=3).eval()


@pytest.fixture
def solver(vit, tmp_path):
    return lambda clock, method="tome", **how: BudgetSolver(vit, method, **{"cache": tmp_path, "measure": clock, **how})


@pytest.mark.parametrize("budget", [{"speedup": 1.5}, {"speedup": 1.1}, {"latency_ms": 120.0}, {"latency_ms": 90.0}])
def test_what_keeps_most_within_the_budget_is_found(solver, budget):
    """Of all keep rates of four digits none is larger by more than a token that meets it."""
    found = solver(Clock()).solve(**budget)
    whole = milliseconds((196,) * 3)
    most = whole / budget["speedup"] if "speedup" in budget else budget["latency_ms"]
    allowed = [n / 1e4 for n in range(1, 10_000) if milliseconds(Schedule(n / 1e4, BLOCKS).counts(196)) <= most]
    assert max(allowed) - CLOSE <= found.keep_rate <= max(allowed) and found.sure
    assert found.timed.latency_ms <= most and found.timed.speedup == pytest.approx(whole / found.timed.latency_ms)
    assert found.counts == Schedule(found.keep_rate, BLOCKS).counts(196) and 0 < found.mac_cut < 1


def test_what_was_measured_is_not_again_but_for_what_is_chosen(solver):
    first, again, other = Clock(), Clock(), Clock()
    found = solver(first).solve(speedup=1.5)
    assert first.calls[0] == sorted([*GRID, 1.0]) and first.calls[-1] == [found.keep_rate, 1.0]
    assert solver(again).solve(speedup=1.5) == found and again.calls == [[found.keep_rate, 1.0]]
    solver(other).solve(speedup=1.1)
    assert len(other.calls) == len(first.calls) - 1  # the grid is there, not what is between other neighbours


@pytest.mark.parametrize(
    "how", [{"batch_size": 2}, {"dtype": "float16"}, {"method": "tram"}, {"parity": True}, {"reduction_loc": (2, 6, 9)}]
)
def test_under_other_conditions_all_is_measured_anew(solver, how):
    solver(Clock()).solve(speedup=1.5)
    clock = Clock()
    solver(clock, **how).solve(speedup=1.5)
    assert clock.calls[0] == sorted([*GRID, 1.0])


def test_other_threads_are_other_conditions_and_the_file_says_all_of_them(solver, tmp_path):
    solver(Clock()).solve(speedup=1.5)
    [path] = tmp_path.iterdir()
    content = json.loads(path.read_text())
    assert content["conditions"]["batch"] == 1 and content["conditions"]["threads"] == torch.get_num_threads()
    content["conditions"]["threads"] += 1
    path.write_text(json.dumps(content))
    clock = Clock()
    solver(clock).solve(speedup=1.5)
    assert clock.calls[0] == sorted([*GRID, 1.0])
    path.write_text('{"conditions": 1}')
    with pytest.raises(UsageError, match="holds no timings of this package; delete it"):
        solver(clock).solve(speedup=1.5)


def test_a_claim_that_is_not_found_again_is_measured_anew_and_then_not_made(solver):
    budget = {"latency_ms": 120.0}
    measured = len((first := Clock(), solver(first).solve(**budget))[0].calls)
    clock = Clock(1 + 0.9 * TOLERANCE)
    assert solver(clock).solve(**budget).sure and clock.confirmations == 1
    clock = Clock(1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert solver(clock).solve(**budget).sure and clock.confirmations == 2
    assert len(clock.calls) == 1 + measured
    clock = Clock(1.1, *[1.0] * (measured - 1), 0.9)
    with pytest.warns(
        UserWarning, match=r"latency_ms=120 is not sure: at keep rate 0.\d+ this machine gave .*1\d\d, "
    ) as told:
        assert not solver(clock).solve(**budget).sure
    assert "\n" not in str(told[0].message)


def test_what_is_slow_enough_keeps_all(solver):
    assert solver(Clock()).solve(latency_ms=1000.0).keep_rate == 1.0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"speedup": 90.0},
            r"tome cannot meet speedup=90 \(batch 1, dtype float32, device cpu.*\); the nearest .* is 3.*",
        ),
        (
            {"latency_ms": 0.1},
            r"tome cannot meet latency_ms=0.1 \(.*\); the nearest that it can is 56, at keep rate 0\.\d",
        ),
        ({"speedup": 0.5}, r"speedup=0.5 is not allowed; give a number >= 1"),
        ({"latency_ms": 0}, r"latency_ms=0 is not allowed; give a number > 0"),
        (
            {"latency_ms": 3.0, "mac_cut": 0.1},
            "give one budget: mac_cut, gmac, latency_ms, speedup; given mac_cut=0.1, lat",
        ),
    ],
)
def test_what_cannot_be_met_is_one_line(solver, budget, message):
    with pytest.raises(UsageError, match=message) as caught:
        solver(Clock()).solve(**budget)
    assert "\n" not in str(caught.value) and isinstance(caught.value, OutOfReachError) == ("cannot" in message)


def test_a_method_that_looks_at_images_is_timed_on_them(solver):
    with pytest.raises(UsageError, match="'ats' is timed on your images: give batch_size=4 of them or more"):
        solver(Clock(), "ats", images=torch.zeros(2, 3, 224, 224), batch_size=4).solve(speedup=1.5)


@pytest.mark.slow
def test_on_a_real_clock_the_claim_is_near(monkeypatch, tmp_path):
    """Loosely, as other things run beside tests."""
    monkeypatch.setattr(timing, "ROUNDS", 3)
    shallow = timm.create_model("vit_tiny_patch16_224", depth=4).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = BudgetSolver(shallow, "topk", cache=tmp_path).solve(speedup=1.1)
    assert 1e-4 <= found.keep_rate < 1 and found.timed.speedup >= 1.1


# the same words as a text, wherever a keep rate goes


def test_a_text_is_the_budget_that_it_says(vit):
    by_text, by_word = reduce_tokens(vit, "tome", keep_rate="mac_cut=0.4"), reduce_tokens(vit, "tome", mac_cut=0.4)
    assert by_text.reducer.schedule == by_word.reducer.schedule
    assert read_keep_rate("mac_cut=0.4") == "mac_cut=0.4"
    with pytest.raises(UsageError, match=r"give one budget: .*; given mac_cut=0\.4, speedup=2\.0"):
        reduce_tokens(vit, "tome", keep_rate="mac_cut=0.4", speedup=2.0)
    with pytest.raises(UsageError, match=r"give a keep_rate, or one of mac_cut, gmac, .*; given keep_rate, batch_size"):
        reduce_tokens(vit, "tome", keep_rate=0.5, batch_size=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mac_cut=1.5", "mac_cut=1.5 is not allowed; give a number from 0 to below 1"),
        ("speedup=fast", "speedup='fast' is not allowed; give a number >= 1"),
        ("mac-cut=0.4", r"keep_rate='mac-cut=0.4' is not allowed; give .*; did you mean 'mac_cut'\?$"),
        ("macs=0.4", 'keep_rate=.macs=0.4. is not allowed; give .* or a budget such as "mac_cut=0.4"'),
    ],
)
def test_nonsense_is_refused_by_the_text_alone(text, message):
    with pytest.raises(UsageError, match=message):
        read_keep_rate(text)
