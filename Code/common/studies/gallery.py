"""One image under every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from common.data.transforms import denormalise
from common.models.observe import untouched
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.plots import GalleryPanel, method_style
from common.reducers import Method, Reducer
from common.report.rows import VARIANT, in_order
from common.report.sections import Answer, Section, counted, labels, numbers, percent, setting_title
from common.schema import REQUIRED, count, number, text
from common.studies.base import Study, register_study
from common.studies.method_grid import UNTRAINED, with_teacher
from common.studies.visualize import Decision
from common.tokens import GONE
from common.training.experiment import Experiment

SETTING = ["dataset", "backbone", "weights", "recipe", "img_size", "image", "class_name"]


@register_study
class Gallery(Study):
    """What every method holds on to of one picture."""

    name, title = "gallery", "What every method keeps or merges"
    question = "Given one picture and one keep rate, what does each method hold on to?"
    place = 80
    columns = {
        "image": text("its id in the dataset"),
        "class_name": text("its true class"),
        "block": count("after which tokens are counted", "block"),
        "num_tokens": count("patch tokens left"),
        "predicted": text("most probable class"),
        "probability": number("that the model gives this class", "share"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    setting = SETTING
    captions = {
        "": "Faded patches are gone; patches outlined in one colour share a token; dots mark centres of clusters.",
    }
    run_figures = "**/*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """One row per image and method: tokens left and what the model says."""
        columns = [*SETTING, *VARIANT, "epochs", "block", "num_tokens", "predicted", "probability"]
        return in_order(runs[columns], SETTING)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            row = rows.iloc[0]
            frame = pd.DataFrame(
                {
                    "Model": labels(rows),
                    "Keep": rows["keep_rate"].map(percent),
                    "Tokens": rows["num_tokens"].astype(str),
                    "Predicted": rows["predicted"],
                    "Probability": numbers(rows["probability"]),
                    "Epochs trained": rows["epochs"].astype(str),
                }
            )
            note = (
                f"Tokens after block {row['block']}, counted from 0 as timm's blocks.N; CLS not counted. Only methods "
                "with parameters were trained."
            )
            yield Section(f"{setting_title(rows)}: {row['class_name']} ({row['image']})", frame, (note,))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for (*_, image, name), rows in data.groupby(SETTING, sort=False, dropna=False):
            right = (rows["predicted"] == name).sum()
            tokens = f"{rows['num_tokens'].min()} to {rows['num_tokens'].max()} tokens"
            yield Answer(f"{image} ({name}): {right} of {counted(len(rows), 'method')} see what it is, from {tokens}.")


def learns(model: ReducedVisionTransformer) -> bool:
    """The method has parameters of its own."""
    return any(True for _ in model.reducer.parameters())


def trained_if_it_learns(experiment: Experiment) -> ReducedVisionTransformer:
    """The model of ``experiment``, trained as it says only where the method has something to learn."""
    datasets = experiment.datasets()
    model = experiment.model(datasets[1])
    if learns(model):
        for _ in with_teacher(experiment).run(model, datasets):
            pass
    return model


@torch.inference_mode()
def measure(
    start: Experiment, models: Mapping[str, ReducedVisionTransformer], indices: Sequence[int], stage: int
) -> tuple[list[GalleryPanel], list[dict[str, object]]]:
    """Some images under many methods: panels for :func:`common.plots.methods_gallery`, and rows.

    Args:
        start: what the models have in common.
        models: by the method's written form, each as :func:`trained_if_it_learns` gives it.
        indices: of the validation images.
        stage: after which reduction to look, counted from 1.
    """
    train_set, dataset = start.datasets()
    panels, rows = [], []
    for index in indices:
        image, label = dataset[index]
        name, picture = dataset.classes[label], denormalise(image, dataset.mean, dataset.std)
        for method, model in models.items():
            block = model.reducer.schedule.reduction_loc[stage - 1]
            with untouched(model):
                logits, trace = model.trace(image[None].to(next(model.parameters())))
            said, tokens = Decision.of(logits, dataset), trace.num_tokens[block].item()
            prediction = {"predicted": said.names[0], "probability": said.probability.item()}
            look = _shown(trace, block, model.reducer) | {"correct": said.names[0] == name}
            title = f"{method_style(Method.parse(method).name).label}: {tokens}"
            panels.append(GalleryPanel(title=title, image=picture, **prediction, **look))
            where = {"image": dataset.image_ids[index], "class_name": name, "block": block, "num_tokens": tokens}
            conditions = replace(start, reducer=method).conditions()
            training = {"n_train": len(train_set)} if learns(model) else UNTRAINED
            rows.append({**conditions, **training, **where, **prediction})
    return panels, rows


def _shown(trace: Trace, block: int, reducer: Reducer) -> dict[str, Tensor | None]:
    """Which patches a panel shows clearly, and which it outlines together."""
    held, selected, token = trace.kept(block)[0], trace.selected(block)[0], trace.assignment[block][0]
    if reducer.clusters:
        return {"kept": held, "groups": token, "selected": selected if reducer.selects else None}
    fused = held & ~selected  # patches that live on in a token of which none of them is the centre
    return {"kept": selected, "groups": token.masked_fill(~fused, GONE) if fused.any() else None}
