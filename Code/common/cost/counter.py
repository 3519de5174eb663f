"""Multiply-accumulate operations of a model on one image, counted two ways that must never be mixed.

``linear``, ``attention`` and ``total`` are what the model really executes, attention products included (the
convention of ToMe and most later papers; GFLOP = 2 GMAC). ``thop_compat`` is what the library thop reports for the
published implementations, the "GFlops" of TRAM's tables: linear layers and convolutions without bias, 4 per element
of a LayerNorm, 3 n - 1 per softmax row of n, no attention product, and the output projection paid for every token
that enters the attention.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from common.cost.closed_form import image_size
from common.models.observe import untouched
from common.models.support import check_vit


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

    A method that keeps more of some images than of others (ATS, thresholds) keeps another number of noise than of
    photographs: :func:`mean_macs` counts on yours.

    >>> from common import create_model
    >>> count_macs(create_model("vit_digits"), 32)
    MacCount(linear=12976768, attention=3244800, total=16221568, thop_compat=13344408)

    Args:
        model: a timm VisionTransformer or a reduced one; it is left in the mode it was in.
        img_size: side, or (height, width), in pixels.
        seed: of the random image (and of methods that sample, whose counts depend on it).

    Raises:
        UsageError: another model, or a size that its patch embedding does not take.
    """
    check_vit(model)
    size, parameter = image_size(model, img_size), next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    return _count(model, torch.randn(1, model.in_chans, *size, generator=generator).to(parameter), seed)


def mean_macs(model: nn.Module, images: Tensor, *, seed: int = 0) -> float:
    """Mean ``total`` of :func:`count_macs` over ``images`` (n, 3, H, W), see :func:`counts_of`."""
    return sum(count.total for count in counts_of(model, images, seed=seed)) / len(images)


def gmac_of(model: nn.Module, images: Callable[[], Tensor]) -> float:
    """10^9 multiply-accumulates of an image, ``total`` of :func:`count_macs`.

    Args:
        model: a reduced one.
        images: gives some (n, 3, H, W), for methods that keep more of some images than of others: their mean is taken,
            as of noise these keep another number.
    """
    if model.reducer.adaptive:
        return mean_macs(model, images()) / 1e9
    return count_macs(model, model.patch_embed.img_size).total / 1e9


def counts_of(model: nn.Module, images: Tensor, *, seed: int = 0) -> list[MacCount]:
    """:func:`count_macs` on each of ``images`` (n, 3, H, W), on its own, as no batch pads it."""
    return [_count(model, image[None], seed) for image in images.to(next(model.parameters()))]


def _count(model: nn.Module, image: Tensor, seed: int) -> MacCount:
    # Not every torch has a formula for every fused kernel; plain products are counted by all of them.
    plain, products = sdpa_kernel(SDPBackend.MATH), _Products()
    with untouched(model), plain, torch.random.fork_rng(), torch.no_grad(), _thop_convention(model) as thop, products:
        torch.manual_seed(seed)
        model(image)
    macs = products.macs
    linear = sum(count for op, count in macs.items() if op in LINEAR_OPERATORS)
    total = sum(macs.values())
    return MacCount(linear, total - linear, total, sum(thop))


LINEAR_OPERATORS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.convolution)


class _Products(TorchDispatchMode):
    """MAC of every operator for which torch's FlopCounterMode has a formula.

    That one also hooks every module, to count by module, which is a fifth of the time of a count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.macs: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        operator, kwargs = func.overloadpacket, kwargs or {}
        if operator not in flop_registry:
            with self:  # in inference mode, linear and its like come whole
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.macs[operator] += flop_registry[operator](*args, **kwargs, out_val=out) // 2
        return out


@contextmanager
def _thop_convention(model: nn.Module) -> Iterator[list[int]]:
    """What each module that thop would count adds to its sum, appended as the model runs."""
    counts, queries = [], []
    attention = {module.qkv: module for module in model.modules() if isinstance(module, Attention)}
    projections = {module.proj for module in attention.values()}

    def add(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, nn.LayerNorm):
            counts.append(4 * output.numel())
        elif isinstance(module, (nn.Linear, nn.Conv2d)) and module not in projections:
            counts.append(module.weight[0].numel() * output.numel())
        if module in attention:
            counts.append(_softmax_and_projection(attention[module], output, queries))

    with register_module_forward_hook(add):
        yield counts


def _softmax_and_projection(attn: Attention, output: Tensor, queries: list[int]) -> int:
    """Of every token that enters, told from the rows of qkv's ``output``.

    Where queries are projected apart, in a call before that of keys and values, there are as many rows as queries.
    """
    batch, length, width = output.shape[0], math.prod(output.shape[1:-1]), output.shape[-1]
    dim = attn.num_heads * attn.head_dim
    if width == dim:
        queries.append(length)
        return 0
    rows = queries.pop() if queries else length
    return batch * rows * (attn.num_heads * (3 * length - 1) + dim * dim)
