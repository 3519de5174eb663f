"""ToMe: in each stage merge the pairs of patches whose keys are most alike, and weigh merged tokens by their size.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.precision import without_autocast
from common.reducers.base import Reducer, Signal, Signals, register_reducer
from common.reducers.clustering import patch_sizes
from common.tokens import Tokens, take_rows


@dataclass(frozen=True)
class Matching:
    """Which of n tokens are merged; they are split by turns into sources (1, 3, 5 ...) and targets (0, 2, 4 ...).

    Attributes:
        kept: (B, |sources| - r) sources that stay, ascending, as positions among the sources.
        merged: (B, r) sources that are merged.
        partner: (B, r) the target that each goes to, as a position among the targets.
    """

    kept: Tensor
    merged: Tensor
    partner: Tensor

    @classmethod
    def of(cls, metric: Tensor, num_merged: int) -> Matching:
        """Merge the ``num_merged`` sources with the best partner by cosine similarity of ``metric`` (B, n, d)."""
        metric = F.normalize(metric.float(), dim=-1)
        with without_autocast(metric.device):  # similarities of half precision would tie
            similarity = metric[:, 1::2] @ metric[:, ::2].transpose(1, 2)  # (B, sources, targets)
        best, partner = similarity.max(-1)  # (B, sources) each
        order = best.argsort(dim=1, descending=True, stable=True)
        merged = order[:, :num_merged]  # (B, r)
        return cls(order[:, num_merged:].sort(dim=1).values, merged, partner.gather(1, merged))

    def destination(self, length: int) -> Tensor:
        """Position (B, length) of every token among the new ones: kept sources first, then all targets."""
        num_kept = self.kept.shape[1]
        new = torch.empty(len(self.kept), length, dtype=torch.long, device=self.kept.device)
        new[:, ::2] = num_kept + torch.arange(new[:, ::2].shape[1], device=new.device)
        sources = new[:, 1::2]
        sources.scatter_(1, self.kept, torch.arange(num_kept, device=new.device).expand(len(new), -1))
        sources.scatter_(1, self.merged, num_kept + self.partner)
        return new

    def sum(self, x: Tensor) -> Tensor:
        """Sums (B, n - r, D) over the tokens ``x`` (B, n, D) that become one."""
        sources, targets = x[:, 1::2], x[:, ::2]
        index = self.partner[..., None].expand(-1, -1, x.shape[-1])  # (B, r, D)
        targets = targets.scatter_add(1, index, take_rows(sources, self.merged))
        return torch.cat([take_rows(sources, self.kept), targets], dim=1)


@register_reducer("tome")
class ToMe(Reducer):
    """Merges between attention and MLP, by the keys of the block averaged over heads; prefix tokens stay apart.

    A token is the mean of its patches, and log(size) is added to the attention logits of later blocks.

    Args:
        parity: match once per stage as the reference implementation does. One matching merges at most every second
            token; what a stage misses of floor(P r^(s-1)) - floor(P r^s) merges is not made up for: of 196 patches 98,
            49, 25 are left at 0.5 and 98, 61, 52 at 0.25. Default: match again until the stage has its target.
    """

    family = "merges"
    clusters = True

    def __init__(self, vit, schedule, *, parity: bool = False) -> None:
        super().__init__(vit, schedule)
        self.parity = parity

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return None if self._excess(layer, tokens) == 0 else frozenset({"key_mean"})

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        excess, metric = self._excess(layer, tokens), signals.key_mean[:, tokens.num_prefix_tokens :]
        while excess > 0:
            num_merged = min(excess, tokens.num_patch_tokens // 2)
            excess = 0 if self.parity else excess - num_merged
            tokens, metric = merge(tokens, metric, num_merged, again=excess > 0)
        return tokens

    def _excess(self, layer: int, tokens: Tokens) -> int:
        """Patch tokens that block ``layer`` has to merge away."""
        target = self.schedule.target(layer, tokens.num_patches)
        if target is None:
            return 0
        if not self.parity:
            return max(0, tokens.num_patch_tokens - target)
        stage = self.schedule.reduction_loc.index(layer)
        before = (tokens.num_patches, *self.schedule.counts(tokens.num_patches))[stage]
        return before - target


def matched_down_to(count: int, metric: Tensor, size: Tensor) -> Tensor:
    """Which of ``count`` groups every token (B, n) goes to, matching again until so many are left.

    Args:
        metric: (B, n, d); that of a group is the mean of its tokens weighted by ``size`` (B, n).
    """
    group = torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1)
    while (length := metric.shape[1]) > count:
        matching = Matching.of(metric, min(length - count, length // 2))
        total = matching.sum(size[..., None])
        metric, size = matching.sum(metric * size[..., None]) / total, total[..., 0]
        group = matching.destination(length).gather(1, group)
    return group


def merge(tokens: Tokens, metric: Tensor, num_merged: int, *, again: bool) -> tuple[Tokens, Tensor | None]:
    """One matching: merged tokens, and to match ``again`` their ``metric`` (B, n, d).

    Both are means over the patches that a token stands for.
    """
    size = patch_sizes(tokens)[..., None]  # (B, n, 1), float32, so that half precision adds up
    with torch.no_grad():
        matching = Matching.of(metric, num_merged)
    weighted = torch.cat([tokens.patches * size, size], dim=-1)  # (B, n, D + 1): one sum for both
    total = matching.sum(weighted)  # (B, n - r, D + 1)
    patches, new_size = total[..., :-1] / total[..., -1:], total[..., -1].detach()
    destination = partial(matching.destination, tokens.num_patch_tokens)
    merged = tokens.merged(patches.to(tokens.x.dtype), destination, size=new_size)
    with torch.no_grad():
        return merged, matching.sum(metric * size) / new_size[..., None] if again else None
