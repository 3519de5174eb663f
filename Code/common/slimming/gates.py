"""Training of the gates of "dynamic_slimming", and thresholds that make its number of tokens depend on the image."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.data.unlabelled import Images, as_calibration, digest, split, take
from common.errors import UsageError
from common.models.block import reduced_block
from common.models.observe import untouched
from common.models.reduced import ReducedVisionTransformer, attach
from common.options import Count, Positive, Share, Whole, checked
from common.reducers.base import divergence
from common.reducers.dynamic_slimming import DynamicSlimming, with_patches
from common.reducers.none import NoReduction
from common.schedule import Schedule
from common.slimming.calibration import batches
from common.slimming.scores import image_significances
from common.tokens import Tokens
from common.training.accelerator import progress
from common.training.checkpoint import RunFolder

GATE_LR = 1e-2
Target = Literal["output", "significance"]
Known = dict[int, Tensor]  # targets by the number of the batch, which are the same in every epoch


@checked
def fit_gates(
    model: ReducedVisionTransformer,
    images: Images,
    *,
    target: Target = "output",
    epochs: Whole = 5,
    lr: Positive = GATE_LR,
    batch_size: Count = 16,
    held_out: Share = 0.25,
    seed: Whole = 0,
    output_dir: str | Path | None = None,
) -> list[float]:
    """Teach the gates of ``model``, in place; nothing else learns, and no labels are used.

    "output": all gates together, straight through their choices (:class:`common.reducers.DynamicSlimming`), until the
    model agrees with the unreduced one. Loss: the Kullback-Leibler divergence of its class probabilities. Gates that
    start from a plan keep the patches of the plan at first, so that what they learn is where to leave it.

    "significance", as published (Tang et al., CVPR 2022, section 4.4): each gate for itself, to predict the logarithm
    of each image's own scores in the unreduced network, standardised in the image: scores span decades, and only their
    order counts. Loss: smooth L1. Top-down, even the true scores of an image choose worse than their mean over
    images does.

    >>> from common import create_model
    >>> model = create_model("vit_digits", reducer="dynamic_slimming", keep_rate=0.5)
    >>> len(fit_gates(model, torch.rand(4, 3, 32, 32), epochs=2))
    2

    Args:
        model: reduced by "dynamic_slimming".
        images: (N, 3, H, W), normalised as the weights expect; a ``Dataset`` of images or of tuples that begin with
            one; or a ``DataLoader``.
        epochs, lr, batch_size: of AdamW without weight decay, whose learning rate falls to 0.
        held_out: share of the images that nothing is learnt on. The gates of the epoch with the least loss on these are
            kept, or those that were given: what starts as a plan does not end worse than it there.
        seed: of this split, of the batches and their order.
        output_dir: a folder that a stopped training goes on from, as if it had not been stopped.

    Returns:
        Mean loss of every epoch on the others; with "significance" summed over the gates.

    Raises:
        UsageError: a gate stands in the last block, whose patches no head reads: there is nothing to learn; or a folder
            of another training.
    """
    gates = _reducer(model).gates
    if not gates:
        return []
    _refuse_last(model)
    images = as_calibration(images, model)
    whole, known = attach(model, NoReduction(model, Schedule(1.0, (0,)))), {}
    settings = {
        "target": target,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "held_out": held_out,
        "seed": seed,
    }
    folder = None
    if output_dir is not None:
        folder = _folder(Path(output_dir), {**settings, "digest": digest(whole, images)}, model.reducer)
    generator = torch.Generator().manual_seed(seed)
    learnt, measured = split(images, held_out, seed)
    learnt = learnt[torch.randperm(len(learnt), generator=generator)]
    parts = (*learnt.split(batch_size), *measured.split(batch_size))
    first = -(-len(learnt) // batch_size)  # of the parts that nothing is learnt on

    def loss_of(number: int) -> Tensor:
        return _LOSSES[target](model, whole, take(images, parts[number]).to(next(model.parameters())), number, known)

    def held_out_loss() -> float:
        return sum(loss_of(number).item() * len(parts[number]) for number in range(first, len(parts))) / len(measured)

    with untouched(model):
        gates.requires_grad_(True)
        model.reducer.train()
        lesson = _Lesson(gates, lr, max(1, epochs * first), generator)
        if (found := folder and folder.load()) is not None:
            lesson.resume(*found)
        elif epochs:
            lesson.keep_if_least(held_out_loss())
        while len(lesson.losses) < epochs:
            order, total = torch.randperm(first, generator=generator).tolist(), 0.0
            for number in progress(order, f"gates, epoch {len(lesson.losses) + 1}", quiet=False):
                loss = loss_of(number)
                lesson.step(loss)
                total += loss.item() * len(parts[number])
            lesson.losses.append(total / len(learnt))
            lesson.keep_if_least(held_out_loss())
            if folder:
                folder.save(*lesson.state())
        gates.load_state_dict(lesson.best)
    return lesson.losses


def _folder(path: Path, settings: Mapping[str, Any], reducer: DynamicSlimming) -> RunFolder:
    """The folder of this training; gates that start at random go on from those that are kept there."""
    size = sum(each.numel() for each in reducer.gates.parameters())
    start = {"plan": reducer.plan and reducer.plan.digest, "counts": reducer.counts, "gate_parameters": size}
    return RunFolder(path.absolute(), {**settings, **start})


class _Lesson:
    """What an epoch of :func:`fit_gates` leaves to the next."""

    def __init__(self, gates: nn.Module, lr: float, steps: int, generator: torch.Generator) -> None:
        self.gates, self.generator = gates, generator
        self.optimizer = torch.optim.AdamW(gates.parameters(), lr=lr, weight_decay=0.0)
        self.falling = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, steps)
        self.losses: list[float] = []
        self.least, self.best = math.inf, copy.deepcopy(gates.state_dict())

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.falling.step()

    def keep_if_least(self, held_out: float) -> None:
        if held_out < self.least:
            self.least, self.best = held_out, copy.deepcopy(self.gates.state_dict())

    def state(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        parts = {name: getattr(self, name).state_dict() for name in ("gates", "optimizer", "falling")}
        state = {**parts, "generator": self.generator.get_state(), "least": self.least, "best": self.best}
        return state, [{"loss": loss} for loss in self.losses]

    def resume(self, state: dict[str, Any], history: list[dict[str, Any]]) -> None:
        for name in ("gates", "optimizer", "falling"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.least, self.best, self.losses = state["least"], state["best"], [each["loss"] for each in history]


def _refuse_last(model: ReducedVisionTransformer) -> None:
    last, allowed = max(map(int, model.reducer.gates)), len(model.blocks) - 2
    if last > allowed:
        raise UsageError(
            f"a gate in block {last}, the last one, has nothing to learn: no head reads its patches; allowed: "
            f"reduction_loc with blocks 0 to {allowed}"
        )


def _output_loss(
    model: ReducedVisionTransformer, whole: ReducedVisionTransformer, batch: Tensor, number: int, known: Known
) -> Tensor:
    """Divergence of ``model`` from ``whole``, whose logits are kept in ``known`` by the ``number`` of the batch."""
    batch = batch.to(next(model.parameters()))
    if number not in known:
        with torch.no_grad():
            known[number] = whole(batch)
    return divergence(model(batch), known[number])


def _significance_loss(
    model: ReducedVisionTransformer, whole: ReducedVisionTransformer, batch: Tensor, number: int, known: Known
) -> Tensor:
    """Error of the gates' predictions of the scores, which are kept in ``known`` by the ``number`` of the batch."""
    layers = sorted(map(int, model.reducer.gates))
    inputs = _inputs(whole, batch.to(next(model.parameters())), layers)
    if number not in known:
        span = range(layers[0], layers[-1] + 1)
        with torch.no_grad():
            known[number] = standardised(image_significances(whole, inputs[0], span, batch=number))
    losses = [
        F.smooth_l1_loss(model.reducer.score(tokens, layer), known[number][:, layer - layers[0]])
        for tokens, layer in zip(inputs, layers, strict=True)
    ]
    return torch.stack(losses).sum()


_LOSSES = {"output": _output_loss, "significance": _significance_loss}


@torch.no_grad()
def _inputs(whole: ReducedVisionTransformer, batch: Tensor, layers: list[int]) -> list[Tokens]:
    """The tokens that enter each of the blocks ``layers`` of the unreduced network."""
    tokens, at, found = whole.embed(batch), 0, []
    for layer in layers:
        tokens, at = whole.advance(tokens, range(at, layer)), layer
        found.append(with_patches(tokens))
    return found


def standardised(scores: Tensor) -> Tensor:
    """Logarithm of ``scores`` (..., P) with mean 0 and standard deviation 1 over the patches."""
    logs = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    return (logs - logs.mean(-1, keepdim=True)) / logs.std(-1, keepdim=True).clamp(min=1e-6)


@torch.inference_mode()
def calibrate_thresholds(model: ReducedVisionTransformer, images: Images, *, batch_size: int = 32) -> None:
    """Set the thresholds of ``model``, in place, so that each block computes its number of patches on average.

    From the first block on, because which patches are left to score hangs on the thresholds before. The features of
    all ``images`` are held for one block.

    >>> from common import create_model
    >>> model = create_model("vit_digits", reducer="dynamic_slimming", keep_rate=0.5, budget="threshold").eval()
    >>> images = torch.rand(4, 3, 32, 32)
    >>> calibrate_thresholds(model, images, batch_size=4)
    >>> model.trace(images)[1].num_tokens[1].sum().item()  # of 4 x 64
    128

    Args:
        model: reduced by "dynamic_slimming:budget=threshold", with trained gates.
        images: as of :func:`fit_gates`.
    """
    reducer = _reducer(model)
    if reducer.budget != "threshold":
        raise UsageError(f"budget {reducer.budget!r} has no thresholds; allowed: threshold")
    images = as_calibration(images, model)
    with untouched(model):
        chunks = [with_patches(model.embed(batch)) for batch in batches(images, batch_size, model, "patches")]
        for layer, block in enumerate(progress(model.blocks, "thresholds", quiet=False)):
            if str(layer) in reducer.gates:
                scores = torch.cat([_alive(reducer.score(tokens, layer), tokens.valid_patches) for tokens in chunks])
                wanted = min(reducer.counts[layer] * len(images), len(scores))
                ordered = scores.sort(descending=True).values
                # halfway to the next score: at a score itself, rounding would decide about its patch
                reducer.thresholds[layer] = ordered[wanted - 1 : wanted + 1].mean()
            chunks = [reduced_block(block, tokens, layer, reducer) for tokens in chunks]


def _alive(scores: Tensor, valid: Tensor | None) -> Tensor:
    return scores.flatten() if valid is None else scores[valid]


def _reducer(model: ReducedVisionTransformer) -> DynamicSlimming:
    reducer = getattr(model, "reducer", model)
    if not isinstance(reducer, DynamicSlimming):
        raise UsageError(f"{type(reducer).__name__} has no gates; allowed: a model reduced by dynamic_slimming")
    return reducer
