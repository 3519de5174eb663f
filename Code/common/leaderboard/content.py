"""Boards as the numbers of the page: lists that its script draws, sorts and looks up, and computes nothing with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import torch

from common.leaderboard.answers import BudgetLead, interval, leads, measured_on, names, sentences
from common.leaderboard.board import Board, Place
from common.leaderboard.calls import call_text
from common.leaderboard.lines import METRICS, NULLS, SECOND, Line
from common.leaderboard.verified import VERIFIED
from common.models.factory import create_backbone
from common.plots.frames import backbone_name
from common.plots.style import method_style
from common.reducers.base import reducer_class
from common.report.rows import architecture
from common.schedule import Schedule, default_reduction_loc, read_keep_rate

# matplotlib's markers -> names of d3's symbols
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle", "D": "diamond", "v": "triangle2", "P": "plus", "<": "wye"}
SYMBOLS |= {">": "asterisk", "p": "hexagon", "h": "hexagon", "*": "star", "d": "diamond2", "H": "square2", "X": "times"}
SYMBOLS |= {"8": "circle"}
SPEED = {"speedup": "measured speed-up", "promise": "share of the MAC promise", "memory": "peak memory, 10⁶ bytes"}


def board_content(board: Board, speeds: Mapping[tuple, Mapping[str, float]]) -> dict[str, Any]:
    """One board for the page.

    Args:
        speeds: what was measured of a model, by :func:`speed_key`; names as in :data:`SPEED`, and "where".
    """
    contest, place = board.contest, board.contest.place
    nulls = [null for null in NULLS if any(line.method == null for line in contest.lines)]
    measured = [
        [speeds.get(speed_key(place["backbone"], row), {}) for _, row in line.points.iterrows()]
        for line in contest.lines
    ]
    lines = [_line(board, number, nulls, each) for number, each in enumerate(measured)]
    return {
        "name": f"{place['dataset']}, {backbone_name(place['backbone'])}, {METRICS[contest.metric]}",
        "about": measured_on(board),
        "sentences": sentences(board),
        "leads": [_lead(board, lead) for lead in leads(board)],
        "whole": {"accuracy": _round(contest.whole[contest.metric]), "gmac": _round(contest.whole["gmac"], 4)},
        "budgets": [round(100 * budget, 2) for budget in board.budgets],
        "positions": [round(100 * position) for position in board.positions],
        "nulls": nulls,
        "speed": "; ".join(sorted({speed["where"] for points in measured for speed in points if speed})),
        "lines": lines,
    }


def speed_key(backbone: str, row: Mapping[str, Any]) -> tuple:
    """What a speed and an accuracy must share to be of one model: with the same numbers of tokens it is the same."""
    name, size = architecture(backbone), int(row["img_size"])
    return name, size, row["dtype"], row["method"], row["options"], tokens_left(name, size, row["keep_rate"])


@cache
def tokens_left(backbone: str, img_size: int, keep_rate: float | str) -> tuple[int, ...]:
    """Patch tokens after each stage of the default schedule.

    >>> tokens_left("vit_tiny_patch16_224", 224, 0.648) == tokens_left("vit_tiny_patch16_224", 224, 0.6481)
    True
    """
    with torch.device("meta"):
        vit = create_backbone(backbone, img_size=img_size)
    rate = read_keep_rate(keep_rate)
    return Schedule(rate, default_reduction_loc(len(vit.blocks), rate)).counts(vit.patch_embed.num_patches)


def _line(board: Board, number: int, nulls: Sequence[str], measured: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """One line of a board, with what was ``measured`` of each of its points, {} where nothing was."""
    line = board.contest.lines[number]
    style = method_style(line.method)
    reducer, verified = reducer_class(line.method), VERIFIED.get(line.method)
    points = []
    for place_there, (_, row), found in zip(board.measured[number], line.points.iterrows(), measured, strict=True):
        speed = {name: found[name] for name in SPEED if name in found}
        rate = repr(read_keep_rate(row["keep_rate"]))
        points.append({**_point(place_there, row), "rate": rate, "speed": speed})
    return {
        "key": line.key,
        "label": line.label,
        "method": line.method,
        "color": style.color,
        "symbol": SYMBOLS[style.marker],
        "family": reducer.family,
        "null": line.method in NULLS,
        "trained": line.trained,
        "cls": reducer.needs_class_token,
        "verified": verified.text if verified else "not by this package",
        "tests": list(verified.tests) if verified else [],
        "how": f"{line.training}; {line.how['recipe']}, {line.how['dtype']}, {line.how['device']}",
        "places": [None if there is None else _numbers(there, nulls) for there in board.places[number]],
        "points": points,
        "call": _call(board, line, line.points.iloc[0]["keep_rate"]),
    }


def _call(board: Board, line: Line, keep_rate: float | str) -> list[str]:
    """The call of the model of a line, before and behind its keep rate."""
    place = board.contest.place
    text = call_text(place["backbone"], place["weights"], line.method, line.options, keep_rate)
    before, _, behind = text.partition(f"keep_rate={read_keep_rate(keep_rate)!r}")
    return [f"{before}keep_rate=", behind]


def _numbers(place: Place, nulls: Sequence[str]) -> list[int | None]:
    """A place as the script reads it: accuracy, lost, above each of ``nulls``, behind (three numbers each), second.

    Whole numbers, since they are a third shorter: the accuracy in hundredths of a point, differences in tenths, the two
    last in ten-thousandths.
    """
    empty = (float("nan"),) * 3
    differences = [place.lost, *(place.above.get(null, empty) for null in nulls), place.behind or empty]
    tenths = [_whole(value, 10) for difference in differences for value in difference]
    return [_whole(place.accuracy, 100), *tenths, *(_whole(place.second[name], 10_000) for name in SECOND)]


def _whole(value: float, parts: int) -> int | None:
    """``value`` in so many parts of 1."""
    return None if pd.isna(value) else round(parts * float(value))


def _point(place: Place, row: pd.Series) -> dict[str, Any]:
    return {
        "accuracy": _round(place.accuracy),
        "lost": [_round(value) for value in place.lost],
        "above": {null: [_round(value) for value in difference] for null, difference in place.above.items()},
        **{name: _round(value, 4) for name, value in place.second.items()},
        "saved": _round(100 * row["saved"]),
        "gmac": _round(row["gmac"], 4),
        "keep_rate": str(row["keep_rate"]),
        "counts": "" if pd.isna(row["counts"]) else str(row["counts"]),
        "seeds": int(row["seeds"]),
    }


def _lead(board: Board, lead: BudgetLead) -> dict[str, Any]:
    called = names(board)
    text = f"{100 * lead.budget:g} % saved: {called[lead.best]} {lead.place.accuracy:.2f} %"
    if lead.runner is not None:
        other, place = lead.runner
        text += f", {interval(place.behind or (0.0, 0.0, 0.0), 2)} points to {called[other]}"
        text += "" if lead.p is None else f", McNemar p = {lead.p:.2g}"
    return {"text": text, "sure": lead.runner is not None and not lead.tied}


def _round(value: float, digits: int = 2) -> float | None:
    """``value`` for JSON, which knows no NaN."""
    return None if pd.isna(value) else round(float(value), digits)
