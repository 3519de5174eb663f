"""Speed: measured beside the arithmetic that is saved, and beside the published numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.plots.frames import backbone_name
from common.report import sections as show
from common.report.rows import VARIANT, architecture, holes, in_order, refuse_repeats
from common.report.sections import Answer, Section
from common.results import read_published
from common.schedule import keep_rate_text
from common.schema import REQUIRED, Column, count, number
from common.studies.base import Study, register_study

SETTING = ["dtype", "batch", "device", "threads", "backbone", "img_size"]
EFFICIENCY_KEY = ["backbone", "img_size", "method", "options", "keep_rate"]
FPS_NOTE = "Published FPS: one CUDA GPU, type not recorded. Not comparable with the speeds measured here."
GFLOPS_NOTE = (
    "GMAC counts everything; GMAC, thop leaves out the matrix products of attention, as the published GFlops do: "
    "compare only these two."
)


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
    }
    required = (*REQUIRED, "dtype", "batch")
    setting = SETTING
    captions = {
        "": "Measured speed-up over the unreduced model. Bars: quartiles over rounds. Dotted: what the arithmetic "
        "alone would give.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Measured speed and MACs beside the published ones; published conditions that were not measured come last."""
        key = [*SETTING, *VARIANT]
        refuse_repeats(runs, key)
        measures = ["fps", "fps_q1", "fps_q3", "speedup", "speedup_q1", "speedup_q3", "rounds"]
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
            title = f"{backbone_name(row['backbone'])}, {row['img_size']} px, {row['dtype']}, batch {row['batch']}"
            where = f"{row['device']}, threads: {row['threads']}."
            note = (
                f"FPS and speed-up: median [quartiles] over at least {rows['rounds'].min()} interleaved rounds, {where}"
            )
            yield Section(title, _throughput_frame(rows), (note, GFLOPS_NOTE, FPS_NOTE))
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
        yield "", plots.speedup_vs_keep_rate(runs)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        reduced = data[(data["status"] != show.NOT_RUN) & show.is_reduced(data)]
        for dtype, rows in reduced.groupby("dtype", sort=False):
            points = []
            for keep_rate, cells in rows.groupby("keep_rate", sort=False):
                best, worst = cells.loc[cells["speedup"].idxmax()], cells.loc[cells["speedup"].idxmin()]
                points.append(
                    f"keep {show.percent(keep_rate)}: {worst['speedup']:.2f} to {best['speedup']:.2f} times as fast "
                    f"(least: {_place(worst)}; most: {_place(best)})"
                )
            yield Answer(f"In {dtype}, compared with the same model without reduction:", tuple(points))

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
    return pd.DataFrame(
        {
            "Model": show.labels(rows),
            "Keep": rows["keep_rate"].map(show.percent),
            "FPS": [show.quartiles(row, "fps", 1) for _, row in rows.iterrows()],
            "Speed-up": [show.quartiles(row, "speedup", 2) for _, row in rows.iterrows()],
            "GMAC": show.numbers(rows["gmac"], 4),
            "GMAC, thop": show.numbers(rows["gmac_thop_compat"], 4),
            "Published GFlops": published["published_gflops"],
            "Params (M)": show.numbers(rows["params"] / 1e6, 2),
            "Published FPS": published["published_fps"],
        }
    )


def _place(row: pd.Series) -> str:
    return f"{show.model_name(row)} on {backbone_name(row['backbone'])}, {row['img_size']} px, batch {row['batch']}"
