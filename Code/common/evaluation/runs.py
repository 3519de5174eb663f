"""Folders of training runs as :class:`common.training.experiment.Experiment` leaves them, found and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import torch

from common.errors import UsageError
from common.models.factory import create_backbone
from common.reducers import Method, default_reduction_loc
from common.training.checkpoint import BEST, BEST_INFO, LOG, Best
from common.training.engine import ANYWHERE
from common.training.experiment import RECORD, Experiment


@dataclass(frozen=True)
class Run:
    """A training run that has finished at least one evaluation.

    Attributes:
        folder: where it is; its last part is the run's name.
        experiment: what was trained. Where and with how many processes stays open: that may be different here.
        created: when, as ISO 8601 text.
        best: its best epoch.
        last_epoch: the last epoch that was finished.
    """

    folder: Path
    experiment: Experiment
    created: str
    best: Best
    last_epoch: int

    @classmethod
    def read(cls, folder: str | Path) -> Run:
        """The run in ``folder``.

        Raises:
            UsageError: a file is missing or damaged; the message names it.
        """
        folder = Path(folder)
        found = _json(folder / RECORD)
        try:
            settings = dict(found["experiment"])
            config = {key: value for key, value in settings.pop("config").items() if key not in ANYWHERE}
            experiment, created = Experiment.from_dict({**settings, **config}), found["date"]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{str(folder / RECORD)!r} is no record of a training: {_reason(error)}") from error
        try:
            best = Best(**_json(folder / BEST_INFO))
        except TypeError as error:
            raise UsageError(f"{str(folder / BEST_INFO)!r} tells of no best epoch: {error}") from error
        if not (folder / BEST).is_file():
            raise UsageError(f"{str(folder / BEST)!r} is missing")
        return cls(folder, experiment, created, best, _last_epoch(folder / LOG))

    @property
    def name(self) -> str:
        """Name of the run: that of its folder."""
        return self.folder.resolve().name

    @property
    def epochs(self) -> int:
        """For how many epochs it is to be trained."""
        return self.experiment.config.total_epochs

    @property
    def reduction_loc(self) -> tuple[int, ...]:
        """The blocks of its schedule, by default those of its backbone; () without reduction."""
        if Method.parse(self.experiment.reducer).name == "none":
            return ()
        depth = _depth(self.experiment.backbone)
        return self.experiment.reduction_loc or default_reduction_loc(depth, self.experiment.keep_rate)

    @property
    def trained(self) -> Experiment:
        """The experiment from its best weights on, with images normalised as those that it was trained on."""
        return replace(self.experiment, weights=str((self.folder / BEST).resolve()))


def find_runs(roots: Sequence[str | Path]) -> list[Path]:
    """Folders of runs at or below ``roots``, each once, in the order of the roots and then of their paths.

    Raises:
        UsageError: a root that is no folder or holds no run.
    """
    found: dict[Path, None] = {}
    for root in map(Path, roots):
        below = sorted(path.parent for path in root.rglob(RECORD))
        if not below:
            raise UsageError(f"no run in {str(root)!r}: a run is a folder with {RECORD}")
        found |= dict.fromkeys(below)
    return list(found)


@cache
def _depth(backbone: str) -> int:
    with torch.device("meta"):
        return len(create_backbone(backbone).blocks)


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{str(path)!r} is missing") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{str(path)!r} is damaged: it holds no JSON object")
    return content


def _last_epoch(path: Path) -> int:
    try:
        return int(pd.read_csv(path)["epoch"].iloc[-1])
    except FileNotFoundError as error:
        raise UsageError(f"{str(path)!r} is missing") from error
    except (OSError, KeyError, IndexError, ValueError) as error:
        raise UsageError(f"{str(path)!r} is damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else " ".join(str(error).split())
