"""The one line of Python that gives a measured model."""

from __future__ import annotations

from common.reducers import Method
from common.schedule import read_keep_rate
from common.weights import HUB


def call_text(backbone: str, weights: str, method: str, options: str, keep_rate: str) -> str:
    """A call of :func:`common.create_model`, as Python.

    Args:
        backbone, weights, method, options, keep_rate: as they stand in tables of results.

    >>> call_text("vit_digits", "timm", "topk", "head_fusion=mean", "48 32 16")
    "common.create_model('vit_digits', reducer='topk', keep_rate=(48, 32, 16), head_fusion='mean', weights='timm')"
    """
    given = {"reducer": method, "keep_rate": read_keep_rate(keep_rate)}
    given |= dict(Method.of_table(method, options).options)
    if weights.split(" ")[0] == HUB:
        given["weights"] = HUB
    elif weights != "random":
        given["weights"] = weights
    texts = [repr(backbone), *(f"{name}={value!r}" for name, value in given.items())]
    return f"common.create_model({', '.join(texts)})"
