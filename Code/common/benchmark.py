"""Throughput against the honest baseline: the same backbone with fused attention, measured in turn.

``python -m common.benchmark --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5`` prints the same numbers
as the throughput notebook. ``--mac-cut 0.4`` or ``--speedup 1.5`` in place of the keep rates solves for them.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.budget import solved
from common.cost.ceiling import FirstTokens, Lengths, has_ceiling, recorded_lengths
from common.cost.counter import count_macs
from common.cost.throughput import interleaved, seconds_of
from common.devices import DTYPES, Dtype, torch_device
from common.errors import UsageError, command
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, attach, reduce_tokens
from common.options import Count, Many, check, checked
from common.reducers import Method, Reducer, Schedule, Signals, list_reducers
from common.reducers.base import Signal
from common.schedule import is_budget, keep_rate_text, read_budget, read_keep_rate
from common.tokens import Selection, Tokens

KEEP_RATES = ("0.75", "0.5")
BUDGET_HELP = {
    "mac_cut": "share of the multiply-accumulates to save",
    "gmac": "10^9 multiply-accumulates of an image",
    "latency_ms": "milliseconds of a pass over a batch at the most",
    "speedup": "over the unreduced model at the least",
}
GPU_SECONDS = 1.0  # of timed passes, after which a slow model has been seen often enough: GPUs are lent by the minute
Variant = tuple[Method, float]  # and its keep rate


@dataclass(frozen=True)
class Candidate:
    """A model to be timed, and what it costs.

    Attributes:
        method, keep_rate: of the row.
        model: shares its weights with the others.
        costs: params, gmac, gmac_thop_compat.
        lengths: of the model that takes its first tokens; None = it has none, see :func:`has_ceiling`.
    """

    method: Method
    keep_rate: float
    model: nn.Module
    costs: Mapping[str, float]
    lengths: Lengths | None

    @property
    def variant(self) -> Variant:
        return self.method, self.keep_rate


@dataclass(frozen=True)
class Start:
    """The first passes of a model.

    Attributes:
        seconds: of the first one, compilation included.
        peak_mb: 10^6 bytes at the most during a pass, weights and images included; None without a GPU.
    """

    seconds: float
    peak_mb: float | None


@checked
def compare(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float | str],
    *,
    img_size: Count | None = None,
    dtype: Dtype = "float32",
    batch_size: Count = 16,
    device: str | None = None,
    rounds: Count = 10,
    seed: int = 0,
    compiled: bool = False,
    backend: str = "inductor",
) -> list[dict[str, object]]:
    """:func:`compare_all` for one number format and one batch size."""
    how = {"img_size": img_size, "device": device, "rounds": rounds, "seed": seed}
    how |= {"compiled": compiled, "backend": backend}
    return compare_all(backbone, methods, keep_rates, dtypes=(dtype,), batch_sizes=(batch_size,), **how)


@checked
def compare_all(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float | str],
    *,
    img_size: Count | None = None,
    dtypes: Many[Dtype] = ("float32",),
    batch_sizes: Many[Count] = (16,),
    device: str | None = None,
    rounds: Count = 10,
    seed: int = 0,
    compiled: bool = False,
    backend: str = "inductor",
) -> list[dict[str, object]]:
    """Measure ``methods`` at ``keep_rates`` on a randomly initialised ``backbone`` against the backbone itself.

    Before anything is timed, a model that selects every patch in every block, through the same code as the methods,
    must give the backbone's logits to 1e-5. Models are made and counted once, whatever the formats and batches.

    A model that does not run (out of memory, or torch.compile does not take it) is left out, and a line on stderr says
    which and why.

    Args:
        methods: written as for :class:`common.reducers.Method`; "none" is always measured.
        keep_rates: see :class:`common.reducers.Schedule`; or budgets ("mac_cut=0.4", "speedup=1.5"), for which each
            method has a keep rate of its own. One of time is for one format and one batch.
        img_size: pixels; default that of the backbone.
        dtypes: of weights and images.
        device: default "cuda" when there is one.
        rounds: passes of each model; on a GPU three, if together they take longer than ``GPU_SECONDS``.
        seed: of weights, images and samplers.
        compiled: all models by torch.compile, the unreduced one too.
        backend: of torch.compile.

    Returns:
        For each format and batch a row for the baseline (method "none") and one per method and keep rate: dtype, batch,
        method, options, keep_rate, img_size, params, gmac (attention included), gmac_thop_compat, the fields of
        :class:`common.cost.throughput.Throughput`, compiled ("eager" or "compiled"), compile_seconds (the first pass;
        None in eager), peak_memory_mb (None without a GPU), and ceiling: the speed-up, in the same rounds, of
        :class:`common.cost.ceiling.FirstTokens` with as many tokens, None where these depend on the image.

    Raises:
        UsageError: bad input, or the backbone itself does not run.
    """
    where, parsed = torch_device(device), [Method.parse(method) for method in methods]
    rates = [_checked_rate(rate, len(dtypes) * len(batch_sizes)) for rate in keep_rates]
    torch.manual_seed(seed)
    vit = create_backbone(backbone, num_classes=10, img_size=img_size).eval()
    some = partial(_images, max(batch_sizes), vit, seed)
    how = {"batch_size": batch_sizes[0], "dtype": dtypes[0], "device": str(where)}
    found = [(method, solved(vit, method, rate, some, **how)) for method, rate in _variants(parsed, rates)]
    models = {(method, rate): _reduced(vit, method, rate) for method, rate in found}
    assert_identity(vit, _images(1, vit, seed))
    candidates = _counted_on(where, vit, models)
    rows = []
    for dtype, batch in product(dtypes, batch_sizes):
        for candidate in candidates:
            candidate.model.to(DTYPES[dtype])
        images = _images(batch, vit, seed).to(where, DTYPES[dtype])
        measured = _measure(vit, candidates, images, rounds, backend if compiled else None)
        rows += [{"dtype": dtype, "batch": batch, **row} for row in measured]
    del vit, models, candidates, candidate, images
    _free(where)
    return rows


def _checked_rate(rate: float | str, conditions: int) -> float | tuple[float, ...] | str:
    """The keep rate or the budget ``rate``, to be measured under so many ``conditions``."""
    rate = read_keep_rate(rate)
    if is_budget(rate) and read_budget(rate).keys() & {"latency_ms", "speedup"} and conditions > 1:
        raise UsageError(f"keep_rate={rate!r} holds for one number format and one batch; given {conditions} of them")
    return rate


def _images(batch: int, vit: VisionTransformer, seed: int) -> Tensor:
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))


def _reduced(vit: VisionTransformer, method: Method, keep_rate: float) -> ReducedVisionTransformer:
    return reduce_tokens(vit, method.name, keep_rate=keep_rate, **dict(method.options))


def _counted_on(
    device: torch.device, vit: VisionTransformer, models: Mapping[Variant, ReducedVisionTransformer]
) -> list[Candidate]:
    """All ``models`` and what they cost; the first one, which reduces nothing, is ``vit`` itself."""
    side = vit.to(device).patch_embed.img_size
    first, *others = (_counted(*variant, model.to(device).eval(), side) for variant, model in models.items())
    return [replace(first, model=vit, lengths=None), *others]


def _variants(methods: Sequence[Method], keep_rates: Sequence[float | str]) -> list[Variant]:
    reduced = [(method, rate) for method in methods if method.name != "none" for rate in keep_rates]
    return [(Method("none"), 1.0), *reduced]


def _counted(method: Method, keep_rate: float, model: ReducedVisionTransformer, side: tuple[int, int]) -> Candidate:
    with recorded_lengths(model) as lengths:
        macs = count_macs(model, side)
    costs = {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "gmac": macs.total / 1e9,
        "gmac_thop_compat": macs.thop_compat / 1e9,
    }
    return Candidate(method, keep_rate, model, costs, tuple(map(tuple, lengths)) if has_ceiling(model) else None)


def _measure(
    vit: VisionTransformer, candidates: Sequence[Candidate], images: Tensor, rounds: int, backend: str | None
) -> list[dict[str, object]]:
    """The rows of one number format and one batch."""
    models: dict[Hashable, nn.Module] = {each.variant: each.model for each in candidates}
    models |= {each.lengths: FirstTokens(vit, each.lengths).eval() for each in candidates if each.lengths is not None}
    baseline = candidates[0].variant
    with _room_to_compile(backend is not None):
        if backend is not None:
            models = {key: torch.compile(model, dynamic=False, backend=backend) for key, model in models.items()}
        starts = _started(models, images, baseline, backend is not None)
        ready = {key: models[key] for key in starts}
        limit = GPU_SECONDS if images.is_cuda else math.inf
        times = interleaved(ready, images, baseline=baseline, rounds=rounds, limit_seconds=limit)
    return [
        {
            "method": each.method.name,
            "options": each.method.options_text,
            "keep_rate": each.keep_rate,
            "img_size": images.shape[2],
            **each.costs,
            **asdict(times[each.variant]),
            "compiled": "eager" if backend is None else "compiled",
            "compile_seconds": None if backend is None else starts[each.variant].seconds,
            "peak_memory_mb": starts[each.variant].peak_mb,
            "ceiling": times[each.lengths].speedup if each.lengths in times else None,
        }
        for each in candidates
        if each.variant in times
    ]


def _started(
    models: Mapping[Hashable, nn.Module], images: Tensor, baseline: Hashable, compiled: bool
) -> dict[Hashable, Start]:
    """The first passes of those ``models`` that run; a line on stderr for each of the others."""
    starts = {}
    for key, model in models.items():
        try:
            starts[key] = _start(model, images, compiled)
        except Exception as error:  # whatever a compiler or a full memory raises: the others are measured
            reason = f"{_told(key)} does not run{' compiled' if compiled else ''} ({images.dtype}, batch {len(images)})"
            reason += f": {type(error).__name__}: {_first_line(error)}"
            if key == baseline:
                raise UsageError(reason) from error
            print(f"left out: {reason}", file=sys.stderr)
    return starts


@torch.inference_mode()
def _start(model: nn.Module, images: Tensor, compiled: bool) -> Start:
    seconds = seconds_of(model, images)
    if compiled:
        model(images)  # some remember what the first pass found, and are compiled anew
        with torch.compiler.set_stance("fail_on_recompile"):
            model(images)
    if not images.is_cuda:
        return Start(seconds, None)
    before = torch.cuda.memory_allocated(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    model(images)
    during = torch.cuda.max_memory_allocated(images.device) - before
    own = sum(each.nbytes for each in (images, *model.parameters(), *model.buffers()))
    return Start(seconds, (own + during) / 1e6)


@contextmanager
def _room_to_compile(compiled: bool) -> Iterator[None]:
    """All models run through the same few functions, each of which is compiled for every model and block."""
    if not compiled:
        yield
        return
    torch.compiler.reset()
    import torch._dynamo as dynamo  # takes seconds

    try:
        with dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=100_000):
            yield
    finally:
        torch.compiler.reset()


def _told(key: Hashable) -> str:
    if isinstance(key[0], Method):
        return f"{key[0]}, keep rate {keep_rate_text(key[1])}"
    return f"the ceiling of {key[-1][-1]} tokens"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class SelectAll(Reducer):
    """Scores as TRAM does and selects every patch in every block: all of a method's path, none of its effect."""

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal]:
        return frozenset({"head_max", "value_norm", "key_mean"})

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        everything = torch.arange(tokens.num_patch_tokens, device=tokens.x.device)
        return tokens, Selection(everything.expand(len(tokens.x), -1))


def assert_identity(vit: VisionTransformer, images: Tensor) -> None:
    """Refuse to compare with ``vit`` unless selecting every patch of ``images`` gives its logits to 1e-5."""
    model = attach(vit, SelectAll(vit, Schedule(1.0, (0,))))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), vit(images), rtol=0, atol=1e-5)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one backbone, any methods and keep rates."""
    parser = argparse.ArgumentParser(prog="python -m common.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm VisionTransformer")
    parser.add_argument("--reducer", nargs="+", default=["tram"], help=f"of: {', '.join(list_reducers())}")
    parser.add_argument("--keep-rate", nargs="+", metavar="R", help=f"default: {' '.join(KEEP_RATES)}")
    for word, what in BUDGET_HELP.items():
        parser.add_argument(
            f"--{word.replace('_', '-')}",
            nargs="+",
            metavar="X",
            help=f"in place of keep rates, for each method: {what}",
        )
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help=f"of: {', '.join(DTYPES)}")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--compile", action="store_true", help="all models by torch.compile, the unreduced one too")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(check("threads", args.threads, Count))
    settings = {name: getattr(args, name) for name in ("img_size", "dtype", "batch_size", "device", "rounds")}
    budgets = [f"{word}={value}" for word in BUDGET_HELP for value in getattr(args, word) or ()]
    rates = [*(args.keep_rate or ()), *budgets] or KEEP_RATES
    rows = compare(args.backbone, args.reducer, rates, compiled=args.compile, **settings)
    how = f"{args.dtype}{', compiled' if args.compile else ''}, batch {args.batch_size}"
    print(f"{args.backbone}, {how}, {args.rounds} rounds, median and quartiles")
    for line in _lines(rows):
        print("".join(line))


def _lines(rows: Sequence[Mapping[str, object]]) -> Iterator[list[str]]:
    """Header and rows of the printed table; memory and compilation only where they were measured."""
    more = {"peak_memory_mb": "MB", "compile_seconds": "compile s"}
    more = {name: title for name, title in more.items() if rows[0][name] is not None}
    header = [f"{'method':<24}{'keep':>6}{'FPS':>10}{'speed-up':>10}{'quartiles':>14}{'GMAC':>10}{'MAC ratio':>11}"]
    yield [*header, f"{'ceiling':>9}", *(f"{title:>11}" for title in more.values())]
    for row in rows:
        name = row["method"] + (f":{row['options']}" if row["options"] else "")
        quartiles = f"{row['speedup_q1']:.2f}-{row['speedup_q3']:.2f}"
        ceiling = "-" if row["ceiling"] is None else f"{row['ceiling']:.2f}x"
        yield [
            f"{name:<24}{keep_rate_text(row['keep_rate']):>6}{row['fps']:>10.2f}{row['speedup']:>9.2f}x{quartiles:>14}",
            f"{row['gmac']:>10.4f}{rows[0]['gmac'] / row['gmac']:>10.2f}x{ceiling:>9}",
            *(f"{row[name]:>11.1f}" for name in more),
        ]


if __name__ == "__main__":
    sys.exit(main())
