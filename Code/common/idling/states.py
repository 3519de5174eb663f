"""How alike patches are, from block to block and among each other, in a model that computes them all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from common.models.reduced import ReducedVisionTransformer
from common.rows import Rows
from common.training.accelerator import progress


@dataclass(frozen=True)
class Alikeness:
    """Of n images and a model of L blocks.

    Attributes:
        across: (n, L, P) similarity of every patch before and after each block, or 1 - what is lost if it idles there.
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
def alikeness(model: ReducedVisionTransformer, loader: DataLoader) -> Alikeness:
    """Measure the states of the backbone of ``model``, put in eval mode, which computes everything here.

    Args:
        model: its reducer says what ``across`` is, see :meth:`common.reducers.judging.Judging.alike`.
        loader: of the images.
    """
    judge, device = model.eval().reducer, next(model.parameters()).device
    across, within = Rows(len(loader.sampler)), Rows(len(loader.sampler))
    for images, _ in progress(loader, "hidden states", quiet=False):
        tokens = judge.look_ahead(model.embed(images.to(device)))
        judged, inside = [], [pairwise_cosine(tokens.patches.float())]
        for layer, block in enumerate(model.blocks):
            output = block(tokens.x)
            judged.append(judge.alike(tokens, output, layer))
            tokens = tokens.with_x(output)
            inside.append(pairwise_cosine(tokens.patches.float()))
        across.add(torch.stack(judged, dim=1))
        within.add(torch.stack(inside, dim=1))
    return Alikeness(across.rows, within.rows.double().mean(0))


def pairwise_cosine(patches: Tensor) -> Tensor:
    """Mean cosine (B,) over all pairs of different patches (B, P, D): (|sum_i u_i|^2 - P) / (P (P - 1))."""
    count = patches.shape[1]
    total = F.normalize(patches, dim=-1).sum(1).square().sum(-1)
    return (total - count) / (count * (count - 1))
