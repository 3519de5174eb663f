"""Token reduction in Vision Transformers: methods, models, data and measurements behind a few calls.

``import common`` is all they need; each call and each subpackage with public calls is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common import analysis, cost, data, evaluation, explain, idling, plots, reducers, slimming, studies, training
    from common.budget import create_model, keep_rate_for, reduce_tokens, search_schedule
    from common.cost.allocator import keep_freed_memory
    from common.cost.counter import count_macs
    from common.data import load_dataset
    from common.exporting import export
    from common.models.saving import load, save
    from common.reducers import list_reducers

PACKAGES = ("analysis", "cost", "data", "evaluation", "explain", "idling", "plots")
PACKAGES += ("reducers", "slimming", "studies", "training")
CALLS = {
    "count_macs": "common.cost.counter",
    "create_model": "common.budget",
    "export": "common.exporting",
    "keep_freed_memory": "common.cost.allocator",
    "keep_rate_for": "common.budget",
    "list_reducers": "common.reducers",
    "load": "common.models.saving",
    "load_dataset": "common.data",
    "reduce_tokens": "common.budget",
    "save": "common.models.saving",
    "search_schedule": "common.budget",
}
__all__ = sorted([*PACKAGES, *CALLS])


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(CALLS[name]), name) if name in CALLS else import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
