"""The networks of a rehearsal: timm's names, depths and heads, but narrow, of few patches, and random, not the hub's.

run_notebook.py --narrow calls :func:`narrow` before the first cell of a notebook.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from timm.models import _registry, get_pretrained_cfg

from common.models.factory import SUPPORTED_MODULES
from common.training.digits_backbone import BACKBONES
from rehearsal_data import accept_generated_archives

GRID = 8  # patches in a row: a quarter of them in each of three stages still leaves one
WIDTH = 48  # divisible by the 3, 6, 12 and 16 heads of the published sizes, and by the 4 of sine-cosine positions


def narrow() -> None:
    """Make timm build such networks from now on, and torchvision take generated archives."""
    models = _registry._model_entrypoints
    for name, make in models.items():
        if make.__module__ in SUPPORTED_MODULES and name not in BACKBONES:
            models[name] = _narrow(name, make)
    accept_generated_archives()


def _narrow(name: str, make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def narrow_model(pretrained: bool = False, **options: Any) -> Any:
        from_a_file = pretrained and bool(options.get("pretrained_cfg_overlay"))  # which an earlier run made
        side = options.get("img_size") or get_pretrained_cfg(name).input_size[-1]
        return make(pretrained=from_a_file, **{**options, "embed_dim": WIDTH, "patch_size": side // GRID})

    return narrow_model
