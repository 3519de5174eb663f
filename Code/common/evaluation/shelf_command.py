"""``python -m common.evaluation off_the_shelf OUT ...``: see :func:`common.evaluation.off_the_shelf`.

``python -m common.evaluation off_the_shelf OUT --backbone B --weights W --dataset D --methods M ... --keep-rates R ..``
leaves for every model a folder OUT/DATASET/seed-SEED/KEY, KEY as the reference's analyses have it
(``topk_small_patch16_224-3_6_9-_0.9``), with the files that :mod:`common.evaluation.runner` leaves in that of a run.
What is there is skipped; whoever stops it loses one model. The images are decoded once, if they fit into memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from common.data.transforms import RECIPES
from common.errors import UsageError, command
from common.evaluation.authors import authors_run
from common.evaluation.runner import add_options, tell
from common.evaluation.shelf import KEEP_RATES, OF_SETUP, off_the_shelf
from common.models.authors import is_authors
from common.models.factory import create_backbone
from common.options import Count, NonNegative, check
from common.reducers import list_reducers
from common.schedule import read_keep_rate
from common.setup import Setup
from common.training.digits_backbone import from_here
from common.weights import HUB

NAME = "off_the_shelf"
AUTHORS_RECIPE = "which_tokens"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 if a model failed, 2 on bad input."""
    return tell(_run(**vars(_parser().parse_args(arguments))))


def _run(folder: str, threads: int | None, limit: int | None, **given: object) -> dict[Path, str]:
    if threads is not None:
        torch.set_num_threads(check("threads", threads, Count))
    given["weights"] = from_here(given["weights"])
    given = _filled(given)
    of_setup = {name: given.pop(name) for name in ("backbone", "weights", "dataset", "img_size", "recipe", *OF_SETUP)}
    rates = [read_keep_rate(rate) for rate in given.pop("keep_rates")]
    blocks = given.pop("reduction_loc")
    setup = Setup(**of_setup, limit_val=limit, memory_gb=check("memory", given.pop("memory"), NonNegative))
    given["reduction_loc"] = None if blocks is None else tuple(blocks)
    return off_the_shelf(folder, setup, given.pop("methods"), rates, **given)


def _filled(given: dict[str, object]) -> dict[str, object]:
    """``given`` with what is missing: defaults, or what a checkpoint of the authors says of its model."""
    theirs = is_authors(given["weights"])
    known: dict[str, object] = {"keep_rates": KEEP_RATES, "recipe": AUTHORS_RECIPE if theirs else Setup.recipe}
    if theirs and not (given["backbone"] and given["methods"]):
        run = authors_run(given["weights"])
        known |= {**vars(run), "methods": [run.method], "keep_rates": [run.keep_rate]}
    filled = {name: known.get(name) if value is None else value for name, value in given.items()}
    if not filled["backbone"] or not filled["methods"]:
        raise UsageError("give --backbone and --methods; only a checkpoint of the authors (.pth) says them itself")
    filled["img_size"] = filled["img_size"] or own_size(filled["backbone"])
    return filled


def own_size(backbone: str) -> int:
    """Side in pixels of the images that ``backbone`` is made for."""
    with torch.device("meta"):
        return create_backbone(backbone).patch_embed.img_size[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m common.evaluation {NAME}",
        description="Reduce a backbone by many methods, without training, and record what each decides on every image.",
    )
    parser.add_argument("folder", metavar="OUT", help="where a folder is made for every model")
    parser.add_argument("--backbone", help="a timm VisionTransformer")
    parser.add_argument(
        "--weights",
        default=HUB,
        help=f"{HUB!r} (default), 'digits', '' for random ones, a .safetensors file; or a .pth file of the authors of "
        f"'Which Tokens to Use?', which says backbone, method, keep rate, blocks and image size itself",
    )
    parser.add_argument("--dataset", required=True, help="digits, imagenette, imagenet, folder:PATH ...")
    known = ", ".join(list_reducers())
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"of: {known}")
    rates = " ".join(map(str, KEEP_RATES))
    parser.add_argument(
        "--keep-rates", nargs="+", metavar="R", help=f"default: {rates}; one per stage in quotes: '0.9 0.7 0.5'"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="of models that are random")
    parser.add_argument("--reduction-loc", nargs="+", type=int, metavar="BLOCK", help="default: 1/4, 1/2, 3/4 of depth")
    parser.add_argument("--img-size", type=int, help="pixels; default: the backbone's")
    parser.add_argument("--recipe", help=f"of: {', '.join(RECIPES)}; default: {Setup.recipe}")
    parser.add_argument("--limit", type=int, help="validation images, the classes as even as possible; default: all")
    parser.add_argument("--decisions-only", action="store_true", help="the head's classes are not the dataset's")
    parser.add_argument("--memory", type=float, default=Setup.memory_gb, help="GB that decoded images may take")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    add_options(parser)
    return parser
