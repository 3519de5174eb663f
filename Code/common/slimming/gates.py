"""Training of the gates of "dynamic_slimming", and thresholds that make its number of tokens depend on the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.data.unlabelled import Calibration
from common.errors import UsageError
from common.models.block import reduced_block
from common.models.observe import untouched
from common.models.reduced import ReducedVisionTransformer, attach
from common.options import Count, Positive, Whole, checked
from common.reducers.dynamic_slimming import DynamicSlimming, with_patches
from common.reducers.none import NoReduction
from common.schedule import Schedule
from common.slimming.calibration import batches
from common.slimming.scores import image_significances
from common.tokens import Tokens
from common.training.accelerator import progress

GATE_LR = 1e-3


@checked
def fit_gates(
    model: ReducedVisionTransformer,
    images: Calibration,
    *,
    epochs: Whole = 5,
    lr: Positive = GATE_LR,
    batch_size: Count = 16,
) -> list[float]:
    """Teach the gates of ``model``, in place, to predict each image's own significance scores; nothing else learns.

    The target of a gate is the logarithm of the scores of its block in the unreduced network, standardised within the
    image: scores span decades, and only their order counts. Loss: smooth L1.

    >>> from common import create_model
    >>> model = create_model("vit_digits", reducer="dynamic_slimming", keep_rate=0.5)
    >>> len(fit_gates(model, torch.rand(4, 3, 32, 32), epochs=2))
    2

    Args:
        model: reduced by "dynamic_slimming".

    Returns:
        Mean loss of every epoch, summed over the gates.

    Raises:
        UsageError: a gate stands in the last block, whose patches no head reads: they have no significance.
    """
    gates = _reducer(model).gates
    layers, whole = sorted(map(int, gates)), attach(model, NoReduction(model, Schedule(1.0, (0,))))
    if not layers:
        return []
    if layers[-1] >= len(model.blocks) - 1:
        raise UsageError(
            f"a gate in block {layers[-1]}, the last one, has nothing to learn: no head reads its patches; allowed: "
            f"reduction_loc with blocks 0 to {len(model.blocks) - 2}"
        )
    span = range(layers[0], layers[-1] + 1)
    losses, targets = [], {}
    with untouched(model):
        gates.requires_grad_(True)
        optimizer = torch.optim.AdamW(gates.parameters(), lr=lr, weight_decay=0.0)
        for epoch in range(epochs):
            total = 0.0
            for number, batch in enumerate(batches(images, batch_size, whole, f"gates, epoch {epoch + 1}")):
                inputs = _inputs(whole, batch, layers)
                if number not in targets:
                    with torch.no_grad():
                        targets[number] = standardised(image_significances(whole, inputs[0], span, batch=number))
                loss = _loss(model.reducer, inputs, layers, targets[number])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(batch)
            losses.append(total / len(images))
    return losses


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


def _loss(reducer: DynamicSlimming, inputs: list[Tokens], layers: list[int], targets: Tensor) -> Tensor:
    losses = [
        F.smooth_l1_loss(reducer.score(tokens, layer), targets[:, layer - layers[0]])
        for tokens, layer in zip(inputs, layers, strict=True)
    ]
    return torch.stack(losses).sum()


@torch.inference_mode()
def calibrate_thresholds(model: ReducedVisionTransformer, images: Calibration, *, batch_size: int = 32) -> None:
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
    """
    reducer = _reducer(model)
    if reducer.budget != "threshold":
        raise UsageError(f"budget {reducer.budget!r} has no thresholds; allowed: threshold")
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
    if not isinstance(model.reducer, DynamicSlimming):
        raise UsageError(f"reducer {type(model.reducer).__name__} has no gates; allowed: dynamic_slimming")
    return model.reducer
