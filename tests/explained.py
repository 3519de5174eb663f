"""Small models whose explanations differ from patch to patch."""

import torch
from backbones import make, reducing

from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.reducers import Method


def vivid(vit: torch.nn.Module) -> torch.nn.Module:
    """``vit`` with attention logits and class logits of deviation about 1: freshly initialised it treats all alike."""
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight *= (3750 / vit.embed_dim) ** 0.5
        for name in ("head", "head_dist"):
            if hasattr(vit, name):
                torch.nn.init.normal_(getattr(vit, name).weight, std=0.3)
    return vit.eval()


def family(name: str) -> torch.nn.Module:
    """A backbone of :mod:`backbones`."""
    return vivid(make(name))


def digits(name: str = "vit_digits", img_size: int = 32) -> torch.nn.Module:
    """The small backbone for digits, with random weights."""
    torch.manual_seed(1)
    return vivid(create_backbone(name, img_size=img_size))


def reduced(vit: torch.nn.Module, text: str, keep_rate: float | tuple = 0.5, **options) -> torch.nn.Module:
    """``vit`` under the method written as ``name:key=value``."""
    method = Method.parse(text)
    options = {**reducing(vit, method.name, keep_rate), **dict(method.options), **options}
    return reduce_tokens(vit, method.name, **options).eval()
