"""Command line: one backbone, any methods and keep rates, see :mod:`common.benchmark`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

import common.benchmark
from common.benchmark.measured import compare
from common.devices import FORMATS, RUNTIMES
from common.errors import command
from common.options import Count, check
from common.reducers import list_reducers
from common.schedule import keep_rate_text

KEEP_RATES = ("0.75", "0.5")
BUDGET_HELP = {
    "mac_cut": "share of the multiply-accumulates to save",
    "gmac": "10^9 multiply-accumulates of an image",
    "latency_ms": "milliseconds of a pass over a batch at the most",
    "speedup": "over the unreduced model at the least",
}


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one backbone, any methods and keep rates."""
    parser = argparse.ArgumentParser(
        prog="python -m common.benchmark", description=common.benchmark.__doc__.splitlines()[0]
    )
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm VisionTransformer")
    parser.add_argument("--reducer", nargs="+", default=["tram"], help=f"of: {', '.join(list_reducers())}")
    parser.add_argument("--keep-rate", nargs="+", metavar="R", help=f"default: {' '.join(KEEP_RATES)}")
    for word, what in BUDGET_HELP.items():
        parser.add_argument(
            f"--{word.replace('_', '-')}",
            nargs="+",
            metavar="X",
            help=f"in place of keep rates, for each method: {what}",
        )
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32", help=f"of: {', '.join(FORMATS)}")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument(
        "--runtime", default="eager", help=f"of all models, the unreduced one too: {', '.join(RUNTIMES)}"
    )
    parser.add_argument("--compile", dest="runtime", action="store_const", const="compiled", help="--runtime compiled")
    args = parser.parse_args(arguments)
    if args.threads is not None:
        torch.set_num_threads(check("threads", args.threads, Count))
    names = ("img_size", "dtype", "batch_size", "runtime", "device", "rounds")
    settings = {name: getattr(args, name) for name in names}
    budgets = [f"{word}={value}" for word in BUDGET_HELP for value in getattr(args, word) or ()]
    rates = [*(args.keep_rate or ()), *budgets] or KEEP_RATES
    rows = compare(args.backbone, args.reducer, rates, **settings)
    how = f"{args.dtype}{'' if args.runtime == 'eager' else f', {args.runtime}'}, batch {args.batch_size}"
    print(f"{args.backbone}, {how}, {args.rounds} rounds, median and quartiles")
    for line in _lines(rows):
        print("".join(line))


def _lines(rows: Sequence[Mapping[str, object]]) -> Iterator[list[str]]:
    """Header and rows of the printed table; memory and compilation only where they were measured."""
    more = {"peak_memory_mb": "MB", "compile_seconds": "ready in s"}
    more = {name: title for name, title in more.items() if rows[0][name] is not None}
    header = [f"{'method':<24}{'keep':>6}{'FPS':>10}{'speed-up':>10}{'quartiles':>14}{'GMAC':>10}{'MAC ratio':>11}"]
    yield [*header, f"{'ceiling':>9}", *(f"{title:>11}" for title in more.values())]
    for row in rows:
        name = row["method"] + (f":{row['options']}" if row["options"] else "")
        quartiles = f"{row['speedup_q1']:.2f}-{row['speedup_q3']:.2f}"
        ceiling = "-" if row["ceiling"] is None else f"{row['ceiling']:.2f}x"
        yield [
            f"{name:<24}{keep_rate_text(row['keep_rate']):>6}{row['fps']:>10.2f}{row['speedup']:>9.2f}x{quartiles:>14}",
            f"{row['gmac']:>10.4f}{rows[0]['gmac'] / row['gmac']:>10.2f}x{ceiling:>9}",
            *(f"{row[name]:>11.1f}" for name in more),
        ]


if __name__ == "__main__":
    sys.exit(main())
