"""Images per second of several models, measured in turn on the same batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.cost.allocator import keep_freed_memory
from common.models.reduced import uncautioned

FEW = 3  # passes that have a median


@dataclass(frozen=True)
class Throughput:
    """Images per second of one model, and its speed-up over the baseline, pair by pair in one run.

    Attributes:
        fps, fps_q1, fps_q3: median and quartiles of images per second over the rounds.
        speedup, speedup_q1, speedup_q3: median and quartiles of baseline seconds / own seconds of the same round.
        rounds: how often each model ran.
    """

    fps: float
    fps_q1: float
    fps_q3: float
    speedup: float
    speedup_q1: float
    speedup_q3: float
    rounds: int


def interleaved(
    models: Mapping[Hashable, Callable[[Tensor], object]],
    images: Tensor,
    *,
    baseline: Hashable,
    rounds: int = 10,
    limit_seconds: float = math.inf,
) -> dict[Hashable, Throughput]:
    """Time all ``models`` in turn, A B C A B C ..., on the same batch.

    Taking turns makes a drift of the machine hit all of them alike; the speed-up is computed inside each round. On CPU
    every timed pass follows an untimed one of the same model, which finds caches as it leaves them itself, and the
    process keeps its memory from now on (:func:`common.cost.allocator.keep_freed_memory`); on a GPU only the first one
    does.

    Args:
        models: by any key, on the device and in the dtype of ``images``, in eval mode; or whatever is called with them.
        images: (B, 3, H, W).
        baseline: key of the model that is the 1.0 of the speed-up.
        rounds: measured passes of each model.
        limit_seconds: after ``FEW`` timed passes a model, unless it is the baseline, stops taking part once all that
            it had took this long together.
    """
    keep_freed_memory()
    seconds = {name: [] for name in models}
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(uncautioned(model))  # untrained ones take as long
        stack.enter_context(torch.inference_mode())
        for turn in tqdm(range(rounds), desc="rounds", leave=False):
            for name, model in models.items():
                if turn >= FEW and name != baseline and sum(seconds[name]) > limit_seconds:
                    continue
                if turn == 0 or not images.is_cuda:
                    model(images)
                seconds[name].append(seconds_of(model, images))
    return {name: summary(own, seconds[baseline][: len(own)], len(images)) for name, own in seconds.items()}


def seconds_of(model: Callable[[Tensor], object], images: Tensor) -> float:
    """Seconds of one pass of ``model``, from an idle device until it is done."""
    _synchronize(images)
    start = time.perf_counter()
    model(images)
    _synchronize(images)
    return time.perf_counter() - start


def _synchronize(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def summary(own: Sequence[float], baseline: Sequence[float], batch: int) -> Throughput:
    """Of passes over ``batch`` images that took these seconds, own and baseline in the same round."""
    fps = [batch / seconds for seconds in own]
    speedup = [base / seconds for base, seconds in zip(baseline, own, strict=True)]
    return Throughput(*_quartiles(fps), *_quartiles(speedup), rounds=len(own))


def promise_share(speedup: Any, gmac: Any, unreduced_gmac: Any) -> Any:
    """Share that a speed-up reaches of what the arithmetic promises, the MAC ratio; of numbers, or of columns of them.

    >>> promise_share(1.5, 0.5, 1.0)
    0.75
    """
    return speedup * gmac / unreduced_gmac


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    return tuple(np.quantile(values, (0.5, 0.25, 0.75)).tolist())
