"""Lines of models at equal cost: accuracy and paired differences at every percent of the MAC that may be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.leaderboard.bootstrap import Bootstrap, mcnemar
from common.leaderboard.lines import NULLS, SECOND, Contest, Line
from common.results import BY_IMAGE

STEP = 0.01  # of the MAC, between two positions
_MISSED = 0.005  # of the MAC: token counts are whole, so the last point of a line may lie a little off its budget

Difference = tuple[float, float, float]  # mean, and the ends of its 95 % interval, points


@dataclass(frozen=True)
class Place:
    """One model at one cost.

    Attributes:
        accuracy: percent.
        lost: to the unreduced model.
        above: each of the null rows at the same cost, by its method; without those that were not run there.
        behind: the best untrained model at this cost minus this one; None for that one, and where no other is.
        second: agreement and divergence, NaN where they were not measured.
    """

    accuracy: float
    lost: Difference
    above: Mapping[str, Difference]
    behind: Difference | None
    second: dict[str, float]


@dataclass(frozen=True)
class Board:
    """A contest at equal cost.

    Attributes:
        contest: what was measured.
        positions: shares of the MAC that are saved, from 0 on in steps of :data:`STEP`.
        places: for each line of the contest and each position; None outside of what was measured.
        measured: for each line and each of its points.
    """

    contest: Contest
    positions: tuple[float, ...]
    places: tuple[tuple[Place | None, ...], ...]
    measured: tuple[tuple[Place, ...], ...]

    @classmethod
    def of(cls, contest: Contest) -> Board:
        return _Mixtures(contest).board()

    @property
    def budgets(self) -> list[float]:
        """Shares to save that were asked for; where none was, every tenth at which two models can be compared."""
        points = pd.concat([line.points for line in self.contest.lines if not line.trained])
        asked = points["mac_cut"].dropna().astype(float)
        tenths = [round(position, 2) for position in self.positions[10::10]]
        return sorted(set(asked)) if len(asked) else [tenth for tenth in tenths if len(self.at(tenth)) > 1]

    def at(self, saved: float) -> dict[int, Place]:
        """Place of each line, by its number, that was measured on both sides of ``saved``; the best first."""
        number = round(saved / STEP)
        there = {i: places[number] for i, places in enumerate(self.places) if places[number] is not None}
        return dict(sorted(there.items(), key=lambda item: -item[1].accuracy))

    def mcnemar(self, first: int, second: int, budget: float) -> float | None:
        """p of McNemar's test between two lines, as measured for a budget.

        None where one was not, where it is a mean over seeds, and where the first saves less than the second.
        """
        pair = [self._asked(self.contest.lines[number], budget) for number in (first, second)]
        if any(point is None for point in pair) or pair[0]["saved"] < pair[1]["saved"] - _MISSED:
            return None
        return mcnemar(*(point[self.contest.metric + BY_IMAGE] for point in pair))

    @staticmethod
    def _asked(line: Line, budget: float) -> pd.Series | None:
        """The point of ``line`` that was measured for ``budget``."""
        points = line.points[np.isclose(line.points["mac_cut"].astype(float), budget)]
        return points.iloc[0] if len(points) == 1 else None


class _Mixtures:
    """Every model at every cost as weights of what was measured: 0 is the unreduced model, then all points."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        points = [row for line in contest.lines for _, row in line.points.iterrows()]
        rows = [contest.whole, *points]
        self.values = pd.DataFrame([[float(row[name]) for name in SECOND] for row in rows], columns=list(SECOND))
        self.bootstrap = Bootstrap.of(np.stack([row[contest.metric + BY_IMAGE] for row in rows]))
        self.whole = self._unit(0)
        self.knots = list(self._knots(contest.lines))

    def board(self) -> Board:
        last = max(saved[-1] for saved, _ in self.knots)
        positions = tuple(STEP * i for i in range(int((last + _MISSED) / STEP) + 1))
        columns = [self._column(position) for position in positions]
        measured = [self._points(line, knots) for line, knots in zip(self.contest.lines, self.knots, strict=True)]
        return Board(self.contest, positions, tuple(zip(*columns, strict=True)), tuple(measured))

    def _unit(self, number: int) -> np.ndarray:
        return np.eye(1, len(self.values), number)[0]

    def _knots(self, lines: tuple[Line, ...]) -> Iterator[tuple[list[float], list[np.ndarray]]]:
        """``saved`` of the points of each line, rising, and their weights.

        A method that drops nothing is the unreduced model, where its line begins; not what is trained or resized.
        """
        number = 1
        for line in lines:
            saved = line.points["saved"].tolist()
            weights = [self._unit(number + i) for i in range(len(saved))]
            number += len(saved)
            yield ([0.0, *saved], [self.whole, *weights]) if line.begins_whole else (saved, weights)

    def _mixture(self, number: int, saved: float) -> np.ndarray | None:
        """Weights on the straight line between the two points around ``saved``; None beyond the last measured ones."""
        knots, weights = self.knots[number]
        if not knots[0] - _MISSED <= saved <= knots[-1] + _MISSED:
            return None
        saved = min(max(saved, knots[0]), knots[-1])
        above = max(int(np.searchsorted(knots, saved)), 1) if len(knots) > 1 else 0
        if above == 0:
            return weights[0]
        below, span = above - 1, knots[above] - knots[above - 1]
        share = (saved - knots[below]) / span if span else 1.0
        return (1 - share) * weights[below] + share * weights[above]

    def _nulls(self, saved: float) -> dict[str, np.ndarray]:
        """Weights of the null rows, those that were run in one way."""
        found = {}
        for null in NULLS:
            numbers = [i for i, line in enumerate(self.contest.lines) if line.method == null and not line.trained]
            mixtures = [self._mixture(i, saved) for i in numbers]
            found |= {null: mixtures[0]} if len(mixtures) == 1 and mixtures[0] is not None else {}
        return found

    def _column(self, saved: float) -> list[Place | None]:
        mixtures = [self._mixture(i, saved) for i in range(len(self.knots))]
        best, nulls = self._best(mixtures), self._nulls(saved)
        return [None if weights is None else self._place(weights, nulls, best) for weights in mixtures]

    def _best(self, mixtures: list[np.ndarray | None]) -> np.ndarray | None:
        lines, means = self.contest.lines, self.bootstrap.samples.mean(1, dtype=np.float64)
        pairs = zip(lines, mixtures, strict=True)
        there = [weights for line, weights in pairs if weights is not None and not line.trained]
        return max(there, key=lambda weights: weights @ means) if len(there) > 1 else None

    def _points(self, line: Line, knots: tuple[list[float], list[np.ndarray]]) -> tuple[Place, ...]:
        pairs = list(zip(*knots, strict=True))[-len(line.points) :]
        return tuple(self._place(weights, self._nulls(saved), None) for saved, weights in pairs)

    def _place(self, weights: np.ndarray, nulls: Mapping[str, np.ndarray], best: np.ndarray | None) -> Place:
        difference = self.bootstrap.difference
        same = best is None or np.array_equal(best, weights)
        return Place(
            accuracy=float(weights @ self.bootstrap.samples.mean(1, dtype=np.float64)),
            lost=difference(weights, self.whole),
            above={
                name: difference(weights, null) for name, null in nulls.items() if not np.array_equal(null, weights)
            },
            behind=None if same else difference(best, weights),
            second={name: _mixed(weights, self.values[name].to_numpy()) for name in SECOND},
        )


def _mixed(weights: np.ndarray, values: np.ndarray) -> float:
    used = weights != 0
    return float(weights[used] @ values[used])
