"""Which runs are compared with which: by the fields of their settings, never by their names.

Along an axis two runs differ in one thing and agree in all others:

    rates       keep rate; the first keeps more patches in the last stage, or in the first in which they differ
    capacity    backbone and its weights; the first is wider
    methods     method; models without reduction go with all of the others
    datasets    dataset
    seeds       seed

Along "datasets" the images are not the same, so only maps over the patches can be compared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal, get_args

from common.errors import UsageError
from common.evaluation import Setting
from common.options import check
from common.schedule import Schedule, default_reduction_loc

Axis = Literal["rates", "capacity", "methods", "datasets", "seeds"]
AXES = get_args(Axis)
# What runs agree in; along an axis, but for its own.
_FIELDS = ("method", "backbone", "weights", "dataset", "keep_rate", "reduction_loc", "img_size", "grid_size", "seed")
_OF_AXIS = {
    "rates": ("keep_rate",),
    "capacity": ("backbone", "weights"),
    "methods": ("method",),
    "datasets": ("dataset",),
    "seeds": ("seed",),
}
_OF_REDUCTION = ("keep_rate", "reduction_loc", "seed")  # fields that mean nothing without reduction


def pairs(settings: Sequence[Setting], axis: Axis) -> list[tuple[int, int]]:
    """Places (a, b) among ``settings`` of all runs that are compared along ``axis``, each pair once.

    >>> def run(method, keep_rate):
    ...     where = {"reduction_loc": (3, 6, 9), "img_size": (224, 224), "grid_size": (14, 14), "seed": 0}
    ...     what = {"backbone": "vit_tiny_patch16_224", "weights": "timm", "dataset": "imagenet"}
    ...     return Setting(name="", method=method, keep_rate=keep_rate, **what, **where)
    >>> runs = [run("topk", 0.5), run("topk", 0.9), run("tome", 0.5)]
    >>> pairs(runs, "rates"), pairs(runs, "methods")
    ([(1, 0)], [(0, 2)])

    Args:
        axis: "rates", "capacity", "methods", "datasets" or "seeds", see the module's text.

    Raises:
        UsageError: an unknown axis, or two runs that agree in everything.
    """
    check("axis", axis, Axis)
    _refuse_repeats(settings)
    found = []
    for a, b in combinations(range(len(settings)), 2):
        if _compared(settings[a], settings[b], axis):
            found.append((b, a) if _comes_first(settings[b], settings[a], axis) else (a, b))
    return found


def _compared(a: Setting, b: Setting, axis: Axis) -> bool:
    own = _OF_AXIS[axis]
    if axis == "methods" and not (a.reduces and b.reduces):
        own = (*own, *_OF_REDUCTION)
    differs = differing(a, b)
    return own[0] in differs and differs <= set(own)


def differing(a: Setting, b: Setting) -> set[str]:
    """Names of the fields that two settings differ in, of those that tell runs apart."""
    return {name for name in _FIELDS if getattr(a, name) != getattr(b, name)}


def _comes_first(a: Setting, b: Setting, axis: Axis) -> bool:
    """Of two runs that are compared, ``a`` is the first."""
    if axis == "rates":
        return _kept(a) > _kept(b)
    return axis == "capacity" and (a.width or 0) > (b.width or 0)


def _kept(setting: Setting) -> tuple[float, ...]:
    """Patches that the schedule leaves after each stage, the last stage first."""
    rate = setting.keep_rate
    blocks = setting.reduction_loc or default_reduction_loc(12, rate)  # it decides nothing in any, as a smaller image
    return tuple(reversed(Schedule(rate, blocks).counts(setting.num_patches)))


def _refuse_repeats(settings: Sequence[Setting]) -> None:
    seen = {}
    for place, setting in enumerate(settings):
        what = tuple(getattr(setting, name) for name in _FIELDS)
        if what in seen:
            raise UsageError(f"runs {seen[what]} and {place} are the same, {setting.key}; give each of them once")
        seen[what] = place
