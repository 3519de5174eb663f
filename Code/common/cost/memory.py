"""How much memory one pass of a model takes at the most."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor


@torch.inference_mode()
def peak_bytes(call: Callable[[Tensor], object], images: Tensor) -> int:
    """Bytes that PyTorch allocates at the most at a time in one pass over ``images``, beyond what was there before.

    On CPU they are counted, allocation by allocation, so that the same pass always gives the same number.

    >>> peak_bytes(lambda x: x.exp(), torch.zeros(100, 10))
    4000

    Args:
        call: a model, or whatever else is called with images and runs in PyTorch.
        images: (B, 3, H, W), on the device of the model.
    """
    if images.is_cuda:
        before = torch.cuda.memory_allocated(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        call(images)
        return torch.cuda.max_memory_allocated(images.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler would tell its every start on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call(images)
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = most = 0
    for event in events:
        held += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, held)
    return most
