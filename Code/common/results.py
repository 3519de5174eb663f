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
from common.registry import options_text
from common.schedule import keep_rate_text
from common.schema import CONDITIONS, TEXT, UNITS, Column, Table

PUBLISHED = Path("results/published")
_ROUNDING = 1e-6
BY_IMAGE = "_by_image"  # "accuracy_by_image" of a row: what the mean "accuracy" is the mean of


def checkout() -> Path | None:
    """Root of the repository this package is imported from, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "Code" / "common").is_dir() else None


def resolve(path: str | Path) -> Path:
    """Absolute form of ``path``; a relative one starts at an editable install's repository, else where one works."""
    return (checkout() or Path.cwd()) / Path(path).expanduser()


def from_cwd(path: str | Path) -> Path:
    """Absolute form of ``path``; a relative one starts where one works: what a command line means by it."""
    return Path(path).expanduser().absolute()


def conditions(**given: Any) -> dict[str, Any]:
    """Condition columns of a run, in the order of the schema.

    Fills device, threads, torch, timm, commit and date (UTC) unless they are given; what remains unknown is
    None and becomes an empty cell. Raises UsageError for a key that is not a condition.
    """
    for key in given:
        require_choice(key, CONDITIONS, "condition")
    found = {
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
        "timm": version("timm"),
        "commit": git_commit(checkout()),
        "date": datetime.now(timezone.utc).date().isoformat(),
        **given,
        "options": options_text(given.get("options", "")),
        "device": describe_device(given.get("device")),
    }
    return {key: found.get(key) for key in CONDITIONS}


def write_run(
    rows: Iterable[Mapping[str, Any]], study: Table, path: str | Path, *, image_ids: Sequence[str] = (), **given: Any
) -> Path:
    """Write one run, all rows or nothing, and return where it went.

    ``rows`` hold the columns of ``study``; a condition that changes from row to row (backbone, method, keep_rate ...)
    may stand in the row and wins over the one in ``given`` (see :func:`conditions`). What a metric is the mean of may
    stand beside it, one value for each of the images ``image_ids``, under the metric's name and ``_by_image``: it is
    kept beside the CSV, see :func:`by_image_file`.

    Raises:
        UsageError: a column is missing, unknown, empty where it may not be, or of the wrong type.
    """
    rows, by_image = _without_images(rows)
    for row in rows if study.parts else ():
        require_choice(row.get("part"), study.parts, f"part of {study.name}")
    empty = conditions(study=study.name, **given)
    merged = [{**empty, **_not_in_part(study, row), **row} for row in rows]
    if not merged:
        raise UsageError(f"no rows to write to {path}; a {study.name} run has at least one")
    _require_columns(merged, study)
    frame = _typed(pd.DataFrame(merged, columns=list(_all_columns(study))), study, str(path))
    _require_values(frame, study)
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


def _not_in_part(study: Table, row: Mapping[str, Any]) -> dict[str, None]:
    """The columns that ``row`` may leave out: optional ones, and those of other parts of the study."""
    part = row.get("part")
    elsewhere = [name for name, column in study.columns.items() if column.parts and part not in column.parts]
    return dict.fromkeys([*elsewhere, *(name for name, column in study.columns.items() if column.optional)])


def _all_columns(study: Table) -> dict[str, Column]:
    return {**CONDITIONS, **study.columns}


def _require_columns(rows: list[dict[str, Any]], study: Table) -> None:
    columns = set(_all_columns(study))
    for number, row in enumerate(rows):
        missing, unknown = columns - set(row), set(row) - columns
        if missing or unknown:
            raise UsageError(
                f"row {number} of a {study.name} run has missing columns {sorted(missing)} and unknown columns "
                f"{sorted(unknown)}; metrics allowed: {', '.join(study.columns)}"
            )


def _typed(frame: pd.DataFrame, study: Table, path: str) -> pd.DataFrame:
    found = {}
    for name, column in _all_columns(study).items():
        try:
            values = _texts(frame[name], name) if column.kind == TEXT else pd.to_numeric(frame[name])
            found[name] = values.astype(column.kind)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"column {name!r} of {path} does not hold {column.kind.lower()} values: {error}"
            ) from error
    return pd.DataFrame(found)


def _texts(values: pd.Series, name: str) -> pd.Series:
    """Texts as they stand in a table: one way to write each keep rate and each set of options."""
    spell = {"keep_rate": keep_rate_text, "options": options_text}.get(name, str)
    return values.map(lambda value: "" if value is None or value is pd.NA or value != value else spell(value))


def _require_values(frame: pd.DataFrame, study: Table) -> None:
    """Each column has a value where it must, none in rows of another part of the study, and all as its unit allows."""
    for name, column in _all_columns(study).items():
        filled = frame[name].notna() & (frame[name] != "")
        here = frame["part"].isin(column.parts) if column.parts else pd.Series(True, index=frame.index)
        if name in study.required or not column.optional:
            _refuse_rows(study, here & ~filled, f"has no value (or NaN) in {name!r}, which must have one")
        _refuse_rows(study, filled & ~here, f"has a value in {name!r}, which is of {', '.join(column.parts)} only")
        if column.unit:
            low, high = UNITS[column.unit]
            outside = filled & ~frame[name].between(low - _ROUNDING, high + _ROUNDING)
            _refuse_rows(study, outside, f"has a value in {name!r} that is no {column.unit}; allowed: {low} to {high}")


def _refuse_rows(study: Table, wrong: pd.Series, why: str) -> None:
    if wrong.any():
        raise UsageError(f"row {int(wrong.to_numpy().argmax())} of a {study.name} run {why}")


def write_atomically(path: Path, write: Callable[[IO[str]], Any]) -> None:
    """Call ``write`` on a temporary file beside ``path`` and rename it: readers see a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files private; results are meant to be read
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_run(path: str | Path, study: Table) -> pd.DataFrame:
    """One run as it was written, with the column ``run_id`` (file name without .csv) added at the end."""
    path = Path(path)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except pd.errors.EmptyDataError as error:
        raise UsageError(f"{path} is empty; delete it and run again") from error
    frame = _with_newer_columns(frame, study)
    if list(frame.columns) != list(_all_columns(study)):
        raise UsageError(f"{path} does not have the columns of a {study.name} run; delete it and run again")
    if set(frame["study"]) != {study.name}:
        raise UsageError(f"{path} holds rows of study {sorted(set(frame['study']))}; allowed: {study.name}")
    numeric = [name for name, column in _all_columns(study).items() if column.kind != TEXT]
    frame[numeric] = frame[numeric].replace("", None)
    return _typed(frame, study, str(path)).assign(run_id=path.stem, **_read_images(path))


def _with_newer_columns(frame: pd.DataFrame, study: Table) -> pd.DataFrame:
    """``frame`` with the columns that came after it was written, as far as its rows can only be one thing there."""
    renamed = {column.was: name for name, column in _all_columns(study).items() if column.was and name not in frame}
    frame = frame.rename(columns=renamed)
    for place, (name, column) in enumerate(_all_columns(study).items()):
        if column.before is not None and name not in frame and place <= len(frame.columns):
            frame.insert(place, name, column.before)
    return frame


def _read_images(path: Path) -> dict[str, Any]:
    """Columns of arrays (n,): the values by image of every row, and ``images``, which tells the same images."""
    file = by_image_file(path)
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        found = {name + BY_IMAGE: list(arrays[name]) for name in arrays.files if name != "images"}
        return {**found, "images": str(arrays["images"])}


def read_runs(results_dir: str | Path, study: Table) -> pd.DataFrame:
    """All runs of ``study`` under ``results_dir``/runs, by run_id; without any, a frame of its columns and no rows."""
    root = resolve(results_dir)
    if not root.is_dir():
        raise UsageError(f"no results folder {str(results_dir)!r}; it is made by running a profile")
    runs = [read_run(path, study) for path in sorted((root / "runs" / study.name).glob("*.csv"))]
    if runs:
        return pd.concat(runs, ignore_index=True)
    kinds = {name: column.kind for name, column in _all_columns(study).items()}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in {**kinds, "run_id": TEXT}.items()})


def read_published(name: str, *, as_printed: bool = False) -> pd.DataFrame:
    """Numbers printed by the authors: results/published/``name``.csv, each row with its ``source``.

    ``as_printed`` gives every cell as its text, trailing zeros included.
    """
    folder = resolve(PUBLISHED)
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}; published numbers are in a clone of the repository: work in one")
    require_choice(name, [path.stem for path in folder.glob("*.csv")], "published table")
    text = {"dtype": str, "keep_default_na": False} if as_printed else {}
    return pd.read_csv(folder / f"{name}.csv", **text)
