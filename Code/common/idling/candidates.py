"""Models with idle patches, made from one backbone: trained, and given a budget."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from common.errors import UsageError
from common.idling.budget import solve_thresholds
from common.idling.outcomes import acting_blocks, outcomes
from common.idling.similarity import patch_similarities
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method
from common.setup import Setup
from common.training import TrainConfig
from common.training.distillation import DISTILLATION

LABEL_STAGE = TrainConfig(epochs=3, lr=1e-3, batch_size=32, label_weight=0.0, reducer_only=True, schedule="cosine")
THRESHOLD = 0.5  # of p, before others are solved


@dataclass(frozen=True)
class Candidate:
    """A model under comparison, and how it came about.

    Attributes:
        text: the method as :class:`common.reducers.Method` writes it.
        model: the backbone under that method.
        stage: of the backbone, "frozen" or "tuned".
        tau: of the labels that its predictors learnt.
        idle_share: share of all patches that may idle by these labels, where tau was set for that.
        cut: share of the MAC that its thresholds were solved to save.
        lr, n_train, epochs: of its last training.
        seed: of what is drawn.
    """

    text: str
    model: ReducedVisionTransformer
    stage: str = "frozen"
    tau: float | None = None
    idle_share: float | None = None
    cut: float | None = None
    lr: float | None = None
    n_train: int = 0
    epochs: int = 0
    seed: int = 0


def tau_for(setup: Setup, text: str, share: float) -> float:
    """The tau at which a ``share`` of all patches in all blocks may idle, by the labels that ``text`` learns."""
    return patch_similarities(setup.reduced(text, score_threshold=THRESHOLD), setup.loader()).tau(share)


def fit_predictors(
    setup: Setup,
    text: str,
    config: TrainConfig = LABEL_STAGE,
    count: int | None = None,
    *,
    tau: float | None = None,
    idle_share: float | None = None,
) -> Candidate:
    """Stage 1: the predictors of an ``idle_mlp`` learn the labels of ``tau``; the backbone stays as it is.

    Args:
        config: how; it should train the reducer only.
        count: training images; None = all.
        tau: of the labels; or, in its place,
        idle_share: share of all patches in all blocks that may idle by the labels (:func:`tau_for`).
    """
    if (tau is None) == (idle_share is None):
        raise UsageError(f"tau={tau} with idle_share={idle_share} is not allowed; give one of them")
    tau = tau_for(setup, text, idle_share) if tau is None else tau
    torch.manual_seed(setup.seed)
    model = setup.reduced(text, score_threshold=THRESHOLD, tau=tau)
    folder = setup.place(f"{text}-tau{tau:.4f}-predictors")
    model.reducer.learns = "labels"
    learnt_from = setup.learn(
        model, setup.training(count), config, title=f"predictors of {text}, tau {tau:.3f}", folder=folder
    )
    model.reducer.learns = "task"
    trained = {"lr": config.lr, "n_train": learnt_from, "epochs": config.epochs}
    return Candidate(text, model.eval(), tau=tau, idle_share=idle_share, seed=setup.seed, **trained)


def within_budget(setup: Setup, fitted: Candidate, cut: float) -> Candidate:
    """A copy of ``fitted`` with thresholds for ``cut``, a share of the MAC."""
    copied = replace(fitted, model=copy.deepcopy(fitted.model), cut=cut)
    solve_thresholds(copied.model, setup.loader(), cut)
    return copied


def variant(setup: Setup, start: Candidate, changed: Mapping[str, object], **how: object) -> Candidate:
    """``start`` with the same predictors and thresholds, on the weights of the backbone, under other options.

    Args:
        changed: options that are noted in the method's text.
        how: what decides how many patches are computed: ``score_threshold``, ``keep_rate`` or ``counts``.
    """
    text = str(Method.parse(start.text).having(**changed))
    labels = {} if start.tau is None else {"tau": start.tau}
    model = setup.reduced(text, **how, **labels)
    model.reducer.load_state_dict(start.model.reducer.state_dict())
    return replace(start, text=text, model=model, cut=None)


def oracle(setup: Setup, fitted: Candidate, counts: Sequence[int] | None = None) -> Candidate:
    """Patches idle by the labels themselves that ``fitted`` learnt to predict: at the same tau, or ``counts``."""
    learnt = fitted.model.reducer
    text = _idling_as(fitted, "idle_oracle", similarity=learnt.similarity, influence=learnt.influence)
    if counts is not None:
        return Candidate(text, setup.reduced(text, counts=counts), seed=fitted.seed)
    return Candidate(text, setup.reduced(text, tau=fitted.tau), tau=fitted.tau, seed=fitted.seed)


def bounds(setup: Setup, fitted: Candidate, counts: Sequence[int], seeds: Sequence[int]) -> list[Candidate]:
    """Oracle, predictor and, for each of ``seeds``, random patches, each with ``counts`` patches in the blocks."""
    chance = _idling_as(fitted, "idle_random")
    found = [oracle(setup, fitted, counts), variant(setup, fitted, {}, counts=counts)]
    return [*found, *(Candidate(chance, setup.reduced(chance, seed=s, counts=counts), seed=s) for s in seeds)]


def _idling_as(fitted: Candidate, name: str, **options: object) -> str:
    """The method ``name`` in its written form, with the attention, the way back and the last block of ``fitted``."""
    learnt = fitted.model.reducer
    options["attention"] = learnt.attention
    options |= {} if learnt.re_entry else {"re_entry": False}
    options |= {} if learnt.last_block == "whole" else {"last_block": learnt.last_block}
    return str(Method(name, tuple(sorted(options.items()))))


def tune(
    setup: Setup, start: Candidate, cut: float | None, config: TrainConfig = DISTILLATION, count: int | None = None
) -> Candidate:
    """Stage 2 of a copy of ``start``, distilled from the backbone; new thresholds where a ``cut`` is given."""
    model, data = copy.deepcopy(start.model), setup.training(count)
    if cut is not None:
        (found,), _ = outcomes([model], setup.loader())
        model.reducer.keep_target = found.active[:, acting_blocks(model)].double().mean().item()
    budget = model.reducer.schedule.keep_rate if cut is None else f"cut{cut}"
    folder = setup.place(f"{start.text}-{budget}-n{len(data[0])}-lr{config.lr}-distilled")
    learnt_from = setup.distil(model, data, config, title=f"{start.text}, distilled", folder=folder)
    if cut is not None:
        solve_thresholds(model, setup.loader(), cut)
    trained = {"lr": config.lr, "n_train": learnt_from, "epochs": config.epochs}
    return replace(start, model=model.eval(), stage="tuned", **trained)
