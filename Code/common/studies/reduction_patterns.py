"""Which tokens methods keep: how deep each patch comes, and how far methods, rates and seeds agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.analysis import compare_all
from common.analysis.runs import RunData
from common.data.transforms import denormalise
from common.evaluation import Setting
from common.evaluation.names import PATTERNS
from common.options import Many, Whole
from common.plots.patterns import is_complete
from common.reducers import Method
from common.reducers.method import MethodText
from common.report import sections as show
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section
from common.schedule import KeepRate, keep_rate_text
from common.schema import REQUIRED, count, text
from common.setup import Setup
from common.studies import _pattern_claims
from common.studies._patterns import (
    ADJUSTED,
    DEPTH_NOTE,
    Row,
    agreement_cell,
    agreement_columns,
    agreement_row,
    by_block,
    depth_columns,
    depth_row,
    depth_values,
    setting_row,
    with_interval,
    with_measure,
)
from common.studies.base import Study, register_study

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "epochs", "n_train", "n_images"]
AXES = ("methods", "rates", "seeds")
_MATRIX_NOTE = (
    "How far the overlap exceeds what methods that keep as many patches share by chance: 0 = as by chance, 1 = as far "
    "as the numbers allow; of merged patches the adjusted mutual information. After block {}, mean over {} images."
)
_RATES_NOTE = (
    "The same method at two keep rates, after each reduction: agreement beyond chance (1 = what the lower rate keeps, "
    "the higher one keeps too); in brackets the plain overlap, which cannot exceed the share of the two numbers."
)

_SEEDS_NOTE = (
    "The same method at the same keep rate, drawn with two seeds, after each reduction: agreement beyond chance, mean "
    "over the pairs of seeds. 0 = no more than by chance."
)


@register_study
class ReductionPatterns(Study):
    """Which tokens methods keep, and whether they agree beyond chance."""

    name, title = "reduction_patterns", "Which tokens do methods keep?"
    question = "Do methods keep the same tokens: as each other, at other rates, with other seeds, as a fixed pattern?"
    place = 82
    columns = {
        "part": text("what is told: the depth of patches, or the agreement of methods, of rates, of seeds"),
        "other": text("the method that is compared with, as name:key=value").only(*AXES),
        "other_keep_rate": text("its keep rate").only(*AXES),
        "other_seed": count("its seed").only(*AXES),
        "block": count("after which both are read", "block").only(*AXES),
        **depth_columns("depth"),
        **agreement_columns(*AXES),
        "n_images": count("that were looked at"),
    }
    required = (*REQUIRED, "dataset", "seed")
    parts = ("depth", *AXES)
    setting = SETTING
    claims = _pattern_claims.PATTERN_CLAIMS
    captions = {
        "": "How many blocks each place comes through, mean over images.",
        "iou_excess": "How far methods keep the same patches after the last reduction: 0 = as by chance, 1 = as far as "
        "their numbers allow. Methods that agree stand side by side.",
        "ami": "How far methods merge the same patches after the last reduction: 0 = by chance, 1 = the same. Methods "
        "that agree stand side by side.",
    }
    run_figures = "**/*.png"
    run_captions = {"pair.png": "Patches of one photograph that are left by both of two methods, or by one alone."}
    # records are found by their keep rates, so these are no budgets
    parameters = {"pair": Many[MethodText], "image": Whole, "keep_rate": KeepRate}

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, methods in their fixed order."""
        own = [name for name in self.columns if name not in SETTING]
        return in_order(runs[[*SETTING, *VARIANT, "seed", *own]], [*SETTING, "part"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title = f"{show.setting_title(rows)}{show.trained_text(rows)}, {rows['n_images'].iloc[0]:,} images"
            parts = dict(list(rows.groupby("part", sort=False)))
            if "depth" in parts:
                yield _depths(title, parts["depth"])
            for keep_rate, cells in parts.get("methods", rows.head(0)).groupby("keep_rate", sort=False):
                yield from _matrices(f"{title}, keep rate {show.percent(keep_rate)}", cells)
            if "rates" in parts:
                yield _rates(title, parts["rates"])
            if "seeds" in parts:
                yield _seeds(title, parts["seeds"])

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        for measure in ADJUSTED:
            if len(agreement_table(runs, measure)):
                yield measure, agreement_figure(runs, measure)

    def measured_on(self, rows: pd.DataFrame) -> str:
        return show.measured_text(rows, "n_images")

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            where, images = f"{show.where_text(rows)}{show.trained_text(rows)}", rows["n_images"].iloc[0]
            for measure, what in ADJUSTED.items():
                points = [*_most_alike(rows, measure), *_over_rates(rows, measure)]
                if points:
                    yield Answer(f"On {images:,} images of {where}, {what}, agreement beyond chance:", tuple(points))


def _depths(title: str, rows: pd.DataFrame) -> Section:
    maps = [depth_values(each) for each in rows["depth_map"]]
    frame = pd.DataFrame(
        {
            "Model": show.labels(rows),
            "Keep": rows["keep_rate"].map(show.percent),
            "Depth": show.numbers(rows["depth"], 2),
            "Range": [f"{each.min():.1f} to {each.max():.1f}" for each in maps],
            "Left": rows["kept"],
        }
    )
    return Section(f"{title}: how deep patches come", frame, (DEPTH_NOTE,))


def _matrices(title: str, rows: pd.DataFrame) -> Iterator[Section]:
    """One matrix of methods for each kind of agreement, after the last block that all share."""
    for measure, what in ADJUSTED.items():
        known = rows[rows[measure].notna()]
        if len(known):
            last = known[known["block"] == known["block"].max()]
            notes = (_MATRIX_NOTE.format(last["block"].iloc[0], last["n_images"].iloc[0]),)
            yield Section(f"{title}: {what}", _matrix(last, measure), notes, folded=True)


def _matrix(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    pairs = zip(show.labels(rows), rows["other"].map(show.written_label), rows[measure], strict=True)
    cells = {frozenset(pair): show.number(value) for *pair, value in pairs}
    names = list(dict.fromkeys([*show.labels(rows), *rows["other"].map(show.written_label)]))
    columns = {name: [cells.get(frozenset([row, name]), show.NONE) for row in names] for name in names}
    return pd.DataFrame({"Model": names, **columns})


def _rates(title: str, rows: pd.DataFrame) -> Section:
    """A row for each method and pair of rates, a column for each block."""
    pairs = rows["keep_rate"].map(show.percent) + " and " + rows["other_keep_rate"].map(show.percent)
    names = pd.DataFrame({"Model": show.labels(rows), "Keep": list(pairs)})
    cells = [agreement_cell(row, "ami" if pd.isna(row["iou"]) else "iou_excess") for _, row in rows.iterrows()]
    frame = by_block(names, rows["block"], cells)
    return Section(f"{title}: one method at two keep rates", frame, (_RATES_NOTE,), folded=True)


def _seeds(title: str, rows: pd.DataFrame) -> Section:
    """A row for each method and rate with the mean over its pairs of seeds, a column for each block."""
    measure = rows["ami"].where(rows["iou"].isna(), rows["iou_excess"])
    means = rows.assign(mean=measure).groupby(["method", "options", "keep_rate", "block"], sort=False)["mean"].mean()
    means = means.reset_index()
    names = pd.DataFrame({"Model": show.labels(means), "Keep": means["keep_rate"].map(show.percent)})
    frame = by_block(names, means["block"], show.numbers(means["mean"], 2))
    return Section(f"{title}: one method with two seeds", frame, (_SEEDS_NOTE,), folded=True)


def _most_alike(rows: pd.DataFrame, measure: str) -> Iterator[str]:
    """At each keep rate, in the last block, which two agree most but for fixed patterns, and what is by chance."""
    known = with_measure(rows[rows["part"] == "methods"], measure)
    known = known[~(known["method"].isin(PATTERNS) & known["other"].isin(PATTERNS))]
    for keep_rate, cells in known[known["block"] == known["block"].max()].groupby("keep_rate", sort=False):
        best = cells.loc[cells[measure].idxmax()]
        chance = int((cells[f"{measure}_low"] <= 0).sum())
        names = f"{show.model_name(best)} and {show.written_label(best['other'])}"
        yield (
            f"keep {show.percent(keep_rate)}: most alike are {names}, "
            f"{with_interval(best, measure)}; {chance} of {len(cells)} pairs no more than by chance"
        )


def _over_rates(rows: pd.DataFrame, measure: str) -> Iterator[str]:
    """Which method is most and which least consistent over its keep rates."""
    known = with_measure(rows[(rows["part"] == "rates") & ~rows["method"].isin([*PATTERNS, "random"])], measure)
    if len(known):
        means = known.groupby(["method", "options"])[measure].mean().sort_values()
        least, most = means.index[0], means.index[-1]
        yield (
            f"over keep rates, mean of all pairs and blocks: most consistent {show.method_label(*most)} "
            f"{means[most]:.2f}, least {show.method_label(*least)} {means[least]:.2f}"
        )


# What the notebook measures


def pattern_rows(runs: Sequence[RunData]) -> Iterator[Row]:
    """Rows of the study from ``runs`` of one backbone on one dataset: every depth, and all pairs along each axis."""
    for run in runs:
        if run.setting.reduces and run.depth is not None:
            yield depth_row(run)
    settings = {run.setting.key: run.setting for run in runs}
    for axis in AXES:
        table = compare_all([run.decisions for run in runs], axis)
        for (a, b, block), cells in table.groupby(["a", "b", "block"], sort=False):
            first, second = settings[a], settings[b]
            if first.reduces and second.reduces:
                yield {"part": axis, **setting_row(first), **_others(second), "block": block, **agreement_row(cells)}


def depth_maps(rows: Sequence[Row], keep_rate: float) -> dict[str, np.ndarray]:
    """Mean depth (h, w) of each place of a square grid under every method at one keep rate, the first seed's."""
    found: dict[str, np.ndarray] = {}
    for row in rows:
        if row["part"] == "depth" and row["keep_rate"] == keep_rate_text(keep_rate):
            depths = depth_values(row["depth_map"])
            found.setdefault(show.method_label(row["method"], row["options"]), depths.reshape(isqrt(len(depths)), -1))
    return found


def agreement_table(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Agreement of all methods, after the last reduction, for :func:`common.plots.agreement_dendrogram`.

    A panel for each keep rate at which all pairs of methods have a number, of the first seed and the most images.

    Args:
        measure: "iou_excess" or "ami".
    """
    known = with_measure(rows[(rows["part"] == "methods") & (rows["block"] == rows["block"].max())], measure)
    known = known[known["n_images"] == known["n_images"].max()]
    known = known[known["seed"] == known["seed"].min()]
    names, others = show.labels(known), known["other"].map(show.written_label)
    rates = known["keep_rate"].map(show.percent)
    table = known.assign(a=names, b=others, label_a=names, label_b=others, metric=measure, mean=known[measure])
    table = table.assign(chance=0.0, panel="keep rate " + rates)
    complete = [cells for _, cells in table.groupby("panel", sort=False) if is_complete(cells)]
    return pd.concat(complete) if complete else table.head(0)


def agreement_figure(rows: pd.DataFrame, measure: str) -> Figure:
    """The agreement of :func:`agreement_table`; where no keep rate has one, a sentence that says why."""
    table = agreement_table(rows, measure)
    if table.empty:
        what = f"No agreement about {ADJUSTED[measure]} beyond chance"
        return plots.sentence(f"{what}: at no keep rate do all pairs of methods have a number.")
    return plots.agreement_dendrogram(table, measure, table["block"].iloc[0])


def kept_by_two(
    setup: Setup, runs: Sequence[RunData], methods: Sequence[str], keep_rate: float, image: int
) -> dict[str, object]:
    """One image and what two methods kept of it after their last reduction, for :func:`common.plots.kept_by_two`.

    Args:
        methods: two, in their written form.
        image: of the validation images.
    """
    known = {(run.setting.method, keep_rate_text(run.setting.keep_rate)): run for run in runs}
    chosen = [known[str(Method.parse(method)), keep_rate_text(keep_rate)].decisions for method in methods]
    masks = {show.written_label(each.setting.method): each.mask(max(each.kept))[image] for each in chosen}
    dataset = setup.val_set
    picture = denormalise(dataset[image][0], dataset.mean, dataset.std)
    return {"image": picture, "masks": masks, "patch_grid": chosen[0].setting.grid_size}


def _others(setting: Setting) -> Row:
    return {
        "other": setting.method,
        "other_keep_rate": keep_rate_text(setting.keep_rate),
        "other_seed": setting.seed,
    }
