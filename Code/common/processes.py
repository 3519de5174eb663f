"""Which of the processes that torchrun started this one is; known before torch.distributed is set up."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """This process speaks and writes for all."""
    return int(os.environ.get("RANK", "0")) == 0


def is_alone() -> bool:
    """No other process runs the same program beside this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def is_first_on_machine() -> bool:
    """This process may look at the disk for those beside it."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0
