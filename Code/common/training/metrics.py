"""What is measured on logits, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import head_classes
from common.data.base import LabelledDataset
from common.reducers.base import divergence_by_image


def accuracy(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Top-1 accuracy in percent.

    Args:
        logits: (n, C).
        labels: (n,) positions in ``classes``, or class indices when that is None.
        classes: restrict the head to these of its C classes.
    """
    return 100.0 * (_restricted(logits, classes).argmax(1) == labels).double().mean().item()


def accuracies(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> dict[str, float | None]:
    """``accuracy`` in percent with the head restricted to the classes of ``dataset``, and ``accuracy_full`` with all.

    The latter is None where the head has no others.
    """
    inside = head_classes(logits.shape[1], dataset)
    full = None if inside is None else 100.0 * hits(logits, labels, dataset).mean().item()
    return {"accuracy": accuracy(logits, labels, inside), "accuracy_full": full}


def hits(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> Tensor:
    """1 where the most probable of all classes of the head is right (n,), float64."""
    return (logits.argmax(1) == _places(logits, labels, dataset)).double()


def hits_among(logits: Tensor, labels: Tensor, dataset: LabelledDataset, count: int = 5) -> Tensor:
    """1 where the right one is among the ``count`` most probable of all classes of the head (n,), float64.

    A head of no more classes is always right.
    """
    best = logits.topk(min(count, logits.shape[1])).indices
    return (best == _places(logits, labels, dataset)[:, None]).any(1).double()


def _places(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> Tensor:
    """``labels`` (n,) as places among all outputs of the head."""
    inside = head_classes(logits.shape[1], dataset)
    return labels if inside is None else torch.tensor(inside)[labels]


def hits_by_image(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> dict[str, np.ndarray]:
    """Which images are right (n,), what the two :func:`accuracies` are the means of; only those that there are."""
    inside = head_classes(logits.shape[1], dataset)
    found = {"accuracy_by_image": (_restricted(logits, inside).argmax(1) == labels).numpy()}
    return found if inside is None else found | {"accuracy_full_by_image": hits(logits, labels, dataset).bool().numpy()}


def cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int] | None = None) -> float:
    """Mean cross-entropy; arguments as of :func:`accuracy`."""
    return F.cross_entropy(_restricted(logits, classes), labels).item()


def mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Mean over classes of the average precision, in percent; ``logits`` and 0/1 ``labels`` are (n, C).

    AP of a class: the mean, over its positives, of the share of positives among the images scored no lower. A class
    without positives counts 0, as in the reference of the asymmetric loss (Ridnik et al., 2021). Differences:
    scikit-learn's macro average agrees but warns about such a class; torchmetrics' leaves it out, so its mean is higher
    whenever there is one. Equal scores are one threshold here, as in scikit-learn and torchmetrics; the reference ranks
    them in the order in which its sort happens to leave them.
    """
    from sklearn.metrics import average_precision_score  # takes as long to import as torch

    scores, truth = logits.double().numpy(), labels.numpy()
    present = truth.any(axis=0)
    precisions = [average_precision_score(truth[:, c], scores[:, c]) for c in present.nonzero()[0]]
    return 100.0 * float(sum(precisions)) / truth.shape[1]


def score(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Loss and quality in percent: cross-entropy and accuracy, or for labels (n, C) binary cross-entropy and mAP."""
    if labels.ndim == 1:
        return cross_entropy(logits, labels), accuracy(logits, labels)
    loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits)).item()
    return loss, mean_average_precision(logits, labels)


def _restricted(logits: Tensor, classes: Sequence[int] | None) -> Tensor:
    return logits if classes is None else logits[:, torch.as_tensor(list(classes))]


def means_with_errors(**values: Tensor) -> dict[str, float]:
    """The mean of each of ``values`` (n,) under its name, and its standard error, NaN of one, under that and ``_sem``.

    Example:
        >>> means_with_errors(accuracy=torch.tensor([0.0, 100.0, 100.0, 100.0]))
        {'accuracy': 75.0, 'accuracy_sem': 25.0}
    """
    found = {}
    for name, each in values.items():
        each = each.double()
        found[name] = each.mean().item()
        found[f"{name}_sem"] = (each.std() / len(each) ** 0.5).item() if len(each) > 1 else float("nan")
    return found


def from_unreduced(logits: Tensor, unreduced: Tensor) -> dict[str, Tensor]:
    """How far ``logits`` (n, classes) are from those of the unreduced model, image by image (n,), without labels."""
    same = logits.argmax(1) == unreduced.argmax(1)
    return {"agreement": same.double(), "divergence": divergence_by_image(logits, unreduced)}
