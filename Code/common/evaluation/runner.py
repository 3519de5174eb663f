"""Evaluate many runs: what is there already is skipped, an error of one run does not stop the others.

``python -m common.evaluation DIR [DIR ...]`` leaves in the folder of every run at or below the DIRs

    decisions.npz                            the record of the best weights on the validation images
    decisions.cls.npz                        with --cls: CLS tokens after these blocks
    NAME_viz_results.json                    with --json: the record as the reference's analyses read it
    NAME_cls_features_BLOCK.npy              with --json and --cls

and ends with status 1, after a list of what went wrong, if anything did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import UsageError, command
from common.evaluation.evaluate import PRECISIONS, evaluate_model
from common.evaluation.export import cls_name, export_cls, export_json, json_name
from common.evaluation.record import Record, peek
from common.evaluation.runs import Run, find_runs
from common.options import Count, Many, Whole, check_fields
from common.training import torch_device
from common.training.accelerator import Device

DECISIONS = "decisions.npz"


@dataclass(frozen=True)
class Wanted:
    """What to leave in the folder of a run, and how to compute it.

    Attributes:
        overwrite: evaluate although there is a record of the same weights.
        json: export to the reference's files too.
        cls_at: blocks whose CLS tokens to keep.
        batch_size, workers, device, mixed_precision: as for :func:`common.evaluation.evaluate_model`.
    """

    overwrite: bool = False
    json: bool = False
    cls_at: Many[Whole] = ()
    batch_size: Count = 64
    workers: Whole = 0
    device: Device | None = None
    mixed_precision: Literal[tuple(PRECISIONS)] = "no"

    def __post_init__(self) -> None:
        check_fields(self)
        torch_device(self.device)


def evaluate_run(folder: str | Path, wanted: Wanted) -> str:
    """Evaluate the best weights of one run; returns what was done: "evaluated", "exported" or "skipped".

    A record of other weights, from before the training went on, is no reason to skip. Files exported from an earlier
    record do not stay beside a new one.
    """
    run = Run.read(folder)
    path = run.folder / DECISIONS
    there = not wanted.overwrite and _is_there(path, run, wanted.cls_at)
    exports = [json_name(run.name), *(cls_name(run.name, block) for block in wanted.cls_at)]
    export = wanted.json and not (there and all((run.folder / name).is_file() for name in exports))
    if there and not export:
        return "skipped"
    if there:
        record = Record.load(path, with_cls=bool(wanted.cls_at))
    else:
        record = _evaluated(run, wanted)
        for pattern in (json_name("*"), cls_name("*", "*")):
            for file in run.folder.glob(pattern):
                file.unlink()
        record.save(path)
    if export:
        export_json(record, run.folder / json_name(run.name))
        if wanted.cls_at:
            export_cls(record, run.folder)
    return "exported" if there else "evaluated"


def evaluate_runs(folders: Sequence[str | Path], wanted: Wanted) -> dict[Path, str]:
    """Evaluate every run and say so; returns the errors by folder, {} when all went well."""
    errors = {}
    for number, folder in enumerate(map(Path, folders), start=1):
        try:
            done = evaluate_run(folder, wanted)
        except Exception as error:  # whatever it is, the other runs are still to be evaluated
            errors[folder] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            done = "failed"
        print(f"{number}/{len(folders)} {folder}: {done}", flush=True)
    return errors


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m common.evaluation",
        description="Evaluate the runs in folders: accuracy and, for every image, what was kept or merged.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a run, or of many at any depth")
    parser.add_argument("--overwrite", action="store_true", help="evaluate again what was evaluated already")
    parser.add_argument("--json", action="store_true", help="also the JSON (and .npy) of the reference implementation")
    parser.add_argument(
        "--cls", nargs="+", type=int, default=(), metavar="BLOCK", dest="cls_at", help="keep CLS tokens, e.g. 3 6 9 11"
    )
    parser.add_argument("--batch-size", type=int, default=Wanted.batch_size)
    parser.add_argument("--workers", type=int, default=Wanted.workers, help="processes that load images")
    parser.add_argument("--device", help="cpu, cuda ...; default: cuda if there is one")
    parser.add_argument("--mixed-precision", default=Wanted.mixed_precision, help=f"of: {', '.join(PRECISIONS)}")
    given = vars(parser.parse_args(arguments))
    roots = given.pop("folders")
    wanted, folders = Wanted(**given), find_runs(roots)
    errors = evaluate_runs(folders, wanted)
    for folder, error in errors.items():
        print(f"error in {folder}: {error}", file=sys.stderr)
    return 1 if errors else 0


def _is_there(path: Path, run: Run, cls_at: Sequence[int]) -> bool:
    """There is a sound record of the run's best weights with these CLS tokens."""
    if not path.is_file():
        return False
    try:
        setting, blocks = peek(path)
    except UsageError:  # it is to be made anew
        return False
    return setting.details.get("best") == asdict(run.best) and set(cls_at) <= set(blocks)


def _evaluated(run: Run, wanted: Wanted) -> Record:
    experiment, dataset = run.experiment, run.trained.val_set()
    return evaluate_model(
        run.trained.model(dataset),
        dataset,
        batch_size=wanted.batch_size,
        method=experiment.reducer,
        backbone=experiment.backbone,
        name=run.name,
        weights=experiment.weights,
        details={"best": asdict(run.best), "seed": experiment.config.seed, "epochs": run.epochs},
        cls_at=wanted.cls_at,
        device=wanted.device,
        workers=wanted.workers,
        mixed_precision=wanted.mixed_precision,
    )
