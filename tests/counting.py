"""What a computation costs, counted and not timed: the same on a busy machine as on a quiet one."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Operators(TorchDispatchMode):
    """The aten operators that run inside the context; views are left out, they read and write nothing.

    Attributes:
        calls: how often each ran, by name.
        written: elements of all their results.
        largest: elements of the largest result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.written = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls[func.overloadpacket.__name__] += 1
            sizes = [math.prod(leaf.shape) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.written += sum(sizes)
            self.largest = max(self.largest, *sizes, 0)
        return result


def operators(run: Callable, *arguments: object, **options: object) -> Operators:
    """The operators of one call of ``run``, without gradient."""
    with torch.no_grad(), Operators() as found:
        run(*arguments, **options)
    return found


def executed_macs(run: Callable, *arguments: object, **options: object) -> int:
    """MAC that one call of ``run`` executes, attention included, for all images and padding that it computes."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        run(*arguments, **options)
    return counter.get_total_flops() // 2


def python_calls(run: Callable, *arguments: object, **options: object) -> int:
    """How many Python functions one call of ``run`` calls."""
    calls = 0

    def see(frame, event, argument) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        run(*arguments, **options)
    finally:
        sys.setprofile(before)
    return calls
