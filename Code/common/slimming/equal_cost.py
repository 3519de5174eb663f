"""Plans of equal cost that differ in one thing each: what a mask that is the same for all images can still gain.

The premise of patch slimming comes first: the patches of one layer are alike (Tang et al., CVPR 2022, figure 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from common.cost.closed_form import Shape
from common.idling.similarity import pairwise_cosine
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.setup import Setup
from common.slimming.allocation import tapered_lengths
from common.slimming.calibration import batches
from common.slimming.measuring import Row, cost, hits_of, measures
from common.slimming.plans import best_first, nested, slimmed
from common.slimming.ranking import block_scores, mean_scores, scores_by
from common.training.metrics import means_with_errors

TOP_DOWN, BOTTOM_UP = "top-down", "bottom-up"


@dataclass(frozen=True)
class Variant:
    """How a plan of a given cost is made; the default is the plan that others are compared with.

    Attributes:
        taper, floor: of :func:`common.slimming.allocation.tapered_lengths`.
        score: by what patches are chosen, see :func:`common.slimming.ranking.scores_by`.
        scored_on: images; None = all calibration images.
        order: "top-down", as published: scores of the unreduced network, and a block keeps what the next one keeps;
            "bottom-up": from the first block on, each by the scores of what the slim network below it leaves.
    """

    taper: float = 0.0
    floor: float = 1.0
    score: str = "significance"
    scored_on: int | None = None
    order: Literal[TOP_DOWN, BOTTOM_UP] = TOP_DOWN


def variants(
    base: Variant, tapers: Sequence[float], floors: Sequence[float], scores: Sequence[str], images: Sequence[int]
) -> list[Variant]:
    """``base`` and what differs from it in lengths, in the score, in the images scored, or in the order, each once."""
    lengths = [replace(base, taper=taper, floor=floor) for taper in tapers for floor in floors]
    refined = [replace(base, taper=taper, order=BOTTOM_UP) for taper in tapers]
    chosen = [replace(base, score=score) for score in scores] + [replace(base, scored_on=count) for count in images]
    return list(dict.fromkeys([base, *lengths, *refined, *chosen]))


@torch.inference_mode()
def bottom_up(
    model: ReducedVisionTransformer, images: Tensor, lengths: Sequence[int], score: str, seed: int = 0
) -> SlimmingPlan:
    """The plan of ``lengths`` whose blocks choose, from the first on, by scores of what they get in the slim network.

    What lies above a block computes everything when it is scored.

    Args:
        model: unreduced.
        images: (n, 3, H, W), normalised, that patches are scored on.
        lengths: tokens of the blocks, see :func:`common.slimming.plans.nested`.
        score: see :func:`common.slimming.ranking.scores_by`.
    """
    prefix, num_patches = model.num_prefix_tokens, model.patch_embed.num_patches
    alive, kept = list(range(num_patches)), []
    entering = [model.embed(batch) for batch in batches(images, 16, model, "bottom-up")]
    name, how = scores_by(score, seed)
    for layer, length in enumerate(lengths[:-1]):
        order = best_first(block_scores(name, model, entering, layer, how))
        alive = sorted(alive[place] for place in order[: length - prefix])
        kept.append(alive)
        open_end = [*kept, *[alive] * (len(lengths) - 1 - len(kept)), []]
        slim = slimmed(model, SlimmingPlan.of_patches(open_end, num_patches, prefix))
        entering = [slim.advance(tokens, range(layer, layer + 1)) for tokens in entering]
    return SlimmingPlan.of_patches([*kept, []], num_patches, prefix)


def equal_cost_rows(
    setup: Setup, budget: float, chosen: Sequence[Variant], limit_val: int | None = None
) -> Iterator[Row]:
    """Accuracy of plans that spend ``budget``, untuned; ``gain`` is over the first of ``chosen``.

    Args:
        limit_val: validation images; None = all.
    """
    if not chosen:
        return
    whole, shape, images = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit), setup.calibration_images
    wanted = {(each.score, each.scored_on) for each in chosen if each.order == TOP_DOWN}
    scores = {key: mean_scores(setup.vit, images[: key[1]], key[0], setup.seed) for key in wanted}
    plans = {}
    for each in chosen:
        lengths = tapered_lengths(shape, budget, each.taper, each.floor)
        if each.order == BOTTOM_UP:
            plans[each] = bottom_up(whole, images[: each.scored_on], lengths, each.score, setup.seed)
        else:
            plans[each] = nested(scores[each.score, each.scored_on], lengths, shape.num_prefix_tokens)
    right = hits_of(setup, {each: slimmed(whole, plan) for each, plan in plans.items()}, limit_val, shared=True)
    for each, plan in plans.items():
        row = {"part": "equal_cost", "mac_budget": budget, **vars(each), "scored_on": each.scored_on or len(images)}
        yield {**row, **cost(shape, plan.lengths), **measures(right[each], right[chosen[0]])}


def similarity_rows(setup: Setup, images: int) -> Iterator[Row]:
    """Mean cosine between two patches that leave the same block, over ``images`` calibration images."""
    for block, values in enumerate(similarities(reduce_tokens(setup.vit, "none"), setup.calibration_images[:images]).T):
        yield {"part": "similarity", "block": block, **means_with_errors(similarity=values)}


@torch.inference_mode()
def similarities(model: ReducedVisionTransformer, images: Tensor) -> Tensor:
    """Mean cosine (n, L) between two different patches of an image, float64, after every block.

    Args:
        images: (n, 3, H, W), normalised.
    """
    found = []
    for batch in batches(images, 16, model, "similarity"):
        tokens, rows = model.embed(batch), []
        for layer in range(len(model.blocks)):
            tokens = model.advance(tokens, range(layer, layer + 1))
            rows.append(pairwise_cosine(tokens.patches.float()))
        found.append(torch.stack(rows, dim=1))
    return torch.cat(found).double().cpu()
