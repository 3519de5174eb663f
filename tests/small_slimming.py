"""A small network to slim, and images for it."""

import torch

from common.models.factory import create_backbone

DEPTH, PATCHES = 6, 64


def uneven_vit():
    """A small ViT whose patches differ."""
    torch.manual_seed(2)
    model = create_backbone("vit_digits").eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 4
    return model


def noise():
    return torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
