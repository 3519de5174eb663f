"""How many patch tokens survive, and from which block on: the two knobs that every method shares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from annotated_types import Gt, Le, MinLen, Predicate
from pydantic import AfterValidator, Strict

from common.errors import UsageError, nearest
from common.options import AtLeast1, Many, Positive, ShareBelow1, Whole, accepted_by, check, check_fields

ALLOWED = (
    "a ratio in (0, 1] that compounds, one ratio in (0, 1] per stage, one count > 1 per stage, "
    'a rule such as "r=13", "r=13 decreasing" or "q=0.9", ratios with their blocks such as "0.7@2 0.4@5", '
    'or a budget such as "mac_cut=0.4" or "speedup=1.5"'
)
BUDGETS = {"mac_cut": ShareBelow1, "gmac": Positive, "latency_ms": Positive, "speedup": AtLeast1}
BESIDE = ("images", "batch_size", "device", "dtype", "cache")  # what only a budget needs
PLACED = re.compile(r"(\d*\.?\d+)@(\d+)")
RULE = re.compile(r"(r)=([1-9]\d*)( decreasing)?|(q)=(0?\.\d+)")


def default_reduction_loc(depth: int, keep_rate: float | tuple[float, ...] | str | None = None) -> tuple[int, ...]:
    """The blocks at 1/4, 1/2 and 3/4 of the depth; every block where ``keep_rate`` is a rule such as "r=13".

    >>> default_reduction_loc(12), default_reduction_loc(3, "r=13"), default_reduction_loc(8, "mac_cut=0.4")
    ((3, 6, 9), (0, 1, 2), (2, 4, 6))
    >>> default_reduction_loc(12, "0.7@2 0.4@5")
    (2, 5)

    Raises:
        UsageError: when the transformer has fewer than four blocks, unless nothing is dropped: then it is every block.
    """
    if isinstance(keep_rate, str) and not is_budget(keep_rate):
        return tuple(placed_ratios(keep_rate) or range(depth))
    if depth < 4 and keep_rate == 1.0:
        return tuple(range(depth))
    if depth < 4:
        raise UsageError(f"a backbone of depth {depth} has no default reduction_loc; give the 0-based blocks")
    return tuple(stage * depth // 4 for stage in (1, 2, 3))


def counts_by_rule(rule: str, num_patches: int, stages: int) -> Iterator[int]:
    """Patch tokens left after each stage when every stage removes as many, or keeps as large a part.

    "r=13": 13 in each stage, at most every second one (ToMe, PPT); "r=13 decreasing": from 26 down to 0 (ToMe, section
    4.1); "q=0.9": n - floor(n - 0.9 n) of the n before (PiToMe).

    >>> list(counts_by_rule("r=13", 196, 12))
    [183, 170, 157, 144, 131, 118, 105, 92, 79, 66, 53, 40]

    Raises:
        UsageError: no such rule.
    """
    found = RULE.fullmatch(rule)
    if not found:
        raise _no_keep_rate(rule)
    number, decreasing, share = int(found[2] or 0), found[3], float(found[5] or 0)
    left = num_patches
    for stage in range(stages):
        if share:
            # 160 * 0.9 is 144.00000000000003 in floats too often: decide in whole thousandths of a token
            left -= math.floor(round(left - left * share, 9))
        else:
            removed = (
                int(number) if not decreasing else int(2 * int(number) - 2 * int(number) * stage / max(1, stages - 1))
            )
            left -= min(removed, left // 2)
        yield left


def placed_ratios(keep_rate: str) -> dict[int, float]:
    """Block -> the part of all patches that it leaves; {} for a text that is a rule or a budget.

    >>> placed_ratios("0.7@2 0.4@5"), placed_ratios("r=13")
    ({2: 0.7, 5: 0.4}, {})

    Raises:
        UsageError: blocks that do not increase, or a ratio that is none.
    """
    parts = [PLACED.fullmatch(part) for part in keep_rate.split()]
    if not parts or not all(parts):
        return {}
    blocks, ratios = tuple(int(part[2]) for part in parts), tuple(float(part[1]) for part in parts)
    check("blocks of keep_rate", blocks, Blocks)
    return dict(zip(blocks, check("keep_rate", ratios, _Ratios), strict=True))


def placed_text(schedule: Schedule) -> str:
    """The keep rate that says the blocks too, of a schedule with a ratio per stage.

    >>> placed_text(Schedule((0.7, 0.4), (2, 5)))
    '0.7@2 0.4@5'
    """
    pairs = zip(schedule.keep_rate, schedule.reduction_loc, strict=True)
    return " ".join(f"{ratio:.9g}@{block}" for ratio, block in pairs)


def is_budget(keep_rate: object) -> bool:
    """Whether ``keep_rate`` is the text of a budget, which :mod:`common.budget` makes a keep rate of.

    >>> is_budget("mac_cut=0.4"), is_budget("r=13"), is_budget(0.5)
    (True, False, False)
    """
    return isinstance(keep_rate, str) and keep_rate.partition("=")[0] in BUDGETS


def read_budget(text: str) -> dict[str, float]:
    """The word and the number of a budget.

    >>> read_budget("mac_cut=0.4")
    {'mac_cut': 0.4}

    Raises:
        UsageError: the number is none, or not one that the word may have.
    """
    word, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = number
    return {word: check(word, value, BUDGETS[word])}


def _check_rule(rule: str) -> None:
    if is_budget(rule):
        raise UsageError(f"keep_rate={rule!r} is a budget, which is not solved here; give the keep rate that it means")
    if not placed_ratios(rule):
        list(counts_by_rule(rule, 1, 1))


def _check_text(text: str) -> None:
    if is_budget(text):
        read_budget(text)
    elif not RULE.fullmatch(text) and not placed_ratios(text):
        raise _no_keep_rate(text)


def _no_keep_rate(text: str) -> UsageError:
    word, equals, _ = text.partition("=")
    return UsageError(f"keep_rate={text!r} is not allowed; give {ALLOWED}{nearest(word, BUDGETS) if equals else ''}")


def _single(rates: float | tuple[float, ...]) -> float | tuple[float, ...]:
    return rates[0] if isinstance(rates, tuple) and len(rates) == 1 and rates[0] <= 1 else rates


def _increasing(blocks: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(blocks))


_Ratio = Annotated[float, Gt(0), Le(1)]
_Ratios = Annotated[tuple[_Ratio, ...], Strict(False), MinLen(1)]
_Counts = Annotated[tuple[Annotated[int, Gt(1)], ...], Strict(False), MinLen(1)]
_Rule = Annotated[str, accepted_by(_check_rule)]
KeepRate = Annotated[_Ratio | _Ratios | _Counts | _Rule, AfterValidator(_single), ALLOWED]
_Text = Annotated[str, accepted_by(_check_text)]
KeepRateOrBudget = Annotated[_Ratio | _Ratios | _Counts | _Text, AfterValidator(_single), ALLOWED]
Blocks = Annotated[Many[Whole], MinLen(1), Predicate(_increasing), "increasing 0-based block indices"]


@dataclass(frozen=True)
class Schedule:
    """Patch tokens to keep at each reduction stage.

    >>> Schedule(0.7, (3, 6, 9)).counts(196)
    (137, 96, 67)

    Args:
        keep_rate: one ratio r, which compounds (relative to P, not to the truncated count before: 96, not 95, of 196
            at 0.7 in stage 2): stage s keeps floor(P r^s) of the P patches, but at
            least one; or a ratio per stage, each a fraction of P; or an integer > 1 per stage, a count; or a rule of
            the form "r=13", see :func:`counts_by_rule`; or a ratio per stage with its block, "0.7@2 0.4@5".
        reduction_loc: 0-based blocks of the stages, increasing.

    Raises:
        UsageError: anything else, with what was given and what is allowed.
    """

    keep_rate: KeepRate
    reduction_loc: Blocks

    def __post_init__(self) -> None:
        check_fields(self)
        stages = len(self.reduction_loc)
        if isinstance(self.keep_rate, tuple) and len(self.keep_rate) != stages:
            raise UsageError(f"keep_rate={self.keep_rate} for {stages} stages is not allowed; give {ALLOWED}")
        placed = placed_ratios(self.keep_rate) if isinstance(self.keep_rate, str) else {}
        if placed and tuple(placed) != self.reduction_loc:
            raise UsageError(
                f"keep_rate={self.keep_rate!r} says its blocks; reduction_loc={self.reduction_loc} are others"
            )

    def counts(self, num_patches: int) -> tuple[int, ...]:
        """Patch tokens kept at each stage out of ``num_patches``; a ratio leaves at least one.

        Raises:
            UsageError: when a stage would keep more than there are, or more than the stage before.
        """
        if isinstance(self.keep_rate, str) and (placed := placed_ratios(self.keep_rate)):
            kept = [_share(num_patches, ratio) for ratio in placed.values()]
        elif isinstance(self.keep_rate, str):
            kept = list(counts_by_rule(self.keep_rate, num_patches, len(self.reduction_loc)))
        elif not isinstance(self.keep_rate, tuple):
            kept = [_share(num_patches, self.keep_rate ** (stage + 1)) for stage in range(len(self.reduction_loc))]
        elif self.keep_rate[0] > 1:
            kept = list(self.keep_rate)
        else:
            kept = [_share(num_patches, rate) for rate in self.keep_rate]
        if max(kept) > num_patches or any(a < b for a, b in pairwise(kept)):
            raise UsageError(
                f"keep_rate={self.keep_rate} keeps {kept} of {num_patches} patches; "
                f"allowed: counts from {num_patches} down to 1 that never grow"
            )
        return tuple(kept)

    def target(self, layer: int, num_patches: int) -> int | None:
        """Patch tokens to keep in block ``layer``, or None when it is not a stage."""
        if layer not in self.reduction_loc:
            return None
        return self.counts(num_patches)[self.reduction_loc.index(layer)]

    def drops(self, num_patches: int) -> dict[int, int]:
        """Block -> patch tokens kept, in order and only for the stages that have any of ``num_patches`` to drop."""
        before, drops = num_patches, {}
        for layer, kept in zip(self.reduction_loc, self.counts(num_patches), strict=True):
            if kept < before:
                drops[layer] = before = kept
        return drops

    def last_drop(self, num_patches: int) -> int:
        """The last block that drops anything, -1 if none does: no score is needed after it."""
        return max(self.drops(num_patches), default=-1)


def keep_rate_text(keep_rate: float | Sequence[float] | str) -> str:
    """How a keep rate, or a text of one, stands in a cell of a table: its numbers with a space between them.

    >>> keep_rate_text(0.5), keep_rate_text(1.0), keep_rate_text((0.9, 0.7, 0.5)), keep_rate_text((147, 98, 49))
    ('0.5', '1', '0.9 0.7 0.5', '147 98 49')
    >>> keep_rate_text("r=13"), keep_rate_text("mac_cut=0.4")
    ('r=13', 'mac_cut=0.4')
    """
    rates = read_keep_rate(keep_rate)
    if isinstance(rates, str):
        return rates
    return " ".join(repr(rate).removesuffix(".0") for rate in (rates if isinstance(rates, tuple) else (rates,)))


def read_keep_rate(keep_rate: float | Sequence[float] | str) -> float | tuple[float, ...] | tuple[int, ...] | str:
    """The keep rate that :func:`keep_rate_text` wrote; one that is no text comes back as it is.

    >>> read_keep_rate("0.5"), read_keep_rate("0.9 0.7 0.5"), read_keep_rate("147 98 49")
    (0.5, (0.9, 0.7, 0.5), (147, 98, 49))

    Raises:
        UsageError: what is no keep rate.
    """
    if isinstance(keep_rate, str):
        with suppress(ValueError):  # a rule or a budget; any other text is refused below
            numbers = [float(part) for part in keep_rate.split()]
            numbers = [int(number) if number > 1 and number.is_integer() else number for number in numbers]
            keep_rate = numbers[0] if len(numbers) == 1 and isinstance(numbers[0], float) else numbers
    return check("keep_rate", keep_rate, KeepRateOrBudget)


def ratio_of(keep_rate: float | Sequence[float] | str) -> float:
    """The one ratio that leaves as much at the end as ``keep_rate``; NaN where that hangs on image or model.

    >>> ratio_of("0.5"), round(ratio_of("0.9 0.7 0.5"), 4), ratio_of("147 98 49")
    (0.5, 0.7937, nan)
    """
    rate = read_keep_rate(keep_rate)
    if isinstance(rate, str):
        return math.nan
    if not isinstance(rate, tuple):
        return rate
    return math.nan if rate[-1] > 1 else rate[-1] ** (1 / len(rate))


def _share(num_patches: int, ratio: float) -> int:
    # 100 * 0.29 is 28.999...: a product that is whole in decimal must not lose a token to binary rounding
    return max(1, math.floor(num_patches * ratio + 1e-9))
