"""Token reduction in Vision Transformers: methods, models, data and measurements behind a few calls.

``import common`` is all they need; each call and each subpackage is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common import (
        cost,
        data,
        evaluation,
        explain,
        idling,
        models,
        plots,
        reducers,
        report,
        slimming,
        studies,
        training,
    )
    from common.cost.counter import count_macs
    from common.data import load_dataset
    from common.models.factory import create_model
    from common.models.reduced import reduce_tokens
    from common.reducers import list_reducers

__all__ = [
    "cost",
    "count_macs",
    "create_model",
    "data",
    "evaluation",
    "explain",
    "idling",
    "list_reducers",
    "load_dataset",
    "models",
    "plots",
    "reduce_tokens",
    "reducers",
    "report",
    "slimming",
    "studies",
    "training",
]
# where each name is found; a plain literal, so that tools can follow it without importing anything
MODULES = {
    "cost": "common.cost",
    "count_macs": "common.cost.counter",
    "create_model": "common.models.factory",
    "data": "common.data",
    "evaluation": "common.evaluation",
    "explain": "common.explain",
    "idling": "common.idling",
    "list_reducers": "common.reducers",
    "load_dataset": "common.data",
    "models": "common.models",
    "plots": "common.plots",
    "reduce_tokens": "common.models.reduced",
    "reducers": "common.reducers",
    "report": "common.report",
    "slimming": "common.slimming",
    "studies": "common.studies",
    "training": "common.training",
}


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(MODULES[name])
    return module if MODULES[name] == f"{__name__}.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
