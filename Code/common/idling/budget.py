"""Thresholds for a budget: how sure a predictor must be in every block, so that the model costs what it may."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.cost.closed_form import Shape
from common.cost.methods import deciding_macs, idle_block_macs, idle_macs, predictor_macs
from common.errors import UsageError
from common.models.block import reduced_block
from common.models.reduced import ReducedVisionTransformer
from common.reducers.base import Reducer, Signals
from common.tokens import Tokens
from common.training import inference_pass

ROUNDS, CLOSE_ENOUGH = 4, 5e-4  # of the search for thresholds; shares of the MAC
NEVER = 1.0  # p >= 1 for no patch: float32 gets there for logits above 16 only, and such a patch may be computed


def solve_thresholds(model: ReducedVisionTransformer, loader: DataLoader, cut: float) -> list[float]:
    """Set the thresholds of an Idling MLP so that the images of ``loader`` cost a share ``cut`` less than unreduced.

    How many patches idle in which block follows from one level of p for all blocks, on the states of the unreduced
    model: the patches of least p, wherever they are. A block that would save less than its predictor costs computes
    all. Then, from the first block to the last and on the states to which the thresholds before lead, each threshold is
    the quantile of p that lets this many patches idle. As attention costs the square of what an image computes, images
    that differ in it cost more than their mean: what the thresholds miss is added to the aim, and they are solved
    again.

    >>> from common import create_model
    >>> from common.data import load_dataset, make_loader
    >>> loader = make_loader(load_dataset("digits", "val", img_size=32, limit=10), 10, shuffle=False, seed=0)
    >>> model = create_model("vit_digits", reducer="idle_mlp", score_threshold=0.5, attention="standard")
    >>> len(solve_thresholds(model, loader, cut=0.2))
    6

    Args:
        model: an ``idle_mlp`` with a ``score_threshold``; its buffer ``thresholds`` is overwritten.
        loader: calibration images; all their states are held in memory at once.
        cut: share of the MAC to save, predictors paid for.

    Returns:
        The thresholds, one for each block; 0 where a block computes all.

    Raises:
        UsageError: the model decides by numbers, or cannot save that much.
    """
    reducer = model.reducer
    if not hasattr(reducer, "thresholds"):
        raise UsageError(f"{type(reducer).__name__} has no thresholds to solve; give idle_mlp with a score_threshold")
    with inference_pass([model], loader, "calibration") as batches:
        states, whole = [model.embed(images) for images, _ in batches], Reducer(model, reducer.schedule)
        found = [_chances(reducer, layer, entering) for layer, entering in _entering(model, states, whole)]
        chances, aim = torch.stack(found), cut  # (blocks, n, P)
        chances = chances if reducer.re_entry else chances.cummin(0).values
        for _ in range(ROUNDS):
            missed = cut - _saved(model, states, shares_of_budget(model, chances, aim))
            if abs(missed) < CLOSE_ENOUGH:
                break
            aim += missed
    return reducer.thresholds.tolist()


def check_possible(model: ReducedVisionTransformer, cut: float) -> None:
    """Refuse a ``cut`` that is more than the model saves where every patch idles wherever that pays."""
    shares_of_budget(model, torch.zeros(len(model.blocks), 1, Shape.of(model).num_patches), cut)


def _saved(model: ReducedVisionTransformer, states: list[Tokens], counts: list[float | None]) -> float:
    """Set the thresholds for ``counts`` on the embedded images ``states``; the share of the MAC that they save."""
    reducer, computed = model.reducer, {}
    for layer, entering in _entering(model, states, reducer):
        reducer.thresholds[layer] = 0.0
        if counts[layer] is None and (reducer.re_entry or not computed):  # who idled before comes back, or nobody has
            continue
        scores = _chances(reducer, layer, entering)  # (n, P)
        if counts[layer] is not None:
            falling = scores[~scores.isinf()].sort(descending=True).values  # of those that may be computed
            rank = min(round(counts[layer] * len(scores)), len(falling))  # how many of them are
            reducer.thresholds[layer] = falling[rank - 1] if rank else NEVER
        computed[layer] = reducer.passes(scores, layer).sum(1).double()
    shape = Shape.of(model)
    spent = idle_macs(shape, computed, reducer.attention) + deciding_macs(model, list(computed))
    return 1 - torch.as_tensor(spent / shape.unreduced).mean().item()


def _chances(reducer: Reducer, layer: int, states: list[Tokens]) -> Tensor:
    """p (n, P) of all images in block ``layer``, -inf where a patch idled that may not come back."""
    return torch.cat([reducer.ranked(tokens, reducer.score(tokens, Signals(), layer)[1]) for tokens in states])


def _entering(
    model: ReducedVisionTransformer, states: list[Tokens], reducer: Reducer
) -> Iterator[tuple[int, list[Tokens]]]:
    """Each block, and what enters it under ``reducer``; what leaves the last block is not computed."""
    for layer in range(len(model.blocks)):
        if layer:
            states = [reduced_block(model.blocks[layer - 1], tokens, layer - 1, reducer) for tokens in states]
        yield layer, states


def shares_of_budget(model: ReducedVisionTransformer, chances: Tensor, cut: float) -> list[float | None]:
    """Patches to compute in each block, mean over images, None = all without asking; see :func:`solve_thresholds`.

    Args:
        chances: p (blocks, n, P).
    """
    shape, attention = Shape.of(model), model.reducer.attention
    price = predictor_macs(model.reducer.predictors["0"], shape.num_patches)
    target = (1 - cut) * shape.unreduced

    def pays(layer: int, count: float) -> bool:
        only = shape.only_prefix(layer)
        whole = idle_block_macs(shape, shape.num_patches, "standard", only_prefix=only)
        return whole - idle_block_macs(shape, count, attention, only_prefix=only) > price

    def at(level: float) -> list[float | None]:
        counts = (chances >= level).sum(2).double().mean(1).tolist()
        return [count if pays(layer, count) else None for layer, count in enumerate(counts)]

    def cost(counts: list[float | None]) -> float:
        asked = {layer: count for layer, count in enumerate(counts) if count is not None}
        return idle_macs(shape, asked, attention) + price * len(asked)

    low, high = 0.0, 1.0 + 1e-6
    if cost(at(high)) > target:
        raise UsageError(f"mac_cut={cut!r} is not possible with {attention} attention; give less")
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) > target else (low, middle)
    return at(high)
