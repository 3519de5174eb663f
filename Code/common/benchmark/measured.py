"""Rows of speed: every candidate in turn, in one number format and for one batch after the other."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.benchmark.candidates import Candidate, checked_rate, counted_on, models_of, timed_models
from common.benchmark.engines import Call, Eager, engine_called
from common.benchmark.identity import assert_identity
from common.cost.memory import peak_bytes
from common.cost.throughput import Throughput, interleaved
from common.devices import DTYPES, Format, Runtime, torch_device
from common.errors import UsageError
from common.models.factory import create_backbone
from common.options import Count, Many, checked
from common.precision import lacking
from common.reducers import Method
from common.schedule import keep_rate_text

GPU_SECONDS = 1.0  # of timed passes, after which a slow model has been seen often enough: GPUs are lent by the minute


@dataclass(frozen=True)
class Start:
    """The first passes of a model.

    Attributes:
        call: what is timed in its place.
        seconds: that it took to make this; None = it is the model itself.
        peak_mb: 10^6 bytes at the most during a pass, weights and images included; None where PyTorch does not run it.
    """

    call: Call
    seconds: float | None
    peak_mb: float | None


@checked
def compare(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float | str],
    *,
    dtype: Format = "float32",
    batch_size: Count = 16,
    runtime: Runtime = "eager",
    **how: object,
) -> list[dict[str, object]]:
    """:func:`compare_all` for one number format, one batch size and one runtime."""
    conditions = {"dtypes": (dtype,), "batch_sizes": (batch_size,), "runtimes": (runtime,)}
    return compare_all(backbone, methods, keep_rates, **conditions, **how)


@checked
def compare_all(
    backbone: str,
    methods: Sequence[str],
    keep_rates: Sequence[float | str],
    *,
    img_size: Count | None = None,
    dtypes: Many[Format] = ("float32",),
    batch_sizes: Many[Count] = (16,),
    runtimes: Many[Runtime] = ("eager",),
    device: str | None = None,
    rounds: Count = 10,
    seed: int = 0,
    ceilings: bool = True,
    backend: str = "inductor",
    weights: str | Path | None = None,
    images: Tensor | None = None,
) -> list[dict[str, object]]:
    """Measure ``methods`` at ``keep_rates`` on a ``backbone`` against the backbone itself.

    Before anything is timed, a model that selects every patch in every block, through the same code as the methods,
    must give the backbone's logits to 1e-5. Models are made and counted once, whatever the conditions, and exported
    once for onnxruntime, where each file must give the logits of its model to 1e-4.

    A model that does not run (out of memory, or torch.compile or ONNX do not take it) is left out, and a line on stderr
    says which and why.

    Args:
        methods: written as for :class:`common.reducers.Method`; "none" is always measured.
        keep_rates: see :class:`common.reducers.Schedule`; or budgets ("mac_cut=0.4", "speedup=1.5"), for which each
            method has a keep rate of its own; one that cannot meet it is left out there. A budget of time is of eager
            models, for one format and one batch.
        img_size: pixels; default that of the backbone.
        dtypes: of weights and images; "int8" of the linear layers of the blocks, on onnxruntime
            (:mod:`common.onnx_int8`). One that the processor has no units for is left out.
        runtimes: what runs all models, the unreduced one too: PyTorch as it is ("eager"), torch.compile ("compiled"),
            or onnxruntime, on CPU.
        device: default "cuda" when there is one.
        rounds: passes of each model; on a GPU three, if together they take longer than ``GPU_SECONDS``.
        seed: of weights, images and samplers.
        ceilings: measure these too; without them half as much is compiled or exported.
        backend: of torch.compile.
        weights: see :func:`common.create_model`; None = random ones.
        images: (n, 3, H, W) of a data set, normalised as the weights expect, for methods that keep more of some images
            than of others: their budgets are solved and their costs counted on all of them, and all models are timed
            on as many as a batch has, from all over them. None = random ones, of which such methods keep about as much
            of each.

    Returns:
        For each runtime, format and batch a row for the baseline (method "none") and one per method and keep rate:
        runtime, dtype, batch, method, options, keep_rate, img_size, params, gmac (attention included),
        gmac_thop_compat, the fields of :class:`common.cost.throughput.Throughput`, compile_seconds (of compilation, or
        of export and loading; None in eager), peak_memory_mb (None on onnxruntime), and ceiling: the speed-up, in the
        same rounds, of :class:`common.cost.ceiling.FirstTokens` with as many tokens, None where these depend on the
        image or ``ceilings`` is False.

    Raises:
        UsageError: bad input, a runtime that is not to be had, or the backbone itself does not run.
    """
    where, parsed = torch_device(device), [Method.parse(method) for method in methods]
    rates = [checked_rate(rate, product(runtimes, dtypes, batch_sizes)) for rate in keep_rates]
    engines = [engine_called(name, backend=backend) for name in runtimes]
    for engine, dtype in product(engines, dtypes):
        engine.check(dtype, where)
    dtypes = _measurable(dtypes, where)
    if images is not None and len(images) < max(batch_sizes):
        raise UsageError(f"batch_sizes={list(batch_sizes)} of {len(images)} images; give as many images or more")
    torch.manual_seed(seed)
    vit = create_backbone(backbone, weights=weights, num_classes=None if weights else 10, img_size=img_size).eval()
    batch_of = partial(_images, vit=vit, seed=seed) if images is None else partial(_spread, images)
    some = partial(batch_of, max(batch_sizes)) if images is None else lambda: images
    how = {"batch_size": batch_sizes[0], "dtype": _torch_name(dtypes[0]), "device": str(where)}
    models = models_of(vit, parsed, rates, some, **how)
    assert_identity(vit, _images(1, vit, seed))
    candidates = counted_on(where, vit, models, images)
    timed = timed_models(vit, candidates, ceilings)
    rows = []
    for engine, dtype, batch in product(engines, dtypes, batch_sizes):
        vit_dtype = DTYPES[_torch_name(dtype)]
        for model in timed.values():
            model.to(vit_dtype)
        shown = batch_of(batch).to(where, vit_dtype)
        with engine.comparison():
            starts = _started(engine, timed, shown, dtype)
            times = _times(starts, shown, rounds)
        condition = {"runtime": engine.name, "dtype": dtype, "batch": batch, "img_size": shown.shape[2]}
        rows += [{**condition, **row} for row in _rows(candidates, starts, times)]
    del vit, models, candidates, timed, model, shown, starts, batch_of, some
    _free(where)
    return rows


def _measurable(dtypes: Sequence[str], device: torch.device) -> list[str]:
    """Those that ``device`` has units for; a line on stderr for each of the others, an error if there are no more."""
    missing = {dtype: reason for dtype in dtypes if (reason := lacking(dtype, device))}
    if len(missing) == len(set(dtypes)):
        raise UsageError(f"not measured: {'; '.join(missing.values())}")
    for reason in missing.values():
        print(f"left out: {reason}", file=sys.stderr)
    return [dtype for dtype in dtypes if dtype not in missing]


def _torch_name(dtype: str) -> str:
    """The number format of a model in PyTorch from which ``dtype`` is made."""
    return dtype if dtype in DTYPES else "float32"


def _images(batch: int, vit: VisionTransformer, seed: int) -> Tensor:
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))


def _spread(images: Tensor, batch: int) -> Tensor:
    """``batch`` of ``images`` from all over them, which stand class by class in a data set."""
    return images[torch.arange(batch) * len(images) // batch]


def _times(starts: Mapping[Hashable, Start], images: Tensor, rounds: int) -> dict[Hashable, Throughput]:
    calls = {key: start.call for key, start in starts.items()}
    limit = GPU_SECONDS if images.is_cuda else math.inf
    return interleaved(calls, images, baseline=next(iter(calls)), rounds=rounds, limit_seconds=limit)


def _rows(
    candidates: Sequence[Candidate], starts: Mapping[Hashable, Start], times: Mapping[Hashable, Throughput]
) -> Iterator[dict[str, object]]:
    """The rows of one condition, without it."""
    for each in candidates:
        if each.variant in times:
            yield {
                "method": each.method.name,
                "options": each.method.options_text,
                "keep_rate": each.keep_rate,
                **each.costs,
                **asdict(times[each.variant]),
                "compile_seconds": starts[each.variant].seconds,
                "peak_memory_mb": starts[each.variant].peak_mb,
                "ceiling": times[each.lengths].speedup if each.lengths in times else None,
            }


def _started(engine: Eager, models: Mapping[Hashable, nn.Module], images: Tensor, dtype: str) -> dict[Hashable, Start]:
    """The first passes of those ``models`` that run, the first of which must; a line on stderr for each other."""
    starts = {}
    for key, model in models.items():
        try:
            starts[key] = _start(engine, model, images, dtype)
        except Exception as error:  # whatever a compiler or a full memory raises: the others are measured
            reason = f"{_told(key)} does not run{engine.told} ({dtype}, batch {len(images)})"
            reason += f": {type(error).__name__}: {_first_line(error)}"
            if not starts:
                raise UsageError(reason) from error
            print(f"left out: {reason}", file=sys.stderr)
    return starts


@torch.inference_mode()
def _start(engine: Eager, model: nn.Module, images: Tensor, dtype: str) -> Start:
    call, seconds = engine.ready(model, images, dtype)
    if not engine.in_torch:
        return Start(call, seconds, None)
    own = sum(each.nbytes for each in (images, *model.parameters(), *model.buffers()))
    return Start(call, seconds, (own + peak_bytes(call, images)) / 1e6)


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
