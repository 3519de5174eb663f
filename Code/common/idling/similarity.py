"""How similar patches are, from block to block and among each other, in a model that computes them all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from common.models.reduced import ReducedVisionTransformer
from common.rows import Rows
from common.training import inference_pass


@dataclass(frozen=True)
class PatchSimilarities:
    """Of n images and a model of L blocks.

    Attributes:
        across: (n, L, P) similarity of every patch before and after each block, or 1 - what is lost if it idles there.
        within: (n, L + 1) mean cosine over all pairs of patches of an image, first before any block, then after each.
    """

    across: Tensor
    within: Tensor

    def tau(self, share: float) -> float:
        """The similarity that a ``share`` of all patches in all blocks exceeds."""
        values = self.across.flatten().sort().values
        return values[int((1 - share) * (len(values) - 1))].item()


def patch_similarities(model: ReducedVisionTransformer, loader: DataLoader) -> PatchSimilarities:
    """Measure the states of the backbone of ``model``, which computes everything here.

    Args:
        model: its reducer says what ``across`` is, see
            :meth:`common.reducers.similarity.IdlingBySimilarity.patch_similarity`.
    """
    reducer, across, within = model.reducer, Rows(len(loader.sampler)), Rows(len(loader.sampler))
    with inference_pass([model], loader, "hidden states") as batches:
        for images, _ in batches:
            tokens = reducer.with_influence(model.embed(images))
            similar, inside = [], [pairwise_cosine(tokens.patches.float())]
            for layer, block in enumerate(model.blocks):
                output = block(tokens.x)  # (B, N, D)
                similar.append(reducer.patch_similarity(tokens, output, layer))
                tokens = tokens.with_x(output)
                inside.append(pairwise_cosine(tokens.patches.float()))
            across.add(torch.stack(similar, dim=1))
            within.add(torch.stack(inside, dim=1))
    return PatchSimilarities(across.rows, within.rows)


def pairwise_cosine(patches: Tensor) -> Tensor:
    """Mean cosine (B,) over all pairs of different patches (B, P, D): (|sum_i u_i|^2 - P) / (P (P - 1)).

    Example:
        >>> round(pairwise_cosine(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])).item(), 4)
        0.3333
    """
    count = patches.shape[1]
    total = F.normalize(patches, dim=-1).sum(1).square().sum(-1)
    return (total - count) / (count * (count - 1))
