"""DiffRate: rank patches by CLS attention, drop the last, merge the next into the most similar of the best.

Chen et al., "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError, require_choice
from common.options import Share, accepted_by
from common.precision import without_autocast
from common.reducers.base import Reducer, Signal, Signals, register_reducer
from common.reducers.clustering import largest_first, patch_sizes
from common.schedule import Schedule
from common.tokens import GONE, Selection, Tokens, take_rows

SCHEDULES = Path(__file__).with_name("diffrate_schedules.txt")
Stage = tuple[int, int]  # patches left after pruning, and after merging


@cache
def published_schedules() -> dict[str, tuple[int, tuple[Stage, ...]]]:
    """The schedules that the authors' search found: name -> patches of the image, and a stage for each block.

    >>> patches, stages = published_schedules()["deit_small-2.9"]
    >>> patches, stages[:3], stages[-1]
    (196, ((196, 196), (195, 193), (189, 175)), (2, 2))
    """
    lines = (line.split() for line in SCHEDULES.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#"))
    return {name: (int(entries[0]), tuple(map(_stage, entries))) for name, _, *entries in lines}


def _stage(entry: str) -> Stage:
    pruned, _, merged = entry.partition(">")
    return int(pruned), int(merged or pruned)


def merge_ranked(x: Tensor, order: Tensor, size: Tensor, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
    """Drop and merge patch tokens ``x`` (B, n, D) that stand in ``order`` (B, n), best first.

    Of the first p, as many as stay are targets and the rest sources; each source goes to its most similar target by
    cosine. A target becomes the plain mean of itself and its sources, each counted once, and its size grows by the
    sizes of its sources times their cosine, where that is positive.

    Args:
        size: (B, n).
        stage: patches left after pruning, p, and after merging, K.

    Returns:
        features (B, K, D) in float32, sizes (B, K), and where every token went (B, n), -1 = dropped.
    """
    left, count = stage
    x, ranked = x.float(), order[:, :left]
    targets, sources = ranked[:, :count], ranked[:, count:]
    wanted, given = take_rows(x, targets), take_rows(x, sources)
    with torch.no_grad(), without_autocast(x.device):
        similarity = F.normalize(given, dim=-1) @ F.normalize(wanted, dim=-1).transpose(1, 2)  # (B, p - K, K)
        best, partner = similarity.max(-1)
        size = size.gather(1, targets).scatter_add(1, partner, size.gather(1, sources) * best.clamp(min=0))
        own = torch.arange(count, device=x.device).expand(len(x), -1)
        place = torch.full_like(order, GONE).scatter(1, ranked, torch.cat([own, partner], dim=1))
    members = torch.ones_like(size).scatter_add(1, partner, torch.ones_like(best))  # (B, K)
    sums = wanted.scatter_add(1, partner[..., None].expand_as(given), given)
    return sums / members[..., None], size, place


def _check_name(name: str) -> None:
    require_choice(name, published_schedules(), "published schedule")


@register_reducer("diffrate")
class DiffRate(Reducer):
    """Prunes and merges between attention and MLP; log(weight) is added to the attention logits of later blocks.

    Which patches: by the CLS attention of the block, mean over heads. How many: by keep_rate and ``merge_share``; or by
    a ``published`` schedule, then keep_rate must stay 1.0. No parameters. A source whose features point away from its
    target adds nothing to its weight; in the reference implementation that gives NaN.

    >>> from common import create_model
    >>> model = create_model("deit_small_patch16_224", reducer="diffrate", published="deit_small-2.9")
    >>> model.reducer.blocks[:4], model.reducer.stages[4]
    ((1, 2, 3, 4), (149, 140))

    Args:
        published: NETWORK-GMAC, a schedule that the authors' search found for a DeiT or MAE network; on another network
            of that depth and number of patches it is an experiment of yours.
        merge_share: of the patches that a stage removes, how many are merged, the others being dropped. Not published;
            the published schedules merge 29 to 59 % of them on DeiT.
    """

    needs_class_token = True
    family = "merges"
    clusters = True
    signals = frozenset({"cls_attention"})
    scored = "CLS attention of the block, mean over heads"

    def __init__(
        self,
        vit,
        schedule: Schedule,
        *,
        published: Annotated[str, accepted_by(_check_name)] | None = None,
        merge_share: Share = 0.5,
    ) -> None:
        super().__init__(vit, schedule)
        self.merge_share, self.num_patches = merge_share, vit.patch_embed.num_patches
        self.stages = None if published is None else _fitting_stages(vit, schedule, published)

    @property
    def blocks(self) -> tuple[int, ...]:
        if self.stages is None:
            return super().blocks
        left = (self.num_patches, *(merged for _, merged in self.stages))
        return tuple(layer for layer, (before, after) in enumerate(pairwise(left)) if after < before)

    def stage(self, layer: int, tokens: Tokens) -> Stage | None:
        """Patches that pruning, and then merging, leaves in block ``layer``; None = all of them."""
        if self.stages is not None:
            if tokens.num_patches != self.num_patches:
                given = f"the image has {tokens.num_patches}"
                raise UsageError(f"the published schedule is for {self.num_patches} patches, {given}")
            return self.stages[layer] if layer in self.blocks else None
        count = self.drops_at(layer, tokens)
        if count is None:
            return None
        return count + math.floor((tokens.num_patch_tokens - count) * self.merge_share), count

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        return None if self.stage(layer, tokens) is None else self.signals

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        stage = self.stage(layer, tokens)
        score = signals.cls_attention[:, :, tokens.num_prefix_tokens :].float().mean(1)  # (B, n)
        order = largest_first(score, tokens.num_patch_tokens)
        tokens = tokens.with_scores(score)
        if stage[0] == stage[1]:  # nothing is merged, so that who counted for one patch still does
            return tokens.keep(Selection(order[:, : stage[1]]))
        patches, size, place = merge_ranked(tokens.patches, order, patch_sizes(tokens), stage)
        return tokens.merged(patches.to(tokens.x.dtype), place, size=size)

    def extra_repr(self) -> str:
        return super().extra_repr() if self.stages is None else f"patches={[merged for _, merged in self.stages]}"


def _fitting_stages(vit: VisionTransformer, schedule: Schedule, name: str) -> tuple[Stage, ...]:
    """The published stages; refused on a backbone that they do not fit, and beside a keep_rate."""
    patches, stages = published_schedules()[name]
    if schedule.keep_rate != 1.0:
        raise UsageError(f"published={name!r} says how many tokens stay; keep_rate={schedule.keep_rate} must stay 1.0")
    given, own = (len(stages), patches), (len(vit.blocks), vit.patch_embed.num_patches)
    if given != own:
        names = "{} blocks and {} patches"
        raise UsageError(f"published={name!r} is for {names.format(*given)}; this backbone has {names.format(*own)}")
    return stages
