"""Multiply-accumulate operations of a model on one image, counted two ways that must never be mixed.

``linear``, ``attention`` and ``total`` are what the model really executes, attention products included (the
convention of ToMe and most later papers; GFLOP = 2 GMAC). ``thop_compat`` is what the library thop reports for the
published implementations, the "GFlops" of TRAM's tables: linear layers and convolutions without bias, 4 per element
of a LayerNorm, 3 n - 1 per softmax row of n, no attention product, and the output projection paid for every token
that enters the attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.cost.closed_form import image_size
from common.models.observe import untouched


@dataclass(frozen=True)
class MacCount:
    """MAC per image.

    Attributes:
        linear: linear layers and convolutions.
        attention: batched products: Q K^T, A V, and what a reducer multiplies to score or merge.
        total: linear + attention.
        thop_compat: the convention of the published TRAM tables.
    """

    linear: int
    attention: int
    total: int
    thop_compat: int


def count_macs(model: nn.Module, img_size: int | tuple[int, int], *, seed: int = 0) -> MacCount:
    """Count one forward pass of ``model`` over one random image.

    >>> from common import create_model
    >>> count_macs(create_model("vit_digits"), 32)
    MacCount(linear=12976768, attention=3244800, total=16221568, thop_compat=13344408)

    Args:
        model: a timm VisionTransformer or a reduced one; it is left in the mode it was in.
        img_size: side, or (height, width), in pixels.
        seed: of the random image (and of methods that sample, whose counts depend on it).

    Raises:
        UsageError: a size that the model's patch embedding does not take.
    """
    size, parameter = image_size(model, img_size), next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, model.in_chans, *size, generator=generator).to(parameter)
    # Not every torch has every fused kernel in its counter's registry; plain products are counted by all of them.
    # Frozen, because the counter's hooks fail on a module that gets a view of a parameter which learns (SigLIP's pool).
    plain, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    with untouched(model), plain, torch.random.fork_rng(), torch.no_grad(), _thop_convention(model) as thop, counter:
        torch.manual_seed(seed)
        model(image)
    macs = {name: flops // 2 for name, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(count for op, count in macs.items() if op in LINEAR_OPERATORS)
    total = sum(macs.values())
    return MacCount(linear, total - linear, total, thop.macs)


LINEAR_OPERATORS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


@dataclass
class _Tally:
    macs: int = 0


@contextmanager
def _thop_convention(model: nn.Module) -> Iterator[_Tally]:
    tally = _Tally()
    projections = {id(module.proj) for module in model.modules() if isinstance(module, Attention)}
    hooks = []
    for module in model.modules():
        if isinstance(module, Attention):
            hooks.append(module.qkv.register_forward_hook(_attention_hook(tally, module)))
        elif isinstance(module, nn.LayerNorm):
            hooks.append(module.register_forward_hook(_hook(tally, lambda m, y: 4 * y.numel())))
        elif isinstance(module, nn.Linear) and id(module) not in projections:
            hooks.append(module.register_forward_hook(_hook(tally, lambda m, y: m.in_features * y.numel())))
        elif isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(_hook(tally, lambda m, y: m.weight[0].numel() * y.numel())))
    try:
        yield tally
    finally:
        for hook in hooks:
            hook.remove()


def _hook(tally: _Tally, rule):
    def add(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        tally.macs += rule(module, output)

    return add


def _attention_hook(tally: _Tally, attn: Attention):
    """Softmax and projection of every token that enters, told from the rows of qkv's output.

    Where queries are projected apart, in a call before that of keys and values, there are as many rows as queries.
    """
    queries = []

    def add(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        batch, length, width = output.shape[0], math.prod(output.shape[1:-1]), output.shape[-1]
        if 3 * width == module.out_features:
            queries.append(length)
            return
        rows = queries.pop() if queries else length
        softmax = batch * attn.num_heads * rows * (3 * length - 1)
        tally.macs += softmax + batch * rows * attn.proj.in_features * attn.proj.out_features

    return add
