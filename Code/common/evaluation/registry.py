"""One row per run, the table that evaluations and comparisons start from; local, or out of Weights & Biases.

``python -m common.evaluation.registry ROOT OUT.csv`` lists the finished trainings at or below the folder ROOT, and the
records that lie there without their training; ``wandb:ENTITY/PROJECT`` in place of ROOT the runs of a project there.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UsageError, command, require_package
from common.evaluation.names import model_name, pattern, ratios
from common.evaluation.record import Record
from common.evaluation.runner import DECISIONS
from common.evaluation.runs import Run, find_runs
from common.reducers import Method
from common.results import write_atomically
from common.training.experiment import RECORD

COLUMNS = {
    "Name": "of the run's folder",
    "max_accuracy": "percent, of the best weights",
    "epoch": "the last one, 0 without a training",
    "epochs": "asked for",
    "keep_rate": "a list as text, [] without reduction",
    "reduction_loc": "a list as text, [] without reduction",
    "heuristic_pattern": "of a fixed pattern",
    "model": "its name",
    "output_dir": "where the run's folder is, from the root",
    "Tags": "options of the method, a list as text",
    "Created": "ISO 8601",
    "dataset": "its name",  # this and what follows the reference has not
    "seed": "of the training, or of the model",
}
HIDDEN_TAGS = {"Not Best", "hidden"}
WANDB = "wandb:"


def build_registry(root: str | Path) -> pd.DataFrame:
    """:data:`COLUMNS` of the finished runs at or below ``root``, oldest first; warns of every one left out, and why.

    Raises:
        UsageError: there is no run.
    """
    table, damaged, unfinished = scan_runs(root)
    for reason in (*damaged, *unfinished):
        warnings.warn(f"not in the registry: {reason}", stacklevel=2)
    return table


def scan_runs(root: str | Path) -> tuple[pd.DataFrame, list[str], list[str]]:
    """The table of :func:`build_registry`, and the runs that are not in it: damaged ones, and unfinished ones."""
    rows, damaged, unfinished = [], [], []
    records = sorted(path for path in Path(root).rglob(DECISIONS) if not (path.parent / RECORD).is_file())
    for path in records:
        try:
            rows.append(_row_of_record(Record.load(path, blocks=[]), path.parent, Path(root)))
        except UsageError as error:
            damaged.append(f"record {str(path)!r}: {error}")
    for folder in find_runs([root]) if not records or any(Path(root).rglob(RECORD)) else ():
        try:
            run = Run.read(folder)
            if run.last_epoch >= run.epochs:
                rows.append(_row(run, Path(root)))
            else:
                unfinished.append(f"run {str(folder)!r} is at epoch {run.last_epoch} of {run.epochs}")
        except UsageError as error:
            damaged.append(f"run {str(folder)!r}: {error}")
    return _table(rows), damaged, unfinished


def registry_from_wandb(entity: str, project: str) -> pd.DataFrame:
    """The same table of the runs that a Weights & Biases project logged under these names, oldest first.

    Left out: runs tagged "Not Best" or "hidden", runs that are going on, runs without ``max_accuracy``.

    Raises:
        UsageError: the package wandb is not installed.
    """
    wandb = require_package("wandb", "tracking", "reading from Weights & Biases")
    runs = wandb.Api().runs(f"{entity}/{project}")
    return _table(_wandb_row(run) for run in runs if _counts(run))


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.evaluation.registry", description="List training runs.")
    parser.add_argument("root", metavar="ROOT", help=f"folder that holds the runs, or {WANDB}ENTITY/PROJECT")
    parser.add_argument("csv", metavar="OUT.csv", help="the table to write")
    given = parser.parse_args(arguments)
    if given.root.startswith(WANDB):
        table, damaged, unfinished = registry_from_wandb(*_entity_and_project(given.root)), [], []
    else:
        table, damaged, unfinished = scan_runs(given.root)
    style = {"index": False, "quoting": csv.QUOTE_ALL, "lineterminator": "\n"}
    write_atomically(Path(given.csv), lambda file: table.to_csv(file, **style))
    for reason in unfinished:
        print(f"not finished: {reason}")
    for reason in damaged:
        print(f"error: {reason}", file=sys.stderr)
    print(f"{len(table)} runs in {given.csv}; {len(unfinished)} not finished, {len(damaged)} damaged")
    return 1 if damaged else 0


def _row(run: Run, root: Path) -> dict[str, Any]:
    experiment = run.experiment
    return {
        "Name": run.name,
        "max_accuracy": run.best.accuracy,
        "epoch": run.last_epoch,
        "epochs": run.epochs,
        **_model(experiment.reducer, experiment.backbone, experiment.keep_rate, run.reduction_loc),
        "output_dir": _place(run.folder, root),
        "Created": run.created,
        "dataset": experiment.dataset,
        "seed": experiment.config.seed,
    }


def _row_of_record(record: Record, folder: Path, root: Path) -> dict[str, Any]:
    setting = record.setting
    epochs = setting.training.get("epochs", 0)
    return {
        "Name": setting.name,
        "max_accuracy": record.accuracy.get("map" if record.multi_label else "top1"),
        "epoch": epochs,
        "epochs": epochs,
        **_model(setting.method, setting.backbone, setting.keep_rate, setting.reduction_loc),
        "output_dir": _place(folder, root),
        "Created": setting.versions["date"],
        "dataset": setting.dataset,
        "seed": setting.seed,
    }


def _model(method: str, backbone: str, keep_rate: float | tuple, reduction_loc: tuple[int, ...]) -> dict[str, Any]:
    options = Method.parse(method).options_text
    return {
        "keep_rate": ratios(keep_rate) if reduction_loc else [],
        "reduction_loc": list(reduction_loc),
        "heuristic_pattern": pattern(method),
        "model": model_name(method, backbone),
        "Tags": options.split(",") if options else [],
    }


def _place(folder: Path, root: Path) -> str:
    return (Path() / os.path.relpath(folder.parent, root)).as_posix()


def _table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    for column in ("keep_rate", "reduction_loc", "Tags"):
        frame[column] = frame[column].map(str).astype(str)
    return frame.sort_values("Created", kind="stable", ignore_index=True)


def _counts(run: Any) -> bool:
    """A run of Weights & Biases has ended with an accuracy and is not hidden."""
    return run.state != "running" and not HIDDEN_TAGS & set(run.tags) and "max_accuracy" in run.summary


def _wandb_row(run: Any) -> dict[str, Any]:
    logged = {**run.config, **{key: run.summary.get(key) for key in ("max_accuracy", "epoch")}}
    logged |= {"Name": run.name, "Tags": list(run.tags), "Created": run.created_at}
    return {column: logged.get(column, "") for column in COLUMNS}


def _entity_and_project(text: str) -> tuple[str, str]:
    entity, _, project = text.removeprefix(WANDB).partition("/")
    if not entity or not project:
        raise UsageError(f"{text!r} names no project; write {WANDB}ENTITY/PROJECT")
    return entity, project


if __name__ == "__main__":
    sys.exit(main())
