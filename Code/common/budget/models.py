"""Models for a keep rate, or for a budget in its place: the public calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from common.budget.solver import keep_rate_for
from common.errors import UsageError
from common.models import factory, reduced
from common.models.reduced import ReducedVisionTransformer
from common.reducers.base import check_options
from common.reducers.method import named
from common.schedule import BESIDE, BUDGETS, is_budget, read_budget


def reduce_tokens(
    vit: VisionTransformer,
    reducer: str,
    *,
    keep_rate: float | tuple[float, ...] | str | None = None,
    reduction_loc: tuple[int, ...] | None = None,
    **options,
) -> ReducedVisionTransformer:
    """Make a timm VisionTransformer run on fewer tokens: for a keep rate, or for a budget.

    The result shares all weights with ``vit``, which stays usable and unreduced.

    >>> import timm, common
    >>> vit = timm.create_model("vit_tiny_patch16_224").eval()
    >>> fast = common.reduce_tokens(vit, "tome", mac_cut=0.4)
    >>> round(common.count_macs(fast, 224).total / common.count_macs(vit, 224).total, 2)
    0.6

    Args:
        vit, reducer, keep_rate, reduction_loc: see :func:`common.models.reduced.reduce_tokens`. A text such as
            "mac_cut=0.4" is a budget too.
        **options: in place of a keep rate one of ``mac_cut``, ``gmac``, ``latency_ms`` and ``speedup``, with what
            :func:`keep_rate_for` takes beside it; and the method's own options.

    Raises:
        UsageError: as both of them do; a keep rate beside a budget.
    """
    rate, budget, own = _asked(keep_rate, options)
    if budget:
        rate = keep_rate_for(vit, reducer, **budget, reduction_loc=reduction_loc, **own).keep_rate
    return reduced.reduce_tokens(vit, reducer, keep_rate=rate, reduction_loc=reduction_loc, **own)


def create_model(
    name: str,
    *,
    reducer: str = "none",
    keep_rate: float | tuple[float, ...] | str | None = None,
    reduction_loc: tuple[int, ...] | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    drop_path: float = 0.0,
    **options,
) -> ReducedVisionTransformer:
    """Create a timm backbone that runs on fewer tokens: for a keep rate, or for a budget.

    >>> import torch
    >>> model = create_model("vit_digits", reducer="tram", keep_rate=0.5).eval()
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    >>> create_model("vit_digits", reducer="tome", mac_cut=0.4).reducer.schedule.counts(64)
    (41, 27, 18)

    Args:
        name, weights, num_classes, img_size, drop_path: see :func:`common.models.factory.create_model`.
        reducer, keep_rate, reduction_loc, **options: see :func:`reduce_tokens`.

    Returns:
        A model in training mode: ``model(images)`` -> logits (B, classes), ``model.trace(images)``.

    Raises:
        UsageError: whatever was asked for does not exist or does not fit, in one line.
    """
    rate, budget, own = _asked(keep_rate, options)
    sizes = {"weights": weights, "num_classes": num_classes, "img_size": img_size, "drop_path": drop_path}
    if not budget:
        how = {"reducer": reducer, "keep_rate": rate, "reduction_loc": reduction_loc, **own}
        return factory.create_model(name, **sizes, **how)
    check_options(*named(reducer, own))  # before weights are fetched
    vit = factory.create_backbone(name, **sizes)
    model = reduce_tokens(vit, reducer, **budget, reduction_loc=reduction_loc, **own)
    factory.load_own(model, weights)
    return model


def _asked(
    keep_rate: float | tuple[float, ...] | str | None, options: Mapping[str, Any]
) -> tuple[float | tuple[float, ...] | str, dict[str, Any], dict[str, Any]]:
    """The keep rate; the budget in its place, with what only a budget needs; and the method's own ``options``.

    Raises:
        UsageError: both of the former, or what only a budget needs without one.
    """
    if "pretrained" in options:  # timm's word
        raise UsageError(f"pretrained={options['pretrained']!r} is not allowed; give weights='timm', or a file")
    own = {word: value for word, value in options.items() if word not in (*BUDGETS, *BESIDE)}
    budget = {word: value for word, value in options.items() if word not in own and value is not None}
    if is_budget(keep_rate):
        budget, keep_rate = {**budget, **read_budget(keep_rate)}, None
    if budget and (keep_rate is not None or not budget.keys() & set(BUDGETS)):
        given = ", ".join([*(["keep_rate"] if keep_rate is not None else []), *budget])
        raise UsageError(
            f"give a keep_rate, or one of {', '.join(BUDGETS)} (alone or with {', '.join(BESIDE)}); given {given}"
        )
    return 1.0 if keep_rate is None else keep_rate, budget, own
