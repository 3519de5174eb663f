"""The passes that a notebook makes, as passes.py foresees them.

run_notebook.py --narrow calls :func:`count_passes` before the first cell of a notebook, and prints :func:`counted`
after the last.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from timm.models import _registry
from torch import Tensor, nn

from common.models.factory import SUPPORTED_MODULES
from passes import TRAINED

_images: Counter[float] = Counter()  # share of a pass -> how often


def count_passes() -> None:
    """Count the passes of every backbone that timm builds from now on."""
    models = _registry._model_entrypoints
    for name, make in models.items():
        if make.__module__ in SUPPORTED_MODULES:
            models[name] = _counted(make)


def counted() -> float:
    """The passes so far."""
    return sum(share * images for share, images in _images.items())


def _counted(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(make)
    def counted_model(*given: Any, **options: Any) -> nn.Module:
        model = make(*given, **options)
        for block in model.blocks:  # the norm before its attention sees all that enters it, and sees it once
            block.norm1.register_forward_hook(functools.partial(_count, 1 / len(model.blocks)))
        return model

    return counted_model


def _count(share: float, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
    _images[share] += len(output) * (TRAINED if output.requires_grad else 1)
