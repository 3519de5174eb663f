"""Where a training runs: its device, its processes, its random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, gather_object, patch_environment, set_seed
from torch import Tensor
from tqdm import tqdm

from common.devices import torch_device


def make_accelerator(
    device: str | None, mixed_precision: str, trackers: tuple[str, ...], folder: Path | None, *, unused_parameters: bool
) -> Accelerator:
    """accelerate's view of this process: alone on ``device``, or one of those that torchrun started.

    Args:
        folder: where trackers write.
        unused_parameters: a pass may leave parameters without a gradient.
    """
    # accelerate keeps device and precision of the whole process: without this the first training decides for all
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    chosen = torch_device(device)
    alone = "LOCAL_RANK" not in os.environ
    with patch_environment(**({"ACCELERATE_TORCH_DEVICE": str(chosen)} if alone else {})):
        return Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=mixed_precision,
            log_with=list(trackers) or None,
            project_config=ProjectConfiguration(logging_dir=str(folder) if folder else None),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
        )


def seed_everything(*numbers: int) -> None:
    """Seed torch (all devices), numpy and ``random`` with a mixture of ``numbers``."""
    set_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def interleave(accelerator: Accelerator, rows: Tensor) -> Tensor:
    """Rows of all processes in the dataset's order, on every process; process r holds the rows r, r + W, ..."""
    if accelerator.num_processes == 1:
        return rows
    parts = gather_object([rows])
    whole = rows.new_empty((sum(map(len, parts)), *rows.shape[1:]))
    for rank, part in enumerate(parts):
        whole[rank :: len(parts)] = part
    return whole


def progress(batches: Iterable, what: str, quiet: bool) -> tqdm:
    """A bar over ``batches``; TQDM_DISABLE in the environment switches all of them off."""
    return tqdm(batches, desc=what, leave=False, **({"disable": True} if quiet else {}))
