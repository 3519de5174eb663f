"""Command line: one backbone under load, reduced and not, see :mod:`common.serving`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch

import common.serving
from common.errors import command
from common.options import Count, check
from common.reducers import list_reducers
from common.schedule import keep_rate_text
from common.serving.load import compare_load

HEADER = ("clients", "batch", "method", "keep", "p50 ms", "p95 ms", "p99 ms", "images/s", "speed-up", "mean batch")
WIDTHS = (7, 7, 26, 6, 10, 10, 10, 10, 10, 12)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Print latency percentiles and images per second."""
    description = common.serving.__doc__.splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m common.serving", description=description)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a timm VisionTransformer")
    parser.add_argument("--reducer", nargs="+", default=["tram"], help=f"of: {', '.join(list_reducers())}")
    parser.add_argument("--keep-rate", nargs="+", default=["0.5"], metavar="R")
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16], help="threads that ask at once")
    parser.add_argument("--max-batch", type=int, default=8, help="images of a batch at the most")
    parser.add_argument("--max-wait-ms", type=float, default=2.0, help="for which a batch waits for further images")
    parser.add_argument("--requests", type=int, default=64, help="of all clients together, in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", default="eager", help="eager or onnxruntime")
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads of a model; default: torch's")
    given = vars(parser.parse_args(arguments))
    if (threads := given.pop("threads")) is not None:
        torch.set_num_threads(check("threads", threads, Count))
    rows = compare_load(given.pop("backbone"), given.pop("reducer"), given.pop("keep_rate"), **given)
    for cells in (HEADER, *map(_cells, rows)):
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))


def _cells(row: Mapping[str, object]) -> list[str]:
    name = row["method"] + (f":{row['options']}" if row["options"] else "")
    milliseconds = [f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
    speed = [f"{row['fps']:.1f}", f"{row['speedup']:.2f}x", f"{row['mean_batch']:.1f}"]
    return [str(row["clients"]), str(row["max_batch"]), name, keep_rate_text(row["keep_rate"]), *milliseconds, *speed]


if __name__ == "__main__":
    sys.exit(main())
