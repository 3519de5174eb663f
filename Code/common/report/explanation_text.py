"""Sentences of the report about explanations: each with the points that belong to it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.plots.frames import backbone_name
from common.plots.style import explainer_label
from common.report.sections import counted, leader, method_label, number, percent, spread
from common.report.summary.rows import SETTING

Sentence = tuple[str, tuple[str, ...]]
_SIGNIFICANT = 0.05


def answers(name: str, data: pd.DataFrame) -> Iterator[Sentence]:
    """What the numbers of one study of explanations say, one sentence for each setting or image."""
    tell = {"explain": _images, "explain_benchmark": _benchmark, "explain_agreement": _agreement}
    return tell[name](data)


def _images(data: pd.DataFrame) -> Iterator[Sentence]:
    for _, rows in data.groupby([*SETTING["explain"], "image"], sort=False, dropna=False):
        row = rows.iloc[0]
        said = f"{backbone_name(row['backbone'])} says {row['predicted']} ({100 * row['probability']:.1f} %)"
        areas = zip(_names(rows), rows["insertion_auc"], rows["deletion_auc"], strict=True)
        points = [f"{name}: insertion AUC {number(up, 3)}, deletion AUC {number(down, 3)}" for name, up, down in areas]
        yield f"{row['image']} ({row['class_name']}): {said}.", tuple(points)


def _benchmark(data: pd.DataFrame) -> Iterator[Sentence]:
    compared = data[data["study"] == "explainers"]
    for _, rows in compared.groupby(SETTING["explain_benchmark"], sort=False, dropna=False):
        points = [_best(rows, "insertion_auc", 1), _best(rows, "deletion_auc", -1), *_beyond_chance(rows)]
        where = f"{_where(rows)}, baseline {rows['baseline'].iloc[0]}, {counted(len(rows), 'explainer')}"
        yield f"On {rows['n_images'].iloc[0]} images of {where}:", tuple(points)


def _best(rows: pd.DataFrame, name: str, sign: int) -> str:
    """Which explainer has the best area, and whether it certainly leads; ``sign`` is -1 where low is good."""
    place = int((sign * rows[name]).argmax())
    best = f"{_names(rows)[place]} is {'highest' if sign > 0 else 'lowest'}"
    area = spread(rows[name].iloc[place], rows[f"{name}_sem"].iloc[place], 3)
    certain = len(rows) == 1 or leader(sign * rows[name], rows[f"{name}_sem"]) is not None
    return f"{name.partition('_')[0]} AUC: {best}, {area}{'' if certain else ' (not certainly ahead of the next)'}"


def _beyond_chance(rows: pd.DataFrame) -> Iterator[str]:
    """Which explainers beat random heat in both areas, by the paired tests."""
    tested = rows[rows["insertion_gain"].notna() & rows["deletion_gain"].notna()]
    gains, chances = tested[["insertion_gain", "deletion_gain"]], tested[["insertion_p", "deletion_p"]]
    better = (gains > 0).all(axis=1) & (chances < _SIGNIFICANT).all(axis=1)
    if better.any():
        yield f"better than random heat in both, each with p < {_SIGNIFICANT:g}: {', '.join(_names(tested[better]))}"
    if not better.all():
        yield f"not certainly better than random heat in both: {', '.join(_names(tested[~better]))}"


def _agreement(data: pd.DataFrame) -> Iterator[Sentence]:
    measures = {"rank_correlation": "rank correlation is highest", "above_chance": "IoU exceeds chance most"}
    for _, rows in data.groupby(SETTING["explain_agreement"], sort=False, dropna=False):
        points = []
        for name, what in measures.items():
            known = rows[rows[name].notna()]
            if len(known):
                place = int(known[name].argmax())
                reducer = method_label(*known["reducer"].iloc[place].partition(":")[::2])
                points.append(f"{what} between {_names(known)[place]} and {reducer}: {known[name].iloc[place]:+.2f}")
        row = rows.iloc[0]
        where = f"{_where(rows)}, keep rate {percent(row['keep_rate'])}"
        yield f"On {row['n_images']} images of {where}:", tuple(points)


def _names(rows: pd.DataFrame) -> list[str]:
    return [explainer_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def _where(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return f"{row['dataset']} at {row['img_size']} px with {backbone_name(row['backbone'])}"
