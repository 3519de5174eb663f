"""Tables of explanations: single images, how good explainers are, and what they share with token reduction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from common.plots.mutex_studies import MASK_PARTS, PARAMETERS, parameter_value
from common.plots.style import explainer_label
from common.report.sections import NONE, Section, leader, method_label, number, percent, setting_title, spread
from common.report.summary.explaining import STUDIES
from common.report.summary.rows import SETTING

_AREAS = (
    "Insertion: area under the probability of the explained class while patches are shown, the hottest first; higher "
    "is better. Deletion: the same while they are removed; lower is better. Areas lie in [0, 1]; heat is ranked by "
    "whole patches."
)
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
_DIGITS = "Embedded default: digits, not comparable with the paper."
_BASELINES = {
    "black": "black",
    "zero": "the mean colour of the training images (0 after normalisation)",
    "mean": "the mean colour of the image",
    "blur": "a blurred copy of the image",
    "noise": "noise",
}
# More rows than this start closed.
_OPEN_ROWS = 30


def explain_sections(data: pd.DataFrame) -> Iterator[Section]:
    for _, rows in data.groupby(SETTING["explain"], sort=False, dropna=False):
        unit, times = _times(rows["seconds"])
        columns = {
            "Image": [f"{name} ({image})" for name, image in zip(rows["class_name"], rows["image"], strict=True)],
            "Explainer": _labels(rows),
            "Predicted": rows["predicted"].tolist(),
            "Probability": _numbers(rows["probability"]),
            "Insertion AUC": _numbers(rows["insertion_auc"]),
            "Deletion AUC": _numbers(rows["deletion_auc"]),
            unit: times,
        }
        model = _models(rows.head(1))[0] if rows["reducer"].iloc[0] != "none" else ""
        title = ", ".join(filter(None, (setting_title(rows), model, _seed(rows, data))))
        yield Section(title, pd.DataFrame(columns), (_AREAS, *_digits(rows)), folded=len(rows) > _OPEN_ROWS)


def explain_benchmark_sections(data: pd.DataFrame) -> Iterator[Section]:
    """The comparison of all explainers of each setting, then its studies, which start closed."""
    for _, rows in data.groupby(SETTING["explain_benchmark"], sort=False, dropna=False):
        row = rows.iloc[0]
        title = f"{setting_title(rows)}, baseline {row['baseline']}, {row['n_images']} images"
        title = ", ".join(filter(None, (title, _seed(rows, data))))
        for study in STUDIES:
            found = rows[rows["study"] == study].reset_index(drop=True)
            if len(found):
                yield _study(title, study, found)


def _study(title: str, study: str, rows: pd.DataFrame) -> Section:
    if study in PARAMETERS:
        mutex = [explainer_label("mutex", _other_options(study, options)) for options in rows["options"]]
        values = [f"{parameter_value(study, options):g}" for options in rows["options"]]
        return _scores(f"{title}: {study} of MUTEX", rows, {"Explainer": mutex, study: values}, folded=True)
    if study == "masks":
        first = {"Explainer": _labels(rows), "Masks used": rows["part"].map(_masks).tolist()}
        return _scores(f"{title}: MUTEX with some of its masks", rows, first, folded=True)
    if study == "reduced":
        first = {"Explained model": _models(rows), "Explainer": _labels(rows)}
        return _scores(f"{title}: models with fewer tokens", rows, first, folded=True)
    return _scores(title, rows, {"Explainer": _labels(rows)})


def _scores(title: str, rows: pd.DataFrame, first: dict[str, list[str]], *, folded: bool = False) -> Section:
    """``first`` columns, then all measures; those that are empty in all ``rows`` are left out."""
    unit, times = _times(rows["seconds"])
    columns = {
        **first,
        "Insertion AUC": _with_errors(rows, "insertion_auc"),
        "Deletion AUC": _with_errors(rows, "deletion_auc"),
        "Insertion gain": _gains(rows, "insertion"),
        "Deletion gain": _gains(rows, "deletion"),
        "Pointing game": _with_errors(rows, "pointing"),
        "Mass in box": _with_errors(rows, "mass"),
        "Sparseness": _numbers(rows["sparseness"]),
        "Max-sensitivity": _numbers(rows["max_sensitivity"]),
        unit: times,
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
    notes = [f"{_AREAS} What is hidden is replaced by {hidden}. {size}"]
    about = {"Insertion gain": _GAIN, "Pointing game": _BOX, "Sparseness": _SPARSE, "Max-sensitivity": _SENSITIVE}
    notes += [note for column, note in about.items() if column in shown]
    if any(name.endswith("per image") for name in shown):
        notes.append(f"Time of explaining alone: {row['device']}, threads: {row['threads']}, batch {row['batch']}.")
    return (*notes, *_digits(rows))


def explain_agreement_sections(data: pd.DataFrame) -> Iterator[Section]:
    correlation = (
        "Spearman's correlation, in [-1, 1], of the heat with the scores by which the reducer's first stage chooses; "
        "mean ± standard error over images."
    )
    overlap = (
        "Intersection over union of the patches that the reducer has left and as many of the hottest; mean ± standard "
        "error over images; in brackets the difference to random heat. Blocks are counted from 1."
    )
    for _, rows in data.groupby(SETTING["explain_agreement"], sort=False, dropna=False):
        row = rows.iloc[0]
        title = f"{setting_title(rows)}, keep rate {percent(row['keep_rate'])}, {row['n_images']} images"
        title = ", ".join(filter(None, (title, _seed(rows, data))))
        scored = rows[rows["rank_correlation"].notna()]
        if len(scored):
            cells = _with_errors(scored, "rank_correlation", 2)
            yield Section(f"{title}: rank correlation", _matrix(scored, cells), (correlation, *_digits(rows)))
        pairs = zip(_with_errors(rows, "iou", 2), rows["above_chance"], strict=True)
        cells = [f"{text} ({difference:+.2f})" for text, difference in pairs]
        yield Section(f"{title}: IoU", _matrix(rows, cells), (overlap, *_digits(rows)))


def _matrix(rows: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with explainers down and reducers, as they were read, across."""
    wide = rows.assign(cell=cells, label=_labels(rows)).pivot(
        index="label", columns=["reducer", "layer"], values="cell"
    )
    wide = wide.reindex(list(dict.fromkeys(_labels(rows)))).fillna(NONE)
    columns = dict.fromkeys(zip(rows["reducer"], rows["layer"], strict=True))
    named = {f"{method_label(*name.partition(':')[::2])}, block {layer + 1}": (name, layer) for name, layer in columns}
    return pd.DataFrame(
        {"Explainer": wide.index.tolist(), **{label: wide[key].tolist() for label, key in named.items()}}
    )


def _labels(rows: pd.DataFrame) -> list[str]:
    return [explainer_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def _models(rows: pd.DataFrame) -> list[str]:
    """Names of the explained models, with their keep rate where they are reduced."""
    names = [method_label(*reducer.partition(":")[::2]) for reducer in rows["reducer"]]
    rates = zip(names, rows["keep_rate"], strict=True)
    return [f"{name}, {percent(rate)}" if rate < 1 else name for name, rate in rates]


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


def _with_errors(rows: pd.DataFrame, name: str, digits: int = 3) -> list[str]:
    return [spread(mean, sem, digits) for mean, sem in zip(rows[name], rows[f"{name}_sem"], strict=True)]


def _gains(rows: pd.DataFrame, name: str) -> list[str]:
    return [_gain(*pair) for pair in zip(rows[f"{name}_gain"], rows[f"{name}_p"], strict=True)]


def _gain(gain: float, p: float) -> str:
    if pd.isna(gain):
        return NONE
    chance = "" if pd.isna(p) else " (p < 0.001)" if p < 0.001 else f" (p = {p:.3f})"
    return f"{gain:+.3f}{chance}"


def _numbers(values: pd.Series, digits: int = 3) -> list[str]:
    return [number(value, digits) for value in values]


def _times(seconds: pd.Series) -> tuple[str, list[str]]:
    """Heading and cells of seconds per image, in ms where all are below a second."""
    if seconds.max() < 1:
        return "ms per image", _numbers(1000 * seconds, 1)
    return "s per image", _numbers(seconds, 2)


def _seed(rows: pd.DataFrame, data: pd.DataFrame) -> str:
    """The seed, where there are several."""
    return f"seed {rows['seed'].iloc[0]}" if data["seed"].nunique(dropna=False) > 1 else ""


def _digits(rows: pd.DataFrame) -> tuple[str, ...]:
    return (_DIGITS,) if rows["dataset"].iloc[0] == "digits" else ()
