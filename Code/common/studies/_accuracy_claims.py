"""Tests of what "Which Tokens to Use?" says of accuracies, by the studies that measure them (``Study.claims``).

Each takes the rows of a table in one setting, with the values of every image or seed, and gives a verdict, or None
where the models that the claim is about are not there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from common.report import sections as show
from common.report.claims import Verdict, all_of, judge, span_text
from common.report.paired import paired_difference
from common.report.rows import SAMPLED, SAMPLES
from common.schedule import read_keep_rate
from common.schema import accuracy_name

# The ten methods of the paper; of several variants the first that was run stands for the method.
PAPER = {
    "topk": ("head_fusion=mean", ""),
    **dict.fromkeys(("evit", "dynamicvit", "patchmerger", "sinkhorn", "sit"), ("",)),
    **dict.fromkeys(("ats", "tome", "kmedoids"), ("", "parity=true")),
    "dpcknn": ("", "equal_weight=true"),
}
ABOVE = ("topk", "evit", "dynamicvit", "ats", "tome")  # of which the paper says that they exceed the unreduced model
FEWEST = 3  # methods besides Top-K without which a place says nothing
FIRST, AMONG_THREE = 0.36, 0.83
SOME = float(np.nextafter(0, 1))  # points: no gain is none, also of equal models, whose interval has no width
EVIT_GAIN, GAIN_AT_90 = 2.0, 0.5  # points at most
Span = tuple[float, float, float]  # a difference in points, and the ends of its 95 % interval


def place_of_topk(rows: pd.DataFrame, *, places: int, share: float) -> Verdict | None:
    """Top-K is among the first ``places`` in at least ``share`` of the keep rates from 50 to 90 %."""
    told, inside, outside = [], 0, 0
    for keep_rate in show.falling(rows["keep_rate"]):
        models = _models(rows, keep_rate)
        others = [name for name in models if name != "topk"]
        if not _from_50_to_90(keep_rate) or "topk" not in models or len(others) < FEWEST:
            continue
        ahead = [_difference(rows, models[name], models["topk"]) for name in others]
        inside += sum(not high < 0 for _, _, high in ahead) < places
        outside += sum(low > 0 for _, low, _ in ahead) >= places
        place = 1 + sum(value > 0 for value, _, _ in ahead)
        told.append(f"{show.percent(keep_rate)}: place {place} of {len(models)}{_best(ahead, others)}")
    if not told:
        return None
    count = len(told)
    outcome = judge(inside / count, 1 - outside / count, least=share)
    sure = f"certainly among the first {places}" if places > 1 else "certainly first"
    sure = f"{sure} in {inside} of {count} cases, certainly not in {outside}"
    return Verdict(outcome, f"{sure}; {'; '.join(told)} points over Top-K, {_among(rows)}")


def gain_of_evit(rows: pd.DataFrame) -> Verdict | None:
    """At a keep rate of 25 % EViT gains something, and at most 2 points, over Top-K."""
    models = _models(rows, "0.25")
    if not {"evit", "topk"} <= models.keys():
        return None
    gain = _difference(rows, models["evit"], models["topk"])
    return Verdict(judge(*gain[1:], least=SOME, most=EVIT_GAIN), f"{_points(gain)} points, {_among(rows)}")


def above_unreduced(rows: pd.DataFrame) -> Verdict | None:
    """At a keep rate of 90 % each of five methods gains something, and at most 0.5 points, over the unreduced model."""
    models, whole = _models(rows, "0.9"), rows[rows["method"] == "none"]
    gains = {name: _difference(rows, models[name], whole.iloc[0]) for name in ABOVE if name in models and len(whole)}
    if not gains:
        return None
    outcome = all_of(judge(low, high, least=SOME, most=GAIN_AT_90) for _, low, high in gains.values())
    missing = [show.method_label(name) for name in ABOVE if name not in gains]
    told = [f"{show.method_label(name)} {_points(gain)}" for name, gain in gains.items()]
    left_out = f"; not run: {', '.join(missing)}" if missing else ""
    return Verdict(outcome, f"{', '.join(told)} points, {_among(rows)}{left_out}")


CLAIMS = {
    "topk_first": partial(place_of_topk, places=1, share=FIRST),
    "topk_among_three": partial(place_of_topk, places=3, share=AMONG_THREE),
    "evit_at_25": gain_of_evit,
    "above_unreduced_at_90": above_unreduced,
}


def _from_50_to_90(keep_rate: str) -> bool:
    rate = read_keep_rate(keep_rate)
    return isinstance(rate, float) and 0.5 <= rate <= 0.9


def _models(rows: pd.DataFrame, keep_rate: str) -> dict[str, pd.Series]:
    """The row of each method of the paper at a keep rate."""
    return dict(_variants(rows[rows["keep_rate"] == keep_rate]))


def _variants(rows: pd.DataFrame) -> Iterator[tuple[str, pd.Series]]:
    for method, variants in PAPER.items():
        found = rows[rows["method"] == method].set_index("options", drop=False)
        known = [options for options in variants if options in found.index]
        if known:
            yield method, found.loc[known[0]]


def _measure(rows: pd.DataFrame) -> str:
    """The accuracy among all classes of the head, where it has others than the dataset's."""
    return "accuracy_full" if "accuracy_full" in rows and rows["accuracy_full"].notna().all() else "accuracy"


def _among(rows: pd.DataFrame) -> str:
    if _measure(rows) == "accuracy_full":
        return "top-1 among all classes of the head"
    return accuracy_name(rows["dataset"].iloc[0])


def _difference(rows: pd.DataFrame, first: pd.Series, second: pd.Series) -> Span:
    """Accuracy of one model minus another's; NaN ends where they were not measured on the same images or over the same
    seeds, or on one alone."""
    name = _measure(rows)
    pair = [each.get(name + SAMPLES) for each in (first, second)]
    if any(values is None for values in pair) or first[SAMPLED] != second[SAMPLED]:
        return first[name] - second[name], np.nan, np.nan
    return paired_difference(*pair)


def _best(ahead: list[Span], names: list[str]) -> str:
    """The best of the others beside Top-K."""
    span, name = max(zip(ahead, names, strict=True))
    return f", {'best is' if span[0] > 0 else 'next is'} {show.method_label(name)} {_points(span)}"


def _points(span: Span) -> str:
    return span_text(*span, sign="+")
