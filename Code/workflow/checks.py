"""Everything that can be known to be wrong with a plan before the first second of compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from needs import data_of
from notebooks import declared_by, undeclared
from plan import Plan, Run
from profile_file import ROOT, ProfileError, refusal


def check_plan(plan: Plan) -> None:
    """Raise :class:`plan.ProfileError` with one line for each value that a run could not work with."""
    check_values(plan)
    _refuse(plan, [problem for run in plan.runs for check in (_schedules, _models) for problem in check(run)])
    check_weights(plan)


def check_values(plan: Plan) -> None:
    """As :func:`check_plan`, for what can be said without a model: names of studies and parameters, and each value."""
    checks = (_study, _undeclared, _wrong_values)
    _refuse(plan, [problem for run in plan.runs for check in checks for problem in check(run)])


def check_weights(plan: Plan) -> None:
    """As :func:`check_plan`, for weights that are not there and that no run makes."""
    _refuse(plan, _missing_weights(plan))


def check_data(plan: Plan) -> None:
    """Open every dataset of the plan, which downloads one that is not there and looks for broken images.

    Raises :class:`ProfileError` with one line for each dataset that cannot be used.
    """
    needed = [(name, split) for name, splits in data_of([plan]).items() for split in splits]
    if needed:
        from common import load_dataset

        _refuse(plan, [line for name, split in needed for line in refusal(load_dataset, name, split, img_size=32)])


def _refuse(plan: Plan, problems: Iterable[str]) -> None:
    problems = [f"profile {plan.profile}: {problem}" for problem in dict.fromkeys(problems)]
    if problems:
        raise ProfileError(problems)


def _study(run: Run) -> Iterator[str]:
    from common.studies import find_study

    yield from refusal(find_study, run.study)


def _undeclared(run: Run) -> Iterator[str]:
    try:
        declared = declared_by(run.notebook)
    except (ValueError, SyntaxError) as error:
        yield f"{run.notebook}: {error}"
        return
    yield from undeclared(run.parameters, ROOT / run.notebook, declared)


def _wrong_values(run: Run) -> Iterator[str]:
    from common.options import check
    from common.parameters import kind_of
    from common.studies import all_studies

    study = all_studies().get(run.study)
    for name, value in run.options.items():
        kind = kind_of(name, study.parameters if study else {})
        if kind is not None:
            yield from refusal(check, name, value, kind)


def _schedules(run: Run) -> Iterator[str]:
    from common.budget import check_solvable
    from common.reducers import Method, Schedule, default_reduction_loc
    from common.schedule import is_budget

    def schedule(keep_rate: Any) -> Schedule:
        return Schedule(keep_rate, tuple(run.options.get("reduction_loc") or default_reduction_loc(12, keep_rate)))

    for keep_rate in run.values("keep_rate"):
        if is_budget(keep_rate):
            for reducer in set(run.values("reducer")) - {"none"}:
                yield from refusal(lambda text: check_solvable(Method.parse(text).name), reducer)
            continue
        yield from refusal(schedule, keep_rate)


def _models(run: Run) -> Iterator[str]:
    """Build the run's model, without memory for its weights. A notebook that loops chooses its own combinations."""
    reducer, keep_rate = run.options.get("reducer", "none"), run.options.get("keep_rate", 1.0)
    for backbone in run.values("backbone"):
        yield from _model_refusal(backbone, run.options.get("img_size"), reducer, _frozen(keep_rate))


@cache
def _model_refusal(backbone: str, img_size: int | None, reducer: str, keep_rate: Any) -> tuple[str, ...]:
    import torch

    from common import create_model
    from common.reducers import Method
    from common.schedule import is_budget

    method = Method.parse(reducer)
    keep_rate = 1.0 if is_budget(keep_rate) else keep_rate
    options = {"reducer": method.name, "keep_rate": keep_rate, "img_size": img_size, **dict(method.options)}
    with torch.device("meta"):
        return tuple(refusal(create_model, backbone, **options))


def _missing_weights(plan: Plan) -> Iterator[str]:
    made = {what for run in plan.runs for what in run.makes}
    for run in plan.runs:
        for file in run.weights_files:
            if file not in made and not (ROOT / file).is_file():
                yield f"no weights at {file}, and no run makes them"
        folder = run.options.get("trained")
        if folder and not made.issuperset(run.reads) and not (ROOT / folder).is_dir():
            yield f"{run.run_id} reads records in {folder}, which no run leaves there"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
