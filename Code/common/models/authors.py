"""Checkpoints of "Which Tokens to Use?" (Haurum et al., ICCVW 2023; its model zoo, .pth), read in this package's names.

Such a file is a pickle, from which nothing but tensors, plain values and an ``argparse.Namespace`` is read, so that no
code in it runs. Its backbone has timm's names. What a method adds is numbered by stage there and by block here::

    score_predictor.S.in_conv, out_conv     DynamicViT     reducer.predictors.BLOCK.embed, classify
    cluster_layers.S.score                  DPC-KNN        reducer.log_weights.BLOCK
    cluster_layers.S.norm, queries          PatchMerger    reducer.mergers.BLOCK.norm, queries
    cluster_layers.S.v                      Sinkhorn       reducer.prototypes.BLOCK
    cluster_layers.S.weight, scale          SiT            reducer.slimmers.BLOCK.score, scale

The weights are the authors'; how tokens are reduced is up to the options of each method, see
:mod:`common.evaluation.authors`.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.serialization import safe_globals

from common.errors import UsageError
from common.weights import AUTHORS, NORM, OWN, check_weights

IMAGES = dict(zip(NORM, (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), strict=True))
# of a stage there, of a block here
NAMES = (
    (r"score_predictor\.(\d+)\.in_conv\.(.+)", "predictors.{}.embed.{}"),
    (r"score_predictor\.(\d+)\.out_conv\.(.+)", "predictors.{}.classify.{}"),
    (r"cluster_layers\.(\d+)\.score\.(.+)", "log_weights.{}.{}"),
    (r"cluster_layers\.(\d+)\.(norm\..+|queries)", "mergers.{}.{}"),
    (r"cluster_layers\.(\d+)\.v", "prototypes.{}"),
    (r"cluster_layers\.(\d+)\.weight\.(.+)", "slimmers.{}.score.{}"),
    (r"cluster_layers\.(\d+)\.(scale)", "slimmers.{}.{}"),
)
MOST_NAMES = 5  # of a message
OF_STAGES = ("score_predictor.", "cluster_layers.")


def is_authors(weights: str | Path) -> bool:
    """Whether ``weights`` are such a file, by its name."""
    return Path(weights).suffix == AUTHORS


def read_authors(path: str | Path) -> dict[str, Tensor]:
    """State dict of the checkpoint ``path``, in this package's names and float32.

    Of the raw and the averaged weights those that the file calls the better ones (``ema_best``); where it says nothing,
    the averaged ones if there are any, as timm does. A name that is none of the above stays as it is.

    Raises:
        UsageError: the file is missing, damaged, holds anything but tensors and plain values, or no weights; or it has
            parameters of stages and does not say of which blocks.
    """
    checkpoint = load_checkpoint(path)
    blocks = sorted(getattr(checkpoint.get("args"), "reduction_loc", None) or ())
    state = _weights(checkpoint, path)
    if not blocks and any(name.startswith(OF_STAGES) for name in state):
        raise UsageError(f"weights file {str(path)!r} does not say which blocks reduce: its args have no reduction_loc")
    return {_renamed(name, blocks): value.float() for name, value in state.items()}


def load_checkpoint(path: str | Path) -> Mapping[str, Any]:
    """What the file ``path`` holds: weights, arguments and so on, by their names.

    Raises:
        UsageError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    check_weights(path)
    try:
        with safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"weights file {str(path)!r} is damaged, or holds more than tensors and plain values: {reason}"
        ) from error
    if not isinstance(found, Mapping):
        raise UsageError(f"weights file {str(path)!r} is no checkpoint: it holds a {type(found).__name__}")
    return found


def _weights(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    averaged = checkpoint.get("ema_best", "model_ema" in checkpoint)
    key = "model_ema" if averaged else "model"
    state = checkpoint.get(key)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        names = sorted(map(str, checkpoint))
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        raise UsageError(
            f"weights file {str(path)!r} has no weights in {key!r}, as a .pth file of the authors of 'Which Tokens to "
            f"Use?' has; it has {', '.join(names[:MOST_NAMES])}{more}. Give others to timm: "
            f"timm.create_model(..., checkpoint_path={str(path)!r})"
        )
    return {name.removeprefix("module."): value for name, value in state.items()}  # of several processes


def _renamed(name: str, blocks: Sequence[int]) -> str:
    for theirs, ours in NAMES:
        found = re.fullmatch(theirs, name)
        if found and int(found[1]) < len(blocks):
            return OWN + ours.format(blocks[int(found[1])], *found.groups()[1:])
    return name
