"""Boards in words: which method for which budget, in three sentences made from the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from common.leaderboard.board import Board, Place
from common.leaderboard.lines import METRICS, NULLS, Line
from common.plots.frames import backbone_name
from common.plots.style import METHODS

_NAMED = 3  # tied models; more are counted
_NOWHERE = "nowhere surely ahead of every other"
_NULL = {"random": "random patches", "downsample": "a smaller image"}


@dataclass(frozen=True)
class BudgetLead:
    """The best untrained model at a budget.

    Attributes:
        budget: share of the MAC that is saved.
        best: its line's number.
        tied: lines, by number, that are not told apart from it: the interval of the difference has 0 in it.
        runner: of the others the one that it is least certainly ahead of, with the difference; None when it is alone.
        p: of McNemar's test between these two, where it can be made.
    """

    budget: float
    best: int
    place: Place
    tied: tuple[int, ...]
    runner: tuple[int, Place] | None
    p: float | None


def leads(board: Board) -> list[BudgetLead]:
    """The leader at each budget that was asked for."""
    lines, found = board.contest.lines, []
    for budget in board.budgets:
        there = {i: place for i, place in board.at(budget).items() if not lines[i].trained}
        if not there:
            continue
        best, *others = there
        tied = tuple(i for i in others if there[i].behind is None or there[i].behind[1] <= 0)
        closest = min(others, key=lambda i: there[i].behind[1] if there[i].behind else 0.0, default=None)
        runner = None if closest is None else (closest, there[closest])
        p = None if closest is None else board.mcnemar(best, closest, budget)
        found.append(BudgetLead(budget, best, there[best], tied, runner, p))
    return found


def sentences(board: Board) -> list[str]:
    """Which one? What leads where, what surely leads, and what the rows without a method are worth."""
    found = leads(board)
    if not found:
        return []
    return [_where(board, found), _certain(board, found), _nulls(board, found)]


def measured_on(board: Board) -> str:
    """Data, network, number format and device of the untrained models."""
    place = board.contest.place
    return (
        f"{place['n_val']:,} validation images of {place['dataset']}, {backbone_name(place['backbone'])} at "
        f"{place['img_size']} px, no training, {place['dtype']} on {place['device']}; top-1 among "
        f"{METRICS[board.contest.metric]}"
    )


def names(board: Board) -> list[str]:
    """Of the lines in sentences; with the options of a method that is there several times."""
    lines = board.contest.lines
    times = Counter((line.method, line.trained) for line in lines)
    return [_name(line, options=times[line.method, line.trained] > 1) for line in lines]


def called_simply(method: str) -> str:
    """Of a method in a sentence; one that has no name for readers keeps its own."""
    return _NULL.get(method, METHODS.get(method, method))


def _name(line: Line, *, options: bool) -> str:
    label = called_simply(line.method)
    label += f" ({line.options})" if options and line.options else ""
    return label + (" (trained)" if line.trained else "")


def _where(board: Board, found: Sequence[BudgetLead]) -> str:
    """First sentence: the leader of each run of budgets."""
    called, parts = names(board), []
    for best, group in groupby(found, key=lambda lead: lead.best):
        group = list(group)
        ends = (group[0], group[-1]) if len(group) > 1 else (group[0],)
        budgets = " to ".join(f"{100 * lead.budget:g}" for lead in ends)
        shown = " to ".join(f"{lead.place.accuracy:.1f}" for lead in ends)
        parts.append(f"{called[best]} at {budgets} % ({shown} %)")
    whole = board.contest.whole[board.contest.metric]
    return f"Most accurate at the same share of multiply-accumulates saved: {_list(parts)}; unreduced {whole:.1f} %."


def _certain(board: Board, found: Sequence[BudgetLead]) -> str:
    """Second sentence: where the leader is surely ahead of all others, and with whom it is tied elsewhere."""
    called, sure, tied = names(board), [], []
    for lead in found:
        at = f"{100 * lead.budget:g} %"
        if lead.runner is not None and not lead.tied:
            other, place = lead.runner
            sure.append(f"at {at}, by {interval(place.behind)} points over {called[other]}")
        elif lead.tied:
            others = [called[i] for i in lead.tied]
            tied.append(f"at {at} with {_list(others) if len(others) <= _NAMED else f'{len(others)} others'}")
    first = f"surely ahead of every other {'only ' if tied else ''}{'; '.join(sure)}" if sure else _NOWHERE
    second = f"; tied {'; '.join(tied)}" if tied else ""
    return f"By the 95 % interval of the paired difference the leader is {first}{second}."


def _nulls(board: Board, found: Sequence[BudgetLead]) -> str:
    """Third sentence: how many methods are surely better than random patches, and than a smaller image."""
    parts = []
    for null in NULLS:
        counts = [(lead.budget, *_surely_above(board, lead.budget, null)) for lead in found]
        told = [f"{better} of {of} at {100 * budget:g} %" for budget, better, of in counts if of]
        parts += [f"than {_NULL[null]}: {_list(told)}"] if told else []
    if not parts:
        return "Neither random patches nor a smaller image was run: nothing says what the methods are worth."
    return f"Methods surely better {'; '.join(parts)}."


def _surely_above(board: Board, budget: float, null: str) -> tuple[int, int]:
    """How many untrained methods are surely better than ``null`` at ``budget``, and how many could be."""
    lines = board.contest.lines
    there = [place for i, place in board.at(budget).items() if not lines[i].trained and lines[i].method not in NULLS]
    known = [place.above[null] for place in there if null in place.above]
    return sum(low > 0 for _, low, _ in known), len(known)


def interval(difference: tuple[float, float, float], digits: int = 1) -> str:
    """A difference with its interval, in words.

    >>> interval((1.26, 0.4, 2.1))
    '+1.3 (+0.4 to +2.1)'
    """
    mean, low, high = (f"{value:+.{digits}f}" for value in difference)
    return f"{mean} ({low} to {high})"


def _list(parts: Sequence[str]) -> str:
    """What people write between the parts of a list.

    >>> _list(["a"]), _list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
