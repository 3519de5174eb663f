"""How many tokens each block may compute within a budget, so that the least error reaches the output.

Repeating the whole search for every tolerance that a bisection tries would tune every block again and again. Here each
block is pruned alone, for good and without tuning, to a few numbers of patches, and the error that reaches the output
is measured: E_L, the quantity that patch slimming is about (Tang et al., CVPR 2022, equation 3; their search bounds the
error one block ahead in its place). From these curves the lengths of any budget follow by arithmetic, to be tuned once.

Patches that are gone already cannot be lost again: a block that leaves n of the n' patches that enter it adds
E_l(n) - E_l(n'), read from its own curve. The lengths with the least sum of these are a shortest path. (To give all
blocks the same error E_l(n) instead charges deep blocks for what shallow ones dropped before, and prunes them too far.)

These errors are of one block at a time. :func:`least_divergent` measures whole networks instead, of a few families of
lengths (:func:`tapered_lengths`). One of these alone, which falls by :data:`TAPER` and measures nothing, did best on
real images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Annotated

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.methods import slim_block_macs, slim_macs
from common.data.unlabelled import Calibration
from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer
from common.options import Share, check
from common.reducers.base import divergence_by_image
from common.reducers.slimming_plan import SlimmingPlan
from common.slimming.calibration import batches
from common.slimming.plans import dropped_at, encode_all, nested, slimmed
from common.slimming.tuning import errors

SHARINGS = FALLING, UNIFORM, LEARNED, TAPERED = ("falling", "uniform", "learned", "tapered")  # of a budget, by blocks
TAPER = 0.2  # of falling lengths
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TAPERS = tuple(product((0.0, 0.1, 0.2, 0.35), (1.0, 0.6)))  # of these tapers and floors a search tries all


@torch.inference_mode()
def sensitivity(
    model: ReducedVisionTransformer, images: Calibration, scores: Tensor, shares: Sequence[float] = SHARES
) -> Tensor:
    """Relative error (L - 1, len(shares)) of the normalised prefix tokens when one block drops patches, for good.

    Args:
        model: unreduced, in eval mode.
        scores: (L - 1, P) by which each block ranks its patches.
        shares: of the patches that stay.
    """
    orders = scores.argsort(dim=1, descending=True, stable=True).tolist()
    counts = [round(share * scores.shape[1]) for share in shares]
    cells = [(layer, place) for layer in range(len(orders)) for place in range(len(counts))]
    slim = {cell: slimmed(model, dropped_at(model, cell[0], orders[cell[0]][: counts[cell[1]]])) for cell in cells}
    total = torch.zeros(len(orders), len(counts), dtype=torch.float64)
    for batch in batches(images, 16, model, "sensitivity"):
        target = model.encode(model.embed(batch)).prefix
        for cell, tokens in encode_all(model, slim, batch):
            total[cell] += errors(tokens.prefix, target).double().sum().item()
    return total / len(images)


def error_curves(found: Tensor, num_patches: int, shares: Sequence[float] = SHARES) -> np.ndarray:
    """Error (L - 1, P + 1) of every block but the last by the number of patches that stay, 0 to P; it never rises.

    Between the measured points a monotone cubic.

    Args:
        found: (L - 1, K) as :func:`sensitivity` measures it at ``shares``.
    """
    counts = np.array([*(round(share * num_patches) for share in shares), num_patches])
    whole = np.pad(found.numpy(), ((0, 0), (0, 1)))  # nothing dropped, no error
    falling = np.maximum.accumulate(whole[:, ::-1], axis=1)[:, ::-1]  # noise must not make a curve rise
    return PchipInterpolator(counts, falling, axis=1)(np.arange(num_patches + 1))


def allocate(curves: np.ndarray, shape: Shape, budget: float, counter: str = "compact") -> tuple[int, ...]:
    """Tokens of every block that spend at most ``budget``, a share of the multiplications, for the least error.

    A price on multiplications is bisected. Of all that fits between the two sets of lengths whose prices enclose the
    budget, and of uniform lengths, the best is taken.

    Args:
        curves: (L - 1, P + 1), see :func:`error_curves`.
    """
    uniform, prices = uniform_lengths(shape, budget, counter), _prices(shape, counter)
    low, high = 1e-9, 1e9
    for _ in range(80):
        middle = (low * high) ** 0.5
        dear = slim_macs(shape, _lengths(curves, prices, middle, shape), counter) > budget * shape.unreduced
        low, high = (middle, high) if dear else (low, middle)
    short, long = (np.array(_lengths(curves, prices, price, shape)) for price in (high, low))
    mixed = [np.round(short + part * (long - short)).astype(int).tolist() for part in np.linspace(0, 1, 101)]
    fitting = [each for each in mixed if slim_macs(shape, each, counter) <= budget * shape.unreduced]
    return tuple(min([*fitting, uniform], key=lambda each: added_error(curves, each)))


def uniform_lengths(shape: Shape, budget: float, counter: str = "compact") -> tuple[int, ...]:
    """Lengths that are the same in every block but the last: the most that ``budget``, a share, allows.

    Raises:
        UsageError: not even blocks that compute the prefix tokens alone fit into ``budget``, or it is no share.
    """
    prefix = shape.num_prefix_tokens
    every = [(*[length] * (shape.depth - 1), prefix) for length in range(prefix, shape.num_tokens + 1)]
    least = slim_macs(shape, every[0], counter) / shape.unreduced
    allowed = f"the share of the multiplications to spend by the counter {counter!r}, from {least:.2f} to 1"
    budget = check("mac_budget", budget, Annotated[float, allowed])
    if not least <= budget <= 1:
        raise UsageError(f"mac_budget={budget:.4g} (mac_cut={1 - budget:.4g}) is not allowed; give {allowed}")
    return max(lengths for lengths in every if slim_macs(shape, lengths, counter) <= budget * shape.unreduced)


def tapered_lengths(
    shape: Shape, budget: float, taper: float, floor: float = 1.0, counter: str = "compact"
) -> tuple[int, ...]:
    """Lengths that fall by equal steps from block to block: the most that ``budget``, a share, allows.

    >>> vit_tiny = Shape(196, 1, dim=192, heads=3, depth=12, mlp_dim=768, patch_dim=768, num_outputs=1000)
    >>> tapered_lengths(vit_tiny, 0.55, taper=0.2)
    (143, 138, 133, 129, 124, 119, 114, 110, 105, 100, 95, 1)

    Args:
        taper: the first block computes 1 + taper times the mean of all, the last but one 1 - taper times; 0 = uniform.
        floor: the last but one block, after which only the prefix goes on, computes this share of that.

    Raises:
        UsageError: see :func:`uniform_lengths`.
    """
    uniform_lengths(shape, budget, counter)  # refuses what no lengths can meet
    prefix, falling = shape.num_prefix_tokens, 1 + check("taper", taper, Share) * np.linspace(1, -1, shape.depth - 1)
    falling[-1] *= check("floor", floor, Share)

    def lengths(mean: float) -> tuple[int, ...]:
        tokens = np.clip(np.round(mean * falling), prefix, shape.num_tokens).astype(int)
        return (*np.minimum.accumulate(tokens).tolist(), prefix)

    low, high = 0.0, shape.num_tokens / falling.min()
    for _ in range(40):
        middle = (low + high) / 2
        fits = slim_macs(shape, lengths(middle), counter) <= budget * shape.unreduced
        low, high = (middle, high) if fits else (low, middle)
    return lengths(low)


@torch.inference_mode()
def least_divergent(
    model: ReducedVisionTransformer, plans: Mapping[Hashable, SlimmingPlan], images: Calibration
) -> Hashable:
    """Key of the plan whose class probabilities are, over ``images``, nearest to those of the unreduced ``model``."""
    slim, total = {key: slimmed(model, plan) for key, plan in plans.items()}, dict.fromkeys(plans, 0.0)
    for batch in batches(images, 16, model, "lengths"):
        whole = model(batch)
        for key, tokens in encode_all(model, slim, batch):
            total[key] += divergence_by_image(model.classify(tokens), whole).double().sum().item()
    return min(total, key=total.get)


def best_tapered(
    model: ReducedVisionTransformer, images: Calibration, scores: Tensor, budget: float, counter: str = "compact"
) -> tuple[int, ...]:
    """The lengths among :data:`TAPERS`, uniform ones included, whose untuned network diverges least on ``images``.

    Args:
        scores: (L - 1, P) by which each block ranks its patches.
    """
    shape = Shape.of(model)
    lengths = {tapered_lengths(shape, budget, *each, counter) for each in TAPERS}
    plans = {each: nested(scores, each, shape.num_prefix_tokens) for each in sorted(lengths)}
    return least_divergent(model, plans, images)


def added_error(curves: np.ndarray, lengths: Sequence[int]) -> float:
    """What the blocks add to the error at the output, each by its own curve, when they compute ``lengths`` tokens."""
    prefix, num_patches = lengths[-1], curves.shape[1] - 1
    left = np.array([num_patches, *(length - prefix for length in lengths[:-1])])
    blocks = np.arange(len(curves))
    return float((curves[blocks, left[1:]] - curves[blocks, left[:-1]]).sum())


def _prices(shape: Shape, counter: str) -> np.ndarray:
    """Share of all multiplications (P + 1, P + 1) of a block that leaves n (row) of the patches k (column) entering."""
    tokens = np.arange(shape.num_prefix_tokens, shape.num_tokens + 1)
    macs = slim_block_macs(shape, tokens[:, None], tokens[None, :], counter)
    return np.broadcast_to(macs, (len(tokens), len(tokens))) / shape.unreduced


def _lengths(curves: np.ndarray, prices: np.ndarray, price: float, shape: Shape) -> list[int]:
    """The shortest path through all blocks: of each, the error that it adds and its multiplications times ``price``."""
    counts = np.arange(curves.shape[1])
    rises = counts[:, None] > counts[None, :]
    rest, choices = price * prices[0], []
    for curve in curves[::-1]:
        added = np.where(rises, np.inf, curve[:, None] - curve[None, :])
        total = added + price * prices + rest[:, None]
        choices.append(total.argmin(0))
        rest = total.min(0)
    left = [counts[-1]]
    for choice in reversed(choices):
        left.append(choice[left[-1]])
    return [*(int(count) + shape.num_prefix_tokens for count in left[1:]), shape.num_prefix_tokens]
