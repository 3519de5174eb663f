"""Pretrained weights from a file or timm's hub, refused with one clear line when they do not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from common.errors import UsageError
from common.results import write_atomically

HUB = "timm"
CFG = "pretrained_cfg"  # in the header of a file and on timm's models: what the weights expect
NORM = ("mean", "std")
NETWORK, PUBLISHED = "network", "published"  # in ``pretrained_cfg`` of what is not timm's: common.models.published
OWN = "reducer."  # prefix of a method's own parameters in a state dict
AUTHORS = ".pth"  # what a checkpoint of the authors of "Which Tokens to Use?" ends with: common.models.authors
ALLOWED = f"allowed: None, 'timm', or the path of a .safetensors file or of an authors' {AUTHORS}"


def check_weights(weights: str | Path | None) -> None:
    """Refuse weights that cannot be had, before anything is computed."""
    if weights in (None, HUB):
        return
    path = Path(weights)
    if path.suffix not in (".safetensors", AUTHORS):
        raise UsageError(f"weights {str(weights)!r} are not allowed; {ALLOWED}")
    if not path.is_file():
        raise UsageError(f"weights file {str(weights)!r} does not exist; {ALLOWED}")


def weights_label(weights: str | Path | None, backbone: str) -> str:
    """How ``weights`` stand in tables: "random", "timm" with the tag of the hub's default, or the name of a file.

    >>> weights_label("", "vit_digits"), weights_label("timm", "deit_tiny_patch16_224")
    ('random', 'timm fb_in1k')
    """
    if weights == HUB:
        tag = backbone.partition(".")[2] or timm.get_pretrained_cfg_value(backbone, "tag")
        return f"{HUB} {tag}"
    return Path(weights).name if weights else "random"


def read_state(path: str | Path) -> dict[str, Tensor]:
    """State dict of a safetensors file, in float32.

    Raises:
        UsageError: the file is missing, no safetensors file, or truncated.
    """
    check_weights(path)
    try:
        state = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise UsageError(f"weights file {str(path)!r} is damaged or truncated: {error}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def read_norm(path: str | Path) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation that the images of these weights were normalised with; {} where it does not say.

    Raises:
        UsageError: the file is missing, damaged, or says something else there.
    """
    check_weights(path)
    try:
        known = _read_cfg(path)
        return {key: tuple(map(float, known[key])) for key in NORM if key in known}
    except (SafetensorError, ValueError, TypeError) as error:
        raise UsageError(f"weights file {str(path)!r} is damaged or truncated: {error}") from error


def is_published(path: str | Path) -> bool:
    """Whether the weights of a safetensors file are of TRAM's published network: :mod:`common.models.published`."""
    read_norm(path)  # refuses what is damaged
    return _read_cfg(path).get(NETWORK) == PUBLISHED


def _read_cfg(path: str | Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get(CFG, "{}"))


def save_state(model: nn.Module, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the state dict of ``model`` as safetensors: whole or not at all.

    The header keeps the mean and standard deviation of its images, which timm's models have in ``pretrained_cfg``, and
    whether it is the published network of TRAM.
    """
    state = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    write_tensors(state, path, expectations(model))


def expectations(model: nn.Module) -> dict[str, str]:
    """What the header of a file keeps of ``model``, see :func:`save_state`."""
    known = {key: value for key, value in getattr(model, CFG, {}).items() if key in (*NORM, NETWORK)}
    return {CFG: json.dumps(known)}


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``tensors`` as safetensors, with ``metadata`` in the header: whole or not at all."""
    content = safetensors.torch.save(dict(tensors), metadata)
    write_atomically(Path(path), lambda file: file.buffer.write(content))
