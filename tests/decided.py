"""Records of given decisions, for the tests of what is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np

from common.evaluation import Record, Setting, Stage


def record_of_stages(
    stages: Mapping[int, Stage],
    method: str = "topk",
    grid: tuple[int, int] = (2, 2),
    images: int = 2,
    **changes: object,
) -> Record:
    """A record on the digits' backbone of six blocks, whose images have ``grid`` patches.

    Args:
        changes: of the fields of the record (``image_ids``, ``cls`` ...) and of its setting.
    """
    settings = {"name": "run", "method": method, "backbone": "vit_digits", "dataset": "noise", "weights": ""}
    settings |= {"keep_rate": 0.5, "reduction_loc": tuple(stages), "img_size": (32, 32), "grid_size": grid, "depth": 6}
    names = {field.name for field in fields(Setting)}
    setting = Setting(**settings | {name: value for name, value in changes.items() if name in names})
    record = {
        "image_ids": tuple(map(str, range(images))),
        "targets": np.zeros(images, dtype=np.int32),
        "predictions": np.zeros((images, 5), dtype=np.int32),
        "loss": np.zeros(images, dtype=np.float32),
        "accuracy": {"top1": 0.0, "top5": 0.0},
        "params": 1,
        "stages": stages,
    }
    return Record(setting, **record | {name: value for name, value in changes.items() if name not in names})
