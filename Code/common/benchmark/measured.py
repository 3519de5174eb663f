"""Rows of speed: every candidate in turn, in one number format and for one batch after the other."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.benchmark.candidates import Candidate, checked_rate, counted_on, models_of
from common.benchmark.identity import assert_identity
from common.cost.ceiling import FirstTokens
from common.cost.throughput import interleaved, seconds_of
from common.devices import DTYPES, Dtype, torch_device
from common.errors import UsageError
from common.models.factory import create_backbone
from common.options import Count, Many, checked
from common.reducers import Method
from common.schedule import keep_rate_text

GPU_SECONDS = 1.0  # of timed passes, after which a slow model has been seen often enough: GPUs are lent by the minute


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
    rates = [checked_rate(rate, len(dtypes) * len(batch_sizes)) for rate in keep_rates]
    torch.manual_seed(seed)
    vit = create_backbone(backbone, num_classes=10, img_size=img_size).eval()
    some = partial(_images, max(batch_sizes), vit, seed)
    how = {"batch_size": batch_sizes[0], "dtype": dtypes[0], "device": str(where)}
    models = models_of(vit, parsed, rates, some, **how)
    assert_identity(vit, _images(1, vit, seed))
    candidates = counted_on(where, vit, models)
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


def _images(batch: int, vit: VisionTransformer, seed: int) -> Tensor:
    return torch.randn(batch, 3, *vit.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))


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
