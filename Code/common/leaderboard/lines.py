"""What was measured, as one line of points for each model: accuracy against the share of the MAC that is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from common.reducers import Method
from common.report.rows import VARIANT, refuse_repeats
from common.report.sections import method_label, training_text
from common.results import BY_IMAGE

# Rows that share them are of one network on the same images: trained ones may be compared with the others.
PLACE = ["dataset", "backbone", "weights", "img_size", "images", "n_val"]
HOW = ["recipe", "dtype", "epochs", "lr", "n_train"]
METRICS = {"accuracy_full": "all classes of the head", "accuracy": "classes of the dataset"}
SECOND = ("agreement", "divergence")
NONE, RANDOM = "none", "random"
NULLS = (RANDOM, "downsample")  # what a method has to beat


@dataclass(frozen=True)
class Line:
    """One model at several costs.

    Attributes:
        method, options: of the reducer.
        how: conditions of its runs, name -> value.
        points: from the lowest ``saved`` up, a share of the unreduced model's multiply-accumulates; also ``gmac``,
            ``keep_rate``, ``counts``, ``mac_cut`` (the budget that was asked for, if any), ``seeds``, and metrics in
            percent with ``<metric>_by_image`` (n,), both means over the seeds.
    """

    method: str
    options: str
    how: Mapping[str, object]
    points: pd.DataFrame

    @property
    def key(self) -> str:
        return f"{self.method}:{self.options}:{self.how['epochs']}"

    @property
    def trained(self) -> bool:
        return bool(self.how["epochs"])

    @property
    def begins_whole(self) -> bool:
        """With nothing dropped it is the unreduced model, and has a point at no saving: neither trained nor resized."""
        return not self.trained and self.parsed.begins_whole

    @property
    def parsed(self) -> Method:
        """The method with its options."""
        return Method.of_table(self.method, self.options)

    @property
    def training(self) -> str:
        """``after 3 epochs on 9,469 images``; "off the shelf" without."""
        return training_text(pd.DataFrame([dict(self.how)]))

    @property
    def label(self) -> str:
        return method_label(self.method, self.options) + (" (trained)" if self.trained else "")


@dataclass(frozen=True)
class Contest:
    """Lines of one backbone over the same images, by one metric.

    Attributes:
        place: the conditions that all share, and those of the untrained models, name -> value.
        metric: "accuracy_full" or "accuracy".
        whole: the one point of the unreduced model.
        lines: of reduced models.
    """

    place: Mapping[str, object]
    metric: str
    whole: pd.Series
    lines: tuple[Line, ...]


def contests(untrained: pd.DataFrame, trained: pd.DataFrame) -> Iterator[Contest]:
    """One contest for each backbone, set of images, way to run the untrained models, and metric.

    Runs without hits by image are left out: nothing could be paired. So are, with a printed line, those of which the
    unreduced model was not run in the same way.

    Args:
        untrained, trained: runs of studies that have columns as the leaderboard study has.
    """
    untrained, trained = averaged(untrained), averaged(trained)
    for values, rows in untrained.groupby([*PLACE, "recipe", "dtype"], sort=False):
        place = dict(zip([*PLACE, "recipe", "dtype"], values, strict=True)) | {"device": _devices(rows)}
        same = np.logical_and.reduce([trained[name] == place[name] for name in PLACE]) if len(trained) else []
        whole = rows[rows["method"] == NONE]
        if len(whole) != 1:
            where = f"{place['dataset']} with {place['backbone']}, {place['dtype']}, {place['device']}"
            print(f"left out: {where}: the unreduced model (method none) has {len(whole)} rows; needed: 1")
            continue
        rows = pd.concat([rows, trained[same]], ignore_index=True) if np.any(same) else rows
        rows = rows.assign(saved=1 - rows["gmac"] / whole["gmac"].item())
        for metric in METRICS:
            known = rows[rows[metric + BY_IMAGE].notna() & (rows["method"] != NONE)]
            if whole[metric + BY_IMAGE].notna().all() and len(known):
                yield Contest(place, metric, whole.iloc[0], tuple(_lines(known)))


def averaged(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows that have hits by image, mean over the seeds: metrics in percent, and their values by image (n,)."""
    if runs.empty or "images" not in runs:
        return pd.DataFrame(columns=[*PLACE, *HOW])
    lacking = [name for name in (*METRICS, *SECOND, "counts", "mac_cut", *_by_image()) if name not in runs]
    runs = runs.assign(**dict.fromkeys(lacking)).dropna(subset=["images"])
    key = [*PLACE, *HOW, *VARIANT, "mac_cut"]
    refuse_repeats(runs, [*key, "seed"])
    return pd.DataFrame([_mean(seeds) for _, seeds in runs.groupby(key, dropna=False, sort=False)])


def _by_image() -> list[str]:
    return [metric + BY_IMAGE for metric in METRICS]


def _mean(seeds: pd.DataFrame) -> pd.Series:
    row = seeds.iloc[0].copy()
    row["seeds"] = len(seeds)
    for name in (*METRICS, *SECOND, "gmac"):
        row[name] = seeds[name].astype(float).mean()
    for name in _by_image():
        hits = seeds[name]
        row[name] = None if hits.isna().any() else 100 * np.mean([np.asarray(each, float) for each in hits], axis=0)
    return row


def _lines(rows: pd.DataFrame) -> Iterator[Line]:
    for (method, options, *_), points in rows.groupby(["method", "options", *HOW], sort=False, dropna=False):
        points = points.sort_values("saved", kind="stable").reset_index(drop=True)
        yield Line(method, options, {**points.iloc[0][HOW].to_dict(), "device": _devices(points)}, points)


def _devices(rows: pd.DataFrame) -> str:
    return " and ".join(sorted(rows["device"].unique()))
