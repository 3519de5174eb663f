"""Which backbones are reduced, which methods fit them, and what their heads give: asked before anything is made."""

from __future__ import annotations

from timm.layers import PatchEmbed
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from common.errors import UsageError
from common.reducers.base import LastBlock, Reducer, reducer_class

TYPES = (VisionTransformer, VisionTransformerDistilled)
SUPPORTED = "timm VisionTransformer with standard blocks (ViT, DeiT, DeiT-III, DINOv2, SigLIP, SimpleViT)"


def check_vit(model: object) -> None:
    """Refuse what is no timm VisionTransformer, reduced or not."""
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"a {type(model).__name__} is given; allowed: a timm VisionTransformer, reduced or not")


def is_reduced(model: nn.Module) -> bool:
    """Whether ``model`` came from :func:`common.reduce_tokens` or :func:`common.create_model`."""
    return isinstance(model, VisionTransformer) and isinstance(getattr(model, "reducer", None), Reducer)


def check_supported(vit: nn.Module) -> None:
    """Refuse, by name, every architecture whose blocks this package would not reduce."""
    if is_reduced(vit):
        raise UsageError("the model is reduced already; reduce the timm model it was made from")
    if type(vit) not in TYPES:
        raise UsageError(f"backbone {type(vit).__name__} is not supported; allowed: {SUPPORTED}")
    for block in vit.blocks:
        attn = getattr(block, "attn", None)
        if type(block) is not Block or type(attn) is not Attention:
            raise UsageError(
                f"backbone blocks of type {type(block).__name__} with {type(attn).__name__} are not supported; "
                f"allowed: {SUPPORTED}"
            )
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise UsageError(f"patches made by a {type(vit.patch_embed).__name__} are not supported; allowed: {SUPPORTED}")
    if not isinstance(vit.patch_drop, nn.Identity):
        raise UsageError("backbones with patch_drop_rate > 0 are not supported: two methods would drop patches")


def obstacle(
    vit: VisionTransformer,
    reducer: str,
    last_block: LastBlock = "whole",
    *,
    method: Reducer | None = None,
    global_pool: str | None = None,
) -> str | None:
    """Why ``reducer`` cannot run on ``vit``, in one line; None where it can.

    Args:
        last_block: see :func:`common.reducers.base.shared_options`.
        method: the reducer itself, where it is made already.
        global_pool: what the head would pool by in place of what it does.
    """
    method, global_pool = method or reducer_class(reducer), vit.global_pool if global_pool is None else global_pool
    if last_block == "cls" and (global_pool != "token" or method.pools_mean):
        pooled = "the mean of patches" if method.pools_mean else f"patches (global_pool={global_pool!r})"
        return (
            f"last_block='cls' leaves patches out, but with reducer {reducer!r} the head reads {pooled}; allowed: whole"
        )
    if method.needs_class_token and not vit.has_class_token:
        return f"reducer {reducer!r} reads the CLS token's attention, but this backbone has no CLS token"
    if method.reads_prefix_only and global_pool != "token":
        return (
            f"reducer {reducer!r} may drop every patch, but this backbone's head reads them "
            f"(global_pool={global_pool!r}); allowed: token"
        )
    if method.masks and (global_pool not in ("token", "avg") or vit.pool_include_prefix):
        return f"reducer {reducer!r} masks tokens; global_pool={global_pool!r} is not allowed; allowed: token, avg"
    return None


def has_head(vit: VisionTransformer) -> bool:
    """Whether ``vit`` gives logits of classes; else (``num_classes=0``, or a head taken off) it gives features."""
    return not isinstance(vit.head, nn.Identity)


def num_outputs(vit: VisionTransformer) -> int:
    """How many logits, also of a head that was put in place of timm's."""
    layers = [layer for layer in vit.head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else vit.num_classes


def check_head(vit: VisionTransformer, what: str) -> None:
    """Refuse a model without classes for ``what``, which asks for some."""
    if not has_head(vit):
        raise UsageError(f"{what}, and the model has no head (num_classes=0); allowed: a model with classes")
