"""Serving: what is left of the speed-up where single images are asked for by several clients at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.cost.throughput import promise_share
from common.options import Count, Many, NonNegative
from common.plots.frames import backbone_name
from common.report import sections as show
from common.report.rows import VARIANT, in_order, refuse_repeats
from common.report.sections import Answer, Section
from common.schema import REQUIRED, Column, count, number, text
from common.serving.load import ServingRuntime
from common.studies.base import Study, register_study
from common.studies.throughput import quartiles_of

PLACE = ["dtype", "runtime", "device", "threads", "backbone", "img_size"]
SETTING = [*PLACE, "max_batch", "max_wait_ms", "clients"]
PROMISE_NOTE = "Share of promise: images per second over the unreduced model's / MAC ratio."


@register_study
class Serving(Study):
    """What a reduced model is worth to those who ask it about one image each."""

    name, title = "serving", "Serving"
    question = "Does the gain of token reduction survive serving?"
    place = 15
    columns: Mapping[str, Column] = {
        "runtime": text("what runs the models, the unreduced one too: eager or onnxruntime"),
        "clients": count("threads, each of which sends its next image when it has the answer to its last one"),
        "requests": count("of all clients together in a round"),
        "max_batch": count("images of a batch at the most; 1: the model is called image by image"),
        "max_wait_ms": number("for which a batch waits for further images", "ms"),
        "gmac": number("multiply-accumulates of an image, attention included", "GMAC"),
        "p50_ms": number("that half of all requests do not exceed, from sending to answer", "ms"),
        "p95_ms": number("that 95 % do not exceed", "ms"),
        "p99_ms": number("that 99 % do not exceed", "ms"),
        "mean_batch": number("images of a batch"),
        **quartiles_of("fps", "answers per second over the rounds", "1/s"),
        **quartiles_of("speedup", "seconds of the unreduced model / own seconds in the same round", "ratio"),
        "rounds": count("of each model, in turn"),
    }
    required = (*REQUIRED, "dtype")
    setting = SETTING
    parameters: Mapping[str, object] = {
        "clients": Many[Count],
        "requests": Count,
        "max_batch": Count,
        "max_wait_ms": NonNegative,
        "runtime": ServingRuntime,
    }
    captions = {
        "": "Above: the time within which 95 % of the requests are answered, over the clients that ask at once. Below: "
        "images per second over the unreduced model's under the same load. Bars: quartiles over rounds. Dotted: what "
        "the arithmetic promises.",
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Every load with ``promise``, the share of the MAC ratio that is reached, and ``p95_ratio``, the 95th
        percentile over the unreduced model's; both empty where that was not measured."""
        refuse_repeats(runs, [*SETTING, *VARIANT])
        measured = [name for name in self.columns if name not in SETTING]
        table = in_order(runs[[*SETTING, *VARIANT, *measured]], SETTING)
        whole = table.loc[table["method"] == "none", [*SETTING, "gmac", "p95_ms"]]
        table = table.merge(whole, how="left", on=SETTING, suffixes=("", "_whole"))
        promise = promise_share(table["speedup"], table["gmac"], table.pop("gmac_whole"))
        return table.assign(promise=promise, p95_ratio=table.pop("p95_ms_whole").rdiv(table["p95_ms"]))

    def sections(self, table: pd.DataFrame) -> Iterator[Section]:
        for _, rows in table.groupby([*PLACE, "max_batch", "max_wait_ms"], sort=False, dropna=False):
            row = rows.iloc[0]
            where = f"{row['device']}, threads: {row['threads']}, {row['requests']} requests or more in a round"
            note = f"Images/s and speed-up: median [quartiles] over {rows['rounds'].min()} or more interleaved rounds, "
            frame = {
                "Clients": rows["clients"].astype(str),
                "Model": show.labels(rows),
                "Keep": rows["keep_rate"].map(show.percent),
                "Images/s": [show.quartiles(each, "fps", 1) for _, each in rows.iterrows()],
                "Speed-up": [show.quartiles(each, "speedup", 2) for _, each in rows.iterrows()],
                "Share of promise": _shares(rows),
                **{f"p{end} (ms)": show.numbers(rows[f"p{end}_ms"], 1) for end in (50, 95, 99)},
                "Mean batch": show.numbers(rows["mean_batch"], 1),
            }
            title = f"{_place(row)}, {row['img_size']} px, {way_of(row)}"
            yield Section(title, pd.DataFrame(frame), (f"{note}{where}.", PROMISE_NOTE))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "", plots.serving_load(runs)

    def answers(self, table: pd.DataFrame) -> Iterator[Answer]:
        """For each network and way of serving: what is left of the promise, and what the most clients gain."""
        reduced = table[show.is_reduced(table) & table["promise"].notna()]
        for _, rows in reduced.groupby([*PLACE, "max_batch", "max_wait_ms"], sort=False, dropna=False):
            row, most = rows.iloc[0], rows[rows["clients"] == rows["clients"].max()]
            low, high = 100 * rows["promise"].min(), 100 * rows["promise"].max()
            said = f"{_place(row)}, {way_of(row)}: {low:.0f} to {high:.0f} % of the MAC ratio reaches the clients."
            yield Answer(said, tuple(_gain(each) for _, each in most.iterrows()))


def way_of(row: Mapping[str, object]) -> str:
    """How the images are given to the model.

    >>> way_of({"max_batch": 1}), way_of({"max_batch": 8})
    ('one image at a time', 'batches of up to 8')
    """
    return "one image at a time" if row["max_batch"] == 1 else f"batches of up to {row['max_batch']}"


def _gain(row: pd.Series) -> str:
    model = f"{show.model_name(row)}, keep {show.percent(row['keep_rate'])}"
    faster = f"{row['speedup']:.2f} times as many images a second ({100 * row['promise']:.0f} % of the MAC ratio)"
    whole = row["p95_ms"] / row["p95_ratio"]
    within = f"95 % of the requests answered within {row['p95_ms']:.0f} ms in place of {whole:.0f} ms"
    return f"{model}, {show.counted(row['clients'], 'client')}: {faster}; {within}"


def _place(row: pd.Series) -> str:
    runtime = "" if row["runtime"] == "eager" else f", {row['runtime']}"
    return f"{backbone_name(row['backbone'])}, {row['dtype']}{runtime}"


def _shares(rows: pd.DataFrame) -> list[str]:
    shares = (100 * rows["promise"]).where(show.is_reduced(rows))
    return [show.NONE if pd.isna(share) else f"{share:.0f} %" for share in shares]
