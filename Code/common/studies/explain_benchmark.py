"""How good explanations are, by insertion and deletion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.plots import EXPLAINERS
from common.plots.mutex_studies import MASK_PARTS, PARAMETERS, parameter_value
from common.plots.style import explainer_label
from common.report.explained import (
    AREAS,
    digits_note,
    explained_models,
    explainer_labels,
    model_place,
    numbers,
    seed_title,
    times,
    with_errors,
)
from common.report.rows import VARIANT, in_order, refuse_repeats
from common.report.sections import NONE, Answer, Section, counted, leader, setting_title, spread, where_text
from common.schedule import ratio_of
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "baseline", "n_images", "seed"]


_GAIN = (
    "Gain: mean difference to random heat on the same images, positive = better, for insertion and for deletion; p: "
    "two-sided paired t test, not corrected for the number of rows."
)


_BOX = (
    "Pointing game: share of images whose hottest patch lies in the box around the object; mass in box: share of the "
    "positive heat inside it. Higher is better in both."
)


_SPARSE = "Sparseness: Gini index of the heat, higher = on fewer patches; that is no merit by itself."


_SENSITIVE = (
    "Max-sensitivity: largest relative move of the heat under small noise in the image, mean over a few of the images; "
    "lower = steadier."
)


_BASELINES = {
    "black": "black",
    "zero": "the mean colour of the training images (0 after normalisation)",
    "mean": "the mean colour of the image",
    "blur": "a blurred copy of the image",
    "noise": "noise",
}


PARTS = ("explainers", *PARAMETERS, "masks", "reduced")


_SIGNIFICANT = 0.05


@register_study
class ExplainBenchmark(Study):
    """Whether what a model says hangs on the patches that an explainer calls hot."""

    name, title = "explain_benchmark", "How good are the explanations?"
    question = "Does what the model says hang on the patches that an explainer calls hot?"
    place = 110
    columns = {
        **columns(TEXT, "part", "reducer"),
        **columns(TEXT, "masks", optional=True),
        **columns(TEXT, "baseline"),
        **columns(INT, "n_images"),
        **columns(FLOAT, "insertion_auc"),
        **columns(FLOAT, "insertion_auc_sem", optional=True),
        **columns(FLOAT, "deletion_auc"),
        **columns(
            FLOAT,
            "deletion_auc_sem",
            "insertion_gain",
            "insertion_p",
            "deletion_gain",
            "deletion_p",
            "pointing",
            "pointing_sem",
            "mass",
            "mass_sem",
            "sparseness",
            "max_sensitivity",
            "seconds",
            optional=True,
        ),
    }
    required = (*REQUIRED, "dataset")
    parts = PARTS
    setting = SETTING
    captions = {
        "": "Means over the images while patches are shown or removed, the hottest first. Bands: one standard error.",
        "plane": "Every explainer by its areas under deletion and insertion, means over images. Bars: one standard "
        "error. Shaded: better than random heat in both.",
        "parameters": "MUTEX with one parameter changed at a time, means over images. Bars: one standard error.",
        "masks": "MUTEX with only the masks of one kind. Bars: one standard error over images. Band: all 54 masks.",
    }
    run_figures = "*/curves.png"
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All measures of every explainer, and of every value of the studies of MUTEX, in the order of ``PARTS``."""
        setting = SETTING
        key = [*setting, "part", "reducer", *VARIANT, "masks"]
        refuse_repeats(runs, key)
        measures = list(runs.columns[runs.columns.get_loc("insertion_auc") : runs.columns.get_loc("run_id")])
        table = in_order(runs[[*key, *measures, "batch", "device", "threads"]], setting, EXPLAINERS)
        places = [_place(*row) for row in zip(table["part"], table["options"], table["masks"], strict=True)]
        table = table.assign(
            _part=table["part"].map(PARTS.index),
            _model=table["reducer"].map(model_place),
            _rate=table["keep_rate"].map(ratio_of),
            _place=places,
        )
        by = [*setting, "_part", "_model", "_rate", "_place"]
        rising = [name not in ("n_images", "_rate") for name in by]  # studies on fewer images come later
        table = table.sort_values(by, ascending=rising, kind="stable", ignore_index=True)
        return table.drop(columns=["_part", "_model", "_rate", "_place"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """The comparison of all explainers of each setting, then its studies, which start closed."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            row = rows.iloc[0]
            title = f"{setting_title(rows)}, baseline {row['baseline']}, {row['n_images']} images"
            title = ", ".join(filter(None, (title, seed_title(rows, data))))
            for study in PARTS:
                found = rows[rows["part"] == study].reset_index(drop=True)
                if len(found):
                    yield _study(title, study, found)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        for figure, draw, parts in (
            ("plane", plots.insertion_deletion_plane, ["explainers"]),
            ("parameters", plots.parameter_study, list(PARAMETERS)),
            ("masks", plots.mask_ablation, ["masks"]),
        ):
            if runs["part"].isin(parts).any():
                yield figure, draw(runs)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        compared = data[data["part"] == "explainers"]
        for _, rows in compared.groupby(SETTING, sort=False, dropna=False):
            points = [_best(rows, "insertion_auc", 1), _best(rows, "deletion_auc", -1), *_beyond_chance(rows)]
            where = f"{where_text(rows)}, baseline {rows['baseline'].iloc[0]}, {counted(len(rows), 'explainer')}"
            yield Answer(f"On {rows['n_images'].iloc[0]} images of {where}:", tuple(points))


def _place(part: str, options: str, masks: str) -> float:
    """Place of a row within its part; explainers are in order already."""
    if part in PARAMETERS:
        return parameter_value(part, options)
    parts = ["all", *(f"{group}={kind}" for group, (_, kinds) in MASK_PARTS.items() for kind in kinds)]
    return parts.index(masks) if masks in parts else len(parts)


def _study(title: str, study: str, rows: pd.DataFrame) -> Section:
    if study in PARAMETERS:
        mutex = [explainer_label("mutex", _other_options(study, options)) for options in rows["options"]]
        values = [f"{parameter_value(study, options):g}" for options in rows["options"]]
        return _scores(f"{title}: {study} of MUTEX", rows, {"Explainer": mutex, study: values}, folded=True)
    if study == "masks":
        first = {"Explainer": explainer_labels(rows), "Masks used": rows["masks"].map(_masks).tolist()}
        return _scores(f"{title}: MUTEX with some of its masks", rows, first, folded=True)
    if study == "reduced":
        first = {"Explained model": explained_models(rows), "Explainer": explainer_labels(rows)}
        return _scores(f"{title}: models with fewer tokens", rows, first, folded=True)
    return _scores(title, rows, {"Explainer": explainer_labels(rows)})


def _scores(title: str, rows: pd.DataFrame, first: dict[str, list[str]], *, folded: bool = False) -> Section:
    """``first`` columns, then all measures; those that are empty in all ``rows`` are left out."""
    unit, seconds = times(rows["seconds"])
    columns = {
        **first,
        "Insertion AUC": with_errors(rows, "insertion_auc"),
        "Deletion AUC": with_errors(rows, "deletion_auc"),
        "Insertion gain": _gains(rows, "insertion"),
        "Deletion gain": _gains(rows, "deletion"),
        "Pointing game": with_errors(rows, "pointing"),
        "Mass in box": with_errors(rows, "mass"),
        "Sparseness": numbers(rows["sparseness"]),
        "Max-sensitivity": numbers(rows["max_sensitivity"]),
        unit: seconds,
    }
    shown = {name: cells for name, cells in columns.items() if name in first or set(cells) != {NONE}}
    best = {cell for _, same in rows.groupby(["reducer", "keep_rate"], sort=False) for cell in _leaders(same)}
    notes = _notes(rows, shown)
    return Section(title, pd.DataFrame(shown), notes, frozenset(best), folded)


def _leaders(rows: pd.DataFrame) -> Iterator[tuple[int, str]]:
    """Cells to stress among the explanations of one model: the highest insertion and the lowest deletion."""
    for name, sign, column in (("insertion_auc", 1, "Insertion AUC"), ("deletion_auc", -1, "Deletion AUC")):
        place = leader(sign * rows[name], rows[f"{name}_sem"])
        if place is not None:
            yield int(rows.index[place]), column


def _notes(rows: pd.DataFrame, shown: dict[str, list[str]]) -> tuple[str, ...]:
    row = rows.iloc[0]
    hidden = _BASELINES.get(row["baseline"], row["baseline"])
    size = f"Mean ± standard error over {row['n_images']} images."
    notes = [f"{AREAS} What is hidden is replaced by {hidden}. {size}"]
    about = {"Insertion gain": _GAIN, "Pointing game": _BOX, "Sparseness": _SPARSE, "Max-sensitivity": _SENSITIVE}
    notes += [note for column, note in about.items() if column in shown]
    if any(name.endswith("per image") for name in shown):
        notes.append(f"Time of explaining alone: {row['device']}, threads: {row['threads']}, batch {row['batch']}.")
    return (*notes, *digits_note(rows))


def _masks(part: str) -> str:
    """Readable name of the masks that a row used: ``degree=in`` -> ``centrality in-degree``."""
    group, _, kind = part.partition("=")
    if group not in MASK_PARTS or kind not in MASK_PARTS[group][1]:
        return "all 54" if part == "all" else part
    what = {"aggregation": "heads", "degree": "centrality", "statistic": "layers"}[group]
    count, kinds = MASK_PARTS[group]
    return f"{what}: {kinds[kind]} ({count})"


def _other_options(study: str, options: str) -> str:
    return ",".join(option for option in options.split(",") if option.partition("=")[0] != study)


def _gains(rows: pd.DataFrame, name: str) -> list[str]:
    return [_gain(*pair) for pair in zip(rows[f"{name}_gain"], rows[f"{name}_p"], strict=True)]


def _gain(gain: float, p: float) -> str:
    if pd.isna(gain):
        return NONE
    chance = "" if pd.isna(p) else " (p < 0.001)" if p < 0.001 else f" (p = {p:.3f})"
    return f"{gain:+.3f}{chance}"


def _best(rows: pd.DataFrame, name: str, sign: int) -> str:
    """Which explainer has the best area, and whether it certainly leads; ``sign`` is -1 where low is good."""
    place = int((sign * rows[name]).argmax())
    best = f"{explainer_labels(rows)[place]} is {'highest' if sign > 0 else 'lowest'}"
    area = spread(rows[name].iloc[place], rows[f"{name}_sem"].iloc[place], 3)
    certain = len(rows) == 1 or leader(sign * rows[name], rows[f"{name}_sem"]) is not None
    return f"{name.partition('_')[0]} AUC: {best}, {area}{'' if certain else ' (not certainly ahead of the next)'}"


def _beyond_chance(rows: pd.DataFrame) -> Iterator[str]:
    """Which explainers beat random heat in both areas, by the paired tests."""
    tested = rows[rows["insertion_gain"].notna() & rows["deletion_gain"].notna()]
    gains, chances = tested[["insertion_gain", "deletion_gain"]], tested[["insertion_p", "deletion_p"]]
    better = (gains > 0).all(axis=1) & (chances < _SIGNIFICANT).all(axis=1)
    if better.any():
        names = ", ".join(explainer_labels(tested[better]))
        yield f"better than random heat in both, each with p < {_SIGNIFICANT:g}: {names}"
    if not better.all():
        yield f"not certainly better than random heat in both: {', '.join(explainer_labels(tested[~better]))}"
