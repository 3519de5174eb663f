"""Operators of PyTorch that its ONNX exporter does not translate, and that methods need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``custom_translation_table`` of :func:`torch.onnx.export`."""
    from onnxscript import opset18 as op

    def sort_stable(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
        """ONNX ranks equal values by their position: its order is the stable one."""
        numbers = op.Cast(self, to=1)  # float32; a mask of bytes too
        count = op.Reshape(op.Gather(op.Shape(numbers), op.Constant(value_int=dim)), op.Constant(value_ints=[1]))
        values, places = op.TopK(numbers, count, axis=dim, largest=int(descending), sorted=1)
        return op.CastLike(values, self), places

    def searchsorted(sequence: Any, values: Any, **_: Any) -> Any:
        """Along the last of two dimensions: how many of the sequence (B, n) are below each of the values (B, K)."""
        below = op.Less(
            op.Unsqueeze(sequence, op.Constant(value_ints=[1])), op.Unsqueeze(values, op.Constant(value_ints=[2]))
        )
        return op.ReduceSum(op.Cast(below, to=7), op.Constant(value_ints=[2]), keepdims=0)  # int64

    return {torch.ops.aten.sort.stable: sort_stable, torch.ops.aten.searchsorted.Tensor: searchsorted}
