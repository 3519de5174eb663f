"""Whether a method keeps the same patches elsewhere: on other data, and in a backbone of another width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.options import Count, Many
from common.plots.elsewhere import MAP_MEASURES
from common.plots.frames import backbone_name
from common.report import sections as show
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section
from common.schedule import KeepRate
from common.schema import REQUIRED, count, intervals, number, text
from common.studies import _pattern_claims
from common.studies._across import (
    HALVES,
    OF_DATA,
    OF_WIDTHS,
    SETTING,
    across_rows,
    both,
    capacity_table,
    depth_maps,
    looking,
    of_part,
    runs_across,
    same_of,
    similarity_table,
)
from common.studies._patterns import ADJUSTED, agreement_cell, agreement_columns, by_block, depth_columns, with_measure
from common.studies.base import Study, register_study

__all__ = ["across_rows", "capacity_table", "depth_maps", "runs_across", "similarity_table"]  # for the notebook
_MEANING = {
    "KLD12": ("Kullback-Leibler divergence of the second map from the first, in bits", ""),
    "KLD21": ("of the first from the second", ""),
    "JSD": ("Jensen-Shannon divergence, in bits", "share"),
    "PCC": ("Pearson's correlation over the places", "correlation"),
    "SCC": ("Spearman's", "correlation"),
    "SIM": ("intersection of both, scaled to [0, 1]", "share"),
    "EMD": ("earth mover's distance in patches", ""),
}
_MAPS_NOTE = (
    "Maps of the mean depth of each place on both data sets: correlation (Pearson's PCC, Spearman's SCC) and overlap "
    "(SIM) are 1, divergences in bits (JSD, KLD) and earth mover's distance in patches (EMD) 0 where they are the "
    "same. 95 % bootstrap interval over the images of each data set; in brackets the same of two random halves of one "
    "data set, of that where they are less alike. Patterns that do not look at the image are left out: their maps "
    "are one."
)
_WIDTHS_NOTE = (
    "The same images in both backbones, after each reduction: agreement beyond chance (0 = as by chance, 1 = all that "
    "the numbers of tokens allow); in brackets the plain overlap or mutual information. Mean over {} images."
)
ONE_BACKBONE = "One backbone was looked at, so nothing is said about agreement over backbones of another width."


@register_study
class PatternsAcrossData(Study):
    """Whether the pattern of a method is its own, or that of the data set and of the backbone."""

    name, title = "patterns_across_data", "Are the patterns the same on other data?"
    question = "Does a method keep the same patches on other data, and in a backbone of another width?"
    place = 83
    columns = {
        "part": text("what is told: depth, two data sets, two halves of one, or two backbones on the same images"),
        "other_dataset": text("the data set that is compared with").only("datasets"),
        "other_backbone": text("the backbone that is compared with, the narrower one").only("capacity"),
        "other_weights": text("its weights").only("capacity"),
        "block": count("after which both are read", "block").only("capacity"),
        **depth_columns("depth"),
        **intervals(
            **{
                name: number(meaning, unit, optional=True).only("datasets", "halves")
                for name, (meaning, unit) in _MEANING.items()
            }
        ),
        **agreement_columns("capacity"),
        "n_images": count("that were looked at"),
        "other_n_images": count("of the other data set").only("datasets"),
    }
    required = (*REQUIRED, "dataset", "seed")
    parts = ("depth", "datasets", "halves", "capacity")
    setting = SETTING
    captions = {
        "": "How many blocks each place comes through, mean over the images of each data set.",
        "maps": f"How alike the maps of two data sets are, method by method; last column: {HALVES} of one data set, "
        "mean over methods.",
        "iou_excess": "How far two backbones keep the same patches of the same images, block by block: 0 = as by "
        "chance, 1 = as far as the numbers of patches allow.",
        "ami": "How far two backbones merge the same patches of the same images, block by block: 0 = by chance, 1 = "
        "the same.",
    }
    run_figures = "*/*.png"  # the figure of the run itself is among the summary figures
    parameters = {"resamples": Count, "limits": Many[Count | None], "keep_rate": KeepRate}

    claims = _pattern_claims.ACROSS_CLAIMS

    def measured_on(self, rows: pd.DataFrame) -> str:
        return "; ".join([show.measured_text(rows, "n_images"), *_others(rows)])

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, methods in their fixed order."""
        return in_order(runs[[*SETTING, *VARIANT, "seed", *self.columns]], [*SETTING, "part"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        halves = data[data["part"] == "halves"]
        for _, rows in of_part(data, "datasets", OF_DATA):
            title = f"{both(rows, 'dataset')}, {backbone_name(rows['backbone'].iloc[0])}{show.trained_text(rows)}"
            yield _maps(f"{title}: how alike the maps are", rows, halves, ("PCC", "SCC", "SIM", "EMD"))
            yield _maps(f"{title}: divergences of the maps", rows, halves, ("JSD", "KLD12", "KLD21"), folded=True)
        for _, rows in of_part(data, "capacity", OF_WIDTHS):
            for measure, what in ADJUSTED.items():
                known = with_measure(rows, measure)
                if len(known):
                    title = f"{rows['dataset'].iloc[0]}, {both(rows, 'backbone')}{show.trained_text(rows)}"
                    title = f"{title}: {what} in two backbones"
                    yield _capacity(title, known, measure)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        table = similarity_table(runs)
        if len(table):
            yield "maps", plots.map_similarity(table)
        for measure in ADJUSTED:
            table = capacity_table(runs, measure)
            if len(table):
                yield measure, plots.agreement_by_block(table, measure)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        halves = data[data["part"] == "halves"]
        for _, rows in of_part(data, "datasets", OF_DATA):
            images = f"{rows['n_images'].iloc[0]:,} images of {rows['dataset'].iloc[0]} and "
            images += f"{rows['other_n_images'].iloc[0]:,} of {rows['other_dataset'].iloc[0]}"
            found = tuple(_over_data(looking(rows), halves))
            if found:
                where = f"{backbone_name(rows['backbone'].iloc[0])}{show.trained_text(rows)}"
                yield Answer(f"Maps of depth on {images}, with {where}:", found)
        for _, rows in of_part(data, "capacity", OF_WIDTHS):
            where = (
                f"{both(rows, 'backbone')} on the same {rows['n_images'].iloc[0]:,} images of {rows['dataset'].iloc[0]}"
            )
            for measure, what in ADJUSTED.items():
                found = tuple(_over_widths(with_measure(rows, measure), measure))
                if found:
                    yield Answer(
                        f"{where}{show.trained_text(rows)}, {what}, agreement beyond chance, mean over blocks:", found
                    )
        if len(data) and not (data["part"] == "capacity").any():
            yield Answer(ONE_BACKBONE)


def _others(rows: pd.DataFrame) -> Iterator[str]:
    """What the setting of ``rows`` is compared with."""
    for name in ("other_dataset", "other_backbone"):
        found = [backbone_name(other) for other in rows[name].dropna().unique() if other]
        if found:
            yield f"beside {', '.join(found)}"


def _maps(
    title: str, rows: pd.DataFrame, halves: pd.DataFrame, names: Sequence[str], *, folded: bool = False
) -> Section:
    rows = looking(rows)
    cells = {name: [_cell(row, name, same_of(row, halves, name)) for _, row in rows.iterrows()] for name in names}
    frame = pd.DataFrame({"Model": show.labels(rows), "Keep": list(rows["keep_rate"].map(show.percent)), **cells})
    return Section(title, frame, (_MAPS_NOTE,), folded=folded)


def _cell(row: pd.Series, name: str, same: float) -> str:
    values = [show.number(value, MAP_MEASURES[name]) for value in (*row[[name, f"{name}_low", f"{name}_high"]], same)]
    return "{} [{}, {}] ({})".format(*values)


def _capacity(title: str, rows: pd.DataFrame, measure: str) -> Section:
    names = pd.DataFrame({"Model": show.labels(rows), "Keep": list(rows["keep_rate"].map(show.percent))})
    frame = by_block(names, rows["block"], [agreement_cell(row, measure) for _, row in rows.iterrows()])
    return Section(title, frame, (_WIDTHS_NOTE.format(rows["n_images"].iloc[0]),), folded=True)


def _over_data(rows: pd.DataFrame, halves: pd.DataFrame) -> Iterator[str]:
    """At each keep rate the most and the least alike, and over all of them what is certain."""
    rows = rows[rows["PCC"].notna()]
    for keep_rate, cells in rows.groupby("keep_rate", sort=False):
        least, most = (cells.loc[place] for place in (cells["PCC"].idxmin(), cells["PCC"].idxmax()))
        ends = [f"{show.model_name(row)} {show.number(row['PCC'])}" for row in (least, most)]
        yield f"keep {show.percent(keep_rate)}: correlation from {ends[0]} to {ends[1]}"
    if len(rows):
        alike = int((rows["PCC_low"] > 0).sum())
        same = sum(row["PCC_high"] >= same_of(row, halves, "PCC") for _, row in rows.iterrows())
        yield (
            f"of {show.counted(len(rows), 'map')}, {alike} certainly correlate over the data sets, {same} as far "
            "as those of two halves of one data set"
        )


def _over_widths(rows: pd.DataFrame, measure: str) -> Iterator[str]:
    """At each keep rate how consistent each method is, but for those that do not look at the image."""
    means = rows.groupby(VARIANT, sort=False)[measure].mean().reset_index()
    fixed = means.groupby(["method", "options"])[measure].transform("min") > 1 - 1e-9
    for keep_rate, cells in means[~fixed].groupby("keep_rate", sort=False):
        cells = cells.sort_values(measure, ascending=False)
        found = [f"{show.model_name(row)} {show.number(row[measure])}" for _, row in cells.iterrows()]
        yield f"keep {show.percent(keep_rate)}: {', '.join(found)}"
