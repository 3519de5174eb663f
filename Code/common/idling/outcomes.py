"""What models whose patches idle make of a dataset: logits, who was computed, at what cost, and how rightly."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader

from common.cost.closed_form import Shape
from common.cost.methods import attention_of, deciding_macs, idle_macs
from common.models.observe import observing, untouched
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.reducers.base import Signals
from common.rows import Rows
from common.tokens import Selection, Tokens
from common.training.accelerator import progress


@dataclass(frozen=True)
class Outcome:
    """What one model did with n images.

    Attributes:
        logits: (n, classes) float32.
        computed: (n, depth) patches that each block computed.
        returned: (n, depth) patches among these that had idled in the block before.
        num_patches: P.
        macs: (n,) MAC of each image, what deciding costs included.
    """

    logits: Tensor
    computed: Tensor
    returned: Tensor
    num_patches: int
    macs: Tensor

    @property
    def idle_per_layer(self) -> Tensor:
        """Patches that idle in each block (depth,), mean over images."""
        return self.num_patches - self.computed.double().mean(0)

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches that each block computes, mean over images, as whole numbers, at least 1."""
        return tuple(self.computed.double().mean(0).round().clamp(min=1).int().tolist())

    @property
    def patches_idled(self) -> float:
        """Patches that idle, mean over images and over all blocks, whether any may idle there or not."""
        return self.idle_per_layer.mean().item()

    @property
    def came_back(self) -> float:
        """Share of the idle patches that the next block computes; NaN where nobody idles."""
        idle = (self.num_patches - self.computed[:, :-1]).sum()
        return (self.returned[:, 1:].sum() / idle).item() if idle else float("nan")


@torch.inference_mode()
def outcomes(
    models: Mapping[Hashable, ReducedVisionTransformer], loader: DataLoader
) -> tuple[dict[Hashable, Outcome], Tensor]:
    """What each of ``models``, put in eval mode, does with the images of ``loader``; and all their labels.

    >>> from common import create_model
    >>> from common.data import load_dataset, make_loader
    >>> loader = make_loader(load_dataset("digits", "val", img_size=32, limit=4), 4, shuffle=False, seed=0)
    >>> found, labels = outcomes({"idle": create_model("vit_digits", reducer="idle_topk", keep_rate=0.5)}, loader)
    >>> found["idle"].counts
    (64, 32, 32, 16, 8, 8)
    """
    count = len(loader.sampler)
    rows = {key: (Rows(count), Rows(count), Rows(count)) for key in models}
    labels = Rows(count)
    for model in models.values():
        model.eval()
    device = next(next(iter(models.values())).parameters()).device
    for images, targets in progress(loader, "evaluation", quiet=False):
        images = images.to(device)
        for key, model in models.items():
            logits, trace = model.trace(images)
            for into, values in zip(rows[key], (logits.float(), *_who(trace)), strict=True):
                into.add(values.cpu())
        labels.add(targets)
    return {key: _outcome(model, *(each.rows for each in rows[key])) for key, model in models.items()}, labels.rows


def _who(trace: Trace) -> tuple[Tensor, Tensor]:
    """Patches computed, and returned, in each block (B, depth)."""
    active = torch.stack(trace.active, dim=1)  # (B, depth, P)
    returned = active.clone()
    returned[:, 0] = False
    returned[:, 1:] &= ~active[:, :-1]
    return active.sum(2), returned.sum(2)


def _outcome(model: ReducedVisionTransformer, logits: Tensor, computed: Tensor, returned: Tensor) -> Outcome:
    shape, attention, asked = Shape.of(model), "standard", ()
    if model.reducer.idles:
        attention, asked = attention_of(model.reducer), acting_blocks(model)
    per_block = {layer: computed[:, layer].double() for layer in asked}
    macs = idle_macs(shape, per_block, attention) + deciding_macs(model, asked)
    return Outcome(
        logits, computed, returned, shape.num_patches, torch.as_tensor(macs, dtype=torch.float64).expand(len(logits))
    )


def acting_blocks(model: ReducedVisionTransformer) -> list[int]:
    """The blocks of a model in eval mode in which patches may idle."""
    start = Tokens(torch.empty(0, 0, 0), model.num_prefix_tokens, model.patch_embed.grid_size)
    return [layer for layer in range(len(model.blocks)) if model.reducer.needs(layer, start) is not None]


@dataclass(frozen=True)
class LayerQuality:
    """How well one block's predictions agree with what the block then does, over patches of n images.

    Attributes:
        accuracy: share of decisions that are the label; inflated where nearly all labels are one.
        balanced_accuracy: mean of the shares among the patches to compute and among those to idle.
        auroc: of the chance p against the label. NaN, like the former, where all labels are one.
        confusion: (2, 2) shares of patches: row = label, column = decision, idle first.
        similarity: mean similarity of the patches before and after the block.
    """

    accuracy: float
    balanced_accuracy: float
    auroc: float
    confusion: Tensor
    similarity: float


def pruner_quality(model: ReducedVisionTransformer, loader: DataLoader) -> dict[int, LayerQuality]:
    """Judge the predictions of an ``idle_mlp`` on the states that its own decisions lead to; block -> quality.

    >>> from common import create_model
    >>> from common.data import load_dataset, make_loader
    >>> loader = make_loader(load_dataset("digits", "val", img_size=32, limit=4), 4, shuffle=False, seed=0)
    >>> quality = pruner_quality(create_model("vit_digits", reducer="idle_mlp", keep_rate=0.5), loader)
    >>> list(quality), quality[1].confusion.sum().item()
    ([1, 2, 3, 4, 5], 1.0)
    """
    judge, seen = model.reducer, defaultdict(list)

    def see(layer: int, tokens: Tokens, signals: Signals, choice: Selection | None) -> None:
        _, chance = judge.score(tokens, Signals(), layer)
        alike = judge.alike(tokens, signals.output, layer)
        seen[layer].append((chance.cpu(), _computed(choice, chance).cpu(), alike.cpu()))

    observed = observing(model, see, frozenset({"output"}))
    device = next(model.parameters()).device
    with untouched(observed), torch.inference_mode():
        for images, _ in progress(loader, "pruner quality", quiet=False):
            observed.encode(judge.look_ahead(observed.embed(images.to(device))))
    return {layer: _quality(*map(torch.cat, zip(*found, strict=True)), model) for layer, found in seen.items()}


def _computed(choice: Selection | None, like: Tensor) -> Tensor:
    """Which patches (B, P) ``choice`` lets a block compute; None = all."""
    if choice is None:
        return torch.ones_like(like, dtype=torch.bool)
    valid = torch.ones_like(choice.index, dtype=torch.bool) if choice.valid is None else choice.valid
    return torch.zeros_like(like, dtype=torch.bool).scatter(1, choice.index, valid)


def _quality(chance: Tensor, decided: Tensor, similarity: Tensor, model: ReducedVisionTransformer) -> LayerQuality:
    chance, decided, similarity = (values.flatten() for values in (chance, decided, similarity))
    label = similarity < model.reducer.tau
    confusion = (2 * label.long() + decided.long()).bincount(minlength=4).double().reshape(2, 2) / len(label)
    known = bool(label.any() and not label.all())
    recall = confusion.diagonal() / confusion.sum(1)
    return LayerQuality(
        accuracy=confusion.trace().item(),
        balanced_accuracy=recall.mean().item() if known else float("nan"),
        auroc=float(roc_auc_score(label.numpy(), chance.numpy())) if known else float("nan"),
        confusion=confusion,
        similarity=similarity.double().mean().item(),
    )
