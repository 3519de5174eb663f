"""A device without hardware: tensors that say they are elsewhere, and hold their numbers on the CPU.

Inside :func:`device`, tensors on ``ELSEWHERE`` compute real numbers, so that ``.item()``, ``nonzero`` and libraries of
numpy work, and what a GPU refuses is refused: an operation on tensors of both devices, a generator of the CPU that
draws for the device, numpy on a tensor that was not brought back. ``ELSEWHERE`` is torch's device "meta", because that
one needs no driver, also not to go backwards; fake tensors on "cuda" have no numbers, and no gradients without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy, aten._local_scalar_dense, aten.lift_fresh, aten.set_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}  # by the CPU too
SCALARS = {aten.masked_fill, aten.masked_fill_, aten.where, aten.fill_, aten.fill}  # besides all pointwise ones


class MixedDevicesError(RuntimeError):
    """What a GPU would refuse."""


class Remote(Tensor):
    """A tensor on ``ELSEWHERE`` whose numbers are ``held`` on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Remote:
        form = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(held.is_inference()):  # a view is one as its base is, wherever it was made
            return Tensor._make_wrapper_subclass(cls, held.shape, **form, device=ELSEWHERE, requires_grad=False)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Remote({self.held})"

    def numpy(self, *, force: bool = False):
        raise MixedDevicesError("numpy cannot read a tensor of another device; copy it to the CPU first")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:  # in inference mode whole compositions come here: their parts are looked at
            found = func.decompose(*args, **kwargs)
        return run(func, args, kwargs) if found is NotImplemented else found


class _FromPython(TorchFunctionMode):
    """torch makes no numbers for "meta": tensors of Python's numbers are made on the CPU, and copied."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            like, *args = args
            func, kwargs = torch.tensor, {"dtype": like.dtype, "device": like.device, **kwargs}
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], _indices(args[1]), *args[2:])
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        target = kwargs.pop("device")
        return func(*args, **kwargs).to(target)


def _indices(index):
    """``index`` with lists of numbers as tensors; torch would make them itself, on "meta"."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index, dtype=None if index else torch.long) if isinstance(index, list) else index


@contextmanager
def device() -> Iterator[torch.device]:
    """Inside, ``ELSEWHERE`` is a device that computes."""
    with _FromPython(), _Device():
        yield ELSEWHERE


def run(func, args: tuple, kwargs: dict):
    """One operation: refuse a mixture, compute on the CPU, say that the result is where the inputs were."""
    if func.overloadpacket is aten._fused_sdp_choice:
        return 0  # plain products: there is no fused kernel elsewhere
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    remote = [leaf for leaf in given if isinstance(leaf, Remote)]
    _refuse_mixture(func, args, given, remote)
    target = kwargs.get("device")
    target = None if target is None else torch.device(target).type
    if target == ELSEWHERE.type:
        if kwargs.get("generator") is not None:
            raise MixedDevicesError(f"{func} draws for another device by a generator of the CPU")
        kwargs = {**kwargs, "device": torch.device("cpu")}
    own = {id(leaf.held): leaf for leaf in remote}
    with _disable_current_modes():
        found = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    leaves = target == ELSEWHERE.type or (target is None and _stays(func, args, remote))

    def back(value):
        if not isinstance(value, Tensor):
            return value
        return own.get(id(value)) if id(value) in own else (Remote(value) if leaves else value)

    return tree_map(back, found)


def _held(value):
    return value.held if isinstance(value, Remote) else value


def _stays(func, args: tuple, remote: list[Remote]) -> bool:
    if func.overloadpacket in COPIES | INDEXED:  # as the tensor that is copied, written to or indexed
        return isinstance(args[0], Remote)
    return bool(remote)


def _refuse_mixture(func, args: tuple, given: list[Tensor], remote: list[Remote]) -> None:
    here = [leaf for leaf in given if not isinstance(leaf, Remote)]
    packet = func.overloadpacket
    if any(leaf.device == ELSEWHERE for leaf in here):
        raise AssertionError(f"{func} on a tensor of {ELSEWHERE} that has no numbers: made in a way not known here")
    if not here or not remote or packet in COPIES:
        return
    if packet in INDEXED and isinstance(args[0], Remote):
        return
    scalars = torch.Tag.pointwise in func.tags or packet in SCALARS
    if scalars and all(leaf.dim() == 0 for leaf in here) and not (func._schema.is_mutable and args[0] in here):
        return
    shapes = ", ".join(f"{tuple(leaf.shape)} on {leaf.device.type}" for leaf in given)
    raise MixedDevicesError(f"{func} on tensors of two devices: {shapes}")
