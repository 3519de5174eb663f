"""How alike patches are, from block to block and among each other, in a model that computes them all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer
from common.models.tokens import Tokens
from common.reducers.influence import INFLUENCES, rollout, weighted
from common.reducers.similarity import SIMILARITIES
from common.rows import Rows
from common.training.accelerator import progress


@dataclass(frozen=True)
class Alikeness:
    """Of n images and a model of L blocks.

    Attributes:
        across: (n, L, P) similarity of every patch before and after each block.
        within: (L + 1,) mean cosine over all pairs of patches of an image in each hidden state, the first before any
            block; mean over images.
    """

    across: Tensor
    within: Tensor

    def tau(self, share: float) -> float:
        """The similarity that a ``share`` of all patches in all blocks exceeds."""
        values = self.across.flatten().sort().values
        return values[int((1 - share) * (len(values) - 1))].item()


@torch.inference_mode()
def alikeness(
    model: ReducedVisionTransformer, loader: DataLoader, similarity: str = "raw_cos", influence: str = "none"
) -> Alikeness:
    """Measure an unreduced ``model``, put in eval mode, on the images of ``loader``.

    Args:
        similarity, influence: what ``across`` is, see :class:`common.reducers.judging.Judging`.
    """
    model.eval()
    weighs = require_choice(influence, INFLUENCES, "influence") != "none"
    device, measure = next(model.parameters()).device, SIMILARITIES[similarity]
    across, within = Rows(len(loader.sampler)), Rows(len(loader.sampler))
    for images, _ in progress(loader, "hidden states", quiet=False):
        start = model.embed(images.to(device))
        states = [patches.float() for patches in _states(model, start)]
        alike = torch.stack([measure(x, y) for x, y in pairwise(states)], dim=1)
        if weighs:
            alike = weighted(alike, rollout(model.blocks, start, model.global_pool == "token").mT)
        across.add(alike)
        within.add(torch.stack([pairwise_cosine(x) for x in states], dim=1))
    return Alikeness(across.rows, within.rows.double().mean(0))


def _states(model: ReducedVisionTransformer, tokens: Tokens) -> Iterator[Tensor]:
    """Patches (B, P, D) before the first block, which ``tokens`` enter, and after every block."""
    yield tokens.patches
    for block in model.blocks:
        tokens = tokens.with_x(block(tokens.x))
        yield tokens.patches


def pairwise_cosine(patches: Tensor) -> Tensor:
    """Mean cosine (B,) over all pairs of different patches (B, P, D): (|sum_i u_i|^2 - P) / (P (P - 1))."""
    count = patches.shape[1]
    total = F.normalize(patches, dim=-1).sum(1).square().sum(-1)
    return (total - count) / (count * (count - 1))
