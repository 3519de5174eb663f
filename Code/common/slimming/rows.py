"""Accuracy and cost of plans, and of networks of which one block computes fewer patches, as rows of "slimming"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.counter import gmac_of
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.setup import Setup
from common.slimming.allocation import LEARNED, UNIFORM, allocate, error_curves, sensitivity, uniform_lengths
from common.slimming.gates import GATE_LR, calibrate_thresholds, fit_gates
from common.slimming.measuring import Row, cost, hits_of, measures, speeds
from common.slimming.plans import best_first, nested, one_block, one_block_lengths, slimmed
from common.slimming.ranking import SCORES, SIGNIFICANCES, mean_scores
from common.slimming.stages import Stage, finetuned, searched

_COUNTERS = {"all": "compact", "selected": "square"}  # what is executed, by the keys of a block


def stage_rows(
    setup: Setup, found: Mapping[tuple[str, str], Sequence[Stage]], mac_budget: float, *, rounds: int = 0
) -> Iterator[Row]:
    """Accuracy of the unreduced network and of every stage of plans that cost no more than ``mac_budget``.

    ``gain`` is over uniform lengths with patches by the same score and after the same training, if there are any.

    Args:
        found: (lengths, score) -> the stages of their plan.
        rounds: how often each of them is timed, see :func:`speeds`; 0 = not at all.
    """
    stages = {(*name, stage.training): stage for name, each in found.items() for stage in each}
    unreduced, shape = ("", "", "none"), Shape.of(setup.vit)
    models = {unreduced: reduce_tokens(setup.vit, "none"), **{key: stage.model for key, stage in stages.items()}}
    right, timed = hits_of(setup, models), speeds(setup, models, unreduced, rounds)
    for key in models:
        row = {"part": "stages", **dict(zip(("lengths", "score", "training"), key, strict=True))}
        lengths = [shape.num_tokens] * shape.depth
        if key == unreduced:
            row["method"] = "none"
        else:
            row, lengths = row | stages[key].conditions, stages[key].plan.lengths
        other = right.get((UNIFORM, *key[1:]))
        speed = timed.get(key, {})
        yield {**row, "mac_budget": mac_budget, **cost(shape, lengths), **speed, **measures(right[key], other)}


def tolerance_rows(
    setup: Setup,
    tolerances: Sequence[float],
    *,
    epochs: int = 0,
    finetuning: Mapping[str, Any] | None = None,
    limit_val: int | None = None,
    **how: Any,
) -> Iterator[Row]:
    """Accuracy of what the search finds for each of ``tolerances`` (Tang et al., CVPR 2022, figure 4).

    ``gain`` is over the unreduced network.

    Args:
        epochs, **how: of :class:`common.slimming.top_down.SearchSettings`.
        finetuning: what :func:`finetuned` takes; None, or 0 epochs, = nothing learns on labels.
        limit_val: validation images; None = all.
    """
    if not tolerances:
        return
    models = {}
    for each in sorted(tolerances):
        place = setup.place(f"tolerance-{each:g}")
        models[each] = searched(setup, place, tolerance=each, epochs=epochs, **how)[-1]
        if finetuning and finetuning["epochs"]:
            models[each] = finetuned(setup, models[each], **finetuning, folder=place and place / "labels")
    whole = reduce_tokens(setup.vit, "none")
    right = hits_of(setup, {None: whole, **{key: stage.model for key, stage in models.items()}}, limit_val)
    for tolerance, stage in models.items():
        row = {"part": "tolerances", "tolerance": tolerance, "training": stage.training, **stage.conditions}
        row["score"] = stage.plan.settings["score"]
        costing = cost(Shape.of(setup.vit), stage.plan.lengths)
        yield {**row, **costing, **measures(right[tolerance], right[None])}


def budget_plans(
    setup: Setup, budgets: Sequence[float], error_images: int
) -> dict[tuple[float, str, str, str], SlimmingPlan]:
    """By budget, lengths, score and keys: learned and uniform lengths, and uniform ones whose patches others chose.

    "single_block" with "selected" keys is the student reproduction (CENG502, 2023): patches by the score of one block,
    and blocks that see no more than they compute, which saves keys, so that more tokens fit into the same budget.

    Args:
        error_images: calibration images, the last ones, that the learned lengths are found on.
    """
    names = ("significance", "coverage", "single_block", "random")
    scores = {name: mean_scores(setup.vit, setup.calibration_images, name) for name in names}
    images, shape, plans = setup.calibration_images[-error_images:], Shape.of(setup.vit), {}
    found = sensitivity(reduce_tokens(setup.vit, "none"), images, scores["significance"])
    curves = error_curves(found, shape.num_patches)
    for budget in budgets:
        lengths = {(LEARNED, "significance", "all"): allocate(curves, shape, budget)}
        lengths |= {(UNIFORM, name, "all"): uniform_lengths(shape, budget) for name in names}
        lengths[UNIFORM, "single_block", "selected"] = uniform_lengths(shape, budget, _COUNTERS["selected"])
        for name, each in lengths.items():
            plans[(budget, *name)] = nested(scores[name[1]], each, shape.num_prefix_tokens)
    return plans


def budget_rows(
    setup: Setup, budgets: Sequence[float], error_images: int = 64, limit_val: int | None = None
) -> Iterator[Row]:
    """Accuracy of :func:`budget_plans`; ``gain`` is over uniform lengths with patches by significance.

    Args:
        limit_val: validation images; None = all.
    """
    if not budgets:
        return
    plans, whole = budget_plans(setup, budgets, error_images), reduce_tokens(setup.vit, "none")
    slim = {key: slimmed(whole, plan, keys=key[-1]) for key, plan in plans.items()}
    right = hits_of(setup, slim, limit_val, shared=True)
    for key, plan in plans.items():
        row = {"part": "budgets", **dict(zip(("mac_budget", "lengths", "score", "keys"), key, strict=True))}
        costing = cost(Shape.of(setup.vit), plan.lengths, _COUNTERS[key[-1]])
        yield {**row, **costing, **measures(right[key], right[key[0], UNIFORM, "significance", "all"])}


def dynamic_rows(
    setup: Setup,
    plan: SlimmingPlan,
    *,
    epochs: int,
    num_images: int,
    limit_val: int | None = None,
    folder: Path | None = None,
) -> Iterator[Row]:
    """Patches that gates choose image by image, and those of the ``plan``, over which is ``gain``; nothing else learns.

    Args:
        epochs, num_images: of the gates, on calibration images.
        limit_val: validation images; None = all.
        folder: where a stopped training of the gates goes on from.
    """
    images = setup.calibration_images[:num_images]
    torch.manual_seed(setup.seed)
    fixed = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan).eval()
    fit_gates(fixed, images, epochs=epochs, output_dir=folder)
    threshold = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan, budget="threshold").eval()
    threshold.reducer.gates.load_state_dict(fixed.reducer.gates.state_dict())
    calibrate_thresholds(threshold, images)
    slim = {"none": slimmed(reduce_tokens(setup.vit, "none"), plan), "fixed": fixed, "threshold": threshold}
    right = hits_of(setup, slim, limit_val, shared=True)
    trained = {"method": "dynamic_slimming", "epochs": epochs, "lr": GATE_LR, "n_train": num_images}
    for gates in slim:
        row = {"part": "dynamic", "score": plan.settings.get("score", ""), "gates": gates}
        row |= {"mac_budget": plan.settings.get("mac_budget"), **cost(Shape.of(setup.vit), plan.lengths)}
        row |= trained | _executed(slim[gates], setup) if gates != "none" else {}
        row |= _tokens(threshold, images, setup.batch_size) if gates == "threshold" else {}
        yield {**row, **measures(right[gates], right["none"])}


def _executed(model: ReducedVisionTransformer, setup: Setup) -> Row:
    """What is executed, and saved of it, with what the gates themselves cost."""
    gmac = gmac_of(model, setup.cost_images)
    return {"gmac": gmac, "mac_cut": 1 - 1e9 * gmac / Shape.of(setup.vit).unreduced}


def _tokens(model: ReducedVisionTransformer, images: Tensor, batch_size: int) -> Row:
    """Mean and standard deviation over ``images`` of the tokens that each block computes."""
    device, prefix = next(model.parameters()).device, model.num_prefix_tokens
    traces = [model.trace(batch.to(device))[1].num_tokens for batch in images.split(batch_size)]
    counts = [prefix + torch.cat([trace[layer] for trace in traces]).double() for layer in range(len(model.blocks))]
    rounded = {"tokens": (each.mean() for each in counts), "tokens_sd": (each.std() for each in counts)}
    return {name: " ".join(f"{value.item():.0f}" for value in values) for name, values in rounded.items()}


def one_block_rows(
    setup: Setup,
    *,
    blocks: Sequence[int],
    kept_shares: Sequence[float],
    scores: Sequence[str],
    pruning: Sequence[str] = ("idle",),
    random_masks: int = 0,
    limit_val: int | None = None,
) -> Iterator[Row]:
    """Accuracy when one block computes a share of its patches, chosen by a score or by chance, without any tuning.

    Args:
        scores: see :func:`mean_scores`.
        random_masks: how many; ``gain`` is over their mean. With 0 there is none: the part is "sensitivity".
        limit_val: validation images; None = all.
    """
    names = [(score, 0) for score in scores] + [("random", seed) for seed in range(random_masks)]
    ranks = {name: mean_scores(setup.vit, setup.calibration_images, *name) for name in names}
    model, shape, last = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit), len(setup.vit.blocks) - 1
    counts, slim = {}, {}
    for how, block, share in product(pruning, blocks, kept_shares):
        count = counts[how, block, share] = 0 if block == last else round(share * shape.num_patches)
        for name, ranked in ranks.items():
            patches = best_first(ranked[block])[:count] if count else []
            slim[name, (how, block, share)] = one_block(model, block, patches, how)
    right = hits_of(setup, slim, limit_val, shared=True)
    for cell, count in counts.items():
        row = dict(zip(("pruning", "block", "kept_share"), cell, strict=True))
        row |= {"part": "single_block" if random_masks else "sensitivity"}
        counter = "compact" if cell[0] == "dropped" else "paper"  # what idles still has keys
        row |= cost(shape, one_block_lengths(shape, cell[1], count, cell[0]), counter)
        shown = {score: right[(score, 0), cell] for score in scores}
        if random_masks:
            shown["random"] = torch.stack([right[("random", seed), cell] for seed in range(random_masks)]).mean(0)
        for score, each in shown.items():
            yield {**row, "score": score, **measures(each, shown.get("random"))}


def correlation_rows(setup: Setup, blocks: Sequence[int]) -> Iterator[Row]:
    """Spearman's correlation of every other score with the published significance, by block."""
    published = mean_scores(setup.vit, setup.calibration_images, "significance")
    for name in [*SIGNIFICANCES, *(score for score in SCORES if score not in ("significance", "random"))]:
        scores = mean_scores(setup.vit, setup.calibration_images, name)
        for block in blocks:
            correlation = float(spearmanr(scores[block], published[block]).statistic)
            yield {"part": "heads", "score": name, "block": block, "rank_correlation": correlation}
