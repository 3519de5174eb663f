"""Training of a model with fewer tokens to agree with the unreduced one, without labels."""

from __future__ import annotations

import copy

from timm.data import ImageNetInfo

from common.data import head_classes
from common.data.base import LabelledDataset
from common.models.reduced import ReducedVisionTransformer
from common.training import TrainConfig

Data = tuple[LabelledDataset, LabelledDataset]  # to train on, and to validate
DISTILLATION = TrainConfig(
    epochs=1, lr=2e-5, batch_size=32, label_weight=0.0, optimizer="adamw", schedule="cosine", warmup_epochs=0.1
)


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
