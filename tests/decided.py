"""Records of given decisions, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from common.evaluation import Record, Setting, Stage


def record_of_stages(
    stages: Mapping[int, Stage], method: str = "topk", grid: tuple[int, int] = (2, 2), images: int = 2
) -> Record:
    """A record on the digits' backbone of six blocks, whose images have ``grid`` patches."""
    setting = Setting("run", method, "vit_digits", "noise", "", 0.5, tuple(stages), (32, 32), grid)
    return Record(
        setting=setting,
        image_ids=tuple(map(str, range(images))),
        targets=np.zeros(images, dtype=np.int32),
        predictions=np.zeros((images, 5), dtype=np.int32),
        loss=np.zeros(images, dtype=np.float32),
        accuracy={"top1": 0.0, "top5": 0.0},
        params=1,
        stages=stages,
    )
