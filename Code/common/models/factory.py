"""One call from the name of a backbone and of a method to a model that runs."""

from __future__ import annotations

import difflib
from pathlib import Path

import timm
from huggingface_hub.errors import HfHubHTTPError
from timm.models.vision_transformer import VisionTransformer

from common.errors import UsageError
from common.models import registered
from common.models.reduced import SUPPORTED, ReducedVisionTransformer, check_supported, reduce_tokens
from common.reducers.base import check_options
from common.weights import HUB, check_weights, read_state

SUPPORTED_MODULES = ("timm.models.vision_transformer", "timm.models.deit", registered.__name__)


def create_model(
    name: str,
    *,
    reducer: str = "none",
    keep_rate: float | tuple[float, ...] = 1.0,
    reduction_loc: tuple[int, ...] | None = None,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
    **reducer_options,
) -> ReducedVisionTransformer:
    """Create a timm backbone that runs on fewer tokens.

    Args:
        name: any timm VisionTransformer, or one of this package's ``simple_vit_*``.
        reducer: one of :func:`common.list_reducers`.
        keep_rate: one ratio in (0, 1], which compounds over the stages; or a ratio or a count per stage.
        reduction_loc: 0-based blocks of the stages; default 1/4, 1/2, 3/4 of the depth.
        weights: None for random, "timm" for the hub's, or a .safetensors file with timm's names. Positions are
            resampled to ``img_size``; a head with another number of classes is replaced by a fresh one.
        num_classes: size of the head; default that of the backbone.
        img_size: side of the square input in pixels; default that of the backbone.
        **reducer_options: the method's own options.

    Returns:
        A model in training mode: ``model(images)`` -> logits (B, classes), ``model.trace(images)``.

    Raises:
        UsageError: whatever was asked for does not exist or does not fit, in one line.
    """
    check_options(reducer, reducer_options)
    vit = create_backbone(name, weights=weights, num_classes=num_classes, img_size=img_size)
    return reduce_tokens(vit, reducer, keep_rate=keep_rate, reduction_loc=reduction_loc, **reducer_options)


def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
) -> VisionTransformer:
    """The unreduced timm model of :func:`create_model`."""
    check_weights(weights)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UsageError(f"unknown backbone {name!r}; similar: {', '.join(close) or 'none, see timm.list_models()'}")
    if timm.models.model_entrypoint(name).__module__ not in SUPPORTED_MODULES:
        raise UsageError(f"backbone {name!r} is not supported; allowed: {SUPPORTED}")
    sizes = {"num_classes": num_classes, "img_size": img_size}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    vit = _build(name, weights, sizes)
    check_supported(vit)
    _check_image_size(vit)
    return vit


def _build(name: str, weights: str | Path | None, sizes: dict[str, int]) -> VisionTransformer:
    if weights is None:
        return timm.create_model(name, **sizes)
    if weights == HUB:
        try:
            return timm.create_model(name, pretrained=True, **sizes)
        except (OSError, HfHubHTTPError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"weights 'timm' of {name!r} are not to be had here: {reason}") from error
    state = read_state(weights)
    overlay = {"state_dict": state, "num_classes": len(state["head.weight"]), "custom_load": False}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **sizes)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"weights file {str(weights)!r} does not fit backbone {name!r}: {reason}") from error


def _check_image_size(vit: VisionTransformer) -> None:
    embed = vit.patch_embed
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        raise UsageError(f"img_size {embed.img_size[0]} is not a multiple of the patch size {embed.patch_size[0]}")
