"""What runs are called where they are compared: the names and keys of "Which Tokens to Use?" (Haurum et al., 2023)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from common.reducers import Method

DEIT = re.compile(r"deit_((?:tiny|small|base)_patch16_224)(?:\..*)?")
PATTERNS = ("l1", "l2", "linf")
SHORT = {"dynamicvit": "dyvit", **dict.fromkeys(PATTERNS, "heuristic")}


def model_name(method: str, backbone: str) -> str:
    """The model of a run: ``topk_small_patch16_224`` on a DeiT, ``topk_vit_small_patch16_224`` on any other backbone.

    Without reduction it is ``deit_small_patch16_224_local``, or the backbone's own name. Options do not show.
    """
    reducer, deit = Method.parse(method).name, DEIT.fullmatch(backbone)
    if reducer == "none":
        return f"deit_{deit[1]}_local" if deit else backbone
    return f"{SHORT.get(reducer, reducer)}_{deit[1] if deit else backbone}"


def pattern(method: str) -> str:
    """Which patches a fixed pattern keeps: l1, l2 or linf; "" for every other method."""
    name = Method.parse(method).name
    return name if name in PATTERNS else ""


def full_name(method: str, backbone: str) -> str:
    """The model's name and, behind a hyphen, what else tells models apart: ``heuristic_tiny_patch16_224-l2``.

    The options of a method stand in the same place, so that its variants do not share a name.
    """
    parts = (model_name(method, backbone), pattern(method), Method.parse(method).options_text)
    return "-".join(filter(None, parts))


def ratios(keep_rate: float | Sequence[float] | str) -> list[float | str]:
    """A keep rate as a list: one value that compounds, or one per stage; a rule ("r=13") is one value."""
    single = isinstance(keep_rate, str) or not isinstance(keep_rate, Sequence)
    return [keep_rate] if single else list(keep_rate)


def run_key(method: str, backbone: str, keep_rate: float | Sequence[float], reduction_loc: Sequence[int]) -> str:
    """``<model>[-<pattern>]-<blocks>-_<ratio>``, e.g. ``topk_small_patch16_224-3_6_9-_0.9``; joins tables of runs.

    An unreduced model has neither blocks nor ratio: ``deit_small_patch16_224_local--_``.

    >>> run_key("topk", "deit_small_patch16_224", 0.9, (3, 6, 9))
    'topk_small_patch16_224-3_6_9-_0.9'
    >>> run_key("tome", "deit_small_patch16_224", "r=13", (3, 6, 9))
    'tome_small_patch16_224-3_6_9-_r=13'
    """
    if Method.parse(method).name == "none":
        keep_rate, reduction_loc = (), ()
    return f"{full_name(method, backbone)}-{_joined(reduction_loc)}-_{_joined(ratios(keep_rate))}"


def unique_key(key: str, dataset: str, seed: int | None = None) -> str:
    """The :func:`run_key` ``key`` behind what else tells runs apart, ``<dataset>/seed-<seed>/<key>``; also a path.

    The key itself stays what tables of the reference are joined by.

    >>> unique_key("topk_small_patch16_224-3_6_9-_0.9", "imagenette", 0)
    'imagenette/seed-0/topk_small_patch16_224-3_6_9-_0.9'
    >>> unique_key("deit_small_patch16_224_local--_", "folder:/data/birds")
    'folder-data-birds/deit_small_patch16_224_local--_'
    """
    parts = [dataset, *([] if seed is None else [f"seed-{seed}"]), key]
    return "/".join(map(slug, parts))


def slug(text: str) -> str:
    """``text`` as a part of the name of a file."""
    return re.sub(r"[^\w.=,-]+", "-", text)


def _joined(values: Sequence[float]) -> str:
    return "_".join(map(str, values))
