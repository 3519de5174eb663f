"""``python -m common.analysis RUNS [RUNS ...] --axis AXIS --out DIR [--parity]``: what runs have in common, in files.

Finds the records of decisions below the folders RUNS, compares all of which differ along AXIS alone (see
:mod:`common.analysis.pairs`) and leaves in DIR

    runs_<axis>.csv             one row per run: what it is, accuracy, cost
    comparisons_<axis>.csv      one row per pair, block and measure, see :mod:`common.analysis.compare`
    correlations_<axis>.csv     of similarity and accuracy, where accuracies are known; not of datasets and seeds
    depths_<axis>.csv           how deep each patch comes, of methods that keep patches
    <metric>..._<axis>.png      figures of these, see :mod:`common.analysis.figures`

and with --parity the reference's files, see :mod:`common.analysis.export`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from common.analysis.export import check_axis, export_tables, require_reference_keys
from common.analysis.figures import draw, table_file
from common.analysis.pairs import AXES, Axis, pairs
from common.analysis.runs import RunData, find_records, read_runs
from common.analysis.tables import comparison_rows, correlation_rows, depth_table, runs_table
from common.errors import UsageError, command
from common.evaluation import Setting
from common.results import write_atomically


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 on bad input."""
    given = _parser().parse_args(arguments)
    folder = Path(given.out).absolute()
    runs = list(read_runs(_chosen(find_records(given.runs), given.axis, given.parity)))
    for name, table in _tables(runs, given.axis):
        if table.empty:
            print(f"no {name}_{given.axis}.csv: the records hold none")
        else:
            print(_write(table_file(folder, name, given.axis), table))
    for file in draw(folder, given.axis):
        print(file)
    for file in export_tables(runs, folder, given.axis) if given.parity else ():
        print(file)


def _chosen(records: Mapping[Path, Setting], axis: Axis, parity: bool) -> list[Path]:
    """The records that are compared with another; for the reference's files, which tell of every run, all."""
    paths, settings = list(records), list(records.values())
    found = sorted({place for pair in pairs(settings, axis) for place in pair})
    if not found:
        raise UsageError(
            f"of {len(records)} records no two differ along axis {axis!r} alone; give more, or another axis"
        )
    if not parity:
        return [paths[place] for place in found]
    check_axis(axis)
    require_reference_keys(settings)
    return paths


def _tables(runs: Sequence[RunData], axis: Axis) -> Iterator[tuple[str, pd.DataFrame]]:
    comparisons = comparison_rows(runs, axis)
    if comparisons.empty:
        raise UsageError(f"the records that differ along axis {axis!r} hold nothing that could be compared")
    yield "runs", runs_table(runs)
    yield "comparisons", comparisons
    yield "correlations", correlation_rows(comparisons, runs, axis)
    yield "depths", depth_table(runs)


def _write(path: Path, table: pd.DataFrame) -> Path:
    write_atomically(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m common.analysis",
        description="Compare what runs decided: which patches they keep and merge, CLS tokens, depth maps.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="folder with records of python -m common.evaluation")
    parser.add_argument(
        "--axis", required=True, metavar="AXIS", help=f"what compared runs differ in: {', '.join(AXES)}"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for tables and figures")
    parser.add_argument(
        "--parity", action="store_true", help="also the files of the authors of Which Tokens to Use, with their numbers"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
