"""Throughput: the numbers from the seconds, the order of the passes, the rows, and the command line."""

from types import SimpleNamespace

import pytest
import torch
from forked import run_module
from torch import nn

from common import benchmark
from common.benchmark import compare, main
from common.cost import throughput
from common.cost.counter import count_macs
from common.cost.throughput import Throughput, _quartiles, _summary, interleaved
from common.errors import UsageError
from common.models import reduced
from common.models.factory import create_backbone, create_model

QUICK = {"batch_size": 2, "rounds": 2, "device": "cpu"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([4.0], (4.0, 4.0, 4.0)),
        ([2.0, 1.0], (1.5, 1.25, 1.75)),
        ([5.0, 1.0, 3.0, 2.0, 4.0], (3.0, 2.0, 4.0)),
        ([4.0, 3.0, 2.0, 1.0], (2.5, 1.75, 3.25)),
    ],
)
def test_median_and_quartiles(values, expected):
    assert _quartiles(values) == pytest.approx(expected)


def test_speed_up_is_computed_pair_by_pair():
    """Own 1, 2, 4 s against 3, 2, 20 s: 3, 1 and 5 times faster; the ratio of the medians would be 1.5."""
    assert _summary([1, 2, 4], [3, 2, 20], batch=8) == Throughput(
        fps=4.0, fps_q1=3.0, fps_q3=6.0, speedup=3.0, speedup_q1=2.0, speedup_q3=4.0, rounds=3
    )


class Clock:
    """Time that passes only while a fake model runs."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def perf_counter(self):
        return self.now

    def model(self, name, seconds):
        return FakeModel(self, name, seconds)


class FakeModel(nn.Module):
    def __init__(self, clock, name, seconds):
        super().__init__()
        self.clock, self.name, self.seconds = clock, name, iter(seconds)

    def forward(self, images):
        assert torch.is_inference_mode_enabled() and images.shape == (8, 3, 4, 4)
        self.clock.log.append(self.name)
        self.clock.now += next(self.seconds)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_models_take_turns_and_each_timed_pass_follows_an_untimed_one(clock):
    seconds = {"a": [99, 1, 99, 2, 99, 4], "b": [99, 3, 99, 2, 99, 20], "c": [99, 1, 99, 1, 99, 1]}
    models = {name: clock.model(name, values) for name, values in seconds.items()}
    times = interleaved(models, torch.zeros(8, 3, 4, 4), baseline="b", rounds=3)
    assert clock.log == ["a", "a", "b", "b", "c", "c"] * 3
    assert times["a"] == Throughput(4.0, 3.0, 6.0, 3.0, 2.0, 4.0, 3)
    assert times["b"] == Throughput(8 / 3, pytest.approx((0.4 + 8 / 3) / 2), pytest.approx((8 / 3 + 4) / 2), 1, 1, 1, 3)
    assert times["c"] == Throughput(8, 8, 8, 3, 2.5, 11.5, 3)


# compare


@pytest.fixture(scope="module")
def rows():
    return compare("vit_digits", ["tram", "topk:head_fusion=mean", "patchmerger", "none"], [0.75, 0.5], **QUICK)


def test_rows_are_the_baseline_and_every_method_at_every_rate(rows):
    assert [(row["method"], row["options"], row["keep_rate"]) for row in rows] == [
        ("none", "", 1.0),
        *(
            (name, options, rate)
            for name, options in (("tram", ""), ("topk", "head_fusion=mean"), ("patchmerger", ""))
            for rate in (0.75, 0.5)
        ),
    ]


def test_columns(rows):
    times = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
    for row in rows:
        assert list(row) == ["method", "options", "keep_rate", "img_size", "params", "gmac", "gmac_thop_compat", *times]
        assert row["img_size"] == 32 and row["rounds"] == 2
        assert 0 < row["fps_q1"] <= row["fps"] <= row["fps_q3"]
        assert 0 < row["speedup_q1"] <= row["speedup"] <= row["speedup_q3"]


def test_the_baseline_is_its_own_measure(rows):
    assert (rows[0]["speedup"], rows[0]["speedup_q1"], rows[0]["speedup_q3"]) == (1.0, 1.0, 1.0)


def test_costs_equal_the_counters(rows):
    for row in rows:
        options = {"head_fusion": "mean"} if row["method"] == "topk" else {}
        model = create_model("vit_digits", reducer=row["method"], keep_rate=row["keep_rate"], **options)
        macs = count_macs(model, 32)
        assert row["gmac"] == macs.total / 1e9 and row["gmac_thop_compat"] == macs.thop_compat / 1e9
        assert row["params"] == sum(parameter.numel() for parameter in model.parameters())
    costs = [row["gmac"] for row in rows[:3]]
    assert costs[0] > costs[1] > costs[2]
    assert rows[-1]["params"] > rows[0]["params"] == rows[1]["params"]


def test_image_size_and_dtype_reach_the_models(monkeypatch):
    seen = []

    def watch(models, images, *, baseline, rounds):
        seen.extend((images.shape, images.dtype, next(m.parameters()).dtype, m.training) for m in models.values())
        return dict.fromkeys(models, Throughput(1, 1, 1, 1, 1, 1, rounds))

    monkeypatch.setattr(benchmark, "interleaved", watch)
    tram = compare("vit_digits", ["tram"], [0.5], img_size=48, dtype="bfloat16", **QUICK)[1]
    assert seen == [((2, 3, 48, 48), torch.bfloat16, torch.bfloat16, False)] * 2
    model = create_model("vit_digits", reducer="tram", keep_rate=0.5, img_size=48)
    assert tram["img_size"] == 48 and tram["gmac"] == count_macs(model, 48).total / 1e9


def test_the_baseline_is_the_untouched_backbone(monkeypatch):
    kinds = []

    def watch(models, images, *, baseline, rounds):
        kinds.extend((key == baseline, type(model)) for key, model in models.items())
        return dict.fromkeys(models, Throughput(1, 1, 1, 1, 1, 1, rounds))

    monkeypatch.setattr(benchmark, "interleaved", watch)
    compare("vit_digits", ["tram"], [0.5], **QUICK)
    assert kinds == [(True, type(create_backbone("vit_digits"))), (False, reduced.ReducedVisionTransformer)]


def test_nothing_is_timed_unless_the_reduced_model_is_the_backbone(monkeypatch):
    block = reduced.reduced_block

    def broken(*args):
        tokens = block(*args)
        return tokens.with_x(tokens.x + torch.linspace(0, 1e-2, tokens.x.shape[-1]))

    monkeypatch.setattr(reduced, "reduced_block", broken)
    monkeypatch.setattr(benchmark, "interleaved", lambda *args, **kwargs: pytest.fail("timed before identity held"))
    with pytest.raises(AssertionError, match="not close"):
        compare("vit_digits", ["tram"], [0.5], **QUICK)


# refusals

BAD_INPUT = [
    (["--reducer", "trem"], "unknown reducer 'trem'; allowed: atc, ats, diffrate, downsample, "),
    (["--reducer", "tram", "topk:fusion=max"], "reducer 'topk' has no option 'fusion'; allowed: head_fusion"),
    (["--reducer", "topk:head_fusion"], "option 'head_fusion' of 'topk:head_fusion' has no value"),
    (["--keep-rate", "1.2"], "keep_rate=1.2 is not allowed; give a ratio in (0, 1]"),
    (["--keep-rate", "0.5", "0"], "keep_rate=0.0 is not allowed; give a ratio in (0, 1]"),
    (["--dtype", "float8"], "unknown dtype 'float8'; allowed: bfloat16, float16, float32"),
    (["--backbone", "vit_digit"], "unknown backbone 'vit_digit'; similar: vit_digits"),
    (["--backbone", "swin_tiny_patch4_window7_224"], "backbone 'swin_tiny_patch4_window7_224' is not supported"),
    (["--img-size", "30"], "img_size 30 is not a multiple of the patch size 4"),
    (["--batch-size", "0"], "batch_size=0 is not allowed; give a whole number >= 1"),
    (["--rounds", "0"], "rounds=0 is not allowed; give a whole number >= 1"),
    (["--threads", "-1"], "threads=-1 is not allowed; give a whole number >= 1"),
    (["--device", "tpv"], "device 'tpv' is not to be had here: "),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(args) for args, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "interleaved", lambda *args, **kwargs: pytest.fail("timed before it was refused"))
    assert main(["--backbone", "vit_digits", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1 and err.endswith("\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line_and_exit_code_2(capsys):
    assert main(["--backbone", "vit_digits", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "cuda" in err and len(err.splitlines()) == 1


def test_compare_refuses_like_the_command_line():
    with pytest.raises(UsageError, match="unknown dtype 'half'"):
        compare("vit_digits", ["tram"], [0.5], dtype="half", **QUICK)


# command line


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m common.benchmark")
    assert all(option in text for option in ("--backbone", "--reducer", "--keep-rate", "--dtype", "--batch-size"))


def test_table(capsys, monkeypatch):
    """The command line prints the rows of ``compare``: here 2.5 times faster at the MAC ratio of the counters."""

    def times(models, images, *, baseline, rounds):
        full, half = Throughput(10, 10, 10, 1, 1, 1, rounds), Throughput(25, 20, 30, 2.5, 2.25, 3, rounds)
        return {key: full if key == baseline else half for key in models}

    monkeypatch.setattr(benchmark, "interleaved", times)
    assert main(["--backbone", "vit_digits", "--reducer", "topk:head_fusion=mean", "--keep-rate", "0.5"]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "vit_digits, float32, batch 16, 10 rounds, median and quartiles"
    assert header.split() == ["method", "keep", "FPS", "speed-up", "quartiles", "GMAC", "MAC", "ratio"]
    full, half = (count_macs(create_model("vit_digits", reducer="topk", keep_rate=rate), 32).total for rate in (1, 0.5))
    assert [line.split() for line in lines] == [
        ["none", "1", "10.00", "1.00x", "1.00-1.00", f"{full / 1e9:.4f}", "1.00x"],
        ["topk:head_fusion=mean", "0.5", "25.00", "2.50x", "2.25-3.00", f"{half / 1e9:.4f}", f"{full / half:.2f}x"],
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [(["--help"], 0, "usage: python -m common.benchmark", ""), (["--keep-rate", "1.2"], 2, "", "error: keep_rate=1.2")],
)
def test_as_a_command(arguments, code, stdout, stderr):
    done = run_module("common.benchmark", "--backbone", "vit_digits", *arguments)
    assert done.returncode == code
    assert done.stdout.startswith(stdout) and bool(done.stdout) == bool(stdout)
    assert done.stderr.startswith(stderr) and len(done.stderr.splitlines()) == bool(stderr)
