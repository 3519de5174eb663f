"""Which number formats a processor has, and keeping a computation in the precision of its inputs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

# Of x86 and of ARM, as torch.cpu names them: any of them multiplies in this format.
UNITS = {
    "bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "float16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
    "int8": ("avx512_vnni", "avx_vnni", "amx_int8", "dot", "i8mm"),
}


def lacking(dtype: str, device: torch.device) -> str:
    """Why ``device`` is no place to measure ``dtype``, "" = it is one.

    A processor without units for a format takes up to minutes for one product of matrices; and x86 without those for
    int8 adds two products of 8 bits in 16, which overflow.
    """
    there = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    if device.type != "cpu" or dtype not in UNITS or any(there.get(unit) for unit in UNITS[dtype]):
        return ""
    return f"{dtype} on this processor, which has none of: {', '.join(UNITS[dtype])}"


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside, operations on ``device`` keep the precision of their inputs."""
    active = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()
