"""What every measure does with its arguments first."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from common.errors import UsageError
from common.evaluation import Record, Stage


def as_array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    """``values`` as a numpy array; a floating tensor, of any precision and device, as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)


def as_numbers(values: ArrayLike | torch.Tensor, what: str) -> np.ndarray:
    """``values`` in float64.

    Raises:
        UsageError: something in them is no finite number.
    """
    array = as_array(values)
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{what} of type {array.dtype} are no numbers")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise UsageError(f"{what} hold NaN or infinity; allowed: finite numbers")
    return array


def require_alike(a: np.ndarray, b: np.ndarray, what: str, *axes: str) -> None:
    """Refuse arrays without entries or of different shapes; ``axes`` names those that both have, as in "n", "P"."""
    if a.shape != b.shape or a.ndim != len(axes) or not a.size:
        form = f"({', '.join(axes)})"
        raise UsageError(f"{what} of shapes {a.shape} and {b.shape} cannot be compared; give both the shape {form}")


def stage_at(record: Record, block: int) -> Stage:
    """The stage of ``record`` in ``block``.

    Raises:
        UsageError: there is none.
    """
    if block not in record.stages:
        allowed = ", ".join(map(str, record.stages)) or "none, it reduces nothing"
        raise UsageError(f"block={block!r} is no stage of {record.setting.method!r}; allowed: {allowed}")
    return record.stages[block]


def marked(places: np.ndarray, size: int) -> np.ndarray:
    """(n, size) True at the ``places`` (n, K) of each row; -1 marks nothing."""
    found = np.zeros((len(places), size + 1), dtype=bool)
    np.put_along_axis(found, places.astype(np.intp) + 1, True, axis=1)
    return found[:, 1:]
