"""The answer at the top of README.md: three sentences and a table, between two markers."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from common.errors import UsageError
from common.leaderboard.answers import BudgetLead, called_simply, leads, measured_on, sentences
from common.leaderboard.board import Board, Place
from common.leaderboard.lines import NULLS
from common.leaderboard.verified import VERIFIED
from common.results import write_atomically

START, END = "<!-- leaderboard -->\n", "\n<!-- end -->"
HOW = (
    "Accuracy in percent at the share of multiply-accumulates saved, read off the straight line between a method's "
    "two nearest measured points; bold: the best and what is not told apart from it (95 % interval of the paired "
    "difference on the same images, 2,000 bootstrap resamples; not corrected for the number of methods)."
)
_WIDTH = 120


def markdown(board: Board) -> str:
    """Sentences, table and how to read it, as they stand in README."""
    about = measured_on(board)
    numbered = [_wrapped(f"{number}. {each}", "   ") for number, each in enumerate(sentences(board), 1)]
    return "\n\n".join(["\n".join(numbered), _wrapped(f"{about[:1].upper()}{about[1:]}. {HOW}"), _table(board)])


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(board: Board) -> str:
    found, whole = leads(board), board.contest.whole
    budgets = [lead.budget for lead in found]
    heads = [f"{100 * budget:g} %" for budget in budgets]
    lines = [f"| method | {' | '.join(heads)} | verified |", f"|---|{'--:|' * len(heads)}---|"]
    costs = " | ".join(f"{whole['gmac'] * (1 - budget):.2f} GMAC" for budget in budgets)
    lines.append(f"| unreduced: {whole[board.contest.metric]:.1f}, {whole['gmac']:.2f} GMAC | {costs} |  |")
    columns = [board.at(budget) for budget in budgets]
    return "\n".join([*lines, *(_row(board, number, columns, found) for number in _order(board, columns))])


def _order(board: Board, columns: list[dict[int, Place]]) -> list[int]:
    """Untrained methods by how far they are behind the best, at those budgets where they are; the null rows last."""
    lines = board.contest.lines
    untrained = [number for number, line in enumerate(lines) if not line.trained]

    best = [max(each.accuracy for each in column.values()) for column in columns]

    def behind(number: int) -> float:
        known = [most - column[number].accuracy for most, column in zip(best, columns, strict=True) if number in column]
        return sum(known) / len(known) if known else math.inf

    return sorted(untrained, key=lambda number: (lines[number].method in NULLS, behind(number)))


def _row(board: Board, number: int, columns: list[dict[int, Place]], found: list[BudgetLead]) -> str:
    line, cells = board.contest.lines[number], []
    for column, lead in zip(columns, found, strict=True):
        text = f"{column[number].accuracy:.1f}" if number in column else ""
        cells.append(f"**{text}**" if text and number in (lead.best, *lead.tied) else text)
    title = called_simply(line.method) + (f" (`{line.options}`)" if line.options else "")
    verified = VERIFIED[line.method].text if line.method in VERIFIED else ""
    return f"| {title} | {' | '.join(cells)} | {verified} |"


def write_readme(path: Path, board: Board) -> None:
    """Put :func:`markdown` between the markers of a file, which has them once.

    Raises:
        UsageError: it has not.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise UsageError(f"{str(path)!r} has no part from {START.strip()!r} to {END.strip()!r} to write to")
    write_atomically(path, lambda file: file.write(f"{before}{start}{markdown(board)}{end}{after}"))
