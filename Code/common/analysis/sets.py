"""Which patches are kept, and how far two methods keep the same ones.

Two masks of half of the patches share a third of their union by chance alone, and masks of different sizes can never be
the same. So an overlap stands beside its expectation (:func:`iou_by_chance`) and its bound (:func:`iou_limit`);
:func:`excess` puts these at 0 and 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom
from torch import Tensor

from common.analysis.arrays import as_array, as_numbers, marked, require_alike, stage_at
from common.errors import UsageError
from common.evaluation import Record
from common.reducers import list_reducers, reducer_class


def kept_mask(record: Record, block: int) -> np.ndarray:
    """Patches (n, P) that are a token, or the centre of one, after the stage ``block``.

    EViT's fused patches are not kept. Of methods that let patches idle: those that the block computed.

    Raises:
        UsageError: no such stage, or tokens that are no patches, as after merging without centres.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="topk", keep_rate=0.5, reduction_loc=(2, 4))
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, digits, batch_size=360, method="topk", backbone="vit_digits")
    >>> mask = kept_mask(record, 2)
    >>> mask.shape, mask.sum(1).tolist() == [32] * 360
    ((360, 64), True)
    """
    stage = stage_at(record, block)
    if stage.computed is not None:
        return stage.computed.copy()
    if stage.kept is None:
        classes = {name: reducer_class(name) for name in list_reducers()}
        allowed = ", ".join(name for name, found in classes.items() if found.selects or found.idles)
        raise UsageError(f"the tokens of {record.setting.method!r} are no patches; allowed: records of {allowed}")
    return marked(stage.kept, record.setting.num_patches)


def iou(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Intersection over union (n,) of the masks ``a`` and ``b`` (n, P), in [0, 1]; 0 where nothing is shared.

    "Which Tokens to Use?", section on reduction patterns: |A and B| / |A or B|.

    Raises:
        UsageError: no two boolean arrays of one shape (n, P).

    >>> iou([[True, True, False, False]], [[False, True, True, False]])
    array([0.33333333])
    """
    a, b = _masks(a, b)
    return _share((a & b).sum(1), (a | b).sum(1))


def ioa(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Share (n,) of the mask ``b`` (n, P) that lies in ``a`` (n, P), in [0, 1]; 0 where nothing is shared.

    "Which Tokens to Use?": |A and B| / |B|, with B of the run that keeps fewer patches, or has fewer channels.

    Raises:
        UsageError: no two boolean arrays of one shape (n, P).

    >>> ioa([[True, True, True, False]], [[False, False, True, True]])
    array([0.5])
    """
    a, b = _masks(a, b)
    return _share((a & b).sum(1), b.sum(1))


def iou_by_chance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Exact mean (n,) of :func:`iou` over all masks with as many patches as ``a`` and ``b`` (n, P) have.

    How many of them are shared then follows the hypergeometric distribution. It is the chance of unrelated methods; of
    one method at two rates the smaller mask often lies in the larger, and :func:`iou_limit` says more.

    Raises:
        UsageError: no two boolean arrays of one shape (n, P).

    >>> half = [[True, True, False, False]]
    >>> iou_by_chance(half, half)  # 1/6 share both patches, 4/6 one of three, 1/6 none
    array([0.38888889])
    """
    a, b = _masks(a, b)
    sizes, image = np.unique(np.stack([a.sum(1), b.sum(1)], axis=1), axis=0, return_inverse=True)
    first, second = sizes[:, :1], sizes[:, 1:]  # (pairs of sizes, 1)
    shared = np.arange(a.shape[1] + 1)
    chance = hypergeom.pmf(shared, a.shape[1], first, second)  # (pairs of sizes, P + 1)
    return (chance * shared / np.maximum(first + second - shared, 1)).sum(1)[image.reshape(-1)]


def ioa_by_chance(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Exact mean (n,) of :func:`ioa` over all masks with as many patches as ``a`` and ``b`` (n, P): |A| / P.

    Raises:
        UsageError: no two boolean arrays of one shape (n, P).

    >>> ioa_by_chance([[True, True, True, False]], [[False, False, True, True]])
    array([0.75])
    """
    a, b = _masks(a, b)
    return a.mean(1) * b.any(1)


def iou_limit(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> np.ndarray:
    """Largest :func:`iou` (n,) that masks with as many patches as ``a`` and ``b`` (n, P) can have.

    The smaller number over the larger: at keep rates 0.9 and 0.25 no method can agree with itself by more than 0.28 in
    its first stage, however consistent it is.

    Raises:
        UsageError: no two boolean arrays of one shape (n, P).

    >>> iou_limit([[True, True, True, True]], [[True, False, False, False]])
    array([0.25])
    """
    sizes = [mask.sum(1) for mask in _masks(a, b)]
    return _share(np.minimum(*sizes), np.maximum(*sizes))


def excess(value: ArrayLike | Tensor, chance: ArrayLike | Tensor, limit: ArrayLike | Tensor = 1.0) -> np.ndarray:
    """How far ``value`` exceeds ``chance`` on the way to its ``limit``: (value - chance) / (limit - chance).

    0 = as by chance, 1 = as much as there can be, negative = less than by chance, NaN = chance leaves nothing to
    exceed, as where all patches are kept. The adjusted Rand index has this form (Hubert and Arabie, "Comparing
    partitions", Journal of Classification 1985), and so has the AMI of :func:`common.analysis.agreement`.

    Raises:
        UsageError: shapes that do not fit each other, or values that are not finite.

    >>> excess([0.5, 0.2], 0.2, 0.8)
    array([0.5, 0. ])
    """
    parts = [as_numbers(part, "value, chance and limit") for part in (value, chance, limit)]
    try:
        value, chance, limit = np.broadcast_arrays(*parts)
    except ValueError as error:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise UsageError(f"value, chance and limit of shapes {shapes} do not fit; give one shape") from error
    room = limit - chance
    some = room > 1e-12  # chance is exact up to rounding
    return np.where(some, (value - chance) / np.where(some, room, 1.0), np.nan)


def _masks(a: ArrayLike | Tensor, b: ArrayLike | Tensor) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_array(a), as_array(b)
    if a.dtype != bool or b.dtype != bool:
        raise UsageError(f"masks of types {a.dtype} and {b.dtype} are not allowed; give truth values")
    require_alike(a, b, "masks", "n", "P")
    return a, b


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part`` / ``whole``, 0 of nothing."""
    return part / np.maximum(whole, 1)
