"""What the checkpoints of :mod:`common.models.authors` say of their models, in this package's words.

Apart from how they are read: this names methods, and whatever reads weights would depend on all of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.models.authors import load_checkpoint
from common.reducers import Method

MODEL = re.compile(r"([a-z]+)_((?:tiny|small|base)_patch16_224)(?:_local)?(?:_viz)?")
# by the authors' name of a method: ours, with what of theirs is not the default here; their names of its options
METHODS = {
    "deit": ("none", {}),
    "topk": ("topk:head_fusion=mean", {}),
    "evit": ("evit", {}),
    "dyvit": ("dynamicvit", {}),
    "ats": ("ats:parity=true", {}),
    "tome": ("tome:parity=true", {}),
    "kmedoids": ("kmedoids:parity=true", {"cluster_iters": "cluster_iters", "equal_weight": "equal_weight"}),
    "dpcknn": ("dpcknn", {"k_neighbors": "k_neighbors", "equal_weight": "equal_weight"}),
    "patchmerger": ("patchmerger", {}),
    "sinkhorn": ("sinkhorn", {"eps": "sinkhorn_eps", "cluster_iters": "cluster_iters"}),
    "sit": ("sit", {}),
}
# there as here
DEFAULTS = {"cluster_iters": 3, "equal_weight": False, "k_neighbors": 5, "eps": 1.0, "min_radius": 1.0}


@dataclass(frozen=True)
class AuthorsRun:
    """How the model of a checkpoint was trained, in this package's words.

    Attributes:
        backbone: timm's name.
        method: with the options that make it the authors'.
        keep_rate, reduction_loc: see :class:`common.reducers.Schedule`; 1.0 and None without a schedule.
        img_size: side of the images in pixels.
    """

    backbone: str
    method: str
    keep_rate: float | tuple[float, ...]
    reduction_loc: tuple[int, ...] | None
    img_size: int


def authors_run(path: str | Path) -> AuthorsRun:
    """What the checkpoint ``path`` says of its model.

    Raises:
        UsageError: as :func:`common.models.authors.load_checkpoint`; or it has no arguments, or those of a model that
            is none of theirs.
    """
    args = load_checkpoint(path).get("args")
    name = MODEL.fullmatch(str(getattr(args, "model", None)))
    if name is None or name[1] not in (*METHODS, "heuristic"):
        raise UsageError(f"weights file {str(path)!r} does not say of which model it is: its args have no known model")
    given = vars(args)
    method = _pattern(given) if name[1] == "heuristic" else _method(name[1], given)
    rates = tuple(rate if rate <= 1 else int(rate) for rate in given.get("keep_rate") or (1.0,))
    without = method.name == "none" or dict(method.options).get("contiguous", False)
    return AuthorsRun(
        backbone=f"deit_{name[2]}",
        method=str(method),
        keep_rate=1.0 if without else rates[0] if len(rates) == 1 else rates,
        reduction_loc=tuple(given.get("reduction_loc") or ()) or None,
        img_size=given.get("input_size", 224),
    )


def _method(name: str, given: Mapping[str, Any]) -> Method:
    text, names = METHODS[name]
    options = {ours: given.get(theirs, DEFAULTS[ours]) for ours, theirs in names.items()}
    return Method.parse(text).having(**{key: value for key, value in options.items() if value != DEFAULTS[key]})


def _pattern(given: Mapping[str, Any]) -> Method:
    """A fixed pattern, which there shrinks from block to block unless the stages are told apart."""
    method, radius = Method(given["heuristic_pattern"]), given.get("min_radius", DEFAULTS["min_radius"])
    if given.get("not_contiguous"):
        return method
    return method.having(contiguous=True, **({} if radius == DEFAULTS["min_radius"] else {"min_radius": radius}))
