"""Models with idle patches, made from one backbone: trained, and given a budget."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from common.idling.budget import solve_thresholds
from common.idling.outcomes import acting_blocks, outcomes
from common.idling.states import alikeness
from common.idling.training import LABEL_STAGE, fit_pruners
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Method
from common.reducers.base import Reducer
from common.setup import Setup, follow
from common.training import TrainConfig, torch_device
from common.training.distillation import DISTILLATION


@dataclass(frozen=True)
class Candidate:
    """A model under comparison, and what a row of the table ``idling`` says of how it came about.

    Attributes:
        text: the method as :class:`common.reducers.Method` writes it.
        model: it.
        stage: "frozen" or "tuned".
        tau: of the labels that its pruners learnt.
        cut: share of the MAC that its thresholds were solved to save.
        n_train, epochs: of its last training.
        seed: of what is drawn.
    """

    text: str
    model: ReducedVisionTransformer
    stage: str = "frozen"
    tau: float | None = None
    cut: float | None = None
    n_train: int = 0
    epochs: int = 0
    seed: int = 0


def build(setup: Setup, text: str, pruners: Reducer | None = None, **options: object) -> ReducedVisionTransformer:
    """A reduced model that shares the weights of the backbone and has a copy of those ``pruners``."""
    method = Method.parse(text)
    model = reduce_tokens(setup.vit, method.name, **dict(method.options), **options)
    if pruners is not None:
        model.reducer.load_state_dict(pruners.state_dict())
    return model.to(torch_device(setup.device)).eval()


def tau_for(setup: Setup, text: str, share: float) -> float:
    """The tau at which a ``share`` of all patches in all blocks may idle, by the labels that ``text`` learns."""
    return alikeness(build(setup, text, score_threshold=0.5), setup.loader()).tau(share)


def fit(setup: Setup, text: str, tau: float, config: TrainConfig = LABEL_STAGE, count: int | None = None) -> Candidate:
    """Stage 1 on the frozen backbone: an Idling MLP whose pruners know the labels of ``tau``.

    Args:
        count: training images, as for :func:`tune`; None = all.
    """
    torch.manual_seed(setup.seed)
    model = build(setup, text, score_threshold=0.5, tau=tau)
    config, data = setup.settings(config), setup.training(count)
    epochs = fit_pruners(model, data, config, setup.place(f"{text}-tau{tau:.4f}-labels"))
    follow(epochs, f"pruners of {text}, tau {tau:.3f}", config)
    return Candidate(text, model.eval(), tau=tau, n_train=len(data[0]), epochs=config.epochs, seed=setup.seed)


def within_budget(setup: Setup, fitted: Candidate, cut: float) -> Candidate:
    """A copy of ``fitted`` with thresholds for ``cut``, a share of the MAC."""
    copied = replace(fitted, model=copy.deepcopy(fitted.model), cut=cut)
    solve_thresholds(copied.model, setup.loader(), cut)
    return copied


def with_attention(setup: Setup, fitted: Candidate, attention: str) -> Candidate:
    """``fitted`` on the frozen backbone, with its thresholds, whatever they then save, and another attention."""
    text = str(Method.parse(fitted.text).having(attention=attention))
    model = build(setup, text, fitted.model.reducer, score_threshold=0.5, tau=fitted.tau)
    return replace(fitted, text=text, model=model, cut=None)


def at_rate(setup: Setup, start: Candidate, keep_rate: float, re_entry: bool) -> Candidate:
    """``start`` with numbers of patches that follow from ``keep_rate``, and a way back or none."""
    text = str(Method.parse(start.text).having(re_entry=re_entry))
    model = build(setup, text, start.model.reducer, keep_rate=keep_rate)
    return replace(start, text=text, model=model, cut=None)


def tune(
    setup: Setup, start: Candidate, cut: float | None, config: TrainConfig = DISTILLATION, count: int | None = None
) -> Candidate:
    """Stage 2 of a copy of ``start``, distilled from the backbone; new thresholds where a ``cut`` is given."""
    model, data = copy.deepcopy(start.model), setup.training(count)
    if cut is not None:
        found = outcomes({"": model}, setup.loader())[0][""]
        acting = acting_blocks(model)
        model.reducer.keep_target = found.computed[:, acting].double().mean().item() / found.num_patches
    budget = model.reducer.schedule.keep_rate if cut is None else f"cut{cut}"
    folder = setup.place(f"{start.text}-{budget}-n{len(data[0])}-lr{config.lr}-task")
    setup.distil(model, data, config, title=f"{start.text}, distilled", folder=folder)
    if cut is not None:
        solve_thresholds(model.eval(), setup.loader(), cut)
    return replace(start, model=model.eval(), stage="tuned", n_train=len(data[0]), epochs=config.epochs)
