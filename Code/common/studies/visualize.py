"""What is kept of single images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from common.data import head_classes
from common.data.base import LabelledDataset
from common.data.loading import one_class_after_the_other
from common.data.transforms import denormalise
from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer
from common.plots import Example, ExampleRow
from common.plots.frames import backbone_name
from common.reducers import Method
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section, labels, model_name, numbers, percent, setting_title
from common.schedule import KeepRate, keep_rate_text
from common.schema import REQUIRED, SEM, count, number, text
from common.setup import Setup
from common.studies.base import Study, register_study
from common.training import inference_pass, predict

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size"]
MEANS = ["num_tokens", "probability_full_model", "probability", "same_share"]


@register_study
class Visualize(Study):
    """Which parts of a picture are kept."""

    name, title = "visualize", "What is kept"
    question = "Which parts of a picture are kept, and does the model still say the same?"
    place = 70
    columns = {
        "image": text("its id in the dataset"),
        "class_name": text("its true class"),
        "block": count("after which tokens are counted", "block"),
        "num_tokens": count("patch tokens left"),
        "predicted": text("most probable class of the dataset by the reduced model"),
        "probability": number("that it gives this class, among those of the dataset", "share"),
        "predicted_full_model": text("most probable class of the dataset by the unreduced model"),
        "probability_full_model": number("that it gives this class, among those of the dataset", "share"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    captions = {
        "": "Patches that are still there after each block that reduces. Blocks count from 0, as timm's blocks.N.",
    }
    run_figures = "*.png"  # six images, and survival; those of each image are beside them, in folders
    run_captions = {"*-survival.png": "How many blocks each place survives, mean over the images."}

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Per condition the number of images, and means over them with their standard errors: tokens left at the end,
        probabilities, share of images of which both models say the same."""
        key = [*SETTING, *VARIANT]
        last = runs.sort_values("block", kind="stable").drop_duplicates([*key, "seed", "image"], keep="last")
        last = last.assign(same_share=(last["predicted"] == last["predicted_full_model"]).astype(float))
        groups = last.groupby(key, dropna=False, sort=False)
        found = {"n_images": groups["image"].nunique()}
        for name in MEANS:
            found |= {name: groups[name].mean().astype(float), name + SEM: groups[name].sem().astype(float)}
        return in_order(pd.DataFrame(found).reset_index(), SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            frame = pd.DataFrame(
                {
                    "Model": labels(rows),
                    "Keep": rows["keep_rate"].map(percent),
                    "Images": rows["n_images"].astype(str),
                    "Patches at the end": numbers(rows["num_tokens"], 1),
                    "Probability, full model": numbers(rows["probability_full_model"]),
                    "Probability, reduced": numbers(rows["probability"]),
                    "Same prediction": [f"{100 * share:.1f} %" for share in rows["same_share"]],
                }
            )
            note = "Probability: mean over the images of what each model gives its own predicted class."
            yield Section(setting_title(rows), frame, (note,))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, row in data.iterrows():
            yield Answer(
                f"{model_name(row)} on {backbone_name(row['backbone'])}, keep rate {percent(row['keep_rate'])}: "
                f"{row['num_tokens']:.0f} patches are left at the end; the prediction is the same as the full model's "
                f"on {100 * row['same_share']:.0f} % of {row['n_images']:,} images; mean probability "
                f"{row['probability']:.2f} (full model {row['probability_full_model']:.2f})."
            )


@dataclass(frozen=True)
class Decision:
    """Predicted class names and their probabilities (n,), a fraction."""

    names: list[str]
    probability: Tensor

    @classmethod
    def of(cls, logits: Tensor, dataset: LabelledDataset) -> Decision:
        """The most probable of the dataset's classes, by ``logits`` (n, outputs of the head)."""
        inside = head_classes(logits.shape[1], dataset)
        probability, index = (logits if inside is None else logits[:, inside]).softmax(1).max(1)
        return cls([dataset.classes[place] for place in index.tolist()], probability.cpu())


@dataclass(frozen=True)
class TracedImages:
    """One reduced model over n images.

    Attributes:
        keep_rate, weights: of the model, as in tables.
        kept: bool (n, L, P), patches alive after every block.
        num_tokens: long (n, L), patch tokens alive after every block.
        full, reduced: what the model says without and with reduction.
    """

    keep_rate: str
    kept: Tensor
    num_tokens: Tensor
    full: Decision
    reduced: Decision
    weights: str = ""


def rates_of_networks(weights: str | Sequence[str], keep_rates: Sequence[KeepRate]) -> dict[str, list[KeepRate]]:
    """Weights -> the keep rates that the network with them runs at, in their order.

    Args:
        weights: of one network for all ``keep_rates``, or of one for each of them, which was trained at it.
    """
    names = [weights] * len(keep_rates) if isinstance(weights, str) else list(weights)
    if len(names) != len(keep_rates):
        raise UsageError(
            f"weights={names} for keep_rates={list(keep_rates)} is not allowed; give one for all, or one for each"
        )
    found: dict[str, list[KeepRate]] = {name: [] for name in names}
    for name, rate in zip(names, keep_rates, strict=True):
        found[name].append(rate)
    return found


def trace_networks(
    setups: Sequence[Setup], rates: Sequence[Sequence[KeepRate]], reducer: str, count: int
) -> list[TracedImages]:
    """Trace the network of each of ``setups``, reduced to its ``rates`` by ``reducer``, over the same ``count`` images.

    Each is compared with itself unreduced.
    """
    found = []
    for setup, own in zip(setups, rates, strict=True):
        models = [setup.reduced(reducer, keep_rate=rate) for rate in own]
        found += trace_images(setup, models, setup.some(count))
    return found


def trace_images(
    setup: Setup, models: Sequence[ReducedVisionTransformer], images: LabelledDataset
) -> list[TracedImages]:
    """Trace each of ``models``, all reduced from the backbone of ``setup``, over ``images``."""
    predictions, _ = predict({"full": setup.vit}, setup.loader(images))
    full, weights = Decision.of(predictions["full"].logits, images), setup.conditions["weights"]
    return [replace(_traced(model, setup.loader(images), full, images), weights=weights) for model in models]


def _traced(
    model: ReducedVisionTransformer, loader: DataLoader, full: Decision, images: LabelledDataset
) -> TracedImages:
    with inference_pass([model], loader, "tracing") as batches:
        logits, traces = zip(*(model.trace(batch) for batch, _ in batches), strict=True)
    blocks = range(len(model.blocks))
    kept = [torch.stack([trace.kept(block) for block in blocks], dim=1) for trace in traces]  # (B, L, P) each
    counts = [torch.stack(trace.num_tokens, dim=1) for trace in traces]  # (B, L) each
    keep_rate, reduced = keep_rate_text(model.reducer.schedule.keep_rate), Decision.of(torch.cat(logits), images)
    return TracedImages(keep_rate, torch.cat(kept).cpu(), torch.cat(counts).cpu(), full, reduced)


def measure(
    images: LabelledDataset, traced: Sequence[TracedImages], reducer: str, blocks: Sequence[int]
) -> list[dict[str, object]]:
    """A row for every model of ``traced``, image and block of ``blocks``; ``reducer`` is the method's written form."""
    method = Method.parse(reducer)
    return [
        {
            "method": method.name,
            "options": method.options_text,
            "weights": trace.weights,
            "keep_rate": trace.keep_rate,
            "image": name,
            "class_name": images.classes[images.labels[place]],
            "block": block,
            "num_tokens": trace.num_tokens[place, block].item(),
            **_decisions(trace, place),
        }
        for trace in traced
        for place, name in enumerate(images.image_ids)
        for block in blocks
    ]


def _decisions(trace: TracedImages, place: int) -> dict[str, object]:
    return {
        "predicted": trace.reduced.names[place],
        "probability": trace.reduced.probability[place].item(),
        "predicted_full_model": trace.full.names[place],
        "probability_full_model": trace.full.probability[place].item(),
    }


def examples(
    images: LabelledDataset, traced: Sequence[TracedImages], blocks: Sequence[int], count: int
) -> list[Example]:
    """``count`` images for :func:`common.plots.united_grid`, spread evenly over the classes."""
    found = []
    for place in one_class_after_the_other(images.labels)[:count].tolist():
        (image, label), rows = images[place], []
        for trace in traced:
            kept = trace.kept[place, list(blocks)]
            rows.append(ExampleRow(percent(trace.keep_rate), kept, **_decisions(trace, place)))
        picture = denormalise(image, images.mean, images.std)
        found.append(Example(picture, images.classes[label], tuple(rows)))
    return found
