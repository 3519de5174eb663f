"""The two stages of training an Idling MLP, as runs of :mod:`common.training`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

from timm.data import ImageNetInfo

from common.data import head_classes
from common.data.base import LabelledDataset
from common.models.reduced import ReducedVisionTransformer
from common.training import Epoch, TrainConfig, train

Data = tuple[LabelledDataset, LabelledDataset]
LABEL_STAGE = TrainConfig(epochs=3, lr=1e-3, batch_size=32, label_weight=0.0, reducer_only=True, schedule="cosine")
TASK_STAGE = TrainConfig(
    epochs=1, lr=2e-5, batch_size=32, label_weight=0.0, optimizer="adamw", schedule="cosine", warmup_epochs=0.1
)


def fit_pruners(
    model: ReducedVisionTransformer, data: Data, config: TrainConfig = LABEL_STAGE, folder: str | Path | None = None
) -> Iterator[Epoch]:
    """Stage 1: the pruners of an ``idle_mlp`` learn the labels of its ``tau``; the backbone stays as it is.

    Args:
        data: training and validation set.
        config: how; it should train the reducer only.
        folder: from which a stopped run goes on, see :func:`common.training.train`.
    """
    model.reducer.learns = "labels"
    yield from train(model, *in_the_heads_classes(model, data), config, output_dir=folder)
    model.reducer.learns = "task"


def tune(
    model: ReducedVisionTransformer,
    teacher: ReducedVisionTransformer,
    data: Data,
    config: TrainConfig = TASK_STAGE,
    folder: str | Path | None = None,
) -> Iterator[Epoch]:
    """Stage 2: backbone and whatever decides learn to agree with the unreduced ``teacher`` while patches idle."""
    yield from train(model, *in_the_heads_classes(model, data), config, teacher=teacher, output_dir=folder)


def in_the_heads_classes(model: ReducedVisionTransformer, data: Data) -> Data:
    """``data`` with labels among all outputs of the model's head, where that is one of 1000 ImageNet classes."""
    return tuple(relabelled(dataset, model.num_classes) for dataset in data)


def relabelled(dataset: LabelledDataset, num_outputs: int) -> LabelledDataset:
    """``dataset`` with its classes' places among the ``num_outputs`` of a head as labels.

    Raises:
        UsageError: the head is neither the dataset's own nor one of the 1000 ImageNet classes.
    """
    places = head_classes(num_outputs, dataset)
    if places is None:
        return dataset
    info, changed = ImageNetInfo(), copy.copy(dataset)
    changed.classes = [info.index_to_description(index) for index in range(num_outputs)]
    changed.labels = dataset.labels.new_tensor(places)[dataset.labels]
    changed.imagenet_indices = list(range(num_outputs))
    return changed
