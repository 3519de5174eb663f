"""From traced images to the rows and pictures of "which patches survive"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data.base import LabelledDataset
from common.data.loading import one_class_after_the_other
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.plots import Example, ExampleRow, GalleryPanel, method_style
from common.reducers import Method, Reducer
from common.tokens import GONE


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


def gallery(
    models: Mapping[str, ReducedVisionTransformer], dataset: LabelledDataset, indices: Sequence[int], stage: int
) -> tuple[list[GalleryPanel], list[dict[str, object]]]:
    """Some images under many methods: panels for :func:`common.plots.methods_gallery`, rows of the table "gallery".

    Args:
        models: by the method's written form; their heads have the dataset's classes.
        dataset: where the images are from.
        indices: of the images.
        stage: after which reduction to look, counted from 1.
    """
    panels, rows = [], []
    for index in indices:
        image, label = dataset[index]
        for text, model in models.items():
            parameter = next(model.parameters())
            logits, trace = model.eval().trace(image[None].to(parameter))
            layer = model.reducer.schedule.reduction_loc[stage - 1]
            decision = _decide(logits.cpu(), dataset.classes, None)
            name, probability = decision.names[0], decision.probability.item()
            tokens, method = trace.num_tokens[layer].item(), Method.parse(text)
            panels.append(
                GalleryPanel(
                    title=f"{method_style(method.name).label}: {tokens}",
                    image=denormalise(image, dataset.mean, dataset.std),
                    predicted=name,
                    probability=probability,
                    correct=name == dataset.classes[label],
                    **_shown(trace, layer, model.reducer),
                )
            )
            rows.append(
                {
                    "method": method.name,
                    "options": method.options_text,
                    "keep_rate": model.reducer.schedule.keep_rate,
                    "image": dataset.image_ids[index],
                    "class_name": dataset.classes[label],
                    "layer": layer + 1,
                    "num_tokens": tokens,
                    "predicted": name,
                    "probability": probability,
                }
            )
    return panels, rows


def _shown(trace: Trace, layer: int, reducer: Reducer) -> dict[str, Tensor | None]:
    """Which patches a panel shows clearly, and which it outlines together."""
    held, selected, token = trace.kept(layer)[0], trace.selected(layer)[0], trace.assignment[layer][0]
    if reducer.clusters:
        return {"kept": held, "groups": token, "selected": selected if reducer.selects else None}
    fused = held & ~selected  # patches that live on in a token of which none of them is the centre
    return {"kept": selected, "groups": token.masked_fill(~fused, GONE) if fused.any() else None}


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
