"""Get all data and weights of a profile once, where there is a network: ./run_all.sh fetch PROFILE.

Started afterwards, the profile uses no network any more, so its jobs may run where there is none. Data sets that are
never downloaded are looked at, image by image.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from checks import check_plan
from needs import data_of, weights_of
from plan import Plan, load_plans, state_folder
from profile_file import ROOT, ProfileError, refusal

OFFLINE = "HF_HUB_OFFLINE"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("profile")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    try:
        plans = load_plans(arguments.profile)
        for plan in plans:
            check_plan(plan)
        _fetch(plans)
    except ProfileError as error:
        print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 2
    return 0


def go_offline(plans: list[Plan]) -> None:
    """Let this process and its children ask no hub for weights, if all that the plans need were fetched."""
    fetched = [_record(plan) for plan in plans]
    if all(path.is_file() and path.read_text() == _needs(plan) for path, plan in zip(fetched, plans, strict=True)):
        os.environ.setdefault(OFFLINE, "1")


def _fetch(plans: list[Plan]) -> None:
    splits = [(name, split) for name, splits in data_of(plans).items() for split in splits]
    problems = [line for name, split in splits for line in refusal(_open, name, split)]
    problems += [line for name in weights_of(plans) for line in refusal(_load, name)]
    if problems:
        raise ProfileError(problems)
    for plan in plans:
        path = _record(plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_needs(plan))


def _open(name: str, split: str) -> None:
    from common import load_dataset

    print(f"{name}, {split}: {len(load_dataset(name, split, img_size=32)):,} images", flush=True)


def _load(backbone: str) -> None:
    from common.models.factory import create_backbone

    create_backbone(backbone, weights="timm")
    print(f"weights of {backbone}", flush=True)


def _record(plan: Plan) -> Path:
    return ROOT / state_folder(plan.results) / "fetched"


def _needs(plan: Plan) -> str:
    return "".join(f"{name}\n" for name in weights_of([plan]))


if __name__ == "__main__":
    sys.exit(main())
