"""What two runs decided on the same images, compared block by block; and all runs along an axis.

What can be compared depends on the runs: patches that both kept, groups that both made, CLS features that both have.
Every row of the tables is one number over all images, with what chance would give beside it:

    axis, a, b      the runs, by the keys of their settings, in the order of :func:`common.analysis.pairs`
    block           after which both are read
    metric          iou, iou_excess, ioa; homogeneity, completeness, nmi, ami; cka, procrustes, pwcca, mean_cca,
                    mean_sq_cca
    mean, sd        over the images, sd that of the population; of features, and of iou_excess, one number without sd
    low, high       95 % interval, bootstrap over images, of features delete-a-group jackknife
    n               images
    chance          what unrelated runs of these sizes would have
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from common.analysis.canonical import cca_by_chance
from common.analysis.clusters import agreement, labels
from common.analysis.features import feature_intervals
from common.analysis.intervals import bootstrap
from common.analysis.pairs import Axis, pairs
from common.analysis.sets import excess, ioa, ioa_by_chance, iou, iou_by_chance, iou_limit, kept_mask
from common.errors import UsageError
from common.evaluation import Record, Setting

COLUMNS = ("axis", "a", "b", "block", "metric", "mean", "sd", "low", "high", "n", "chance")
Row = dict[str, object]


@dataclass(frozen=True, eq=False)
class Decisions:
    """The decisions of one run in few bytes, so that all runs of an axis can be held at once.

    Attributes:
        setting: what was evaluated.
        image_ids: one per image.
        kept: block -> bits of the patches kept (n, ceil(P / 8)), of methods whose tokens are patches.
        groups: block -> label of each patch (n, P) in the smallest type, of methods that group patches.
        cls: block -> features (n, D), where they were kept.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="l2", keep_rate=0.5, reduction_loc=(2, 4))
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> few = Decisions.of(evaluate_model(model, digits, batch_size=360, method="l2", backbone="vit_digits"))
    >>> few.kept[2].shape, few.mask(2).shape
    ((360, 8), (360, 64))
    """

    setting: Setting
    image_ids: tuple[str, ...]
    kept: Mapping[int, np.ndarray] = field(default_factory=dict)
    groups: Mapping[int, np.ndarray] = field(default_factory=dict)
    cls: Mapping[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Record) -> Decisions:
        """Those of a whole record."""
        stages = record.stages.items()
        selecting = [block for block, stage in stages if stage.kept is not None or stage.computed is not None]
        grouping = [block for block, stage in stages if stage.destination is not None]
        return cls(
            record.setting,
            record.image_ids,
            {block: np.packbits(kept_mask(record, block), axis=1) for block in selecting},
            {block: _small(labels(record, block)) for block in grouping},
            record.cls,
        )

    def mask(self, block: int) -> np.ndarray:
        """Patches kept (n, P)."""
        return np.unpackbits(self.kept[block], axis=1, count=self.setting.num_patches).astype(bool)


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure of two runs, image by image.

    Attributes:
        values: (n,).
        chance, limit: means over the images of what unrelated runs would have, and of the most that there could be;
            with a limit the table has a further row, how far the mean exceeds chance on the way to it.
    """

    block: int
    metric: str
    values: np.ndarray
    chance: float
    limit: float | None = None


def compare(a: Record | Decisions, b: Record | Decisions, *, parity: bool = False) -> pd.DataFrame:
    """All measures that two runs allow, in the blocks that they share.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> digits, runs = load_dataset("digits", "val", img_size=32), []
    >>> for rate in (0.9, 0.5):
    ...     model = create_model("vit_digits", reducer="l2", keep_rate=rate, reduction_loc=(2, 4))
    ...     runs.append(evaluate_model(model, digits, batch_size=360, method="l2", backbone="vit_digits"))
    >>> table = compare(*runs)
    >>> table.query("block == 2")[["metric", "mean", "chance"]].round(2).to_numpy().tolist()
    [['iou', 0.53, 0.48], ['iou_excess', 1.0, 0.0], ['ioa', 1.0, 0.94]]

    Args:
        a, b: of the same images.
        parity: the numbers of the reference implementation: biased CKA, and PWCCA with its truncated weights.

    Raises:
        UsageError: the images differ, or the runs share nothing that could be compared.
    """
    a, b = (each if isinstance(each, Decisions) else Decisions.of(each) for each in (a, b))
    require_same_images(a, b)
    rows = [*_rows(list(_by_image(a, b))), *_features(a, b, parity)]
    if not rows:
        raise UsageError(f"runs {a.setting.key} and {b.setting.key} share no block with anything to compare")
    table = pd.DataFrame(rows).assign(a=a.setting.key, b=b.setting.key, n=len(a.image_ids))
    return table.sort_values("block", kind="stable", ignore_index=True)


def compare_all(
    records: Iterable[str | Path | Record | Decisions], axis: Axis, *, parity: bool = False
) -> pd.DataFrame:
    """:func:`compare` of all pairs of runs along an ``axis``, see :func:`common.analysis.pairs`.

    Every record is read once and kept in a fraction of its size (50,000 images of three stages: 4 MB of a method that
    keeps patches, 29 MB of one that groups them).

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> digits, runs = load_dataset("digits", "val", img_size=32), []
    >>> for rate in (0.5, 0.9, 0.7):
    ...     model = create_model("vit_digits", reducer="l2", keep_rate=rate, reduction_loc=(2, 4))
    ...     runs.append(evaluate_model(model, digits, batch_size=360, method="l2", backbone="vit_digits"))
    >>> table = compare_all(runs, "rates")
    >>> table[["a", "b"]].drop_duplicates().map(lambda key: key[-3:]).to_numpy().tolist()
    [['0.9', '0.5'], ['0.7', '0.5'], ['0.9', '0.7']]

    Args:
        records: files that :mod:`common.evaluation` wrote, with the CLS tokens beside them; or what they hold, whole
            or in few bytes.
        axis: "rates", "capacity", "methods" or "seeds".
        parity: as for :func:`compare`.

    Returns:
        A row for each pair, block and measure, with the columns of the module's text.

    Raises:
        UsageError: "datasets", whose images differ; two runs of which one would be compared with the other are not of
            the same images; a file that is no record.
    """
    if axis == "datasets":
        raise UsageError("runs on different datasets have no image in common; compare their maps: compare_maps")
    runs = [_decisions(each) for each in tqdm(list(records), "records", leave=False)]
    found = []
    for first, second in tqdm(pairs([run.setting for run in runs], axis), f"pairs of {axis}", leave=False):
        if _comparable(runs[first], runs[second]):
            found.append(compare(runs[first], runs[second], parity=parity))
    table = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return table.assign(axis=axis).reindex(columns=list(COLUMNS))


def require_same_images(a: Decisions, b: Decisions) -> None:
    """Refuse two runs that are not on the same images."""
    if a.image_ids != b.image_ids:
        raise UsageError(f"runs {a.setting.key} and {b.setting.key} are not of the same images in the same order")


def _decisions(record: str | Path | Record | Decisions) -> Decisions:
    if isinstance(record, Decisions):
        return record
    return Decisions.of(record if isinstance(record, Record) else Record.load(record, with_cls=True))


def _comparable(a: Decisions, b: Decisions) -> bool:
    return any(getattr(a, what).keys() & getattr(b, what).keys() for what in ("kept", "groups", "cls"))


def _by_image(a: Decisions, b: Decisions) -> Iterator[Measured]:
    for block in a.kept.keys() & b.kept.keys():
        masks = a.mask(block), b.mask(block)
        yield Measured(block, "iou", iou(*masks), iou_by_chance(*masks).mean(), iou_limit(*masks).mean())
        yield Measured(block, "ioa", ioa(*masks), ioa_by_chance(*masks).mean())
    for block in a.groups.keys() & b.groups.keys():
        found = agreement(a.groups[block], b.groups[block])
        chances = {"nmi": found.pop("nmi_chance").mean(), "ami": 0.0}
        for metric, values in found.items():
            yield Measured(block, metric, values, chances.get(metric, np.nan))


def _rows(measured: Sequence[Measured]) -> Iterator[Row]:
    """Means over the same drawn images."""
    if not measured:
        return
    means = bootstrap(np.stack([each.values for each in measured], axis=1))
    for place, each in enumerate(measured):
        ends = {"mean": means.value[place], "low": means.low[place], "high": means.high[place]}
        row = {"block": each.block, "metric": each.metric}
        yield {**row, **ends, "sd": each.values.std(), "chance": each.chance}
        if each.limit is not None:
            surplus = {name: float(excess(end, each.chance, each.limit)) for name, end in ends.items()}
            yield {**row, "metric": f"{each.metric}_excess", **surplus, "sd": np.nan, "chance": 0.0}


def _features(a: Decisions, b: Decisions, parity: bool) -> Iterator[Row]:
    for block in a.cls.keys() & b.cls.keys():
        x, y = a.cls[block], b.cls[block]
        found = feature_intervals(x, y, parity=parity, few_images=True)
        mean, square = (
            cca_by_chance(images=len(x), channels=(x.shape[1], y.shape[1]), squared=each) for each in (False, True)
        )
        chances = {"cka": np.nan if parity else 1.0, "pwcca": 1 - mean, "mean_cca": mean, "mean_sq_cca": square}
        for metric, measured in found.items():
            ends = {"mean": measured.value, "low": measured.low, "high": measured.high, "sd": np.nan}
            yield {"block": block, "metric": metric, **ends, "chance": chances.get(metric, np.nan)}


def _small(found: np.ndarray) -> np.ndarray:
    """Labels in the smallest signed type."""
    return found.astype(np.min_scalar_type(-1 - max(int(found.max(initial=0)), 0)))
