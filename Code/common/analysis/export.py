"""The files of the analyses of "Which Tokens to Use?" (Haurum et al., 2023), so that its scripts can go on from ours.

With DS the dataset (IM, NAB, COCO, NUS, or the name of another one) and CAP the capacity (base, small, tiny)::

    token_stats_<DS>.json                                   how many tokens are left, and how deep patches come
    pruning_comparison_<axis>_<DS>.csv                      kept patches, see :mod:`common.analysis.reference`
    cluster_comparison_<axis>_<DS>.csv                      groups of patches
    cls_features_comparison_<axis>_<DS>.csv                 CLS tokens
    collated_comparison_<axis>_<DS>.csv                     all of it by pair, see :mod:`common.analysis.collation`
    correlations_comparison_<axis>_<DS>.csv                 with the difference of accuracies
    heatmap_comparison.csv                                  depth maps across datasets

<axis> is rates, capacity, or models_<CAP>; separators are ";". Collated tables and correlations have the rows of the
CLS tokens, and are not written without these. Numbers are the reference's, with its accidents; pairs are by fields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from common.analysis.collation import Statistics, collate, heatmap_table, rank_correlations
from common.analysis.pairs import Axis
from common.analysis.reference import COMPARISONS, NAMES, comparison_table, location, ratio
from common.analysis.runs import RunData
from common.errors import UsageError
from common.evaluation import Record, Setting
from common.evaluation.names import SHORT, full_name, pattern, slug
from common.options import check
from common.reducers import Method
from common.results import write_atomically

TAGS = {"imagenet": "IM", "nabirds": "NAB", "coco": "COCO", "nuswide": "NUS"}
AXES = (*NAMES, "datasets")


def export_tables(runs: Iterable[str | Path | Record | RunData], folder: str | Path, axis: Axis) -> list[Path]:
    """Write the reference's files of one ``axis`` into ``folder``; tables without a row are not written.

    >>> from tempfile import TemporaryDirectory
    >>> from common.evaluation import off_the_shelf
    >>> from common.setup import Setup
    >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20, device="cpu")
    >>> with TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
    ...     errors = off_the_shelf(folder, setup, ["topk"], [0.9, 0.5])
    ...     files = export_tables(Path(folder).rglob("decisions.npz"), folder, "rates")
    ...     table = pd.read_csv(files[1], sep=";")
    1/2 ...
    2/2 ...
    >>> [file.name for file in files]
    ['token_stats_digits.json', 'pruning_comparison_rates_digits.csv']
    >>> table[["Model A", "Model B", "Stage-1-Mean-IoA"]].to_numpy().tolist()
    [['topk_vit_digits-1_3_4-_0.9', 'topk_vit_digits-1_3_4-_0.5', 1.0]]

    Args:
        runs: files of :mod:`common.evaluation`, or what they hold.
        axis: "rates", "capacity", "methods" (the reference says models) or "datasets" (its heatmaps).

    Returns:
        The files, token statistics first.

    Raises:
        UsageError: "seeds", which the reference does not know; two runs of one run key on one dataset, as its files
            tell neither weights nor seeds apart; runs of a dataset on different images.
    """
    check_axis(axis)
    folder, by_tag = Path(folder), _by_dataset(map(_loaded, runs))
    statistics = {tag: {run.setting.run_key: token_stats(run) for run in found} for tag, found in by_tag.items()}
    written = [_write_json(folder / f"token_stats_{tag}.json", found) for tag, found in statistics.items()]
    if axis == "datasets":
        grids = {run.setting.run_key: run.setting.grid_size for found in by_tag.values() for run in found}
        return written + _write_csv(folder / "heatmap_comparison.csv", heatmap_table(statistics, grids))
    for tag, found in by_tag.items():
        for name, some in _by_capacity(found) if axis == "methods" else [(NAMES[axis], found)]:
            for kind, table in _tables(some, axis, statistics[tag]):
                written += _write_csv(folder / f"{kind}_comparison_{name}_{tag}.csv", table)
    return written


def check_axis(axis: Axis) -> None:
    """Refuse an axis that the reference does not have."""
    check("axis", axis, Axis)
    if axis not in AXES:
        raise UsageError(f"the reference has no files of axis {axis!r}; allowed: {', '.join(AXES)}")


def token_stats(run: RunData) -> dict[str, object]:
    """What ``token_stats_<DS>.json`` says of a run; no depth where tokens are no patches.

    The kept fractions count distinct kept patches, or groups that are some token's favourite. An unreduced model has
    one of 1.0 for every block.
    """
    setting, table = run.setting, run.statistics
    blocks = range(setting.depth or 0)
    stages = table["block"].tolist() if setting.reduces else list(blocks)
    found = {
        "Model": full_name(setting.method, setting.backbone),
        "Acc-Top1": _rounded(run.top1),
        "Acc-Top5": _rounded(run.top5),
        "Ratio": ratio(setting),
        "Loc": location(setting),
        "Stages": stages,
        "Mean-Reduction": table["mean"].tolist() if setting.reduces else [1.0 for _ in blocks],
        "Std-Reduction": table["sd"].tolist() if setting.reduces else [0.0 for _ in blocks],
    }
    if run.depth is None:
        return found
    spread = np.square(run.depth_sd).mean() + run.depth.var()  # of all patches of all images
    return found | {
        "Mean-Token-Depth-Spatial": run.depth.tolist(),
        "Std-Token-Depth-Spatial": run.depth_sd.tolist(),
        "Mean-Token-Depth": float(run.depth.mean()),
        "Std-Token-Depth": float(np.sqrt(spread)),
    }


def dataset_tag(dataset: str) -> str:
    """What the reference's files call a dataset."""
    return TAGS.get(dataset, slug(dataset))


def capacity(backbone: str) -> str:
    """base, small or tiny; another backbone's own name."""
    found = re.search(r"(?:^|_)(base|small|tiny)_", backbone)
    return found[1] if found else slug(backbone)


def _loaded(run: str | Path | Record | RunData) -> RunData:
    if isinstance(run, RunData):
        return run
    return RunData.of(run if isinstance(run, Record) else Record.load(run, with_cls=True))


def _by_dataset(runs: Iterable[RunData]) -> dict[str, list[RunData]]:
    """Runs by the tag of their dataset, those of the reference in its order, then the others."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(dataset_tag(run.setting.dataset), []).append(run)
    for some in found.values():
        require_reference_keys([run.setting for run in some])
    known = list(TAGS.values())
    return {tag: found[tag] for tag in sorted(found, key=lambda tag: (tag not in known, (*known, tag).index(tag), tag))}


def require_reference_keys(settings: Iterable[Setting]) -> None:
    """Refuse runs of one dataset that the reference's run keys do not tell apart."""
    seen: dict[tuple[str, str], Setting] = {}
    for setting in settings:
        name = dataset_tag(setting.dataset), setting.run_key
        if name in seen:
            both = f"seeds {seen[name].seed} and {setting.seed}, weights {seen[name].weights!r} and {setting.weights!r}"
            raise UsageError(f"the reference has one run {name[1]} on {name[0]}; given two: {both}; give one of them")
        seen[name] = setting


def _by_capacity(runs: Sequence[RunData]) -> Iterator[tuple[str, list[RunData]]]:
    for name in dict.fromkeys(capacity(run.setting.backbone) for run in runs):
        some = [run for run in runs if capacity(run.setting.backbone) == name]
        yield f"{NAMES['methods']}_{name}", some


def _tables(runs: Sequence[RunData], axis: str, statistics: Statistics) -> Iterator[tuple[str, pd.DataFrame]]:
    """The tables of one file each, by the first word of its name."""
    decisions = [run.decisions for run in runs]
    tables = {kind: comparison_table(decisions, axis, kind) for kind in COMPARISONS[axis]}
    yield from tables.items()
    if tables["cls_features"].empty:
        return
    collated = collate(tables["cls_features"], tables["cluster"], tables["pruning"], statistics, axis)
    yield "collated", collated
    methods = {run.setting.run_key: _method(run.setting) for run in runs}
    yield "correlations", rank_correlations(collated, axis, methods)


def _method(setting: Setting) -> str:
    """A method as its models are called, without the backbone: ``heuristic-l1``."""
    method = Method.parse(setting.method)
    name = SHORT.get(method.name, method.name) if setting.reduces else "deit"
    return "-".join(filter(None, (name, pattern(setting.method), method.options_text)))


def _rounded(accuracy: float | None) -> float | None:
    return None if accuracy is None else round(accuracy, 4)


def _write_json(path: Path, content: object) -> Path:
    write_atomically(path, lambda file: json.dump(content, file, indent=4))
    return path


def _write_csv(path: Path, table: pd.DataFrame) -> list[Path]:
    if table.empty:
        return []
    write_atomically(path, lambda file: table.to_csv(file, sep=";", index=False, lineterminator="\n"))
    return [path]
