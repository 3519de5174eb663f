"""Numbers to printed tables: the sections of text cells that the Markdown files and the report share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from common.plots import METHODS
from common.plots.frames import backbone_name
from common.report.summary.rows import SETTING
from common.report.summary.speed import NOT_RUN

NONE = "-"
FPS_NOTE = "Published FPS: one CUDA GPU, type not recorded. Not comparable with the speeds measured here."
GFLOPS_NOTE = (
    "GMAC counts everything; GMAC, thop leaves out the matrix products of attention, as the published GFlops do: "
    "compare only these two."
)
SIZING_NOTE = (
    "Linear, Attention and Total are GMAC per image; By hand compares Total with the sum derived from the schedule. "
    "GMAC, thop counts as the published GFlops do."
)
_LEFT = {"Model", "Predicted", "Backbone", "Dataset", "Published in", "Source", "Status", "Start"}
_LEFT |= {
    "Schedule",
    "Stage",
    "Tokens by block",
    "Chosen by",
    "Score",
    "Method",
    "Explainer",
    "Explained model",
    "Image",
    "Masks used",
}


@dataclass(frozen=True)
class Section:
    """One printed table: text cells; ``best`` are (row, column) of cells to stress; ``folded`` ones start closed."""

    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    best: frozenset[tuple[int, str]] = frozenset()
    folded: bool = False

    def align(self, column: str) -> str:
        return "left" if column in _LEFT else "right"


def method_label(method: str, options: str = "") -> str:
    """Name for readers; a method that has none keeps its own."""
    label = METHODS.get(method, method)
    return f"{label} ({options})" if options else label


def percent(keep_rate: float) -> str:
    return f"{100 * keep_rate:g} %"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def number(value: float, digits: int = 2) -> str:
    return NONE if pd.isna(value) else f"{value:,.{digits}f}"


def spread(mean: float, sd: float, digits: int = 2) -> str:
    """``mean ± sd``; the mean alone when there is one seed."""
    return number(mean, digits) + ("" if pd.isna(sd) or pd.isna(mean) else f" ± {sd:.{digits}f}")


def quartiles(row: pd.Series, name: str, digits: int) -> str:
    return f"{number(row[name], digits)} [{number(row[f'{name}_q1'], digits)}, {number(row[f'{name}_q3'], digits)}]"


def labels(rows: pd.DataFrame) -> list[str]:
    return [method_label(*pair) for pair in zip(rows["method"], rows["options"], strict=True)]


def leader(means: Iterable[float], errors: Iterable[float]) -> int | None:
    """Place of the highest mean if it leads the next by more than twice the standard error of their difference.

    ``errors`` are standard errors of the means; NaN (one seed) decides nothing.
    """
    ranked = sorted(
        ((mean, error, place) for place, (mean, error) in enumerate(zip(means, errors, strict=True)) if mean == mean),
        key=lambda entry: -entry[0],
    )
    if len(ranked) < 2:
        return None
    (first, first_error, place), (second, second_error, _) = ranked[:2]
    return place if first - second > 2 * (first_error**2 + second_error**2) ** 0.5 else None


def setting_title(rows: pd.DataFrame) -> str:
    """Dataset, backbone and image size of ``rows``, which share them."""
    row = rows.iloc[0]
    return f"{row['dataset']}, {backbone_name(row['backbone'])}, {row['img_size']} px"


def throughput_sections(data: pd.DataFrame) -> Iterator[Section]:
    measured = data[data["status"] == "measured"]
    for _, rows in measured.groupby(SETTING["throughput"], sort=False, dropna=False):
        row = rows.iloc[0]
        title = f"{backbone_name(row['backbone'])}, {row['img_size']} px, {row['dtype']}, batch {row['batch']}"
        where = f"{row['device']}, threads: {row['threads']}."
        note = f"FPS and speed-up: median [quartiles] over at least {rows['rounds'].min()} interleaved rounds, {where}"
        yield Section(title, _throughput_frame(rows), (note, GFLOPS_NOTE, FPS_NOTE))
    rest = data[data["status"] == NOT_RUN]
    if len(rest):
        frame = pd.DataFrame(
            {
                "Backbone": [backbone_name(name) for name in rest["backbone"]],
                "px": rest["img_size"].astype(str),
                "Model": [method_label(method) for method in rest["method"]],
                "Keep": rest["keep_rate"].map(percent),
                "FPS": NOT_RUN,
                "Published GFlops": rest["published_gflops"],
                "Published FPS": rest["published_fps"],
                "Published in": rest["published_in"],
            }
        )
        yield Section("Published conditions that were not run here", frame, (FPS_NOTE,), folded=True)


def _throughput_frame(rows: pd.DataFrame) -> pd.DataFrame:
    published = rows[["published_gflops", "published_fps"]].fillna(NONE)
    return pd.DataFrame(
        {
            "Model": labels(rows),
            "Keep": rows["keep_rate"].map(percent),
            "FPS": [quartiles(row, "fps", 1) for _, row in rows.iterrows()],
            "Speed-up": [quartiles(row, "speedup", 2) for _, row in rows.iterrows()],
            "GMAC": rows["gmac"].map(lambda value: number(value, 4)),
            "GMAC, thop": rows["gmac_thop_compat"].map(lambda value: number(value, 4)),
            "Published GFlops": published["published_gflops"],
            "Params (M)": rows["params"].map(lambda value: number(value / 1e6)),
            "Published FPS": published["published_fps"],
        }
    )


def sizing_sections(data: pd.DataFrame) -> Iterator[Section]:
    for source, rows in data.groupby("source", sort=False):
        frame = pd.DataFrame(
            {
                "Model": rows["model"],
                "Backbone": [backbone_name(name) for name in rows["backbone"]],
                "Keep": rows["keep_rate"].map(percent),
                "Linear": rows["gmac_linear"].map(lambda value: number(value, 4)),
                "Attention": rows["gmac_attention"].map(lambda value: number(value, 4)),
                "Total": rows["gmac"].map(lambda value: number(value, 4)),
                "By hand": rows["closed_form_error"].map(lambda error: _relative(error, "equal")),
                "GMAC, thop": rows["gmac_thop_compat"].map(lambda value: number(value, 4)),
                "Published GFlops": rows["published_gflops"].map(lambda value: number(value, 4)),
                "Difference": rows["relative_error"].map(_relative),
            }
        )
        sizes = ", ".join(f"{size} px" for size in sorted(rows["img_size"].unique()))
        yield Section(f"Published table {source}, {sizes}", frame, (SIZING_NOTE, _largest_error(rows)))


def _relative(error: float, none: str = "0") -> str:
    if pd.isna(error):
        return NONE
    return none if abs(error) < 1e-9 else f"{100 * error:+.3f} %"


def _largest_error(rows: pd.DataFrame) -> str:
    errors = rows[rows["method"] != "ats"]["relative_error"].abs().dropna()
    largest = f"{100 * errors.max():.3f} %" if len(errors) else "none published"
    return f"Largest difference of a deterministic row: {largest}. ATS samples at random; its count is not one number."


def training_sections(data: pd.DataFrame) -> Iterator[Section]:
    setting = SETTING["finetune"]
    for _, rows in data.groupby(setting, sort=False, dropna=False):
        baseline = rows[rows["method"] == "none"]
        reduced = rows[rows["method"] != "none"]
        for keep_rate in sorted(reduced["keep_rate"].unique(), reverse=True) or [1.0]:
            cells = pd.concat([baseline, reduced[reduced["keep_rate"] == keep_rate]]).reset_index(drop=True)
            yield _training_section(cells, keep_rate)


def _training_section(cells: pd.DataFrame, keep_rate: float) -> Section:
    columns = {
        "Model": labels(cells),
        "Seeds": cells["n"].astype(str),
        "Before training": _accuracy(cells, "before"),
        "Last epoch": _accuracy(cells, "last"),
        "Best epoch": _accuracy(cells, "best"),
        "Seconds per epoch": cells["epoch_seconds"].map(lambda value: number(value, 1)),
    }
    published = cells.get("published_accuracy")
    comparable = published is not None and published.notna().any()
    if comparable:
        columns["Published"] = published.map(number)
    reduced = cells[cells["method"] != "none"]
    best = set()
    for column, name in (("Last epoch", "last"), ("Best epoch", "best")):
        place = leader(reduced[name], reduced[f"{name}_sd"] / reduced["n"] ** 0.5)
        best |= set() if place is None else {(int(reduced.index[place]), column)}
    title = f"{setting_title(cells)}, {counted(cells['epochs'].iloc[0], 'epoch')}, keep rate {percent(keep_rate)}"
    return Section(title, pd.DataFrame(columns), (_comparability(cells, comparable),), frozenset(best))


def _accuracy(cells: pd.DataFrame, name: str) -> list[str]:
    return [spread(mean, sd) for mean, sd in zip(cells[name], cells[f"{name}_sd"], strict=True)]


def _comparability(cells: pd.DataFrame, comparable: bool) -> str:
    if comparable:
        return "Published: README of the reference repository, same data, backbone, image size, epochs; one seed."
    if cells["dataset"].iloc[0] == "digits":
        return "Embedded default: digits, not comparable with the paper."
    return "The paper prints no value for this experiment: not comparable with its tables."


def visualize_sections(data: pd.DataFrame) -> Iterator[Section]:
    for _, rows in data.groupby(SETTING["visualize"], sort=False, dropna=False):
        frame = pd.DataFrame(
            {
                "Model": labels(rows),
                "Keep": rows["keep_rate"].map(percent),
                "Images": rows["images"].astype(str),
                "Patches at the end": rows["kept"].map(lambda value: number(value, 1)),
                "Probability, full model": rows["probability_full_model"].map(lambda value: number(value, 3)),
                "Probability, reduced": rows["probability"].map(lambda value: number(value, 3)),
                "Same prediction": rows["agreement"].map(lambda value: f"{value:.1f} %"),
            }
        )
        note = "Probability: mean over the images of what each model gives its own predicted class."
        yield Section(setting_title(rows), frame, (note,))


def gallery_sections(data: pd.DataFrame) -> Iterator[Section]:
    for _, rows in data.groupby(SETTING["gallery"], sort=False, dropna=False):
        row = rows.iloc[0]
        frame = pd.DataFrame(
            {
                "Model": labels(rows),
                "Keep": rows["keep_rate"].map(percent),
                "Tokens": rows["num_tokens"].astype(str),
                "Predicted": rows["predicted"],
                "Probability": rows["probability"].map(lambda value: number(value, 3)),
                "Epochs trained": rows["epochs"].astype(str),
            }
        )
        note = f"Tokens after layer {row['layer']}, CLS not counted. Only methods with parameters were trained."
        yield Section(f"{setting_title(rows)}: {row['class_name']} ({row['image']})", frame, (note,))
