"""What models whose patches idle do with a dataset: logits, computed patches, cost, and how good predictors are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from common.cost.closed_form import Shape
from common.cost.methods import attention_of, deciding_macs, idle_macs
from common.models.observe import observing
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.reducers.base import BLOCK_OUTPUT, Signals
from common.rows import Rows
from common.tokens import Choice, Tokens
from common.training import inference_pass


@dataclass(frozen=True)
class Outcome:
    """What one model did with n images.

    Attributes:
        logits: (n, classes) float32.
        active: (n, depth, P) whether each block computed each patch.
        macs: (n,) MAC of each image, what deciding costs included.
    """

    logits: Tensor
    active: Tensor
    macs: Tensor

    @property
    def idle(self) -> Tensor:
        """Patches that idle (n, depth), whether any may idle in a block or not."""
        return (~self.active).sum(2).double()

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches that each block computes, mean over images, as whole numbers, at least 1."""
        return tuple(self.active.sum(2).double().mean(0).round().clamp(min=1).int().tolist())

    @property
    def reactivated(self) -> float | None:
        """Share of the idle patches that the next block computes; None where no patch idles."""
        idle = ~self.active[:, :-1]
        return self.active[:, 1:][idle].double().mean().item() if idle.any() else None


def outcomes(models: Sequence[ReducedVisionTransformer], loader: DataLoader) -> tuple[list[Outcome], Tensor]:
    """What each of ``models`` does with the images of ``loader``; and all their labels.

    >>> from common import create_model
    >>> from common.data import load_dataset, make_loader
    >>> loader = make_loader(load_dataset("digits", "val", img_size=32, limit=4), 4, shuffle=False, seed=0)
    >>> found, labels = outcomes([create_model("vit_digits", reducer="idle_topk", keep_rate=0.5)], loader)
    >>> found[0].counts
    (64, 32, 32, 16, 8, 8)
    """
    count = len(loader.sampler)
    rows, labels = [(Rows(count), Rows(count)) for _ in models], Rows(count)
    with inference_pass(models, loader, "evaluation") as batches:
        for images, targets in batches:
            for model, (logits, active) in zip(models, rows, strict=True):
                found, trace = model.trace(images)
                logits.add(found.float())
                active.add(torch.stack(trace.active, dim=1))
            labels.add(targets)
    return [_outcome(model, *(each.rows for each in own)) for model, own in zip(models, rows, strict=True)], labels.rows


def _outcome(model: ReducedVisionTransformer, logits: Tensor, active: Tensor) -> Outcome:
    shape, attention, asked = Shape.of(model), "standard", ()
    if model.reducer.idles:
        attention, asked = attention_of(model.reducer), acting_blocks(model)
    computed = {layer: active[:, layer].sum(1).double() for layer in asked}
    macs = idle_macs(shape, computed, attention) + deciding_macs(model, asked)
    return Outcome(logits, active, torch.as_tensor(macs, dtype=torch.float64).expand(len(logits)))


def acting_blocks(model: ReducedVisionTransformer) -> list[int]:
    """The blocks of a model in eval mode in which patches may idle."""
    start = Tokens(torch.empty(0, 0, 0), model.num_prefix_tokens, model.grid_size)
    return [layer for layer in range(len(model.blocks)) if model.reducer.needs(layer, start) is not None]


@dataclass(frozen=True)
class PredictorQuality:
    """How well one block's predictions agree with what the block then does, over patches of n images.

    Attributes:
        accuracy: percent of decisions that are the label; inflated where nearly all labels are one.
        balanced_accuracy: mean of the percentages among the patches to compute and among those to idle.
        auroc: of the chance p against the label. NaN, like the former, where all labels are one.
        confusion: (2, 2) shares of patches: row = label, column = decision, idle first.
    """

    accuracy: float
    balanced_accuracy: float
    auroc: float
    confusion: Tensor

    @classmethod
    def of(cls, label: Tensor, chance: Tensor, decided: Tensor) -> PredictorQuality:
        """From the labels, p and the decisions of all patches, of one shape."""
        label, chance, decided = label.flatten(), chance.flatten(), decided.flatten()
        confusion = (2 * label.long() + decided.long()).bincount(minlength=4).double().reshape(2, 2) / len(label)
        known = bool(label.any() and not label.all())
        recall = 100 * confusion.diagonal() / confusion.sum(1)
        return cls(
            accuracy=100 * confusion.trace().item(),
            balanced_accuracy=recall.mean().item() if known else float("nan"),
            auroc=float(roc_auc_score(label.numpy(), chance.numpy())) if known else float("nan"),
            confusion=confusion,
        )


def predictor_quality(model: ReducedVisionTransformer, loader: DataLoader) -> dict[int, PredictorQuality]:
    """Judge the predictions of an ``idle_mlp`` on the states that its own decisions lead to; block -> quality.

    >>> from common import create_model
    >>> from common.data import load_dataset, make_loader
    >>> loader = make_loader(load_dataset("digits", "val", img_size=32, limit=4), 4, shuffle=False, seed=0)
    >>> quality = predictor_quality(create_model("vit_digits", reducer="idle_mlp", keep_rate=0.5), loader)
    >>> list(quality), quality[1].confusion.sum().item()
    ([1, 2, 3, 4, 5], 1.0)
    """
    reducer, found = model.reducer, defaultdict(lambda: ([], [], []))

    def see(layer: int, tokens: Tokens, signals: Signals, choice: Choice) -> None:
        label = reducer.labels(tokens, signals.output, layer) > 0  # (B, P)
        _, chance = reducer.score(tokens, Signals(), layer)
        found[layer][0].append(label.cpu())
        found[layer][1].append(chance.cpu())

    observed = observing(model, see, BLOCK_OUTPUT)
    with inference_pass([observed], loader, "quality of the predictors") as batches:
        for images, _ in batches:
            trace = Trace()
            observed.encode(reducer.with_influence(observed.embed(images, traced=True)), trace)
            for layer in found:
                found[layer][2].append(trace.active[layer].cpu())
    return {layer: PredictorQuality.of(*map(torch.cat, parts)) for layer, parts in found.items()}
