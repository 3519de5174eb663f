"""Time what is fast beside what it replaces, in turn (A B A B), after both have given the same result.

./run_all.sh bench [NAME ...] [--rounds N] [--threads N] [--device D] [--quick] [--save]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from common.cost.throughput import interleaved
from common.errors import UsageError, command, require_choice
from common.options import Count, check
from common.results import conditions, resolve, write_atomically
from common.training import torch_device
from comparisons import COMPARISONS, FULL, QUICK, Scale

SAVED = Path("results/bench.csv")
CONDITIONS = ("device", "threads", "torch", "timm", "commit", "date")
RATIO = ["ratio", "ratio_q1", "ratio_q3"]
COLUMNS = ["comparison", *RATIO, "macs", "rounds", *CONDITIONS]
KEY = ["comparison", "device", "threads"]


def measure(name: str, scale: Scale, rounds: int) -> dict[str, object]:
    """Open the comparison ``name`` and time it: a row of the CSV, without its conditions."""
    torch.manual_seed(0)
    pair = COMPARISONS[name][1](scale=scale)
    calls = {"baseline": pair.baseline, "ours": pair.ours}
    found = interleaved(calls, pair.inputs, baseline="baseline", rounds=rounds)["ours"]
    ratio = dict(zip(RATIO, (found.speedup, found.speedup_q1, found.speedup_q3), strict=True))
    return {"comparison": name, **ratio, "macs": pair.macs, "rounds": rounds}


def saved(path: Path) -> pd.DataFrame:
    """What was measured before; no rows where nothing was."""
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.read_csv(path, keep_default_na=False, na_values={"macs": [""]})
    if list(frame.columns) != COLUMNS:
        raise UsageError(f"{path} has the columns {', '.join(frame.columns)}; allowed: {', '.join(COLUMNS)}")
    return frame


def save(rows: pd.DataFrame, path: Path) -> None:
    """Write ``rows`` in place of those of the same comparison on the same device with as many threads."""
    whole = pd.concat([frame for frame in (saved(path), rows) if len(frame)])
    whole = whole.drop_duplicates(KEY, keep="last").sort_values(KEY, kind="stable")
    write_atomically(path, lambda file: whole.to_csv(file, index=False, lineterminator="\n", float_format="%.4g"))


def table(rows: pd.DataFrame, earlier: pd.DataFrame) -> str:
    """``rows`` as text for people, each beside what ``earlier`` has of it."""
    lines = [f"{'baseline / ours':<62}{'ratio':>7}{'quartiles':>13}{'MAC ratio':>11}{'before':>20}"]
    for row in rows.to_dict("records"):
        ratio, quartiles = f"{row['ratio']:.2f}x", f"{row['ratio_q1']:.2f}-{row['ratio_q3']:.2f}"
        macs = "" if pd.isna(row["macs"]) else f"{row['macs']:.2f}x"
        about, before = COMPARISONS[row["comparison"]][0], _before(row, earlier)
        lines.append(f"{about:<62}{ratio:>7}{quartiles:>13}{macs:>11}{before:>20}")
    return "\n".join([*lines, "", "now: " + _where(rows), *(["before: " + _where(earlier)] if len(earlier) else [])])


def _before(row: Mapping[str, object], earlier: pd.DataFrame) -> str:
    """The earlier ratio on this device with as many threads, and what has changed: quartiles that are apart.

    Where there is none, the last one from elsewhere.
    """
    same = earlier[earlier["comparison"] == row["comparison"]]
    here = same[(same["device"] == row["device"]) & (same["threads"] == row["threads"])]
    if not len(same):
        return "not measured"
    if not len(here):
        return f"{same['ratio'].iloc[-1]:.2f}x elsewhere"
    was = here.iloc[-1]
    slower, faster = row["ratio_q3"] < was["ratio_q1"], row["ratio_q1"] > was["ratio_q3"]
    return f"{was['ratio']:.2f}x, {'slower' if slower else 'faster' if faster else 'same'} now"


def _where(rows: pd.DataFrame) -> str:
    """What ``rows`` were measured with, each once."""
    found = rows[[*CONDITIONS, "rounds"]].drop_duplicates().to_dict("records")
    said = "{device}, {threads} threads, torch {torch}, commit {commit}, {date}, {rounds} rounds"
    return "; ".join(said.format(**each) for each in found)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 0 whatever the ratios are, 2 on bad input."""
    names = "\n".join(f"  {name:<24}{about}" for name, (about, _) in COMPARISONS.items())
    parser = argparse.ArgumentParser(
        prog="./run_all.sh bench",
        description=f"{__doc__.splitlines()[0]}\n\ncomparisons (default: all):\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a comparison")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed (default: 7)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument(
        "--quick", action="store_true", help="one round of small inputs: does it run? The ratios mean nothing"
    )
    parser.add_argument("--save", action="store_true", help=f"write the ratios to {SAVED}, in place of those of before")
    given = parser.parse_args(arguments)
    earlier = saved(resolve(SAVED))
    rows = _run(given)
    print("small inputs, one round: the ratios mean nothing" if given.quick else "", table(rows, earlier), sep="\n")
    if given.save:
        save(rows, resolve(SAVED))
        print(f"saved in {SAVED}")


def _run(given: argparse.Namespace) -> pd.DataFrame:
    """Check everything, then measure what was asked for."""
    for name in given.names:
        require_choice(name, COMPARISONS, "comparison")
    check("rounds", given.rounds, Count)
    if given.quick and given.save:
        raise UsageError("--quick measures nothing that --save could keep; give one of them")
    if given.threads is not None:
        torch.set_num_threads(check("threads", given.threads, Count))
    names = list(dict.fromkeys(given.names)) or list(COMPARISONS)
    rounds, scale = (1, QUICK) if given.quick else (given.rounds, FULL)
    device = torch_device(given.device)
    shared = {key: value for key, value in conditions(device=device).items() if key in CONDITIONS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scale = replace(scale, device=str(device), folder=Path(folder))
        for number, name in enumerate(names, start=1):
            print(f"{number} of {len(names)}: {name}, {COMPARISONS[name][0]}", file=sys.stderr, flush=True)
            rows.append({**measure(name, scale, rounds), **shared})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"macs": float})


if __name__ == "__main__":
    sys.exit(main())
