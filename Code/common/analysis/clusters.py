"""How patches are grouped, and how far two methods group them alike.

With many groups two random groupings look alike: of 196 patches in 98 groups their NMI is 0.8. So agreement comes with
its exact expectation, and adjusted for it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln
from torch import Tensor

from common.analysis.arrays import as_array, require_alike, stage_at
from common.errors import UsageError
from common.evaluation import Record
from common.reducers import list_reducers, reducer_class

IMAGES = 4096  # at once: a few ten megabytes of 196 patches
LARGEST = 2**31 - 2  # so that a pair of labels fits in 64 bits


def labels(record: Record, block: int) -> np.ndarray:
    """The token (n, P) that holds each patch after the stage ``block``; -1 = dropped.

    Composed over the stages up to ``block``: c_1 = a_1, c_s[p] = a_s[c_(s-1)[p]], where a_s tells where the tokens
    before stage s went. Soft merging sends a token where most of it goes.

    Raises:
        UsageError: no such stage, or a method that groups no patches.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="tome", keep_rate=0.5, reduction_loc=(2, 4))
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, digits, batch_size=360, method="tome", backbone="vit_digits")
    >>> [len(set(labels(record, block)[0])) for block in (2, 4)]
    [32, 16]
    """
    if stage_at(record, block).destination is None:
        allowed = ", ".join(name for name in list_reducers() if reducer_class(name).clusters)
        raise UsageError(f"{record.setting.method!r} groups no patches; allowed: records of {allowed}")
    return record.assignment(block)


def agreement(true: ArrayLike | Tensor, predicted: ArrayLike | Tensor) -> dict[str, np.ndarray]:
    """How far the groups ``predicted`` are the groups ``true``, image by image.

    With entropies H over the P patches of an image and MI = H(true) + H(predicted) - H(both)::

        homogeneity     MI / H(true), 1 where that is 0: each predicted group lies in one true group
        completeness    MI / H(predicted), 1 where that is 0: each true group lies in one predicted group
        nmi             2 MI / (H(true) + H(predicted)), the V-measure
        nmi_chance      its mean over all ways to deal the patches to groups of the same sizes, E
        ami             (nmi - nmi_chance) / (1 - nmi_chance) = (MI - E[MI]) / ((H(true) + H(predicted)) / 2 - E[MI])

    Rosenberg and Hirschberg, "V-Measure", EMNLP 2007; Vinh, Epps and Bailey, "Information Theoretic Measures for
    Clusterings Comparison", JMLR 2010. They are the numbers of scikit-learn, all images at once. "Which Tokens to Use?"
    takes the run of the lower rate as ``true``.

    Args:
        true, predicted: (n, P) whole numbers, which name the groups of an image; -1 (dropped) is a group too.

    Returns:
        (n,) each, in [0, 1]; ``ami`` is 0 on average where nothing is shared, and may be negative.

    Raises:
        UsageError: no two arrays (n, P) of whole numbers from -1 on.

    >>> found = agreement([[0, 0, 1, 1], [0, 0, 1, 1]], [[5, 5, 7, 7], [0, 1, 2, 3]])
    >>> {name: values.round(3).tolist() for name, values in found.items()}  # doctest: +NORMALIZE_WHITESPACE
    {'homogeneity': [1.0, 1.0], 'completeness': [1.0, 0.5], 'nmi': [1.0, 0.667], 'nmi_chance': [0.333, 0.667],
     'ami': [1.0, 0.0]}
    """
    true, predicted = _labels(true), _labels(predicted)
    require_alike(true, predicted, "labels", "n", "P")
    starts = range(0, len(true), IMAGES)
    parts = [_agreement(*(each[start : start + IMAGES] for each in (true, predicted))) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _agreement(true: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    true, predicted = true + 1, predicted + 1  # from 0 on
    sizes_true, sizes_predicted = _group_sizes(true), _group_sizes(predicted)
    sizes_both = _group_sizes(true * (predicted.max() + 1) + predicted)
    h_true, h_predicted = _entropy(sizes_true), _entropy(sizes_predicted)
    information = np.maximum(h_true + h_predicted - _entropy(sizes_both), 0.0)
    expected = ((sizes_true @ expected_information(true.shape[1])) * sizes_predicted).sum(1)
    mean = (h_true + h_predicted) / 2
    # no information to share, or all of it shared by any two groupings of these sizes, which then are one
    trivial = mean - expected < 1e-9
    return {
        "homogeneity": _ratio(information, h_true),
        "completeness": _ratio(information, h_predicted),
        "nmi": _ratio(information, mean),
        "nmi_chance": _ratio(expected, mean),
        "ami": np.where(trivial, 1.0, (information - expected) / np.where(trivial, 1.0, mean - expected)),
    }


def _group_sizes(numbers: np.ndarray) -> np.ndarray:
    """How many groups (n, P + 1) of 0, 1 ... P patches each row of ``numbers`` (n, P) has; work is linear in n."""
    images, patches = numbers.shape
    small = numbers.astype(np.min_scalar_type(numbers.max()))
    ordered = np.sort(small, axis=1, kind="stable")  # 16 bits and fewer are sorted by their digits
    starts = np.ones(ordered.shape, dtype=bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=starts[:, 1:])
    begin = np.flatnonzero(starts)
    size = np.diff(begin, append=numbers.size)
    cell = begin // patches * (patches + 1) + size
    return np.bincount(cell, minlength=images * (patches + 1)).reshape(images, -1).astype(np.float64)


def _entropy(sizes: np.ndarray) -> np.ndarray:
    """Entropy (n,) in nats of the groups that :func:`_group_sizes` (n, P + 1) counts; exactly 0 for a single one."""
    patches = sizes.shape[1] - 1
    of_size = np.arange(patches + 1.0)
    return sizes @ (of_size / patches * np.log(patches / np.maximum(of_size, 1)))


@lru_cache(maxsize=8)
def expected_information(patches: int) -> np.ndarray:
    """Table (P + 1, P + 1): what two groups of a and b of the P ``patches`` add to E[MI], in nats.

    The sum over k of k / P log(P k / (a b)) times the hypergeometric probability that they share k (Vinh et al., 2010).
    It asks for the sizes of the groups only; summed over all pairs of groups it is E[MI].
    """
    table = np.zeros((patches + 1, patches + 1))
    log, log_factorial = np.log(np.maximum(np.arange(patches + 1), 1)), gammaln(np.arange(patches + 1) + 1)
    for k in range(1, patches + 1):
        size = np.arange(k, patches + 1)
        part = log_factorial[size] + log_factorial[patches - size] - log_factorial[size - k]
        outside = patches + k - size[:, None] - size  # patches in neither group
        chance = part[:, None] + part - log_factorial[patches] - log_factorial[k]
        chance = np.minimum(chance - log_factorial[np.maximum(outside, 0)], 0.0)
        gain = k / patches * (log[patches] + log[k] - log[size, None] - log[size])
        table[k:, k:] += np.where(outside >= 0, gain * np.exp(chance), 0.0)
    table.flags.writeable = False  # it is the cache's
    return table


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 1.0)


def _labels(values: ArrayLike | Tensor) -> np.ndarray:
    array = as_array(values)
    if array.dtype.kind not in "iu" or (array.size and (array.min() < -1 or array.max() > LARGEST)):
        given = f"from {array.min()} to {array.max()}" if array.size else "none"
        raise UsageError(f"labels {given} ({array.dtype}) are not allowed; give whole numbers from -1 to {LARGEST}")
    return array.astype(np.int64)
