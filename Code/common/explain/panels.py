"""From explained images to the rows and pictures of the notebooks."""

from __future__ import annotations

from torch import Tensor

from common.explain.base import explainer_columns
from common.explain.benchmark import Benchmark
from common.explain.subject import Subject
from common.plots import HeatmapRow
from common.plots.frames import backbone_name
from common.visualize import denormalise


def pictures(subject: Subject) -> list[Tensor]:
    """The images (H, W, 3) of a subject, in [0, 1]."""
    dataset = subject.dataset
    images = (denormalise(dataset[i][0], dataset.mean, dataset.std) for i in range(len(dataset)))
    return [image.permute(1, 2, 0) for image in images]


def heatmap_rows(bench: Benchmark, explainer: str) -> list[HeatmapRow]:
    """What :func:`common.plots.heatmaps` draws, a row per image."""
    subject, found, quality = bench.subject, bench.explain(explainer), bench.quality(explainer)
    return [
        HeatmapRow(
            image=picture,
            class_name=class_name(subject, number),
            predicted=subject.names[subject.labels[number]],
            probability=subject.probabilities[number].item(),
            heatmap=found.explanation.heatmaps[number],
            shares=quality.shares,
            insertion=quality.insertion[number],
            deletion=quality.deletion[number],
            insertion_auc=quality.insertion_auc[number].item(),
            deletion_auc=quality.deletion_auc[number].item(),
            label=backbone_name(subject.backbone),
        )
        for number, picture in enumerate(pictures(subject))
    ]


def table_rows(bench: Benchmark, explainer: str) -> list[dict[str, object]]:
    """Rows of the table "explain", one per image."""
    subject, found, quality = bench.subject, bench.explain(explainer), bench.quality(explainer)
    return [
        {
            "backbone": subject.backbone,
            **explainer_columns(explainer),
            "reducer": "none",
            "image": subject.dataset.image_ids[number],
            "class_name": class_name(subject, number),
            "predicted": subject.names[subject.labels[number]],
            "probability": subject.probabilities[number].item(),
            "insertion_auc": quality.insertion_auc[number].item(),
            "deletion_auc": quality.deletion_auc[number].item(),
            "seconds": found.seconds,
        }
        for number in range(len(subject.labels))
    ]


def class_name(subject: Subject, number: int) -> str:
    """The true class of an image, under the name that the model's outputs have."""
    dataset = subject.dataset
    label = int(dataset.labels[number])
    if len(subject.names) == dataset.num_classes:
        return dataset.classes[label]
    return subject.names[dataset.imagenet_indices[label]]
