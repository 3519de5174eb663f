"""Plans under comparison without any tuning: several budgets, scores and keys; and gates that choose in every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.cost.closed_form import Shape
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.setup import Setup
from common.slimming.allocation import allocate, error_curves, sensitivity, uniform_lengths
from common.slimming.branches import nested, slimmed
from common.slimming.gates import calibrate_thresholds, fit_gates
from common.slimming.study import LEARNED, UNIFORM, Row, compared, cost, mean_scores, slim_hits


@dataclass(frozen=True)
class Variant:
    """A plan and how its model and its multiplications are to be had."""

    plan: SlimmingPlan
    keys: str = "all"
    counter: str = "compact"


def budget_variants(setup: Setup, budgets: Sequence[float], error_images: int) -> dict[tuple[str, float], Variant]:
    """By name and budget: learned and uniform lengths, and uniform ones whose patches something else chose.

    "single_block, square" is the student reproduction (CENG502, 2023): patches by the score of one block, and blocks
    that see no more than they compute, which saves keys, so that more tokens fit into the same budget.

    Args:
        error_images: calibration images, the last ones, that the learned lengths are found on.
    """
    names = ("significance", "coverage", "single_block", "random")
    scores = {name: mean_scores(setup.vit, setup.calibration_images, name) for name in names}
    model, shape = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit)
    found = sensitivity(model, setup.calibration_images[-error_images:], scores["significance"])
    curves, variants = error_curves(found, setup.vit.patch_embed.num_patches), {}
    for budget in budgets:
        plan = _of(shape, scores["significance"], allocate(curves, shape, budget))
        variants[LEARNED, budget] = Variant(plan)
        for name, ranked in scores.items():
            label = UNIFORM if name == "significance" else f"{UNIFORM}, {name}"
            variants[label, budget] = Variant(_of(shape, ranked, uniform_lengths(shape, budget)))
        square = _of(shape, scores["single_block"], uniform_lengths(shape, budget, "square"))
        variants[f"{UNIFORM}, single_block, square", budget] = Variant(square, "selected", "square")
    return variants


def _of(shape: Shape, scores: Tensor, lengths: Sequence[int]) -> SlimmingPlan:
    return nested(scores, lengths, shape.num_prefix_tokens)


def budget_rows(
    setup: Setup, budgets: Sequence[float], error_images: int = 64, limit_val: int | None = None
) -> Iterator[Row]:
    """Accuracy, among all classes of the head, of :func:`budget_variants`.

    ``gain`` is the difference to the uniform plan of the same budget on the same images, with its standard error.

    Args:
        limit_val: validation images; None = all.
    """
    if not budgets:
        return
    variants, model = budget_variants(setup, budgets, error_images), reduce_tokens(setup.vit, "none")
    slim = {key: slimmed(model, each.plan, each.keys) for key, each in variants.items()}
    hits, shape = slim_hits(setup, slim, limit_val), Shape.of(setup.vit)
    for (name, budget), each in variants.items():
        row = {"part": "budgets", "schedule": name, "stage": "searched", "share": budget, "method": "patch_slimming"}
        costing = cost(shape, each.plan.lengths, each.counter)
        yield {**row, **costing, **compared(hits[name, budget], hits[UNIFORM, budget])}


def dynamic_rows(
    setup: Setup, plan: SlimmingPlan, *, epochs: int, num_images: int, limit_val: int | None = None
) -> Iterator[Row]:
    """Patches that gates choose image by image against the ``plan``, the same in all, at equal mean tokens, untuned.

    ``gain`` is the difference to the plan on the same images. ``tokens`` of the thresholds are mean and standard
    deviation over ``num_images`` calibration images, which the gates are fitted on.
    """
    images, shape = setup.calibration_images[:num_images], Shape.of(setup.vit)
    torch.manual_seed(setup.seed)
    fixed = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan).eval()
    fit_gates(fixed, images, epochs=epochs)
    threshold = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan, budget="threshold").eval()
    threshold.reducer.gates.load_state_dict(fixed.reducer.gates.state_dict())
    calibrate_thresholds(threshold, images)
    model = reduce_tokens(setup.vit, "none")
    slim = {"static": slimmed(model, plan), "gates, fixed": fixed, "gates, threshold": threshold}
    hits = slim_hits(setup, slim, limit_val)
    for name, each in slim.items():
        method = "patch_slimming" if name == "static" else "dynamic_slimming"
        row = {"part": "dynamic", "schedule": name, "stage": "searched", "method": method, **cost(shape, plan.lengths)}
        if name == "gates, threshold":
            row["tokens"] = _spread(each, images, setup.batch_size)
        yield {**row, **compared(hits[name], hits["static"])}


def _spread(model: ReducedVisionTransformer, images: Tensor, batch_size: int) -> str:
    """Mean and standard deviation over ``images`` of the tokens that each block computes."""
    device, prefix = next(model.parameters()).device, model.num_prefix_tokens
    traces = [model.trace(batch.to(device))[1].num_tokens for batch in images.split(batch_size)]
    counts = [torch.cat([trace[layer] for trace in traces]).double() for layer in range(len(model.blocks))]
    return " ".join(f"{prefix + count.mean().item():.0f}±{count.std().item():.0f}" for count in counts)
