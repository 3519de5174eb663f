"""Where a model runs, in which number format, and what runs it."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

import torch

from common.errors import UsageError
from common.options import accepted_by

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Dtype = Literal["float32", "bfloat16", "float16"]
Format = Literal["float32", "bfloat16", "float16", "int8"]  # int8: the linear layers of the blocks, on onnxruntime
FORMATS = get_args(Format)
Runtime = Literal["eager", "compiled", "onnxruntime"]
RUNTIMES = get_args(Runtime)


def torch_device(name: str | None = None) -> torch.device:
    """The device called ``name``; by default "cuda" when there is one, else "cpu".

    Raises:
        UsageError: there is no such device here.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "cuda":  # asked without making a context on it, which every process would do on the first GPU
            if (device.index or 0) >= torch.cuda.device_count():
                raise RuntimeError(f"{torch.cuda.device_count()} CUDA devices are visible")
        else:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} is not to be had here: {str(error).splitlines()[0]}") from error
    return device


def _check_device_name(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: {str(error).splitlines()[0]}") from error


Device = Annotated[str, accepted_by(_check_device_name)]  # "cpu", "cuda:1" ..., whether this machine has it or not
