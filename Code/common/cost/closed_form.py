"""Multiply-accumulate operations (MAC) of a ViT on one image by closed form: its sizes, one block, the whole network.

There is one formula for all methods: a block is told how many tokens each of its parts computes. What a method tells it
stands in :mod:`common.cost.methods`. :mod:`common.cost.counter` counts by running a model; both agree to the unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError
from common.models.grids import resized_grid
from common.models.simple_vit import NormalizedPatchEmbed
from common.reducers.base import LastBlock
from common.reducers.downsample import mlp_width

Number = int | float | np.ndarray | Tensor  # of one image, or of many: a mean, or one entry for each


@dataclass(frozen=True)
class Shape:
    """The sizes of a ViT that decide its cost.

    Attributes:
        num_patches: P.
        num_prefix_tokens: of those that pass through the blocks.
        dim: D. heads: of the attention. depth: blocks. mlp_dim: hidden width of the MLP.
        patch_dim: pixels times channels of a patch.
        num_outputs: of all heads together.
        attention_pool: one more query collects from all tokens what the head reads (SigLIP).
        normalized_embed: the patch embedding has a LayerNorm before and after (SimpleViT, vit-pytorch).
        last_block: "cls": it computes the prefix tokens alone, see :func:`common.reducers.base.shared_options`.
    """

    num_patches: int
    num_prefix_tokens: int
    dim: int
    heads: int
    depth: int
    mlp_dim: int
    patch_dim: int
    num_outputs: int
    attention_pool: bool = False
    normalized_embed: bool = False
    last_block: LastBlock = "whole"

    @classmethod
    def of(cls, vit: VisionTransformer, img_size: int | tuple[int, int] | None = None) -> Shape:
        """Read the sizes off a timm or a reduced model.

        >>> from common import create_model
        >>> Shape.of(create_model("vit_digits")).num_tokens
        65

        Args:
            img_size: side, or (height, width), in pixels; default: the size that the model was made for.
        """
        block, embed, reducer = vit.blocks[0], vit.patch_embed, getattr(vit, "reducer", None)
        resize = None if reducer is None else reducer.resize
        heads = [head for name in ("head", "head_dist") if isinstance(head := getattr(vit, name, None), nn.Linear)]
        return cls(
            num_patches=math.prod(resized_grid(vit, embed.dynamic_feat_size(image_size(vit, img_size)), resize)),
            num_prefix_tokens=0 if reducer is not None and reducer.pools_mean else vit.num_prefix_tokens,
            dim=vit.embed_dim,
            heads=block.attn.num_heads,
            depth=len(vit.blocks),
            mlp_dim=mlp_width(vit),
            patch_dim=embed.proj.weight[0].numel(),
            num_outputs=sum(head.out_features for head in heads),
            attention_pool=isinstance(vit.attn_pool, AttentionPoolLatent),
            normalized_embed=isinstance(embed, NormalizedPatchEmbed),
            last_block="whole" if reducer is None else reducer.last_block,
        )

    @property
    def num_tokens(self) -> int:
        """N, prefix tokens included."""
        return self.num_patches + self.num_prefix_tokens

    def only_prefix(self, layer: int) -> bool:
        """Whether block ``layer`` computes the prefix tokens alone."""
        return self.last_block == "cls" and layer == self.depth - 1

    @property
    def unreduced(self) -> int:
        """MAC of the network when every block computes all tokens, the last one too."""
        return total_macs(self, [block_macs(self, self.num_tokens, self.num_tokens)] * self.depth)


def image_size(vit: VisionTransformer, img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in pixels; default: what the model was made for. Refuses what its patch embedding cannot take."""
    embed = vit.patch_embed
    if img_size is None:
        return embed.img_size
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if embed.strict_img_size and size != embed.img_size:
        raise UsageError(f"img_size={img_size!r} is not allowed; the model was made for {embed.img_size}")
    if not embed.dynamic_img_pad and any(side % patch for side, patch in zip(size, embed.patch_size, strict=True)):
        raise UsageError(f"img_size={img_size!r} is not allowed; give multiples of the patch size {embed.patch_size}")
    return size


def block_parts(
    shape: Shape, queries: Number, keys: Number, rows: Number | None = None, *, projected: Number | None = None
) -> dict[str, Number]:
    """MAC of one block by part: projection to Q, K and V; both products of attention; output projection; MLP.

    Args:
        queries: tokens that attend, prefix tokens included, as in all numbers here.
        keys: tokens that they attend to.
        rows: tokens that the output projection and the MLP compute; default: the queries.
        projected: rows of Q, K and V together; default: one for each query, two for each key.
    """
    dim = shape.dim
    rows = queries if rows is None else rows
    projected = queries + 2 * keys if projected is None else projected
    return {
        "qkv": projected * dim**2,
        "attention": 2 * queries * keys * dim,
        "proj": rows * dim**2,
        "mlp": 2 * rows * dim * shape.mlp_dim,
    }


def block_macs(shape: Shape, queries: Number, keys: Number, *, projected: Number | None = None) -> Number:
    """MAC of one block, all parts of :func:`block_parts` together."""
    return sum(block_parts(shape, queries, keys, projected=projected).values())


def total_macs(shape: Shape, blocks: Iterable[Number], tokens_left: Number | None = None) -> Number:
    """MAC of one image: patch embedding, ``blocks``, pooling and heads.

    Args:
        tokens_left: tokens after the last block, prefix tokens included; default: all.
    """
    outside = shape.num_patches * shape.dim * shape.patch_dim + shape.dim * shape.num_outputs
    if shape.attention_pool:
        outside += block_macs(shape, 1, shape.num_tokens if tokens_left is None else tokens_left)
    return sum(blocks) + outside
