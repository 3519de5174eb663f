"""Comparisons of models with idle patches: rows of the table ``idling``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import torch
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.throughput import interleaved
from common.data.base import LabelledDataset
from common.idling.candidates import Candidate, build, tune
from common.idling.outcomes import Outcome, outcomes, pruner_quality
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method
from common.reducers.losses import divergence
from common.setup import Setup
from common.training import TrainConfig, accuracies, torch_device
from common.visualize import denormalise


def measure(
    setup: Setup, candidates: Sequence[Candidate], images: LabelledDataset | None = None
) -> tuple[list[dict[str, object]], list[Outcome]]:
    """A row of the table ``idling`` for every candidate on all ``images``, and what the rows are made from.

    Args:
        images: by default all validation images.
    """
    images = setup.val_set if images is None else images
    found, labels = outcomes(dict(enumerate(each.model for each in candidates)), setup.loader(images))
    rows = [_row(each, found[place], labels, images) for place, each in enumerate(candidates)]
    return rows, list(found.values())


def _row(candidate: Candidate, found: Outcome, labels: Tensor, images: LabelledDataset) -> dict[str, object]:
    method, reducer = Method.parse(candidate.text), candidate.model.reducer
    dense = Shape.of(candidate.model).unreduced
    back = found.came_back
    return {
        "method": method.name,
        "options": method.options_text,
        "keep_rate": reducer.schedule.keep_rate,
        "attention": getattr(reducer, "attention", "standard"),
        "stage": candidate.stage,
        "tau": candidate.tau,
        "target_cut": None if candidate.cut is None else 100 * candidate.cut,
        "patches_idle": found.patches_idled,
        "came_back": None if back != back else back,
        **accuracies(found.logits, labels, images),
        "gmac": found.macs.mean().item() / 1e9,
        "macs_cut": 100 * (1 - found.macs.mean().item() / dense),
        "n_train": candidate.n_train,
        "epochs": candidate.epochs,
        "n_val": len(labels),
        "seed": candidate.seed,
    }


def bounds(setup: Setup, fitted: Candidate, seen: Outcome, seeds: Sequence[int]) -> list[Candidate]:
    """Oracle, predictor and, for each of ``seeds``, random patches: all compute as many patches in every block
    as were ``seen`` on average.

    The oracle knows what the predictor of ``fitted`` learnt.
    """
    how, pruners = {"counts": seen.counts}, fitted.model.reducer
    chance = f"idle_random:attention={pruners.attention}"
    oracle = f"{chance.replace('random', 'oracle')},similarity={pruners.similarity},influence={pruners.influence}"
    found = [Candidate(oracle, build(setup, oracle, **how), seed=fitted.seed)]
    found.append(replace(fitted, cut=None, model=build(setup, fitted.text, pruners, **how)))
    return [*found, *(Candidate(chance, build(setup, chance, seed=seed, **how), seed=seed) for seed in seeds)]


def try_rates(
    setup: Setup, start: Candidate, cut: float, config: TrainConfig, rates: Sequence[float], count: int | None
) -> list[dict[str, object]]:
    """Stage 2 of ``start`` with each of the learning ``rates``: a row of the table ``idling`` on calibration images.

    ``divergence`` is that of the class probabilities from the unreduced model's, on images that nothing is trained on.

    Args:
        config, count: see :func:`common.idling.candidates.tune`.
    """
    trials = [tune(setup, start, cut, replace(config, lr=rate), count) for rate in rates]
    dense = Candidate("none", build(setup, "none"), seed=start.seed)
    rows, found = measure(setup, [dense, *trials], setup.calibration)
    apart = [divergence(each.logits, found[0].logits).item() for each in found[1:]]
    return [{**row, "lr": rate, "divergence": far} for row, rate, far in zip(rows[1:], rates, apart, strict=True)]


def prediction(setup: Setup, candidate: Candidate, images: LabelledDataset) -> dict[str, float]:
    """How well the pruners of ``candidate`` know their labels, mean over the blocks where both labels occur."""
    found = [
        each for each in pruner_quality(candidate.model, setup.loader(images)).values() if each.auroc == each.auroc
    ]
    names = {"pruner_accuracy": "accuracy", "balanced_accuracy": "balanced_accuracy", "auroc": "auroc"}
    return {column: mean(getattr(each, name) for each in found) for column, name in names.items()}


def speeds(setup: Setup, candidates: Sequence[Candidate], rounds: int = 3) -> list[float]:
    """Median speed-up of every candidate over the first, interleaved, on one batch of validation images."""
    images, _ = next(iter(setup.loader(setup.some(min(setup.batch_size, len(setup.val_set))))))
    models = {place: each.model.eval() for place, each in enumerate(candidates)}
    measured = interleaved(models, images.to(torch_device(setup.device)), baseline=0, rounds=rounds)
    return [measured[place].speedup for place in models]


def computed_patches(
    setup: Setup, model: ReducedVisionTransformer, places: Sequence[int], among: int = 10
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Pictures (3, H, W) in [0, 1], patches that each block computes (depth, P), and classes.

    Args:
        places: of the images among ``among`` validation images, the classes as even as possible.
    """
    few = setup.some(among).select(torch.tensor(list(places)))
    images = few.stack()
    _, trace = model.trace(images.to(torch_device(setup.device)))
    pictures = denormalise(images, few.mean, few.std)
    return list(pictures), list(torch.stack(trace.active, 1).cpu()), [few.classes[label] for label in few.labels]
