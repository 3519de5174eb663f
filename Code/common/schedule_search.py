"""``python -m common.schedule_search OUT.csv ...``: is another schedule than the default better, at equal cost?

For each method :func:`common.budget.search_schedule` chooses on training images without their labels; then both
schedules run on the validation images, and the CSV has what they lose, with 95 % intervals of their paired difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from common.budget import FoundSchedule, search_schedule
from common.budget.search import Candidate
from common.data.transforms import RECIPES
from common.errors import command
from common.options import Count, check
from common.reducers import Method
from common.reducers.base import divergence_by_image
from common.report.paired import paired_difference
from common.results import conditions, write_atomically
from common.setup import Setup
from common.training import accuracies, predict
from common.training.digits_backbone import from_here
from common.training.metrics import hits_by_image

CONDITIONS = (
    "backbone",
    "weights",
    "dataset",
    "recipe",
    "img_size",
    "device",
    "threads",
    "torch",
    "timm",
    "commit",
    "date",
)


def compare(
    setup: Setup, methods: Sequence[str], mac_cut: float, *, candidates: int, seed: int = 0
) -> list[dict[str, object]]:
    """For each method a row for its default schedule and one for what is found, on the validation images.

    >>> setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=20, limit_calibration=8)
    >>> rows = compare(setup, ["tome"], 0.3, candidates=4)
    >>> rows[0]["schedule"], rows[0]["keep_rate"], rows[1]["schedule"]
    ('default', '0.75@1 0.5782@3 0.4375@4', 'found')

    Args:
        setup: ``limit_calibration`` training images are searched on.
        methods: in their written form.
        mac_cut, candidates, seed: see :func:`common.budget.search_schedule`.
    """
    how, found = {"candidates": candidates, "seed": seed, "batch_size": setup.batch_size}, {}
    for text in methods:
        found[text] = search_schedule(setup.vit, text, setup.calibration_images, mac_cut=mac_cut, **how)
        best = found[text].best
        apart = f"divergence {best.divergence:.4f}, by default {found[text].default.divergence:.4f}"
        print(f"{text}: {best.keep_rate}; {apart}", file=sys.stderr)
    models = {
        (text, name): setup.reduced(text, keep_rate=each.keep_rate)
        for text, one in found.items()
        for name, each in (("default", one.default), ("found", one.best))
    }
    predictions, labels = predict({"none": setup.reduced("none"), **models}, setup.loader(setup.val_set))
    logits = {key: each.logits for key, each in predictions.items()}
    rows = [_row(setup, text, found[text], name, logits, labels) for text, name in models]
    return [{**row, "budget": mac_cut} for row in rows]


def _row(
    setup: Setup, text: str, found: FoundSchedule, name: str, logits: Mapping[Hashable, Tensor], labels: Tensor
) -> dict[str, object]:
    method, own, default, whole = Method.parse(text), logits[text, name], logits[text, "default"], logits["none"]
    return {
        "method": method.name,
        "options": method.options_text,
        "schedule": name,
        **_told(found.best if name == "found" else found.default, len(found.tried)),
        **accuracies(own, labels, setup.val_set),
        "agreement": (own.argmax(1) == whole.argmax(1)).double().mean().item(),
        "divergence": divergence_by_image(own, whole).mean().item(),
        **(_changes(own, default, whole, labels, setup) if name == "found" else {}),
        "n_val": len(setup.val_set),
    }


def _told(candidate: Candidate, tried: int) -> dict[str, object]:
    return {
        "keep_rate": candidate.keep_rate,
        "mac_cut": candidate.mac_cut,
        "divergence_searched": candidate.divergence,
        "tried": tried,
        "n_search": candidate.images,
    }


def _changes(logits: Tensor, default: Tensor, whole: Tensor, labels: Tensor, setup: Setup) -> dict[str, float]:
    """What the found schedule has above the default one, paired over the images: points of accuracy, and nats."""
    own, other = (hits_by_image(each, labels, setup.val_set) for each in (logits, default))
    pairs = {name.removesuffix("_by_image"): (100.0 * own[name], 100.0 * other[name]) for name in own}
    pairs["divergence"] = tuple(divergence_by_image(each, whole).numpy() for each in (logits, default))
    return {
        f"{name}_change{end}": value
        for name, (first, second) in pairs.items()
        for end, value in zip(("", "_low", "_high"), paired_difference(first, second), strict=True)
    }


def write(path: Path, rows: Sequence[dict[str, object]], setup: Setup) -> None:
    """All ``rows`` with what they were measured under."""
    around = conditions(**setup.conditions)
    frame = pd.DataFrame([{**row, **{name: around[name] for name in CONDITIONS}} for row in rows])
    write_atomically(path, lambda file: frame.to_csv(file, index=False, float_format="%.6g"))


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: one backbone on one data set, any methods."""
    parser = argparse.ArgumentParser(prog="python -m common.schedule_search", description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT.csv", help="a row for each method and schedule")
    parser.add_argument("--backbone", required=True, help="a timm VisionTransformer")
    parser.add_argument("--weights", default="timm", help="'timm' (default), 'digits', or a .safetensors file")
    parser.add_argument("--dataset", required=True, help="digits, imagenette, imagenet, folder:PATH ...")
    parser.add_argument("--img-size", type=int, default=224, help="pixels")
    parser.add_argument("--recipe", default=Setup.recipe, help=f"of: {', '.join(RECIPES)}")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD")
    parser.add_argument("--mac-cut", type=float, default=0.4, help="share of the multiply-accumulates to save")
    parser.add_argument("--images", type=int, default=256, help="training images to search on, without labels")
    parser.add_argument("--limit", type=int, help="validation images, the classes as even as possible; default: all")
    parser.add_argument("--candidates", type=int, default=40, help="schedules that are tried")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: cuda when there is one, else cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    args = parser.parse_args(arguments)
    methods = [str(Method.parse(text)) for text in args.methods]
    if args.threads is not None:
        torch.set_num_threads(check("threads", args.threads, Count))
    sizes = {"img_size": args.img_size, "recipe": args.recipe, "limit_val": args.limit, "batch_size": 64}
    more = {"limit_calibration": args.images, "seed": args.seed, "device": args.device}
    setup = Setup(args.backbone, from_here(args.weights), args.dataset, **sizes, **more)
    rows = compare(setup, methods, args.mac_cut, candidates=args.candidates, seed=args.seed)
    write(Path(args.out), rows, setup)
    for row in rows:
        print(f"{row['method']}, {row['schedule']}: divergence {row['divergence']:.4f} on {row['n_val']} images")


if __name__ == "__main__":
    sys.exit(main())
