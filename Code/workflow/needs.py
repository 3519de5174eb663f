"""What the runs of profiles read: data sets with their splits, and weights of timm's hub."""

from __future__ import annotations

from collections.abc import Iterable

from notebooks import declared_by
from plan import HUB, Plan

TRAINING = {"limit_train", "limit_calibration", "num_calibration"}  # parameters of notebooks that read training images


def data_of(plans: Iterable[Plan]) -> dict[str, list[str]]:
    """Data set -> the splits that are read of it."""
    found: dict[str, set[str]] = {}
    for run in (run for plan in plans for run in plan.runs):
        splits = ("train", "val") if TRAINING.intersection(declared_by(run.notebook)) else ("val",)
        for name in run.values("dataset"):
            found.setdefault(name, set()).update(splits)
    return {name: sorted(splits) for name, splits in sorted(found.items())}


def weights_of(plans: Iterable[Plan]) -> list[str]:
    """The backbones whose weights come from timm's hub."""
    runs = [run for plan in plans for run in plan.runs if HUB in run.named_weights]
    return sorted({name for run in runs for name in run.values("backbone")})
