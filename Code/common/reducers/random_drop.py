"""Random: keep patches for no reason. What a method that chooses has to beat at the same number of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from common.options import Whole
from common.reducers.base import NO_SIGNALS, Reducer, Signals, register_reducer
from common.tokens import Selection, Tokens


@torch.compiler.assume_constant_result  # a compiled model has it as a constant
def drawn(num_patches: int, seed: int) -> Tensor:
    """A number (P,) in [0, 1) for every position of the grid, drawn on the CPU: the same on every device."""
    return torch.rand(num_patches, generator=torch.Generator().manual_seed(seed))


def largest_in_order(score: Tensor, k: int) -> Tensor:
    """Positions (k,) of the k largest entries of ``score`` (n,), ties to the lower position, in ascending position.

    >>> largest_in_order(torch.tensor([0.2, 0.9, 0.4, 0.9, 0.4]), 3)
    tensor([1, 2, 3])
    """
    return score.sort(descending=True, stable=True).indices[:k].sort().values


@register_reducer("random")
class Random(Reducer):
    """Keeps the patches with the largest of one random number per position of the grid. No parameters.

    The null row of a table: every image keeps the same patches, on every device, in any batch and at any precision;
    another seed keeps others. Every set of as many patches is as likely as any other, and a later stage keeps a part of
    what an earlier one has kept. All images share one draw, so how far chance goes shows over seeds, not over images:
    report three seeds at the least, with their range.

    >>> from common import create_model
    >>> _, trace = create_model("vit_digits", reducer="random", keep_rate=0.1).trace(torch.zeros(2, 3, 32, 32))
    >>> trace.kept(1)[0].nonzero()[:, 0].tolist(), torch.equal(*trace.kept(1))
    ([7, 21, 26, 31, 37, 51], True)

    Args:
        seed: decides which. What knows the seed of a run gives it (:meth:`common.reducers.Method.seeded`).
    """

    selects = True
    signals = NO_SIGNALS
    scored = "a number in [0, 1) drawn at random for the patch's position, the same for all images"

    def __init__(self, vit, schedule, *, seed: Whole = 0) -> None:
        super().__init__(vit, schedule)
        self.seed = seed

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        every = drawn(tokens.num_patches, self.seed)  # (P,)
        score = every[largest_in_order(every, tokens.num_patch_tokens)]  # (n,) of those that are left
        index = largest_in_order(score, self.drops_at(layer, tokens))  # (K,)
        score, index = (each.to(tokens.x.device).expand(len(tokens.x), -1) for each in (score, index))
        return tokens.with_scores(score), Selection(index)
