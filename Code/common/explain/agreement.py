"""How far what an explainer highlights agrees with what a token reducer keeps.

The reducer drops patches before it knows the class; the explainer says, afterwards, which patches spoke for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import hypergeom, rankdata
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader

from common.cost.closed_form import Shape
from common.errors import UsageError
from common.models.observe import as_reduced
from common.models.reduced import ReducedVisionTransformer
from common.reducers import list_reducers, reducer_class
from common.training import inference_pass


def rank_correlation(heat: Tensor, scores: Tensor) -> Tensor:
    """Spearman's rank correlation (B,) of ``heat`` and ``scores`` (B, P), in [-1, 1]; ties share their average rank.

    Where either gives all patches the same value, it ranks nothing and the correlation counts as 0.

    Raises:
        UsageError: shapes that differ, or NaN, as in the scores of patches that were dropped before.
    """
    _check(heat, scores)
    ranks = [torch.from_numpy(rankdata(values.cpu().numpy(), axis=1)) for values in (heat, scores)]
    first, second = (each - each.mean(1, keepdim=True) for each in ranks)
    spread = first.norm(dim=1) * second.norm(dim=1)
    return ((first * second).sum(1) / torch.where(spread > 0, spread, 1.0)).float()


def iou(heat: Tensor, kept: Tensor) -> Tensor:
    """Jaccard index (B,), in [0, 1], of the k patches ``kept`` (B, P) and the k hottest of ``heat`` (B, P).

    Where more than k patches could be the hottest ones, it is the mean over all choices among those tied: it does not
    hang on the order of the patches.

    Raises:
        UsageError: shapes that differ, NaN, or an image of which nothing is kept.
    """
    _check(heat, kept)
    count = kept.sum(1, keepdim=True)
    if not count.all():
        raise UsageError("an image of which no patch is kept has no intersection over union; keep at least one")
    threshold = heat.sort(dim=1, descending=True).values.gather(1, count - 1)
    above, tied = heat > threshold, heat == threshold
    sets = (above, above & kept, tied, tied & kept, kept)
    above, sure, tied, tied_kept, count = (each.sum(1, keepdim=True).cpu().numpy() for each in sets)
    drawn = np.arange(kept.shape[1] + 1)  # kept ones among the tied patches that are chosen, without replacement
    chance = hypergeom.pmf(drawn, tied, tied_kept, count - above)
    shared = np.minimum(sure + drawn, count)
    return torch.from_numpy((chance * shared / (2 * count - shared)).sum(1)).float()


def iou_by_chance(kept: Tensor) -> Tensor:
    """Exact mean (B,) of :func:`iou` over all random heatmaps, for the patches ``kept`` (B, P)."""
    return iou(torch.zeros(kept.shape), kept.cpu())


@dataclass(frozen=True)
class Decisions:
    """What a reducer made of the P patches of n images.

    Attributes:
        block: after which ``kept`` was read, from 0.
        kept: (n, P) True where a patch is still a token then, or the centre of one.
        scores: (n, P) by which the first stage chose among all patches, larger = rather kept; None for reducers
            that choose without any.
    """

    block: int
    kept: Tensor
    scores: Tensor | None


def decisions_of(model: VisionTransformer, loader: DataLoader, block: int | None = None) -> Decisions:
    """Trace the reduced ``model`` on all images of ``loader``; it is left as it was.

    Args:
        loader: batches (images, labels), normalised as the model expects them.
        block: after which to look at what is left; by default the last one in which the model reduces.

    Raises:
        UsageError: the reducer does not select patches, or nothing is dropped up to ``block``.
    """
    model = as_reduced(model)
    block = _checked_block(model, block)
    first = min(model.reducer.schedule.drops(Shape.of(model).num_patches), default=None)
    kept, scores = [], []
    with inference_pass([model], loader, "decisions") as batches:
        for images, _ in batches:
            _, trace = model.trace(images)
            kept.append(trace.selected(block).cpu())
            if first in trace.scores:
                scores.append(trace.scores[first].cpu())
    kept = torch.cat(kept)
    if kept.all():
        raise UsageError(f"no patch is dropped up to block {block}; give a keep_rate below 1 and a block from there on")
    return Decisions(block, kept, torch.cat(scores) if scores else None)


def _checked_block(model: ReducedVisionTransformer, block: int | None) -> int:
    if not model.reducer.selects:
        selecting = ", ".join(name for name in list_reducers() if reducer_class(name).selects)
        raise UsageError(f"reducer {type(model.reducer).__name__} does not select patches; allowed: {selecting}")
    block = model.reducer.blocks[-1] if block is None else block
    if type(block) is not int or block not in range(len(model.blocks)):
        raise UsageError(f"block={block!r} is not allowed; allowed: blocks 0 to {len(model.blocks) - 1}")
    return block


def agreement(heatmaps: Tensor, decisions: Decisions) -> dict[str, Tensor]:
    """Compare ``heatmaps`` (n, h, w) with the ``decisions`` on the same n images of h x w patches.

    Returns:
        (n,) each: ``iou`` and ``iou_chance``, see :func:`iou` and :func:`iou_by_chance`; ``above_chance``, their
        difference; ``rank_correlation`` with the scores of the first stage, NaN for a reducer without.
    """
    heat, kept = heatmaps.flatten(1).cpu(), decisions.kept
    overlap, chance = iou(heat, kept), iou_by_chance(kept)
    ranks = overlap * torch.nan if decisions.scores is None else rank_correlation(heat, decisions.scores)
    return {"iou": overlap, "iou_chance": chance, "above_chance": overlap - chance, "rank_correlation": ranks}


def _check(heat: Tensor, other: Tensor) -> None:
    if heat.dim() != 2 or heat.shape != other.shape:
        given = f"{tuple(heat.shape)} and {tuple(other.shape)}"
        raise UsageError(f"values of shapes {given} cannot be compared; give one per patch, (B, P), to both")
    if heat.isnan().any() or other.isnan().any():
        raise UsageError("values with NaN cannot be ranked; give every patch one, as the first stage of a reducer does")
