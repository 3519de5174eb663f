"""Training of the pruners of an Idling MLP on their labels; all else that learns is distilled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from common.models.reduced import ReducedVisionTransformer
from common.training import Epoch, TrainConfig, train
from common.training.distillation import Data, in_the_heads_classes

LABEL_STAGE = TrainConfig(epochs=3, lr=1e-3, batch_size=32, label_weight=0.0, reducer_only=True, schedule="cosine")


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
