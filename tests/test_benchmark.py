"""Throughput: the numbers from the seconds, the order of the passes, the rows, and the command line."""

from types import SimpleNamespace

import pytest
import torch
from forked import run_module
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common import precision
from common.benchmark import candidates, compare, compare_all, measured
from common.benchmark.__main__ import main
from common.benchmark.engines import Compiled
from common.cost import throughput
from common.cost.ceiling import FirstTokens, recorded_lengths
from common.cost.closed_form import Shape, total_macs
from common.cost.counter import count_macs, counts_of
from common.cost.methods import block_lengths, scheduled_parts
from common.cost.throughput import Throughput, _quartiles, interleaved, summary
from common.errors import UsageError
from common.models import reduced
from common.models.factory import create_backbone, create_model
from common.reducers.base import NO_SIGNALS
from common.studies.throughput import shown_images
from common.tokens import Selection
from common.weights import save_state

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
    assert summary([1, 2, 4], [3, 2, 20], batch=8) == Throughput(
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


def test_a_slow_model_takes_part_in_fewer_rounds(clock):
    """It has had 6 s of 5 after three rounds; its speed-up is that over the baseline of its own rounds."""
    seconds = {"base": [0, 4] * 3 + [0, 9] * 2, "slow": [0, 1, 0, 1, 0, 4], "fast": [0, 1] * 5}
    models = {name: clock.model(name, values) for name, values in seconds.items()}
    times = interleaved(models, torch.zeros(8, 3, 4, 4), baseline="base", rounds=5, limit_seconds=5)
    assert clock.log.count("slow") == 6
    assert {name: found.rounds for name, found in times.items()} == {"base": 5, "slow": 3, "fast": 5}
    assert (times["slow"].speedup, times["fast"].speedup) == (4, 4) and times["slow"].speedup_q1 == 2.5


# compare


@pytest.fixture
def any_processor(monkeypatch):
    """Small models are fast enough in any format."""
    monkeypatch.setattr(precision, "UNITS", {})


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
    what = ["runtime", "dtype", "batch", "img_size", "method", "options", "keep_rate"]
    costs = ["params", "gmac", "gmac_thop_compat"]
    times = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
    for row in rows:
        assert list(row) == [*what, *costs, *times, "compile_seconds", "peak_memory_mb", "ceiling"]
        assert (row["runtime"], row["compile_seconds"]) == ("eager", None)
        assert row["peak_memory_mb"] > 4e-6 * row["params"]  # the weights, and what a pass needs
        assert (row["ceiling"] is None) == (row["method"] == "none")
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


@pytest.mark.usefixtures("any_processor")
def test_image_size_and_dtype_reach_the_models(monkeypatch):
    seen = []

    def watch(models, images, *, baseline, rounds, limit_seconds):
        seen.extend((images.shape, images.dtype, next(m.parameters()).dtype, m.training) for m in models.values())
        return dict.fromkeys(models, Throughput(1, 1, 1, 1, 1, 1, rounds))

    monkeypatch.setattr(measured, "interleaved", watch)
    tram = compare("vit_digits", ["tram"], [0.5], img_size=48, dtype="bfloat16", **QUICK)[1]
    assert seen == [((2, 3, 48, 48), torch.bfloat16, torch.bfloat16, False)] * 3
    model = create_model("vit_digits", reducer="tram", keep_rate=0.5, img_size=48)
    assert tram["img_size"] == 48 and tram["gmac"] == count_macs(model, 48).total / 1e9


def test_the_baseline_is_the_untouched_backbone(monkeypatch):
    kinds = []

    def watch(models, images, *, baseline, rounds, limit_seconds):
        kinds.extend((key == baseline, type(model)) for key, model in models.items())
        return dict.fromkeys(models, Throughput(1, 1, 1, 1, 1, 1, rounds))

    monkeypatch.setattr(measured, "interleaved", watch)
    compare("vit_digits", ["tram"], [0.5], **QUICK)
    others = [(False, reduced.ReducedVisionTransformer), (False, FirstTokens)]
    assert kinds == [(True, type(create_backbone("vit_digits"))), *others]


def test_nothing_is_timed_unless_the_reduced_model_is_the_backbone(monkeypatch):
    block = reduced.reduced_block

    def broken(*args):
        tokens = block(*args)
        return tokens.with_x(tokens.x + torch.linspace(0, 1e-2, tokens.x.shape[-1]))

    monkeypatch.setattr(reduced, "reduced_block", broken)
    monkeypatch.setattr(measured, "interleaved", lambda *args, **kwargs: pytest.fail("timed before identity held"))
    with pytest.raises(AssertionError, match="not close"):
        compare("vit_digits", ["tram"], [0.5], **QUICK)


# several conditions, and what is measured beside the time


@pytest.mark.usefixtures("any_processor")
def test_models_are_made_and_counted_once_for_all_formats_and_batches(monkeypatch):
    """TRAM at two rates and the backbone: three counts, not three for each of the four conditions."""
    counted, made = [], []
    count, create = candidates.count_macs, measured.create_backbone
    monkeypatch.setattr(candidates, "count_macs", lambda *given: counted.append(given) or count(*given))
    monkeypatch.setattr(measured, "create_backbone", lambda *given, **how: made.append(given) or create(*given, **how))
    several = {"dtypes": ["float32", "bfloat16"], "batch_sizes": [1, 3], "rounds": 1, "device": "cpu"}
    rows = compare_all("vit_digits", ["tram"], [0.75, 0.5], **several)
    assert (len(counted), len(made)) == (3, 1)
    conditions = [("float32", 1), ("float32", 3), ("bfloat16", 1), ("bfloat16", 3)]
    assert [(row["dtype"], row["batch"]) for row in rows] == [each for each in conditions for _ in range(3)]


def test_no_weights_are_copied_for_a_method():
    vit = create_backbone("vit_digits")
    models = [reduced.reduce_tokens(vit, "topk", keep_rate=0.5), FirstTokens(vit, ((65, 65),) * 6)]
    own = {parameter.data_ptr() for parameter in vit.parameters()}
    assert all({parameter.data_ptr() for parameter in model.parameters()} == own for model in models)


def lengths_of(reducer, keep_rate):
    model = create_model("vit_digits", reducer=reducer, keep_rate=keep_rate)
    with recorded_lengths(model) as lengths, torch.inference_mode():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return tuple(map(tuple, lengths))


@pytest.mark.parametrize("reducer", ["none", "tram", "topk", "patchmerger"])
def test_the_ceiling_has_the_tokens_of_the_method(reducer):
    keep_rate = 1.0 if reducer == "none" else 0.5
    model = create_model("vit_digits", reducer=reducer, keep_rate=keep_rate)
    blocks = block_lengths(Shape.of(model), reducer, model.reducer.schedule)
    assert lengths_of(reducer, keep_rate) == tuple((block.attention + 1, block.mlp + 1) for block in blocks)


def test_the_ceiling_costs_what_top_k_costs_without_its_scores():
    """64 patches, a half left in each of blocks 1, 3 and 4: queries only of those that go on."""
    vit = create_backbone("vit_digits").eval()
    schedule = create_model("vit_digits", reducer="topk", keep_rate=0.5).reducer.schedule
    shape = Shape.of(vit)
    blocks = [{**parts, "score": 0} for parts in scheduled_parts(shape, "topk", schedule)]
    for parts, block in zip(blocks, block_lengths(shape, "topk", schedule), strict=True):
        parts["qkv"] = (block.mlp + 1 + 2 * (block.attention + 1)) * shape.dim**2
    model, flops = FirstTokens(vit, lengths_of("topk", 0.5)), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), flops:
        model(torch.zeros(1, 3, 32, 32))
    assert flops.get_total_flops() == 2 * total_macs(shape, [sum(parts.values()) for parts in blocks])


def test_all_tokens_are_the_backbone():
    vit, images = create_backbone("vit_digits").eval(), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(FirstTokens(vit, ((65, 65),) * 6)(images), vit(images))


def test_the_first_tokens_are_those_that_a_selection_of_them_leaves():
    class First(reduced.Reducer):
        signals = NO_SIGNALS

        def select_queries(self, tokens, signals, layer):
            return tokens, Selection(torch.arange(self.drops_at(layer, tokens)).expand(len(tokens.x), -1))

    vit, images = create_backbone("vit_digits").eval(), torch.randn(2, 3, 32, 32)
    model = reduced.attach(vit, First(vit, reduced.Schedule(0.5, (1, 3, 4))))
    with torch.inference_mode():
        torch.testing.assert_close(FirstTokens(vit, lengths_of("topk", 0.5))(images), model(images))


def test_there_is_no_ceiling_where_the_image_decides_or_tokens_come_back():
    methods = ["ats", "idle_topk", "downsample", "evit"]
    ceilings = {row["method"]: row["ceiling"] for row in compare("vit_digits", methods, [0.5], **QUICK)}
    assert [name for name, ceiling in ceilings.items() if ceiling is not None] == ["evit"]


def test_there_is_no_ceiling_where_none_is_asked_for():
    rows = compare("vit_digits", ["topk", "tram"], [0.5], ceilings=False, **QUICK)
    assert len(rows) == 3 and {row["ceiling"] for row in rows} == {None}


def test_what_does_not_run_is_left_out_by_name(monkeypatch, capsys):
    start = measured._start

    def full(engine, model, images, dtype):
        if type(model) is reduced.ReducedVisionTransformer and "Tome" in type(model.reducer).__name__.title():
            raise RuntimeError("\nout of memory: 3 bytes\nmore")
        return start(engine, model, images, dtype)

    monkeypatch.setattr(measured, "_start", full)
    rows = compare("vit_digits", ["tome", "topk"], [0.5], **QUICK)
    assert [row["method"] for row in rows] == ["none", "topk"]
    said = "left out: tome, keep rate 0.5 does not run (float32, batch 2): RuntimeError: out of memory: 3 bytes"
    assert said in capsys.readouterr().err.splitlines()


def test_nothing_is_measured_without_its_baseline(monkeypatch):
    def fails(engine, model, images, dtype):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(measured, "_start", fails)
    with pytest.raises(UsageError, match=r"none, keep rate 1 does not run compiled .*: RuntimeError: no compiler"):
        compare("vit_digits", ["topk"], [0.5], runtime="compiled", backend="eager", **QUICK)


# compiled


@pytest.fixture(scope="module")
def compiled_rows():
    return compare("vit_digits", COMPILED, [0.5], runtime="compiled", backend="eager", **QUICK)


COMPILED = ["topk", "tram", "tome", "evit"]


def test_compiled_models_are_measured_against_the_compiled_backbone(compiled_rows):
    assert [row["method"] for row in compiled_rows] == ["none", *COMPILED]
    for row in compiled_rows:
        assert row["runtime"] == "compiled" and row["compile_seconds"] > 10 / row["fps"]


@pytest.mark.parametrize("reducer", ["none", *COMPILED])
def test_compiled_logits_are_those_of_eager(reducer):
    torch.manual_seed(0)
    model = create_model("vit_digits", reducer=reducer, keep_rate=1.0 if reducer == "none" else 0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode(), Compiled().comparison():
        found = torch.compile(model, dynamic=False, backend="aot_eager")(images)
        torch.testing.assert_close(found, model(images), rtol=0, atol=1e-4)


# refusals

BAD_INPUT = [
    (["--reducer", "trem"], "unknown reducer 'trem'; allowed: atc, ats, diffrate, downsample, "),
    (["--reducer", "tram", "topk:fusion=max"], "reducer 'topk' has no option 'fusion'; allowed: head_fusion"),
    (["--reducer", "topk:head_fusion"], "option 'head_fusion' of 'topk:head_fusion' has no value"),
    (["--keep-rate", "1.2"], "keep_rate=1.2 is not allowed; give a ratio in (0, 1]"),
    (["--keep-rate", "0.5", "0"], "keep_rate=0.0 is not allowed; give a ratio in (0, 1]"),
    (["--mac-cut", "1.2"], "mac_cut=1.2 is not allowed; give a number from 0 to below 1"),
    (["--mac-cut", "0.95"], "tram in blocks [1, 3, 4] cannot save 95.0% of the MAC; at most "),
    (["--speedup", "fast"], "speedup='fast' is not allowed; give a number >= 1"),
    (["--latency-ms", "0"], "latency_ms=0.0 is not allowed; give a number > 0"),
    (["--dtype", "float8"], "unknown dtype 'float8'; allowed: bfloat16, float16, float32, int8"),
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
    monkeypatch.setattr(measured, "interleaved", lambda *args, **kwargs: pytest.fail("timed before it was refused"))
    assert main(["--backbone", "vit_digits", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1 and err.endswith("\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_line_and_exit_code_2(capsys):
    assert main(["--backbone", "vit_digits", "--device", "cuda"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "cuda" in err and len(err.splitlines()) == 1


def test_each_method_has_its_own_keep_rate_for_a_budget():
    rows = compare("vit_digits", ["tome", "topk"], ["mac_cut=0.3", 0.5], **QUICK)
    whole, *reduced = [row["gmac"] for row in rows]
    assert [cost / whole for cost in reduced[::2]] == pytest.approx([0.7, 0.7], abs=0.01)
    assert len({row["keep_rate"] for row in rows}) == 4 and rows[2]["keep_rate"] == rows[4]["keep_rate"] == 0.5


@pytest.fixture
def shown(tmp_path):
    """Eight digits, and weights of seven classes that attend to few patches: ATS keeps more of some than of others."""
    torch.manual_seed(0)
    vit, path = create_backbone("vit_digits", num_classes=7), tmp_path / "a.safetensors"
    for block in vit.blocks:
        block.attn.qkv.weight.data *= 8
    save_state(vit, path)
    given, _ = shown_images("vit_digits", str(path), "digits", 32, "pretrained")
    return {**given, "images": given["images"][::4]}


def test_what_depends_on_the_images_is_solved_counted_and_timed_on_those_given(monkeypatch, shown):
    """ATS at half of the MAC on the mean of eight digits, each with a cost of its own; timed on every second one."""
    seen, timed = [], measured.interleaved

    def watch(calls, images, **how):
        seen.append(images)
        return timed(calls, images, **how)

    monkeypatch.setattr(measured, "interleaved", watch)
    whole, ats = compare("vit_digits", ["ats"], ["mac_cut=0.5"], **shown, batch_size=4, rounds=1, device="cpu")
    assert torch.equal(seen[0], shown["images"][[0, 2, 4, 6]])
    model = create_model("vit_digits", reducer="ats", keep_rate=ats["keep_rate"], weights=shown["weights"])
    costs = [count.total / 1e9 for count in counts_of(model, shown["images"])]
    assert ats["gmac"] == pytest.approx(sum(costs) / 8) and max(costs) > 1.05 * min(costs)
    assert ats["gmac"] / whole["gmac"] == pytest.approx(0.5, abs=0.02) and ats["ceiling"] is None


def test_weights_reach_the_models(monkeypatch, shown):
    """Their head stays as it is, with its seven classes."""
    seen = []
    monkeypatch.setattr(measured, "interleaved", lambda calls, images, **_: seen.extend(calls.values()) or {})
    assert compare("vit_digits", ["topk"], [0.5], **shown, **QUICK) == []
    assert {call(shown["images"]).shape for call in seen} == {(8, 7)}


def test_more_images_than_are_given_are_refused(monkeypatch, shown):
    monkeypatch.setattr(measured, "create_backbone", lambda *_, **__: pytest.fail("computed before it was refused"))
    with pytest.raises(UsageError, match=r"batch_sizes=\[2, 16\] of 8 images; give as many images or more"):
        compare_all("vit_digits", ["ats"], [0.5], **shown, batch_sizes=(2, 16), device="cpu")


def test_a_budget_of_time_is_for_one_format_and_batch():
    with pytest.raises(
        UsageError, match=r"keep_rate='speedup=1\.5' holds for one number format and one batch; given 2"
    ):
        compare_all("vit_digits", ["tome"], ["speedup=1.5"], batch_sizes=(1, 2), device="cpu")


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

    def times(models, images, *, baseline, rounds, limit_seconds):
        full, half = Throughput(10, 10, 10, 1, 1, 1, rounds), Throughput(25, 20, 30, 2.5, 2.25, 3, rounds)
        ceiling = Throughput(32, 32, 32, 3.2, 3.2, 3.2, rounds)
        slices = {key: ceiling for key, model in models.items() if isinstance(model, FirstTokens)}
        return {key: full if key == baseline else half for key in models} | slices

    monkeypatch.setattr(measured, "interleaved", times)
    assert main(["--backbone", "vit_digits", "--reducer", "topk:head_fusion=mean", "--keep-rate", "0.5"]) == 0
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title == "vit_digits, float32, batch 16, 10 rounds, median and quartiles"
    assert header.split() == ["method", "keep", "FPS", "speed-up", "quartiles", "GMAC", "MAC", "ratio", "ceiling", "MB"]
    full, half = (count_macs(create_model("vit_digits", reducer="topk", keep_rate=rate), 32).total for rate in (1, 0.5))
    gain = f"{full / half:.2f}x"
    cells = [line.split() for line in lines]
    assert [row[:8] for row in cells] == [
        ["none", "1", "10.00", "1.00x", "1.00-1.00", f"{full / 1e9:.4f}", "1.00x", "-"],
        ["topk:head_fusion=mean", "0.5", "25.00", "2.50x", "2.25-3.00", f"{half / 1e9:.4f}", gain, "3.20x"],
    ]
    assert all(float(row[8]) > 0 for row in cells)


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [(["--help"], 0, "usage: python -m common.benchmark", ""), (["--keep-rate", "1.2"], 2, "", "error: keep_rate=1.2")],
)
def test_as_a_command(arguments, code, stdout, stderr):
    done = run_module("common.benchmark", "--backbone", "vit_digits", *arguments)
    assert done.returncode == code
    assert done.stdout.startswith(stdout) and bool(done.stdout) == bool(stdout)
    assert done.stderr.startswith(stderr) and len(done.stderr.splitlines()) == bool(stderr)


def test_a_method_that_cannot_meet_a_budget_is_left_out_of_it(capsys):
    """Images of 24 pixels for 32 save 45 %, so that there is nothing between them and whole ones."""
    methods, budgets = ["tome:resize=24", "topk"], ["mac_cut=0.2", "mac_cut=0.6"]
    rows = compare("vit_digits", methods, budgets, batch_size=2, rounds=1, ceilings=False)
    assert [(row["method"], row["options"]) for row in rows] == [
        ("none", ""),
        ("tome", "resize=24"),
        ("topk", ""),
        ("topk", ""),
    ]
    whole, smaller, *_ = (row["gmac"] for row in rows)
    assert smaller / whole == pytest.approx(0.4, abs=0.03)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: "))  # beside bars
    assert line.startswith(
        "left out: tome:resize=24 in blocks [1, 3, 4] cannot save 20.0% of the MAC; the nearest that it can is"
    )
    with pytest.raises(UsageError, match=r"cannot save 20\.0% of the MAC"):
        compare("vit_digits", methods[:1], budgets[:1], batch_size=2, rounds=1)
