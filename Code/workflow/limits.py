"""What a run asks of a cluster's queue: its estimate (estimate.py), with room, and more on every further attempt.

The time is SLOWER times the estimated one, as images are read beside it and few clusters have that GPU, and at least
LEAST_MINUTES. The memory is main memory: ROOM times what the estimate has for the GPU, and at least LEAST_MB, for
the libraries and the processes that read images. A notebook without an estimate gets the least of both.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from estimate import cost_of
from plan import Run

SLOWER, LEAST_MINUTES = 3, 60
ROOM, LEAST_MB = 1.5, 16_000


def runtime(run: Run, attempt: int = 1) -> int:
    """Minutes."""
    return attempt * max(LEAST_MINUTES, ceil(SLOWER * 60 * cost_of(run).hours))


def mem_mb(run: Run, attempt: int = 1) -> int:
    """Megabytes (10^6)."""
    return attempt * max(LEAST_MB, ceil(ROOM * 1000 * cost_of(run).memory))


LIMITS: dict[str, Callable[[Run, int], int]] = {"runtime": runtime, "mem_mb": mem_mb}


def limits_of(run: Run, workflow: Any) -> dict[str, Callable[..., int]]:
    """The resources of a Snakemake rule; without those that ``--default-resources`` or a Snakemake profile gives."""
    defaults = workflow.resource_settings.default_resources
    given = {argument.partition("=")[0] for argument in (defaults.args if defaults else ())}
    wanted = {name: limit for name, limit in LIMITS.items() if not {name, name.removesuffix("_mb")} & given}
    return {name: _for_attempts(run, limit) for name, limit in wanted.items()}


def _for_attempts(run: Run, limit: Callable[[Run, int], int]) -> Callable[..., int]:
    return lambda wildcards, attempt: limit(run, attempt)
