"""Speed: measured beside the arithmetic that is saved, and beside the published numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.cost.throughput import promise_share
from common.data.catalog import Dataset
from common.devices import Format, Runtime
from common.models.factory import create_backbone
from common.options import Many
from common.plots.frames import backbone_name
from common.report import sections as show
from common.report.rows import VARIANT, architecture, holes, in_order, refuse_repeats, shared_rates
from common.report.sections import Answer, Section
from common.results import read_published
from common.schedule import keep_rate_text
from common.schema import REQUIRED, Column, count, number, text
from common.setup import Setup
from common.studies.base import Study, register_study
from common.training.digits_backbone import resolve_weights

SETTING = ["dtype", "runtime", "batch", "device", "threads", "backbone", "img_size"]
EFFICIENCY_KEY = ["backbone", "img_size", "method", "options", "keep_rate"]
FPS_NOTE = "Published FPS: one CUDA GPU, type not recorded. Not comparable with the speeds measured here."
GFLOPS_NOTE = (
    "GMAC counts everything; GMAC, thop leaves out the products of attention, as the published GFlops do: "
    "compare only these two."
)
PROMISE_NOTE = "Share of promise: speed-up / MAC ratio."
CEILING_NOTE = (
    "Share of ceiling: speed-up / that of the same network on as many tokens, always the first ones, without choosing "
    "any; empty where the number of tokens depends on the image, or where they come back."
)
READY_NOTE = "Ready in: seconds of compilation, or of export and loading."
MEMORY_NOTE = "Peak memory: 10⁶ bytes on the GPU during a pass, weights and images included."


def shown_images(
    backbone: str, weights: str, dataset: str, img_size: int | None, recipe: str, *, seed: int = 0
) -> tuple[dict[str, object], dict[str, object]]:
    """What :func:`common.benchmark.compare_all` takes besides, and what rows say of it; both empty without a data set.

    The images are those on which the leaderboard solves the budgets of methods that keep more of some images than of
    others, so that its rows and these are of the same models.

    >>> given, said = shown_images("vit_digits", "", "digits", 32, "pretrained")
    >>> given["images"].shape, said["weights"], said["dataset"]
    (torch.Size([32, 3, 32, 32]), 'random', 'digits')
    """
    if not dataset:
        return {}, {}
    size = img_size or create_backbone(backbone).patch_embed.img_size[0]
    setup = Setup(backbone, weights, dataset, size, recipe, seed=seed, device="cpu")
    given = {"weights": resolve_weights(weights, backbone), "images": setup.cost_images()}
    return given, {name: setup.conditions[name] for name in ("weights", "dataset", "recipe")}


def quartiles_of(name: str, what: str, unit: str) -> dict[str, Column]:
    """The columns of a median and of its quartiles."""
    return {
        name: number(f"median of {what}", unit),
        f"{name}_q1": number(f"lower quartile of {what}", unit),
        f"{name}_q3": number(f"upper quartile of {what}", unit),
    }


@register_study
class Throughput(Study):
    """How much faster a model is that keeps fewer tokens."""

    name, title = "throughput", "Speed"
    question = "How much faster is a model that keeps fewer tokens?"
    place = 10
    columns = {
        **quartiles_of("fps", "images per second over the rounds", "1/s"),
        **quartiles_of("speedup", "seconds of the unreduced model / own seconds in the same round", "ratio"),
        "rounds": count("passes of each model, in turn"),
        "params": count("parameters"),
        "gmac": number("multiply-accumulates of an image, attention included", "GMAC"),
        "gmac_thop_compat": number("the same as thop counts them, without attention's products", "GMAC"),
        "runtime": text(
            "what runs the models, the unreduced one too: PyTorch (eager), torch.compile (compiled) or onnxruntime",
            before="eager",
            was="compiled",
        ),
        "compile_seconds": number("of compilation, or of the export and loading", "s", optional=True, before=""),
        "peak_memory_mb": number(
            "10^6 bytes at the most during a pass, weights included", "MB", optional=True, before=""
        ),
        "ceiling": number(
            "speedup with as many tokens, the first ones, none chosen", "ratio", optional=True, before=""
        ),
    }
    required = (*REQUIRED, "dtype", "batch")
    setting = SETTING
    parameters = {
        "dtypes": Many[Format],
        "runtimes": Many[Runtime],
        "ceilings": bool,
        "dataset": Literal[""] | Dataset,  # "": random images
    }
    captions = {
        "": "Measured speed-up over the unreduced model in the same runtime. Bars: quartiles over rounds. Dotted: what "
        "the arithmetic alone would give. Strokes: the ceiling, the same network on as many tokens, none chosen.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Measured speed and MACs beside the published ones; published conditions that were not measured come last."""
        key = [*SETTING, *VARIANT]
        refuse_repeats(runs, key)
        measures = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
        measures += ["compile_seconds", "peak_memory_mb", "ceiling"]
        measured = runs[[*key, *measures, "gmac", "gmac_thop_compat", "params"]]
        measured = in_order(measured, SETTING).assign(status="measured")
        published = published_efficiency().rename(columns={"backbone": "architecture"})
        key = ["architecture", *EFFICIENCY_KEY[1:]]
        measured = measured.assign(architecture=measured["backbone"].map(architecture))
        beside = measured.merge(published, how="left", on=key)
        index, ours = pd.MultiIndex.from_frame(published[key]), pd.MultiIndex.from_frame(measured[key])
        rest = published[~index.isin(ours)].assign(status=show.NOT_RUN, backbone=lambda rows: rows["architecture"])
        return pd.concat([beside, rest], ignore_index=True).drop(columns="architecture")

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        measured = data[data["status"] == "measured"]
        for _, rows in measured.groupby(SETTING, sort=False, dropna=False):
            row = rows.iloc[0]
            title = f"{backbone_name(row['backbone'])}, {row['img_size']} px, {_form(row)}, batch {row['batch']}"
            where = f"{row['device']}, threads: {row['threads']}."
            note = (
                f"FPS and speed-up: median [quartiles] over {rows['rounds'].min()} or more interleaved rounds, {where}"
            )
            frame = _throughput_frame(rows)
            notes = {"Share of promise": PROMISE_NOTE, "Share of ceiling": CEILING_NOTE, "Peak MB": MEMORY_NOTE}
            notes["Ready in (s)"] = READY_NOTE
            note = " ".join([note, *(said for column, said in notes.items() if column in frame)])
            yield Section(title, frame, (note, GFLOPS_NOTE, *([FPS_NOTE] if "Published FPS" in frame else [])))
        rest = data[data["status"] == show.NOT_RUN]
        if len(rest):
            frame = pd.DataFrame(
                {
                    "Backbone": [backbone_name(name) for name in rest["backbone"]],
                    "px": rest["img_size"].astype(str),
                    "Model": [show.method_label(method) for method in rest["method"]],
                    "Keep": rest["keep_rate"].map(show.percent),
                    "FPS": show.NOT_RUN,
                    "Published GFlops": rest["published_gflops"],
                    "Published FPS": rest["published_fps"],
                    "Published in": rest["published_in"],
                }
            )
            yield Section("Published conditions that were not run here", frame, (FPS_NOTE,), folded=True)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        """Of all settings in which methods share keep rates; the leaderboard's page shows speeds at equal cost."""
        parts = [
            rows for _, rows in runs.groupby(SETTING, dropna=False) if len(shared_rates(rows[show.is_reduced(rows)]))
        ]
        if parts:
            yield "", plots.speedup_vs_keep_rate(pd.concat(parts, ignore_index=True))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        reduced = _placed(data[data["status"] != show.NOT_RUN])
        several = reduced["device"].nunique() > 1
        for _, rows in reduced.groupby(["dtype", "runtime", "device"], sort=False):
            points = [_range(at, cells) for at, cells in rows.groupby("at", sort=False)]
            row = rows.iloc[0]
            where = f"In {_form(row)} on {row['device']}" if several else f"In {_form(row)}"
            yield Answer(f"{where}, compared with the same model without reduction:", tuple(points))

    def missing(self, runs: pd.DataFrame) -> list[str]:
        return holes(runs, SETTING)


def published_efficiency() -> pd.DataFrame:
    """Printed FPS and GFlops per condition; several printed values of one condition are joined by " / "."""
    tables = ["tram_accuracy", "tram_throughput_vit", "tram_throughput_simple_vit", "trewa_efficiency"]
    rows = pd.concat([read_published(name, as_printed=True).assign(published_in=name) for name in tables])
    rows = rows.astype({"img_size": "Int64"})
    rows["keep_rate"] = rows["keep_rate"].astype(float).map(keep_rate_text)
    rows = rows.rename(columns={"fps": "published_fps", "gflops": "published_gflops"})
    groups = rows.groupby(EFFICIENCY_KEY, sort=False)
    printed = ["published_fps", "published_gflops", "published_in"]
    return groups[printed].agg(lambda values: " / ".join(dict.fromkeys(values))).reset_index()


def _throughput_frame(rows: pd.DataFrame) -> pd.DataFrame:
    published = rows[["published_gflops", "published_fps"]].fillna(show.NONE)
    columns = {
        "Model": show.labels(rows),
        "Keep": rows["keep_rate"].map(show.percent),
        "FPS": [show.quartiles(row, "fps", 1) for _, row in rows.iterrows()],
        "Speed-up": [show.quartiles(row, "speedup", 2) for _, row in rows.iterrows()],
        **_where_measured(rows),
        "GMAC": show.numbers(rows["gmac"], 4),
        "GMAC, thop": show.numbers(rows["gmac_thop_compat"], 4),
        "Published GFlops": published["published_gflops"],
        "Params (M)": show.numbers(rows["params"] / 1e6, 2),
        "Published FPS": published["published_fps"],
    }
    return show.filled(pd.DataFrame(columns))


def _where_measured(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The columns that not every run has, as far as these ``rows`` of one setting have any value there."""
    reduced = show.is_reduced(rows)
    promise = promise_share(rows["speedup"], rows["gmac"], _whole_gmac(rows))
    found = {
        "Share of promise": (100 * promise.where(reduced), 0, " %"),
        "Share of ceiling": (100 * (rows["speedup"] / rows["ceiling"]).where(reduced), 0, " %"),
        "Peak MB": (rows["peak_memory_mb"], 0, ""),
        "Ready in (s)": (rows["compile_seconds"], 1, ""),
    }
    return {
        name: [show.NONE if pd.isna(value) else show.number(value, digits) + unit for value in values]
        for name, (values, digits, unit) in found.items()
        if values.notna().any()
    }


def _placed(measured: pd.DataFrame) -> pd.DataFrame:
    """The reduced models of all settings with ``at``, the keep rate or the cost, in words, at which they are compared.

    Keep rates that methods do not share were solved for budgets. Such models are compared at each tenth of the
    multiply-accumulates saved that they meet within a point.
    """
    found = []
    for _, rows in measured.groupby(SETTING, sort=False, dropna=False):
        reduced, whole = rows[show.is_reduced(rows)], _whole_gmac(rows)
        shared, saved = reduced["keep_rate"].isin(shared_rates(reduced)), 100 * (1 - reduced["gmac"] / whole)
        tenth = (saved / 10).round() * 10
        kept = reduced["keep_rate"].map(lambda rate: f"keep {show.percent(rate)}")
        at = kept.where(shared, tenth.map("{:.0f} % of the multiply-accumulates saved".format))
        met = shared | (((saved - tenth).abs() <= 1) & (tenth > 0))
        found.append(reduced.assign(at=at, _saved=tenth.where(~shared, 0))[met])
    return pd.concat(found).sort_values("_saved", kind="stable").drop(columns="_saved")


def _range(at: str, cells: pd.DataFrame) -> str:
    """How much faster the ``cells`` that are compared are; the slowest and the fastest by name."""
    best, worst = cells.loc[cells["speedup"].idxmax()], cells.loc[cells["speedup"].idxmin()]
    if len(cells) == 1:
        return f"{at}: {best['speedup']:.2f} times as fast ({_place(best)})"
    return (
        f"{at}: {worst['speedup']:.2f} to {best['speedup']:.2f} times as fast "
        f"(least: {_place(worst)}; most: {_place(best)})"
    )


def _whole_gmac(rows: pd.DataFrame) -> float:
    """GMAC of the unreduced model of one setting; NaN where it was not measured."""
    whole = rows.loc[rows["method"] == "none", "gmac"]
    return whole.iloc[0] if len(whole) else math.nan


def _form(row: pd.Series) -> str:
    """Number format, and what runs the models if that is not PyTorch itself."""
    return row["dtype"] if row["runtime"] == "eager" else f"{row['dtype']}, {row['runtime']}"


def _place(row: pd.Series) -> str:
    return f"{show.model_name(row)} on {backbone_name(row['backbone'])}, {row['img_size']} px, batch {row['batch']}"
