"""One tidy CSV per run: filling in the conditions, writing whole or not at all, reading back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch

from common.errors import UsageError, require_choice
from common.provenance import describe_device, git_commit
from common.schema import CONDITIONS, TABLES, TEXT, Schema

RESULTS = Path("results")
PUBLISHED = RESULTS / "published"
BY_IMAGE = "_by_image"  # "accuracy_by_image" of a row: what the mean "accuracy" is the mean of


def checkout() -> Path | None:
    """Root of the repository this package is imported from, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "Code" / "common").is_dir() else None


def repository_root() -> Path:
    """Folder that relative paths start from: the repository of an editable install, else the working directory."""
    return checkout() or Path.cwd()


def resolve(path: str | Path) -> Path:
    """Absolute form of ``path``; a relative one is relative to :func:`repository_root`."""
    return repository_root() / Path(path).expanduser()


def format_options(options: Mapping[str, Any] | str) -> str:
    """Reducer options as ``key=value,key=value`` in alphabetical order; "" when there are none."""
    if isinstance(options, str):
        return options
    return ",".join(f"{key}={options[key]}" for key in sorted(options))


def conditions(**given: Any) -> dict[str, Any]:
    """Condition columns of a run, in the order of the schema.

    Fills device, threads, torch, timm, commit and date (UTC) unless they are given; what remains unknown is
    None and becomes an empty cell. Raises UsageError for a key that is not a condition.
    """
    for key in given:
        require_choice(key, CONDITIONS, "condition")
    found = {
        "options": format_options(given.get("options", "")),
        "device": describe_device(given.get("device")),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "timm": version("timm"),
        "commit": git_commit(checkout()),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    given = {key: value for key, value in given.items() if key not in ("options", "device")}
    return {key: {**found, **given}.get(key) for key in CONDITIONS}


def write_run(
    rows: Iterable[Mapping[str, Any]], path: str | Path, *, image_ids: Sequence[str] = (), **given: Any
) -> Path:
    """Write one run, all rows or nothing, and return where it went.

    ``rows`` hold the metric columns of the table; a condition that changes from row to row (backbone, method,
    keep_rate ...) may stand in the row and wins over the one in ``given`` (see :func:`conditions`). What a metric is
    the mean of may stand beside it, one value for each of the images ``image_ids``, under the metric's name and
    ``_by_image``: it is kept beside the CSV, see :func:`by_image_file`.
    Raises UsageError when a column is missing, unknown, empty where it may not be, or of the wrong type.
    """
    common = conditions(**given)
    name = require_choice(str(common["table"]), TABLES, "table")
    schema = TABLES[name]
    empty = {**common, **dict.fromkeys(schema.optional)}
    rows, by_image = _without_images(rows)
    merged = [{**empty, **row} for row in rows]
    if not merged:
        raise UsageError(f"no rows to write to {path}; a {name} run has at least one")
    _require_columns(merged, schema, name)
    frame = _typed(pd.DataFrame(merged, columns=list(schema.columns)), schema, str(path))
    _require_values(frame, schema, name)
    target = resolve(path)
    if by_image:
        digest = np.array(hashlib.sha256("\n".join(image_ids).encode()).hexdigest())
        arrays = {"images": digest, **by_image}
        write_atomically(by_image_file(target), lambda file: np.savez_compressed(file.buffer, **arrays))
    write_atomically(target, lambda file: frame.to_csv(file, index=False, lineterminator="\n"))
    return target


def by_image_file(path: Path) -> Path:
    """Where the values by image of a run lie, (rows, n) for each metric that has them, beside its CSV."""
    return path.with_suffix(".images.npz")


def _without_images(rows: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """``rows`` without their values by image, and these by metric, (rows, n)."""
    rows = [dict(row) for row in rows]
    names = sorted({key for row in rows for key in row if key.endswith(BY_IMAGE)})
    return rows, {name.removesuffix(BY_IMAGE): np.stack([row.pop(name) for row in rows]) for name in names}


def _require_columns(rows: list[dict[str, Any]], schema: Schema, name: str) -> None:
    for number, row in enumerate(rows):
        missing, unknown = set(schema.columns) - set(row), set(row) - set(schema.columns)
        if missing or unknown:
            raise UsageError(
                f"row {number} of a {name} run has missing columns {sorted(missing)} and unknown columns "
                f"{sorted(unknown)}; metrics allowed: {', '.join(schema.metrics)}"
            )


def _typed(frame: pd.DataFrame, schema: Schema, path: str) -> pd.DataFrame:
    columns = {}
    for column, kind in schema.columns.items():
        try:
            values = frame[column].fillna("").astype(str) if kind == TEXT else pd.to_numeric(frame[column])
            columns[column] = values.astype(kind)
        except (TypeError, ValueError) as error:
            raise UsageError(f"column {column!r} of {path} does not hold {kind.lower()} values: {error}") from error
    return pd.DataFrame(columns)


def _require_values(frame: pd.DataFrame, schema: Schema, name: str) -> None:
    needed = [*schema.required, *(metric for metric in schema.metrics if metric not in schema.optional)]
    empty = frame[needed].isna() | (frame[needed] == "")
    for column in needed:
        if empty[column].any():
            row = int(empty[column].to_numpy().argmax())
            raise UsageError(f"row {row} of a {name} run has no value (or NaN) in {column!r}, which must have one")


def write_atomically(path: Path, write: Callable[[IO[str]], Any]) -> None:
    """Call ``write`` on a temporary file beside ``path`` and rename it: readers see a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_run(path: str | Path, table: str) -> pd.DataFrame:
    """One run as it was written, with the column ``run_id`` (file name without .csv) added at the end."""
    path, schema = Path(path), TABLES[table]
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise UsageError(f"{path} is empty; delete it and run again") from error
    if list(frame.columns) != list(schema.columns):
        raise UsageError(f"{path} does not have the columns of a {table} run; delete it and run again")
    if set(frame["table"]) != {table}:
        raise UsageError(f"{path} holds rows of table {sorted(set(frame['table']))}; allowed: {table}")
    numeric = [column for column, kind in schema.columns.items() if kind != TEXT]
    frame[numeric] = frame[numeric].replace("", None)
    return _typed(frame, schema, str(path)).assign(run_id=path.stem)


def read_runs(results_dir: str | Path, table: str | None = None) -> pd.DataFrame:
    """All runs under ``results_dir``/runs of one table, or of every table (columns not in a table stay empty).

    Ordered by table and run_id; without runs, a frame of the right columns and no rows.
    """
    root = resolve(results_dir)
    if not root.is_dir():
        raise UsageError(f"no results folder {str(results_dir)!r}; it is made by running a profile")
    names = list(TABLES) if table is None else [require_choice(table, TABLES, "table")]
    runs = [read_run(path, name) for name in names for path in sorted((root / "runs" / name).glob("*.csv"))]
    if runs:
        return pd.concat(runs, ignore_index=True)
    columns = CONDITIONS if table is None else TABLES[table].columns
    return pd.DataFrame(
        {**{name: pd.Series(dtype=kind) for name, kind in columns.items()}, "run_id": pd.Series(dtype=str)}
    )


def read_published(name: str, *, as_printed: bool = False) -> pd.DataFrame:
    """Numbers printed by the authors: results/published/``name``.csv, each row with its ``source``.

    ``as_printed`` gives every cell as its text, trailing zeros included.
    """
    folder = resolve(PUBLISHED)
    require_choice(name, [path.stem for path in folder.glob("*.csv")], "published table")
    text = {"dtype": str, "keep_default_na": False} if as_printed else {}
    return pd.read_csv(folder / f"{name}.csv", **text)
