"""Which images a network takes: asked wherever some are given, before anything is computed."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError

ALL = "images"


def check_images(vit: VisionTransformer, images: object, what: str = ALL, *, others: str = "") -> None:
    """Refuse what is no batch (B, C, H, W) of floating-point images of a size that ``vit`` takes.

    >>> import torch
    >>> from common.models.factory import create_backbone
    >>> try:
    ...     check_images(create_backbone("vit_digits"), torch.zeros(2, 32, 32, 3))
    ... except UsageError as refused:
    ...     print(str(refused).partition("; ")[2])
    give a tensor (B, 3, 32, 32) of floating-point numbers

    Args:
        what: what they are, for the message; "image 3": the one in a batch of it alone.
        others: what else is allowed, for the message.
    """
    if isinstance(images, Tensor) and images.is_floating_point() and _fits(vit, images):
        return
    given, verb = f"of type {type(images).__name__}", "are" if what == ALL else "is"
    if isinstance(images, Tensor):
        shape = tuple(images.shape[1:] if what.startswith("image ") else images.shape)
        given = f"of shape {shape} and {images.dtype}"
    raise UsageError(f"{what} {given} {verb} not allowed; give {_wanted(vit)}{others}")


def _fits(vit: VisionTransformer, images: Tensor) -> bool:
    if images.dim() != 4 or images.shape[1] != vit.in_chans:
        return False
    embed, sides = vit.patch_embed, images.shape[2:]
    if not vit.dynamic_img_size:
        return tuple(sides) == tuple(embed.img_size)
    return embed.dynamic_img_pad or all(
        side > 0 and side % step == 0 for side, step in zip(sides, embed.patch_size, strict=True)
    )


def _wanted(vit: VisionTransformer) -> str:
    embed, sides, steps = vit.patch_embed, vit.patch_embed.img_size, ""
    if vit.dynamic_img_size:
        sides = ("H", "W")
        steps = "" if embed.dynamic_img_pad else " (H a multiple of {}, W of {})".format(*embed.patch_size)
    return f"a tensor (B, {vit.in_chans}, {sides[0]}, {sides[1]}) of floating-point numbers{steps}"
