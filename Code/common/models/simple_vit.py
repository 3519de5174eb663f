"""SimpleViT as timm models: no CLS token, fixed 2-D sine-cosine positions, mean pooling, few biases.

Beyer, Zhai, Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022, in the variant that TRAM's authors use:
patches are normalised before and after their linear embedding, attention has no biases.
"""

from __future__ import annotations

import torch
from einops import rearrange
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import UsageError


class NormalizedPatchEmbed(PatchEmbed):
    """Patch vectors (p1 p2 c) -> LayerNorm -> Linear -> LayerNorm, the embedding of vit-pytorch's models."""

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768, **kwargs) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, **kwargs)
        if kwargs.get("output_fmt") is not None:
            raise UsageError(
                "the normalised patch embedding has one fixed image size; dynamic_img_size is not supported"
            )
        patch_dim = in_chans * self.patch_size[0] * self.patch_size[1]
        self.norm_patch = nn.LayerNorm(patch_dim)
        self.proj = nn.Linear(patch_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> patch tokens (B, P, D)."""
        if x.shape[2:] != self.img_size:
            raise UsageError(f"the model was made for images of {self.img_size}, given {tuple(x.shape[2:])}")
        p1, p2 = self.patch_size
        x = rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=p1, p2=p2)  # (B, P, p1·p2·C)
        return self.norm(self.proj(self.norm_patch(x)))


def sincos_position(grid_size: tuple[int, int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Fixed positions (1, h w, D): [sin(x w), cos(x w), sin(y w), cos(y w)] with w_k = temperature^(-k / (D/4 - 1))."""
    if dim % 4:
        raise UsageError(f"sine-cosine positions need a width divisible by 4, given {dim}")
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in grid_size), indexing="ij")
    omega = temperature ** (-torch.arange(dim // 4) / (dim // 4 - 1))  # (D/4,)
    x, y = x.flatten()[:, None] * omega, y.flatten()[:, None] * omega  # (P, D/4) each
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]


def simple_vit(*, temperature: float = 10000.0, **kwargs) -> VisionTransformer:
    """A timm VisionTransformer with SimpleViT's embedding, positions, biases and pooling; ``kwargs`` are timm's."""
    model = VisionTransformer(
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        qkv_bias=False,
        norm_layer=nn.LayerNorm,
        embed_layer=NormalizedPatchEmbed,
        **kwargs,
    )
    for block in model.blocks:
        block.attn.proj.bias = None
    del model.pos_embed
    position = sincos_position(model.patch_embed.grid_size, model.embed_dim, temperature)
    model.register_buffer("pos_embed", position, persistent=False)
    return model
