"""Evaluate many runs: what is there already is skipped, an error of one run does not stop the others.

``python -m common.evaluation DIR [DIR ...]`` leaves in the folder of every run at or below the DIRs

    decisions.npz                            the record of the best weights on the validation images
    decisions.cls.npz                        with --cls: CLS tokens after these blocks
    NAME_viz_results.json                    with --json: the record as the reference's analyses read it
    NAME_cls_features_BLOCK.npy              with --json and --cls

and ends with status 1, after a list of what went wrong, if anything did. Models that nobody trained:
:mod:`common.evaluation.shelf_command`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from common.devices import Device, torch_device
from common.errors import UsageError, command
from common.evaluation.evaluate import PRECISIONS, evaluate_model
from common.evaluation.export import cls_name, export_cls, export_json, json_name
from common.evaluation.record import Record, Setting, peek
from common.evaluation.runs import Run, find_runs
from common.options import Count, Many, Whole, check_fields

DECISIONS = "decisions.npz"


@dataclass(frozen=True)
class Wanted:
    """What to leave in the folder of a run, and how to compute it.

    Attributes:
        overwrite: evaluate although there is a record of the same weights.
        json: export to the reference's files too.
        cls_at: blocks whose CLS tokens to keep.
        scores, soft_weights: parts of the record that are not there by default.
        batch_size, workers, device, mixed_precision: as for :func:`common.evaluation.evaluate_model`.
    """

    overwrite: bool = False
    json: bool = False
    cls_at: Many[Whole] = ()
    scores: bool = False
    soft_weights: Whole = 0
    batch_size: Count = 64
    workers: Whole = 0
    device: Device | None = None
    mixed_precision: Literal[tuple(PRECISIONS)] = "no"

    def __post_init__(self) -> None:
        check_fields(self)
        torch_device(self.device)

    @property
    def how(self) -> dict[str, object]:
        """The arguments of :func:`common.evaluation.evaluate_model`."""
        return {key: value for key, value in vars(self).items() if key not in ("overwrite", "json")}


def evaluate_run(folder: str | Path, wanted: Wanted) -> str:
    """Evaluate the best weights of one run; returns what was done: "evaluated", "exported" or "skipped".

    A record of other weights, from before the training went on, is no reason to skip. Files exported from an earlier
    record do not stay beside a new one.
    """
    run = Run.read(folder)
    there = complete_setting(run.folder, wanted)
    same = there is not None and there.details.get("best") == asdict(run.best)
    return leave(run.folder, run.name, wanted, same, partial(_evaluated, run, wanted))


def leave(folder: Path, name: str, wanted: Wanted, there: bool, evaluate: Callable[[], Record]) -> str:
    """Leave in ``folder`` what is ``wanted`` of the run ``name``; returns what was done, as :func:`evaluate_run` does.

    Args:
        there: the right record is there already, with all its parts.
        evaluate: makes it.
    """
    exports = [json_name(name), *(cls_name(name, block) for block in wanted.cls_at)]
    export = wanted.json and not (there and all((folder / file).is_file() for file in exports))
    if there and not export:
        return "skipped"
    if there:
        record = Record.load(folder / DECISIONS, with_cls=bool(wanted.cls_at))
    else:
        record = evaluate()
        for pattern in (json_name("*"), cls_name("*", "*")):
            for file in folder.glob(pattern):
                file.unlink()
        record.save(folder / DECISIONS)
    if export:
        export_json(record, folder / json_name(name))
        if wanted.cls_at:
            export_cls(record, folder)
    return "exported" if there else "evaluated"


def complete_setting(folder: Path, wanted: Wanted) -> Setting | None:
    """The setting of the record in ``folder``; None where it is to be made: missing, damaged, without a wanted part."""
    path = folder / DECISIONS
    if wanted.overwrite or not path.is_file():
        return None
    try:
        setting, blocks = peek(path)
    except UsageError:
        return None
    parts = {"scores": wanted.scores, "soft_weights": wanted.soft_weights}
    noted = all(setting.noted.get(part, 0) >= value for part, value in parts.items())
    return setting if noted and set(wanted.cls_at) <= set(blocks) else None


def do_all(jobs: Mapping[Path, Callable[[], str]], below: Path | None = None) -> dict[Path, str]:
    """Do the job of every folder and say so; returns the errors by folder, {} when all went well.

    Args:
        below: folders are called by their path from here.
    """
    errors = {}
    with tqdm(jobs.items(), desc="models", leave=False) as bar:
        for number, (folder, job) in enumerate(bar, start=1):
            try:
                done = job()
            except Exception as error:  # whatever it is, the others are still to be done
                errors[folder] = f"{type(error).__name__}: {' '.join(str(error).split())}"
                done = "failed"
            tqdm.write(f"{number}/{len(jobs)} {folder.relative_to(below) if below else folder}: {done}")
    return errors


def evaluate_runs(folders: Sequence[str | Path], wanted: Wanted) -> dict[Path, str]:
    """Evaluate every run and say so; returns the errors by folder, {} when all went well."""
    return do_all({Path(folder): partial(evaluate_run, folder, wanted) for folder in folders})


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m common.evaluation",
        description="Evaluate the runs in folders: accuracy and, for every image, what was kept or merged.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a run, or of many at any depth")
    add_options(parser)
    given = vars(parser.parse_args(arguments))
    roots = given.pop("folders")
    wanted, folders = Wanted(**given), find_runs(roots)
    return tell(evaluate_runs(folders, wanted))


def add_options(parser: argparse.ArgumentParser) -> None:
    """The attributes of :class:`Wanted`."""
    parser.add_argument("--overwrite", action="store_true", help="evaluate again what was evaluated already")
    parser.add_argument("--json", action="store_true", help="also the JSON (and .npy) of the reference implementation")
    parser.add_argument(
        "--cls", nargs="+", type=int, default=(), metavar="BLOCK", dest="cls_at", help="keep CLS tokens, e.g. 3 6 9 11"
    )
    parser.add_argument("--scores", action="store_true", help="keep what methods score patches by")
    parser.add_argument(
        "--soft-weights", type=int, default=0, metavar="M", help="keep the M largest weights of a patch in soft merging"
    )
    parser.add_argument("--batch-size", type=int, default=Wanted.batch_size)
    parser.add_argument("--workers", type=int, default=Wanted.workers, help="processes that load images")
    parser.add_argument("--device", help="cpu, cuda ...; default: cuda if there is one")
    parser.add_argument("--mixed-precision", default=Wanted.mixed_precision, help=f"of: {', '.join(PRECISIONS)}")


def tell(errors: Mapping[Path, str]) -> int:
    """Print what went wrong in which folder; returns the exit status."""
    for folder, error in errors.items():
        print(f"error in {folder}: {error}", file=sys.stderr)
    return 1 if errors else 0


def _evaluated(run: Run, wanted: Wanted) -> Record:
    experiment, dataset = run.experiment, run.trained.val_set()
    return evaluate_model(
        run.trained.model(dataset),
        dataset,
        method=experiment.reducer,
        backbone=experiment.backbone,
        name=run.name,
        weights=experiment.weights,
        seed=experiment.config.seed,
        details={"best": asdict(run.best), "epochs": run.epochs},
        **wanted.how,
    )
