"""No reduction: the untouched backbone, the baseline of every comparison."""

from __future__ import annotations

from common.errors import UsageError
from common.reducers.base import Reducer, register_reducer


@register_reducer("none")
class NoReduction(Reducer):
    """Keeps every token; refuses a keep_rate below 1, which it could not honour."""

    by_rate = False

    def __init__(self, vit, schedule) -> None:
        super().__init__(vit, schedule)
        if schedule.keep_rate != 1.0:
            raise UsageError(
                f"reducer 'none' keeps everything; keep_rate={schedule.keep_rate} is not allowed, give 1.0"
            )
