"""One call from the name of a backbone and of a method to a model that runs."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import timm
import torch
from pydantic import Strict
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError
from common.models import registered
from common.models.authors import IMAGES, is_authors, read_authors
from common.models.published import load_published
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.models.support import SUPPORTED, check_supported
from common.options import Count, ShareBelow1, checked
from common.reducers.base import check_options
from common.reducers.method import named
from common.weights import HUB, NORM, OWN, check_weights, is_published, read_norm, read_state

ImageSize = Count | Annotated[tuple[Count, Count], Strict(False), "(height, width)"]
MOST_NAMES, MOST_TEXT = 12, 1000  # of a message; room for as many names
SUPPORTED_MODULES = ("timm.models.vision_transformer", "timm.models.deit", registered.__name__)


def create_model(
    name: str,
    *,
    reducer: str = "none",
    keep_rate: float | tuple[float, ...] = 1.0,
    reduction_loc: tuple[int, ...] | None = None,
    weights: str | Path | None = None,
    num_classes: Count | None = None,
    img_size: ImageSize | None = None,
    drop_path: ShareBelow1 = 0.0,
    **reducer_options,
) -> ReducedVisionTransformer:
    """Create a timm backbone that runs on fewer tokens.

    >>> model = create_model("vit_digits", reducer="tram", keep_rate=0.5).eval()
    >>> model(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])

    Args:
        name: any timm VisionTransformer, or one of this package's ``simple_vit_*``.
        reducer: one of :func:`common.list_reducers`, or its written form with options: "topk:head_fusion=mean".
        keep_rate: one ratio in (0, 1], which compounds over the stages; or a ratio or a count per stage.
        reduction_loc: 0-based blocks of the stages; default 1/4, 1/2, 3/4 of the depth.
        weights: None for random, "timm" for the hub's, a .safetensors file with timm's names, or a .pth file of the
            authors of "Which Tokens to Use?" (:mod:`common.models.authors`). Positions are resampled to ``img_size``;
            a head with another number of classes is replaced by a fresh one. What images the weights expect stands
            in ``pretrained_cfg``: "mean" and "std".
        num_classes: size of the head; default that of the backbone.
        img_size: side, or (height, width), of the input in pixels; default that of the backbone.
        drop_path: stochastic depth: chance to skip a branch of the last block in training, less in those before.
        **reducer_options: the method's own options.

    Returns:
        A model in training mode: ``model(images)`` -> logits (B, classes), ``model.trace(images)``.

    Raises:
        UsageError: whatever was asked for does not exist or does not fit, in one line.
    """
    reducer, reducer_options = named(reducer, reducer_options)
    check_options(reducer, reducer_options)
    vit = create_backbone(name, weights=weights, num_classes=num_classes, img_size=img_size, drop_path=drop_path)
    model = reduce_tokens(vit, reducer, keep_rate=keep_rate, reduction_loc=reduction_loc, **reducer_options)
    load_own(model, weights)
    return model


@checked
def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: Count | None = None,
    img_size: ImageSize | None = None,
    drop_path: ShareBelow1 = 0.0,
) -> VisionTransformer:
    """The unreduced timm model of :func:`create_model`."""
    check_weights(weights)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(f"unknown backbone {name!r}; similar: {', '.join(close) or 'none, see timm.list_models()'}")
    if timm.models.model_entrypoint(name).__module__ not in SUPPORTED_MODULES:
        raise UsageError(f"backbone {name!r} is not supported; allowed: {SUPPORTED}")
    given = {"num_classes": num_classes, "img_size": img_size, "drop_path_rate": drop_path or None}
    vit = _build(name, weights, {key: value for key, value in given.items() if value is not None})
    check_supported(vit)
    for side, patch in zip(vit.patch_embed.img_size, vit.patch_embed.patch_size, strict=True):
        if side % patch:
            raise UsageError(f"img_size {side} is not a multiple of the patch size {patch}")
    return vit


def expected_norm(name: str, weights: str | Path | None) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the images that ``weights`` expect, without loading them; {} for random ones."""
    if weights is None:
        return {}
    with torch.device("meta"):
        cfg = create_backbone(name).pretrained_cfg
    return {**{key: cfg[key] for key in NORM}, **({} if weights == HUB else _norm(weights))}


def _build(name: str, weights: str | Path | None, sizes: dict[str, float]) -> VisionTransformer:
    if weights is None:
        return _created(name, f"backbone {name!r} cannot be made", **sizes)
    if weights == HUB:
        return _created(name, f"weights 'timm' of {name!r} are not to be had here", pretrained=True, **sizes)
    state = {key: value for key, value in _state(weights).items() if not key.startswith(OWN)}
    problem = f"weights file {str(weights)!r} does not fit backbone {name!r}"
    if "head.weight" not in state:
        raise UsageError(f"{problem}: it has no 'head.weight'")
    published = not is_authors(weights) and is_published(weights)
    vit = (_published if published else _loaded)(name, problem, state, _norm(weights), sizes)
    # timm loads loosely once the number of classes differs, and would leave a missing block at random
    expected = set(vit.state_dict())
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        raise UsageError(f"{problem}: missing {_listed(missing)}, unknown {_listed(unknown)}")
    return vit


def _loaded(
    name: str, problem: str, state: dict[str, Tensor], norm: dict[str, tuple[float, ...]], sizes: dict[str, float]
) -> VisionTransformer:
    overlay = {"state_dict": state, "num_classes": len(state["head.weight"]), "custom_load": False, **norm}
    return _created(name, problem, pretrained=True, pretrained_cfg_overlay=overlay, **sizes)


def _published(
    name: str, problem: str, state: dict[str, Tensor], norm: dict[str, tuple[float, ...]], sizes: dict[str, float]
) -> VisionTransformer:
    vit = _created(name, problem, **{"num_classes": len(state["head.weight"]), **sizes})
    try:
        load_published(vit, state)
    except RuntimeError as error:
        raise UsageError(f"{problem}: {' '.join(str(error).split())[:MOST_TEXT]}") from error
    vit.pretrained_cfg = {**vit.pretrained_cfg, **norm}
    return vit


def _state(weights: str | Path) -> dict[str, Tensor]:
    return read_authors(weights) if is_authors(weights) else read_state(weights)


def _norm(weights: str | Path) -> dict[str, tuple[float, ...]]:
    return dict(IMAGES) if is_authors(weights) else read_norm(weights)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{', '.join(names[:MOST_NAMES])}{more}" or "nothing"


def _created(name: str, problem: str, **options) -> VisionTransformer:
    """timm's model, or one line: whatever goes wrong there (network, names, shapes) is bad input here."""
    try:
        return timm.create_model(name, **options)
    except Exception as error:
        reason = " ".join(str(error).split())[:MOST_TEXT] or type(error).__name__
        raise UsageError(f"{problem}: {reason}") from error


def load_own(model: ReducedVisionTransformer, weights: str | Path | None) -> bool:
    """The method's trained parameters, when the file has them: all or a refusal. Returns whether it has."""
    if weights in (None, HUB):
        return False
    own = {key.removeprefix(OWN): value for key, value in _state(weights).items() if key.startswith(OWN)}
    if own or is_authors(weights):  # a file of a backbone may start a training, a checkpoint of the authors is one
        try:
            model.reducer.load_state_dict(own)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UsageError(
                f"weights file {str(weights)!r} holds parameters of another method, or not all of this one: {reason}"
            ) from error
    return bool(own)
