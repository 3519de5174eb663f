"""The networks of a rehearsal: timm's names, depths and heads, but narrow, of few patches, and random, not the hub's.

run_notebook.py --narrow calls :func:`narrow` before the first cell of a notebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from timm.models import _registry, get_pretrained_cfg
from torchvision import datasets

from common.models.factory import SUPPORTED_MODULES
from common.training.digits_backbone import BACKBONES

GRID = 8  # patches in a row: a quarter of them in each of three stages still leaves one
WIDTH = 48  # divisible by the 3, 6, 12 and 16 heads of the published sizes, and by the 4 of sine-cosine positions


def narrow() -> None:
    """Make timm build networks of this width from now on, and torchvision take archives that are not the original."""
    models = _registry._model_entrypoints
    for name, make in models.items():
        if make.__module__ in SUPPORTED_MODULES and name not in BACKBONES:
            models[name] = _narrow(name, make)
    for archive in (datasets.CIFAR10, datasets.CIFAR100):
        archive.train_list, archive.test_list = ([(file, None) for file, _ in files] for files in _lists(archive))
        archive.meta = {**archive.meta, "md5": None}


def _lists(archive: type) -> tuple[list, list]:
    return archive.train_list, archive.test_list


def _narrow(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def narrow_model(pretrained: bool = False, **options: Any) -> Any:
        from_a_file = pretrained and bool(options.get("pretrained_cfg_overlay"))  # which an earlier run made
        side = options.get("img_size") or get_pretrained_cfg(name).input_size[-1]
        return make(pretrained=from_a_file, **{**options, "embed_dim": WIDTH, "patch_size": side // GRID})

    return narrow_model
