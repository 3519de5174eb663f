"""From traced images to the rows and pictures of "which patches survive"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data.base import LabelledDataset
from common.data.loading import one_class_after_the_other
from common.plots import Example, ExampleRow


@dataclass(frozen=True)
class Decision:
    """Predicted class names and their probabilities (n,), a fraction."""

    names: list[str]
    probability: Tensor


@dataclass(frozen=True)
class TracedImages:
    """One reduced model over n images.

    Attributes:
        keep_rate: of the model.
        kept: bool (n, L, P), patches alive after every block.
        num_kept: long (n, L), tokens alive after every block.
        full, reduced: what the model says without and with reduction.
        class_names: the true classes.
    """

    keep_rate: float
    kept: Tensor
    num_kept: Tensor
    full: Decision
    reduced: Decision
    class_names: list[str]

    def rows(self, layers: Sequence[int]) -> list[dict[str, object]]:
        """One row per image and layer, for the table "visualize"; layers are written counted from 1."""
        return [
            {
                "keep_rate": self.keep_rate,
                "image": str(image),
                "class_name": name,
                "layer": layer + 1,
                "num_kept": self.num_kept[image, layer].item(),
                "predicted": self.reduced.names[image],
                "probability": self.reduced.probability[image].item(),
                "predicted_full_model": self.full.names[image],
                "probability_full_model": self.full.probability[image].item(),
            }
            for image, name in enumerate(self.class_names)
            for layer in layers
        ]


@torch.inference_mode()
def trace_all(
    vit: nn.Module,
    models: Mapping[float, nn.Module],
    loader: DataLoader,
    classes: Sequence[str],
    inside: Sequence[int] | None = None,
) -> dict[float, TracedImages]:
    """Trace the reduced ``models`` (by keep rate) beside the full ``vit`` over ``loader``.

    Args:
        vit: the unreduced model, in eval mode.
        models: reduced from it.
        loader: images (B, 3, H, W) and labels.
        classes: names of the dataset's classes.
        inside: the head's outputs that are these classes, where it has more.
    """
    batches = list(loader)
    names = [classes[label] for _, labels in batches for label in labels.tolist()]
    full = _decide(torch.cat([vit(images) for images, _ in batches]), classes, inside)
    traced = {}
    for rate, model in models.items():
        logits, traces = zip(*(model.eval().trace(images) for images, _ in batches), strict=True)
        depth = range(len(vit.blocks))
        kept = torch.cat([torch.stack([trace.kept(layer) for layer in depth], dim=1) for trace in traces])
        counts = torch.cat([torch.stack(trace.num_tokens, dim=1) for trace in traces])
        traced[rate] = TracedImages(rate, kept, counts, full, _decide(torch.cat(logits), classes, inside), names)
    return traced


def _decide(logits: Tensor, classes: Sequence[str], inside: Sequence[int] | None) -> Decision:
    if inside is not None:
        logits = logits[:, list(inside)]
    probability, index = logits.softmax(1).max(1)
    return Decision([classes[i] for i in index.tolist()], probability)


def denormalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images (..., 3, H, W) back in [0, 1]."""
    shape = (3, 1, 1)
    return (images * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)


def examples(
    dataset: LabelledDataset, traced: Mapping[float, TracedImages], layers: Sequence[int], count: int
) -> list[Example]:
    """``count`` images for :func:`common.plots.united_grid`, spread evenly over the classes."""
    chosen = one_class_after_the_other(dataset.labels)[:count]
    return [_example(dataset, traced, list(layers), index) for index in chosen.tolist()]


def _example(dataset: LabelledDataset, traced: Mapping[float, TracedImages], layers: list[int], index: int) -> Example:
    image, label = dataset[index]
    rows = tuple(
        ExampleRow(
            keep_rate=rate,
            kept=trace.kept[index, layers].numpy(),
            predicted_full_model=trace.full.names[index],
            probability_full_model=trace.full.probability[index].item(),
            predicted=trace.reduced.names[index],
            probability=trace.reduced.probability[index].item(),
        )
        for rate, trace in traced.items()
    )
    return Example(denormalise(image, dataset.mean, dataset.std), dataset.classes[label], rows)
