"""How many tokens each block may compute within a budget: the same error at the output, whichever block makes it.

Repeating the whole search for every tolerance that a bisection tries would tune every block again and again. Here each
block is pruned alone, without tuning, to a few numbers of patches, and the error that reaches the output is measured:
E_L, the quantity that patch slimming is about (Tang et al., CVPR 2022, equation 3; their search bounds the error one
block ahead in its place). From these curves the lengths of any budget follow by arithmetic, to be tuned once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from common.models.reduced import ReducedVisionTransformer
from common.slimming.branches import branches, dropped_at, slimmed
from common.slimming.calibration import Batches, Calibration
from common.slimming.costs import Costs
from common.slimming.tuning import errors

SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85)


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
    total, parameter = torch.zeros(len(orders), len(counts), dtype=torch.float64), next(model.parameters())
    for batch in tqdm(Batches(images, 16), "sensitivity", leave=False):
        target = model.encode(model.embed(batch.to(parameter))).prefix
        for cell, tokens in branches(model, slim, batch.to(parameter)):
            total[cell] += errors(tokens.prefix, target, "rel").double().sum().item()
    return total / len(images)


class Curves:
    """Error over the number of patches that stay, of every block but the last, between the measured points a line.

    Args:
        found: (L - 1, K) as :func:`sensitivity` measures it at ``shares``.
    """

    def __init__(self, found: Tensor, num_patches: int, shares: Sequence[float] = SHARES) -> None:
        self._counts = np.array([*(round(share * num_patches) for share in shares), num_patches])
        whole = np.pad(found.numpy(), ((0, 0), (0, 1)))  # nothing dropped, no error
        self._errors = np.maximum.accumulate(whole[:, ::-1], axis=1)[:, ::-1]  # noise must not make a curve rise

    def counts(self, tolerance: float) -> list[int]:
        """Fewest patches per block, the last included, whose error is at most ``tolerance``; they never grow."""
        fewest = [int(np.ceil(np.interp(tolerance, row[::-1], self._counts[::-1]))) for row in self._errors]
        return [*np.maximum.accumulate(fewest[::-1])[::-1].tolist(), 0]


def allocate(curves: Curves, costs: Costs, budget: float, counter: str) -> tuple[tuple[int, ...], float]:
    """Lengths that spend at most ``budget``, a share of the multiplications, at the smallest tolerance; and that."""
    costs.check_budget(budget, [costs.num_prefix_tokens] * costs.depth, counter)
    low, high = 1e-9, 10.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        lengths = [costs.num_prefix_tokens + count for count in curves.counts(middle)]
        dear = costs.macs(lengths, counter) > budget * costs.unreduced
        low, high = (middle, high) if dear else (low, middle)
    return tuple(costs.num_prefix_tokens + count for count in curves.counts(high)), high
