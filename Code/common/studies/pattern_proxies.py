"""Which similarity of two models tells how much accuracy they differ by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import nan

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.analysis import Interval, compare_all, correlate, paired_bootstrap
from common.analysis.runs import RunData
from common.report import sections as show
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section
from common.schedule import KeepRate
from common.schema import REQUIRED, accuracy_name, count, intervals, number, text
from common.studies import _pattern_claims
from common.studies._patterns import setting_row
from common.studies.base import Study, register_study

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "epochs", "n_train"]
FEATURES = {
    "cka": "CKA distance",
    "procrustes": "Procrustes distance",
    "pwcca": "PWCCA distance",
    "mean_cca": "mean CCA",
}
DECISIONS = {"iou": "IoU of patches kept", "nmi": "NMI of patches merged"}
MEASURES = FEATURES | DECISIONS
_SIMILARITY_NOTE = (
    "CLS token after the last block, of every model and of the unreduced one on the same images; distances: 0 = the "
    "same; interval: delete-a-group jackknife over images. Change: of accuracy from unreduced, paired over the images, "
    "with its 95 % bootstrap interval."
)
_MAP_NOTE = "The mAP is no mean over images, so that its change has no interval."
_CORRELATION_NOTE = (
    "Spearman's correlation of the measure with the size of the difference in accuracy, over pairs of models; interval "
    "by leaving out one model at a time. p: share of the ways to deal the accuracies to the models that give as much; "
    "not corrected for the number of rows. Given tokens: the same, given the difference in tokens left at the end."
)
_LEVEL = 0.05  # of p, below which a correlation is told
Row = dict[str, object]


@register_study
class PatternProxies(Study):
    """Which similarity to another model tells how much accuracy is lost."""

    name, title = "pattern_proxies", "Which similarity predicts accuracy?"
    parameters = {"keep_rate": KeepRate}
    question = (
        "Does the similarity of two models, of their features or of their tokens, tell how their accuracies differ?"
    )
    place = 84
    columns = {
        "part": text("similarity to the unreduced model, or its correlation with the difference of accuracies"),
        "pairs": text("of which models: with the unreduced one, of methods, of keep rates").only("correlation"),
        "measure": text("of similarity, see common.analysis").only("correlation"),
        "block": count("after which both are read", "block"),
        "accuracy": number("top-1 among the classes of the dataset, or mAP", "percent").only("similarity"),
        **intervals(
            accuracy_change=number("from the unreduced model, same images", "points").only("similarity"),
            cka=number("1 - linear CKA, debiased", optional=True).only("similarity"),
            procrustes=number("orthogonal Procrustes distance, squared", optional=True).only("similarity"),
            pwcca=number("1 - projection-weighted CCA", "share", optional=True).only("similarity"),
            mean_cca=number("mean canonical correlation", "share", optional=True).only("similarity"),
            correlation=number("Spearman's, over the pairs", "correlation", optional=True).only("correlation"),
        ),
        "p": number("by dealing the accuracies to the models anew", "share", optional=True).only("correlation"),
        "partial": number("given the difference in tokens", "correlation", optional=True).only("correlation"),
        "n_pairs": count("of models").only("correlation"),
        "n_models": count("in these pairs").only("correlation"),
        "n_images": count("that both saw"),
    }
    required = (*REQUIRED, "dataset", "seed")
    parts = ("similarity", "correlation")
    setting = SETTING
    claims = _pattern_claims.PROXY_CLAIMS
    captions = {
        "": "Rank correlation of each measure with the difference in accuracy. Bars: leaving out one model at a time.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, methods in their fixed order."""
        return in_order(runs[[*SETTING, *VARIANT, "seed", *self.columns]], [*SETTING, "part"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title = f"{show.setting_title(rows)}{show.trained_text(rows)}"
            parts = dict(list(rows.groupby("part", sort=False)))
            if "correlation" in parts:
                yield _correlations(title, parts["correlation"], without_correlation(rows))
            if "similarity" in parts:
                similar = parts["similarity"]
                yield _similarities(title, similar[similar["block"] == similar["block"].max()])

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        """The correlations of the setting with the most images, the first of those."""
        most = runs[runs["n_images"] == runs["n_images"].max()]
        _, first = next(iter(most.groupby(SETTING, sort=False, dropna=False)))
        if not without_correlation(first):
            yield "", correlation_figure(first)

    def measured_on(self, rows: pd.DataFrame) -> str:
        return show.measured_text(rows, "n_images")

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        correlations = data[(data["part"] == "correlation") & data["correlation"].notna()]
        for _, rows in correlations.groupby(SETTING, sort=False, dropna=False):
            points = [_best(pairs, cells) for pairs, cells in rows.groupby("pairs", sort=False)]
            yield Answer(
                f"On {rows['n_images'].iloc[0]:,} images of {show.where_text(rows)}{show.trained_text(rows)}:",
                tuple(points),
            )


def _similarities(title: str, rows: pd.DataFrame) -> Section:
    by_map = accuracy_name(rows["dataset"].iloc[0]) == "mAP"
    frame = pd.DataFrame(
        {
            "Model": show.labels(rows),
            "Keep": rows["keep_rate"].map(show.percent),
            "mAP (%)" if by_map else "Accuracy (%)": show.numbers(rows["accuracy"], 2),
            "Change": _with_intervals(rows, "accuracy_change", 2),
            **{name: _with_intervals(rows, measure, 3) for measure, name in FEATURES.items()},
        }
    )
    notes = (_SIMILARITY_NOTE, _MAP_NOTE) if by_map else (_SIMILARITY_NOTE,)
    return Section(f"{title}: features beside those of the unreduced model", frame, notes, folded=True)


def _correlations(title: str, rows: pd.DataFrame, missing: str) -> Section:
    frame = pd.DataFrame(
        {
            "Pairs": rows["pairs"],
            "Measure": rows["measure"].map(MEASURES),
            "Block": rows["block"].astype(str),
            "Correlation": _with_intervals(rows, "correlation", 2),
            "p": show.numbers(rows["p"], 3),
            "Given tokens": show.numbers(rows["partial"], 2),
            "Models": rows["n_models"].astype(str),
        }
    )
    notes = (missing, _CORRELATION_NOTE) if missing else (_CORRELATION_NOTE,)
    return Section(f"{title}: similarity and difference of accuracy", frame, notes)


def _with_intervals(rows: pd.DataFrame, name: str, digits: int) -> list[str]:
    return [
        show.number(value, digits)
        + ("" if pd.isna(low) else f" [{show.number(low, digits)}, {show.number(high, digits)}]")
        for value, low, high in zip(rows[name], rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
    ]


def correlation_figure(rows: pd.DataFrame) -> Figure:
    """The correlations among ``rows`` of the study; without any, a sentence that says why."""
    missing = without_correlation(rows)
    if missing:
        return plots.sentence(missing)
    known = rows[rows["part"] == "correlation"]
    names = zip(known["measure"].map(MEASURES), known["block"].astype(str), strict=True)
    return plots.correlation_forest(known.assign(label=[", block ".join(name) for name in names]))


def without_correlation(rows: pd.DataFrame) -> str:
    """One sentence on why ``rows`` of the study hold no correlation; "" where they hold one."""
    if rows.loc[rows["part"] == "correlation", "correlation"].notna().any():
        return ""
    similar = rows[rows["part"] == "similarity"]
    if len(similar) and (similar["accuracy_change"] == 0).all():
        accuracy = show.number(similar["accuracy"].iloc[0], 2)
        why = f"all models have the same accuracy, {accuracy} %, so no similarity can tell how it differs"
    else:
        why = "in no kind of pairs do both the similarity and the difference in accuracy vary"
    return f"No rank correlation: {why}."


def _best(pairs: str, rows: pd.DataFrame) -> str:
    known = rows[rows["p"] < _LEVEL]
    if known.empty:
        return f"pairs {pairs}: no measure is correlated with p < {_LEVEL} ({show.counted(len(rows), 'row')})"
    best = known.loc[known["correlation"].abs().idxmax()]
    sure = f"p = {best['p']:.3f}" if best["p"] >= 0.001 else "p < 0.001"
    return (
        f"pairs {pairs}: strongest by {MEASURES[best['measure']]} after block {best['block']}, correlation "
        f"{best['correlation']:+.2f} ({sure}, {show.counted(best['n_models'], 'model')})"
    )


# What the notebook measures


def proxy_rows(runs: Sequence[RunData]) -> Iterator[Row]:
    """Rows of the study from ``runs`` of one backbone on one dataset, with CLS tokens; one of them is unreduced."""
    known = {run.setting.key: run for run in runs}
    (whole,) = (run for run in runs if not run.setting.reduces)
    methods, rates = (compare_all([run.decisions for run in runs], axis) for axis in ("methods", "rates"))
    with_whole = methods[(methods[["a", "b"]] == whole.setting.key).any(axis=1)]
    yield from _similarity_rows(known, whole, with_whole)
    among = methods.drop(with_whole.index)
    accuracies = {key: run.top1 for key, run in known.items()}
    tokens = {key: run.tokens for key, run in known.items()}
    for pairs, table in (("with unreduced", with_whole), ("of methods", among), ("of keep rates", rates)):
        measured = table[table["metric"].isin(MEASURES)]
        yield from _correlation_rows(pairs, correlate(measured, accuracies, tokens), whole)


def _similarity_rows(known: Mapping[str, RunData], whole: RunData, table: pd.DataFrame) -> Iterator[Row]:
    """Every reduced model beside the unreduced one, block by block."""
    others = table["a"].where(table["a"] != whole.setting.key, table["b"])
    changes = {key: _change(known[key], whole) for key in others.unique()}
    for (key, block), cells in table[table["metric"].isin(FEATURES)].groupby([others, "block"], sort=False):
        run, change = known[key], changes[key]
        row = {
            "part": "similarity",
            **setting_row(run.setting),
            "block": block,
            "accuracy": run.top1,
            "n_images": run.images,
        }
        row |= {"accuracy_change": change.value, "accuracy_change_low": change.low, "accuracy_change_high": change.high}
        for cell in cells.itertuples():
            row |= {cell.metric: cell.mean, f"{cell.metric}_low": cell.low, f"{cell.metric}_high": cell.high}
        yield row


def _change(run: RunData, whole: RunData) -> Interval:
    """Of accuracy from the unreduced model; the mAP is no mean over images, and has no interval."""
    if run.right is None:
        return Interval(run.top1 - whole.top1, nan, nan, nan)
    return paired_bootstrap(100 * run.right, 100 * whole.right)


def _correlation_rows(pairs: str, found: pd.DataFrame, whole: RunData) -> Iterator[Row]:
    for cell in found.itertuples():
        yield {
            "part": "correlation",
            **setting_row(whole.setting),
            "pairs": pairs,
            "measure": cell.metric,
            "block": cell.block,
            "correlation": cell.value,
            "correlation_low": cell.low,
            "correlation_high": cell.high,
            "p": cell.p,
            "partial": cell.partial,
            "n_pairs": cell.pairs,
            "n_models": cell.runs,
            "n_images": whole.images,
        }
