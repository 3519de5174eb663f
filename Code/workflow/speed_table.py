"""The table of results/README.md that says how fast methods are on each runtime.

python Code/workflow/speed_table.py makes it of the runs of the profile imagenette and puts it there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd

from common.cost.throughput import promise_share
from common.devices import RUNTIMES
from common.leaderboard.answers import called_simply
from common.results import read_runs, write_atomically
from common.studies import find_study
from profile_file import ROOT

RESULTS = ROOT / "results" / "imagenette"
DOCUMENT = ROOT / "results" / "README.md"
START, END = "<!-- runtime table -->\n", "\n<!-- end -->"
BACKBONES = ("vit_small_patch16_224", "deit_small_patch16_224")  # one architecture
METHODS = ("tram", "topk", "tome", "evit", "ats", "downsample")
CONDITIONS = [*product(RUNTIMES, ("float32",), (1, 16)), *product(("onnxruntime",), ("int8",), (1, 16))]
Setting = tuple[str, str, int]  # runtime, number format, batch


def table(results: Path = RESULTS) -> str:
    """Speed-up, and in brackets its share of the MAC ratio; of the unreduced model images per second."""
    runs = read_runs(results, find_study("throughput"))
    runs = runs[runs["backbone"].isin(BACKBONES) & (runs["img_size"] == 224)]
    found = {setting: rows for setting in CONDITIONS if len(rows := _measured(runs, setting))}
    heads = ["ViT-S/16, keep 50 %", "MAC ratio", *map(_head, found)]
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)]]
    lines.append(["no reduction: images/s", "", *(f"{_whole(rows)['fps']:.1f}" for rows in found.values())])
    lines += [_line(method, list(found.values())) for method in METHODS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _measured(runs: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The unreduced models and all methods at a keep rate of 50 % in one setting."""
    for column, value in zip(("runtime", "dtype", "batch"), setting, strict=True):
        runs = runs[runs[column] == value]
    return runs[(runs["method"] == "none") | (runs["keep_rate"] == "0.5")]


def _head(setting: Setting) -> str:
    runtime, dtype, batch = setting
    return f"{runtime}{'' if dtype == 'float32' else f', {dtype}'}, batch {batch}"


def _whole(rows: pd.DataFrame, backbones: Sequence[str] = BACKBONES) -> pd.Series:
    """The unreduced model, of the first of ``backbones`` that has one."""
    whole = rows[(rows["method"] == "none") & rows["backbone"].isin(backbones)]
    return whole.sort_values("backbone", ascending=False).iloc[0]


def _line(method: str, settings: Sequence[pd.DataFrame]) -> list[str]:
    cells = [_cell(method, rows) for rows in settings]
    ratios = {ratio for ratio, _ in cells if ratio}
    return [called_simply(method), " to ".join(sorted(ratios)), *(text for _, text in cells)]


def _cell(method: str, rows: pd.DataFrame) -> tuple[str, str]:
    """MAC ratio and speed-up, both empty where that was not measured."""
    own = rows[rows["method"] == method]
    if own.empty:
        return "", ""
    row = own.iloc[0]
    whole = _whole(rows, [row["backbone"]])["gmac"]
    share = promise_share(row["speedup"], row["gmac"], whole)
    return f"{whole / row['gmac']:.2f}", f"{row['speedup']:.2f} ({100 * share:.0f} %)"


def parts(text: str) -> tuple[str, str, str]:
    """What stands before the table in ``text``, the table, and the rest."""
    before, start, rest = text.partition(START)
    found, end, after = rest.partition(END)
    return before + start, found, end + after


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(arguments)
    before, _, after = parts(DOCUMENT.read_text(encoding="utf-8"))
    write_atomically(DOCUMENT, lambda file: file.write(before + table() + after))


if __name__ == "__main__":
    main()
