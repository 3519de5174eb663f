"""PPT: prune an image's patches where their importance differs much, pool the most similar ones where it does not.

Wu et al., "PPT: Token Pruning and Pooling for Efficient Vision Transformers", arXiv 2310.01812.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.options import NonNegative
from common.reducers.base import Reducer, Signals, register_reducer
from common.reducers.clustering import group_means, largest_first, patch_sizes
from common.reducers.tome import matched_down_to
from common.tokens import GONE, Tokens


def importance(cls_attention: Tensor, value_norm: Tensor) -> Tensor:
    """Score (B, n) of each patch, summing to 1: its CLS attention times the norm of its values over all heads.

    Args:
        cls_attention, value_norm: (B, H, n), of the patches.
    """
    norm = value_norm.float().square().sum(1).sqrt()  # (B, n), of the heads' values one behind the other
    score = cls_attention.float().sum(1) * norm
    return score / score.sum(1, keepdim=True)


@register_reducer("ppt")
class PPT(Reducer):
    """Decides image by image, between attention and MLP; either way K patch tokens are left. No parameters.

    Where the variance of the patches' importance is below ``threshold``, pairs of patches with similar keys are merged
    as in ToMe; else the K most important stay, in falling order, which the pairs of a later stage depend on. Early
    stages mostly merge, late ones mostly prune. log(size) is added to the attention logits of later blocks. Pruning has
    no limit here; the reference implementation never removes more than half of the patches in one stage.

    Args:
        threshold: of the variance, in units of squared importance, so it depends on the number of patches: 7e-5 is
            published for 196 (DeiT-S). 0 always prunes, 1 never does.
    """

    needs_class_token = True
    family = "merges"
    clusters = True
    signals = frozenset({"cls_attention", "value_norm", "key_mean"})
    scored = "CLS attention of the block, summed over heads, times the norm of the values; sums to 1"

    def __init__(self, vit, schedule, *, threshold: NonNegative = 7e-5) -> None:
        super().__init__(vit, schedule)
        self.threshold = threshold

    @torch.no_grad()
    def _groups(self, signals: Signals, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Scores (B, n), and which of ``count`` tokens each patch token goes to (B, n), -1 = none."""
        prefix = signals.cls_attention.shape[-1] - size.shape[1]
        score = importance(signals.cls_attention[..., prefix:], signals.value_norm[..., prefix:])
        ranks = torch.arange(count, device=score.device).expand(len(score), -1)
        pruned = torch.full(score.shape, GONE, device=score.device).scatter(1, largest_first(score, count), ranks)
        pooled = matched_down_to(count, signals.key_mean[:, prefix:].float(), size)
        variance = (score - score.mean(1, keepdim=True)).square().sum(1, keepdim=True) / (score.shape[1] - 1)
        return score, torch.where(variance < self.threshold, pooled, pruned)

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        count, size = self.drops_at(layer, tokens), patch_sizes(tokens)
        score, group = self._groups(signals, size, count)
        patches, size = group_means(tokens.patches, size, group, count)
        return tokens.with_scores(score).merged(patches, group, size=size)
