"""Published claims and ours: what the authors say, how that is tested here, and what our runs say of it.

The claims stand in results/published/which_tokens_claims.csv. A study that measures what one is about declares a test
of it (:attr:`common.studies.Study.claims`): from the rows of its table of one setting to a :class:`Verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from common.report.sections import counted
from common.results import read_published

if TYPE_CHECKING:
    from common.report.tables import Findings

CLAIMS = "which_tokens_claims"
SUPPORTED, CONTRADICTED, UNDECIDED, NOT_RUN = VERDICTS = ("supported", "not supported", "undecided", "not run")
ABOUT = (
    "What the authors of Which Tokens to Use? (Haurum et al., ICCV Workshops 2023) say of ten methods, fine-tuned on "
    "DeiT-Ti, -S and -B and four data sets, and what the runs of this page say of the same sentence. They are other "
    "experiments: on what data and network ours was measured, and whether anything was trained, stands before each "
    "verdict. Supported: the whole 95 % interval lies where the claim puts the number; not supported: it lies wholly "
    "elsewhere; undecided: neither, or there is no interval, as of trained models with a single seed. The thresholds "
    "are ours, as the paper gives few, and stand in the text of each test."
)


@dataclass(frozen=True)
class Verdict:
    """What numbers say of a claim.

    Attributes:
        outcome: one of :data:`VERDICTS`.
        numbers: those that it rests on, in words.
    """

    outcome: str
    numbers: str


@dataclass(frozen=True)
class Ours:
    """A verdict, by the title of its study, and on what it was measured."""

    study: str
    measured_on: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A published claim and what our runs say of it.

    Attributes:
        name, source, statement, test: as the CSV has them; test: how it is tested, with its thresholds.
        ours: one of each study and setting that tests it.
    """

    name: str
    source: str
    statement: str
    test: str
    ours: tuple[Ours, ...]


def judge(low: float, high: float, *, least: float = -math.inf, most: float = math.inf) -> str:
    """Outcome of the claim that a number lies in [least, most], of which [low, high] is the interval.

    >>> judge(0.5, 0.6, least=0.4), judge(0.1, 0.3, least=0.4), judge(0.3, 0.5, least=0.4), judge(-1, 3, most=5)
    ('supported', 'not supported', 'undecided', 'supported')

    A number without an interval, NaN, decides nothing.
    """
    if least <= low and high <= most:
        return SUPPORTED
    return CONTRADICTED if high < least or low > most else UNDECIDED


def all_of(outcomes: Iterable[str]) -> str:
    """Outcome of a claim that is made of several: each must be supported, and one against it is enough.

    >>> all_of(["supported", "undecided"]), all_of(["undecided", "not supported"])
    ('undecided', 'not supported')
    """
    found = set(outcomes)
    if CONTRADICTED in found:
        return CONTRADICTED
    return SUPPORTED if found == {SUPPORTED} else UNDECIDED


def span_text(value: float, low: float, high: float, digits: int = 2, sign: str = "") -> str:
    """``0.35 (0.34 to 0.36)``; a number without an interval says so.

    >>> span_text(0.352, 0.341, 0.36), span_text(2.0, math.nan, math.nan, sign="+")
    ('0.35 (0.34 to 0.36)', '+2.00 (no interval)')
    """
    first, *ends = (f"{number:{sign}.{digits}f}" for number in (value, low, high))
    return f"{first} ({'no interval' if math.isnan(low) or math.isnan(high) else ' to '.join(ends)})"


def claims(found: Sequence[Findings]) -> list[Claim]:
    """Every published claim, with the verdicts of those of the studies ``found`` that test it and have the rows."""
    studies = {each.study.name: each for each in found}
    judged = []
    for row in read_published(CLAIMS, as_printed=True).to_dict("records"):
        tested_by = [studies[name] for name in row["studies"].split() if name in studies]
        ours = (ours for each in tested_by for ours in _verdicts(row["claim"], each))
        judged.append(Claim(row["claim"], row["source"], row["statement"], row["test"], tuple(ours)))
    return judged


def _verdicts(claim: str, found: Findings) -> Iterator[Ours]:
    study, table = found.study, found.table
    for _, rows in table.groupby(list(study.setting), sort=False, dropna=False) if len(table) else ():
        verdict = study.claims[claim](rows)
        if verdict is not None:
            yield Ours(study.title, study.measured_on(rows), verdict)


def summary(judged: Sequence[Claim]) -> str:
    """How many claims have which verdict; one that has several counts under each."""
    outcomes = [{ours.verdict.outcome for ours in claim.ours} or {NOT_RUN} for claim in judged]
    counts = {verdict: sum(verdict in each for each in outcomes) for verdict in VERDICTS}
    several = sum(len(each) > 1 for each in outcomes)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{counted(len(judged), 'claim')}: {told}" + (
        f"; {several} count under each of several verdicts." if several else "."
    )


def claims_table(judged: Sequence[Claim]) -> pd.DataFrame:
    """One row per verdict; a claim without one has "not run"."""
    rows = [
        {"claim": claim.name, "study": ours.study, "measured_on": ours.measured_on, **vars(ours.verdict)}
        for claim in judged
        for ours in claim.ours or (Ours("", "", Verdict(NOT_RUN, "")),)
    ]
    return pd.DataFrame(rows)


def claims_markdown(judged: Sequence[Claim]) -> str:
    """One Markdown document: every claim with its source, our verdicts and how they are made."""
    parts = ["# Published claims and ours", ABOUT, summary(judged)]
    for claim in judged:
        lines = [f"- **{each.verdict.outcome}** on {each.measured_on}: {each.verdict.numbers}" for each in claim.ours]
        parts += [f"## {claim.statement}", f"Source: {claim.source}.", "\n".join(lines or [f"- **{NOT_RUN}**"])]
        parts.append(f"Test: {claim.test}")
    return "\n\n".join(parts) + "\n"
