"""PiToMe: merge patches that have many similar ones, and leave alone those that have none.

Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from common.options import NonNegative
from common.precision import without_autocast
from common.reducers.base import Reducer, Signals, register_reducer
from common.reducers.clustering import group_means
from common.tokens import Tokens, take_rows

SIZE = "pitome_size"


def energies(similarity: Tensor, margin: float) -> Tensor:
    """Energy (B, n) of every patch: the mean of ELU(s - margin) over its similarities s (B, n, n), its own included."""
    return F.elu(similarity - margin).mean(-1)


def match(similarity: Tensor, margin: float, num_merged: int, protect: bool) -> Tensor:
    """Which of n - ``num_merged`` groups every patch goes to (B, n).

    Ranked by falling energy, patches on even ranks are merged into those on odd ranks: each into its most similar one.

    Args:
        similarity: (B, n, n) cosine similarities.
        protect: only the 2 ``num_merged`` patches of the highest energy take part, all sources are merged; otherwise
            all patches do, and the sources with the most similar partners are merged.
    """
    order = energies(similarity, margin).argsort(dim=1, descending=True, stable=True)  # (B, n)
    taking_part = order[:, : 2 * num_merged] if protect else order
    sources, targets = taking_part[:, ::2], taking_part[:, 1::2]
    between = take_rows(similarity, sources).gather(2, targets[:, None].expand(-1, sources.shape[1], -1))
    best, partner = between.max(-1)  # (B, sources); the first of equal ones
    chosen = best.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
    merged, into = sources.gather(1, chosen), targets.gather(1, partner.gather(1, chosen))  # (B, r) positions
    stays = torch.ones_like(order, dtype=torch.bool).scatter(1, merged, False)
    place = stays.cumsum(1) - 1  # (B, n) of those that stay, in the order of their positions
    return place.scatter(1, merged, place.gather(1, into))


@register_reducer("pitome")
class PiToMe(Reducer):
    """Merges between attention and MLP, by the keys of the block averaged over heads. No parameters.

    The energy of a patch is high where many others are similar to it; isolated ones are protected. A token is the mean
    of its patches; unlike in ToMe its size does not weigh in attention, as in the code that is published for image
    classification. One matching merges at most every second token; what a stage has left is matched anew.

    Args:
        margin: similarities above ``margin`` (1 - layer / depth) add to the energy of a patch, others take from it.
        protect: where isolated patches take no part: in the "late" half of the blocks (published for DeiT), in the
            "early" half (for MAE), or in "all" (the algorithm of the paper).
    """

    family = "merges"
    clusters = True
    signals = frozenset({"key_mean"})
    scored = "energy: how many other patches are similar"

    def __init__(
        self, vit, schedule, *, margin: NonNegative = 0.75, protect: Literal["late", "early", "all"] = "late"
    ) -> None:
        super().__init__(vit, schedule)
        self.margin, self.protect, self.depth = margin, protect, len(vit.blocks)

    def protects(self, layer: int) -> bool:
        """Whether isolated patches take no part in block ``layer``."""
        return self.protect == "all" or (2 * layer >= self.depth) == (self.protect == "late")

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        count, metric = self.drops_at(layer, tokens), signals.key_mean[:, tokens.num_prefix_tokens :].float()
        size = tokens.carry.get(SIZE, torch.ones_like(metric[..., 0]))  # (B, n)
        margin, scores = self.margin * (1 - layer / self.depth), None
        group = torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1)
        with torch.no_grad(), without_autocast(metric.device):
            total = size
            while (length := metric.shape[1]) > count:
                keys = F.normalize(metric, dim=-1)
                similarity = keys @ keys.transpose(1, 2)  # (B, n, n)
                scores = energies(similarity, margin) if scores is None else scores
                merged = min(length - count, length // 2)
                place = match(similarity, margin, merged, self.protects(layer))
                metric, total = group_means(metric, total, place, length - merged)
                group = place.gather(1, group)
        patches, size = group_means(tokens.patches, size, group, count)
        return tokens.with_scores(scores).merged(patches, group).with_carry(**{SIZE: size})
