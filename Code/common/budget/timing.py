"""The keep rate at which a method is as fast as it must be: measured here and now, because no formula knows a machine.

Time goes down in steps: kernels work on multiples of 8 or 64 tokens, and below some number nothing gets any faster. So
a few keep rates are measured, in turn with the unreduced model, more of them where the limit is crossed, and the
largest that meets it is taken. The numbers are kept in a file with all the conditions that they hold for.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor, nn

from common.cost.throughput import interleaved
from common.data.sources import DEFAULT_ROOT
from common.errors import UsageError
from common.results import write_atomically

DEFAULT_CACHE = f"{DEFAULT_ROOT}/timings"
WHOLE = 1.0  # the keep rate of the unreduced model
LEAST = 1e-4  # the smallest keep rate: one token in every stage
GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, LEAST)
FINER = 4  # keep rates between two neighbours, where the limit is crossed
CLOSE = 0.005  # neighbours this near are not told apart: less than a token of 196 in the first stage
TOLERANCE = 0.05  # by which two measurements of the same model may differ
TRIES = 2
ROUNDS = 15
LIMIT_SECONDS = 3.0  # of timed passes, after which a slow model has been seen often enough
Wanted, Found = TypeVar("Wanted"), TypeVar("Found")


class OutOfReachError(UsageError):
    """A budget that no keep rate of a method meets."""


def met(
    wanted: Iterable[Wanted], solve: Callable[[Wanted], Found], *, required: bool = False
) -> list[tuple[Wanted, Found]]:
    """Those of ``wanted`` whose budget can be met, with what ``solve`` gives; lines on stderr say why others are not.

    Args:
        required: one of them must be met.

    Raises:
        OutOfReachError: the first of all, where none is met and one is ``required``.

    >>> def solve(budget):
    ...     if budget > 0.5:
    ...         raise OutOfReachError(f"tome cannot save {budget}")
    ...     return 1 - budget
    >>> met([0.25, 0.75], solve)
    [(0.25, 0.75)]
    """
    found, refused = [], []
    for each in wanted:
        try:
            found.append((each, solve(each)))
        except OutOfReachError as error:
            refused.append(error)
    if required and refused and not found:
        raise refused[0]
    for error in refused:
        print(f"left out: {error}", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Timed:
    """Of one pass over the batch.

    Attributes:
        latency_ms: milliseconds, median.
        speedup: how many times as fast as the unreduced model, median over passes in turn with it.
    """

    latency_ms: float
    speedup: float


Measure = Callable[[Mapping[float, nn.Module], Tensor], Mapping[float, Timed]]  # models by keep rate, WHOLE among them


def in_turn(models: Mapping[float, nn.Module], images: Tensor) -> dict[float, Timed]:
    """Time ``models``, by keep rate, on ``images`` (B, 3, H, W) as :func:`common.cost.throughput.interleaved` does."""
    found = interleaved(models, images, baseline=WHOLE, rounds=ROUNDS, limit_seconds=LIMIT_SECONDS)
    return {rate: Timed(1000 * len(images) / each.fps, each.speedup) for rate, each in found.items()}


@dataclass(frozen=True)
class Limit:
    """What a pass may take, ``latency_ms`` at the most or ``speedup`` at the least."""

    word: Literal["latency_ms", "speedup"]
    value: float

    def __str__(self) -> str:
        return f"{self.word}={self.value:g}"

    def of(self, timed: Timed) -> float:
        return getattr(timed, self.word)

    def met_by(self, timed: Timed) -> bool:
        return self.of(timed) <= self.value if self.word == "latency_ms" else self.of(timed) >= self.value


class TimedRates:
    """Measured times of the keep rates of one method, remembered in a file.

    Args:
        model_at: keep rate -> model, in eval mode, on the device and in the number format of ``images``.
        counts_at: keep rate -> patch tokens after each stage; rates of equal counts are the same model.
        images: (B, 3, H, W).
        conditions: all that the times depend on, as JSON has it. A file is read only where all of them are equal.
        folder: of the files.
        measure: see :func:`in_turn`.
    """

    def __init__(
        self,
        model_at: Callable[[float], nn.Module],
        counts_at: Callable[[float], tuple[int, ...]],
        images: Tensor,
        conditions: Mapping[str, object],
        folder: Path,
        measure: Measure = in_turn,
    ) -> None:
        self.model_at, self.counts_at, self.images, self.measure = model_at, counts_at, images, measure
        self.conditions = json.loads(json.dumps(conditions))
        name = hashlib.sha256(json.dumps(self.conditions, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder / f"{name}.json"
        self.known = self._read()

    def rate_for(self, limit: Limit) -> tuple[float, Timed, bool]:
        """The largest keep rate that meets ``limit``, its times, and whether they were found again.

        What is chosen is measured once more. Where that is off by more than ``TOLERANCE``, everything is measured anew;
        where it is again, a warning says what was measured.

        Raises:
            OutOfReachError: no keep rate meets it; the message has the nearest.
        """
        seen = []
        for _ in range(TRIES):
            rate = self._largest(limit)
            first, again = limit.of(self.known[rate]), limit.of(self._timed([rate])[rate])
            if abs(again / first - 1) <= TOLERANCE:
                return rate, self.known[rate], True
            seen += [first, again]
            found, self.known = self.known[rate], {}
        times = ", ".join(f"{each:.3g}" for each in seen)
        warnings.warn(
            f"{limit} is not sure: at keep rate {rate} this machine gave {limit.word} {times} one after the other, "
            f"which is more than {TOLERANCE:.0%} apart; measure again when nothing else runs",
            stacklevel=2,
        )
        return rate, found, False

    def _largest(self, limit: Limit) -> float:
        """The largest measured keep rate that meets ``limit``, after measuring more of them just above it."""
        if not self.known:
            self._add(GRID)
        while True:
            met = [rate for rate, timed in self.known.items() if limit.met_by(timed)]
            if not met:
                raise OutOfReachError(self._nearest(limit))
            best = max(met)
            above = min((rate for rate in self.known if rate > best), default=None)
            more = [] if above is None or above - best <= CLOSE else self._between(best, above)
            if not more:
                return best
            self._add(more)

    def _between(self, low: float, high: float) -> list[float]:
        """Keep rates between two others with other token counts than theirs, and each other's."""
        step, found = (high - low) / (FINER + 1), {}
        for number in range(1, FINER + 1):
            rate = round(low + number * step, 4)
            found.setdefault(self.counts_at(rate), rate)
        ends = self.counts_at(low), self.counts_at(high)
        return [rate for counts, rate in found.items() if counts not in ends]

    def _nearest(self, limit: Limit) -> str:
        best = (min if limit.word == "latency_ms" else max)(self.known, key=lambda rate: limit.of(self.known[rate]))
        where = ", ".join(f"{name} {self.conditions[name]}" for name in ("batch", "dtype", "device"))
        return (
            f"{self.conditions['method']} cannot meet {limit} ({where}); the nearest that it can is "
            f"{limit.of(self.known[best]):.3g}, at keep rate {best}"
        )

    def _timed(self, rates: Sequence[float]) -> Mapping[float, Timed]:
        """Times of ``rates`` and of the unreduced model."""
        return self.measure({rate: self.model_at(rate) for rate in (WHOLE, *rates)}, self.images)

    def _add(self, rates: Sequence[float]) -> None:
        """Measure ``rates``, and remember them; of the unreduced model the first times stay."""
        self.known = {**self._timed(rates), **self.known}
        times = {str(rate): asdict(timed) for rate, timed in sorted(self.known.items())}
        content = json.dumps({"conditions": self.conditions, "rates": times}, indent=2) + "\n"
        try:
            write_atomically(self.path, lambda file: file.write(content))
        except OSError as error:
            raise UsageError(
                f"no timings can be kept in {str(self.path.parent)!r}: {error}; give cache=FOLDER"
            ) from error

    def _read(self) -> dict[float, Timed]:
        if not self.path.is_file():
            return {}
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            rates = {float(rate): Timed(**times) for rate, times in found["rates"].items()}
            return rates if found["conditions"] == self.conditions else {}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{str(self.path)!r} holds no timings of this package; delete it") from error
