"""The same network on images of another size: its own modules and weights, its position embedding resampled."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def embed(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) -> tokens (B, N, D) with their positions, as they enter the first block."""
    return vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))


def at_grid(vit: VisionTransformer, images: Tensor, grid: tuple[int, int]) -> tuple[VisionTransformer, Tensor]:
    """A view of ``vit`` whose images have ``grid`` (h, w) patches, and ``images`` (B, 3, H, W) resized for it.

    ``vit`` stays as it is. Resized in float32, bicubic, antialiased.
    """
    view = view_at(vit, grid)
    resized = F.interpolate(
        images.float(), view.patch_embed.img_size, mode="bicubic", antialias=True, align_corners=False
    )
    return view, resized.to(images.dtype)


def view_at(vit: VisionTransformer, grid: tuple[int, int]) -> VisionTransformer:
    """The same modules and weights, made for images of ``grid`` (h, w) patches."""
    patch = vit.patch_embed.patch_size
    view = _view(vit)
    view._modules["patch_embed"] = embedding = _view(vit.patch_embed)
    embedding.img_size = (grid[0] * patch[0], grid[1] * patch[1])
    embedding.grid_size, embedding.num_patches = grid, math.prod(grid)
    if vit.pos_embed is not None:
        _place(view, "pos_embed", positions_at(vit, grid))
    return view


def resized_grid(vit: VisionTransformer, grid: tuple[int, int], resize: int | None) -> tuple[int, int]:
    """What becomes of the ``grid`` (h, w) of an image where ``resize`` pixels are left of the longer side of ``vit``'s.

    None: nothing.
    """
    if resize is None:
        return grid
    factor = resize / max(vit.patch_embed.img_size)
    return tuple(max(1, round(count * factor)) for count in grid)


def positions_at(vit: VisionTransformer, grid: tuple[int, int]) -> Tensor:
    """The position embedding (1, N, D) for ``grid``: bicubic and antialiased as in timm, prefix entries untouched."""
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    old = vit.patch_embed.grid_size
    return resample_abs_pos_embed(vit.pos_embed, list(grid), list(old), num_prefix_tokens=prefix)


def merged_patches(full: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The patch (P,) of ``grid`` (h, w) that holds the centre of each of the patches of ``full``, row by row.

    >>> merged_patches((2, 4), (1, 3)).tolist()
    [0, 1, 1, 2, 0, 1, 1, 2]
    """
    rows, columns = ((2 * torch.arange(old) + 1) * new // (2 * old) for old, new in zip(full, grid, strict=True))
    return (rows[:, None] * grid[1] + columns).flatten()


def _view(module: nn.Module) -> nn.Module:
    """The same module, of which attributes and children can be replaced."""
    view = module.__class__.__new__(module.__class__)
    view.__dict__.update(
        {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
    )
    return view


def _place(module: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value``, which is no parameter, in the place of a parameter or buffer."""
    module._parameters.pop(name, None)
    module._buffers.pop(name, None)
    module.__dict__[name] = value
