"""The multiplex network of attention maps: one layer per transformer block, one node per patch, and its centralities.

The arc from patch i to patch j of a layer weighs what query i pays to key j. Arcs between layers are only an idea: the
same patch in all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from common.models.observe import AttentionLayer

AGGREGATIONS = {"min": Tensor.amin, "max": Tensor.amax, "sum": Tensor.sum}  # of the heads
DEGREES = {"in": 2, "out": 3}  # dimension of (B, 3, query, key) that the degree adds up
STATISTICS = ("coherence", "max", "min", "sum", "std", "sum_over_std", "median", "skewness", "kurtosis")
EPS = 1e-8
RESOLUTION = 1e-6  # relative deviation below which float32 values count as equal, as in scipy's moments
BITS = 18  # of a degree that count: float32 has 24, and a sum over softmax rows loses two or three of them


def weighted_degrees(layer: AttentionLayer, min_cut: float) -> Tensor:
    """Weighted in- and out-degree (B, 3, 2, P) of every patch in one layer, for the three aggregations of its heads.

    Arcs weaker than ``min_cut`` times the strongest arc of the layer are cut. A patch that an earlier block dropped has
    no arcs; patches that share a token share its degree.
    """
    attention = layer.between_patches()
    arcs = torch.stack([aggregate(attention, 1) for aggregate in AGGREGATIONS.values()], dim=1)  # (B, 3, n, n)
    arcs = arcs.masked_fill(arcs < min_cut * arcs.amax((2, 3), keepdim=True), 0.0)
    return layer.to_patches(torch.stack([arcs.sum(axis) for axis in DEGREES.values()], dim=2))


def across_layers(degrees: Tensor, *, parity: bool = False) -> Tensor:
    """The nine statistics (..., 9, P), in the order of ``STATISTICS``, of ``degrees`` (..., L, P) over the L layers.

    Coherence is the entropy of a node's shares in the layers; std is unbiased, and 0 for a single layer; the median of
    an even number is the lower one; skewness and excess kurtosis are biased, and 0 where the layers do not differ.

    Args:
        parity: as published, in float32, and skewness and kurtosis are NaN where the layers do not differ.
    """
    # rankings must not hang on rounding: what is tied in theory is tied in float32 at the end
    exact = degrees if parity else degrees.double()
    total, median = exact.sum(-2), exact.median(-2).values
    shares = exact / torch.where(total > 0, total, 1.0)[..., None, :]
    deviation = exact - exact.mean(-2, keepdim=True)
    std = (deviation.square().sum(-2) / max(degrees.shape[-2] - 1, 1)).sqrt()
    m2, m3, m4 = (deviation.pow(order).mean(-2) for order in (2, 3, 4))
    constant = m2 <= (RESOLUTION * exact.mean(-2)).square()
    m2, without = m2.masked_fill(constant, 1.0), float("nan") if parity else 0.0
    found = [
        torch.special.entr(shares).sum(-2),
        exact.amax(-2),
        exact.amin(-2),
        total,
        std,
        total / (std + EPS),
        median,
        (m3 / m2**1.5).masked_fill(constant, without),
        (m4 / m2**2 - 3).masked_fill(constant, without),
    ]
    return torch.stack(found, dim=-2).to(degrees.dtype)


def significant(values: Tensor, bits: int = BITS) -> Tensor:
    """``values`` rounded to so many significant bits, which no size of a batch changes.

    Degrees can be equal in theory: where no token but patches is left, each pays 1 per head in all. In float32 they
    differ in the last bits, and would be ranked by them.
    """
    mantissa, exponent = values.frexp()
    return ((mantissa * 2**bits).round() / 2**bits).ldexp(exponent)


def masks_above(values: Tensor, token_ratio: float) -> Tensor:
    """Bool (..., P): True from the value at position ceil(P token_ratio), counted from 1, of the ascending ``values``.

    About ``token_ratio`` of the patches are hidden: without ties P - ceil(P token_ratio) + 1 are shown, all of them at
    0 and one at 1. All patches tied at the threshold are shown. NaN stands at the end and is never shown.
    """
    count = values.shape[-1]
    position = max(math.ceil(count * token_ratio - 1e-9), 1)  # 0.07 x 100 is a little above 7 in binary
    return values >= values.sort(dim=-1).values[..., position - 1 : position]
