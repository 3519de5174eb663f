"""A reduced model as one file: its weights, its method with all options, a plan or thresholds among them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.models.support import check_supported, is_reduced
from common.reducers.base import REDUCERS
from common.reducers.slimming_plan import SlimmingPlan
from common.weights import CFG, expectations, read_norm, write_tensors

HEADER, FORMAT, SUFFIX, PLAN = "reduced_model", "reduced model 1", ".safetensors", "plan"


def save(model: ReducedVisionTransformer, path: str | Path) -> Path:
    """Write a reduced model as one safetensors file, whole or not at all; :func:`common.load` makes it again.

    The weights have timm's names, those of the method stand under ``reducer.``; the header holds the rest as JSON. So
    :func:`common.create_model` reads the file too (``weights=``), where the method is given again.

    >>> from tempfile import TemporaryDirectory
    >>> import torch, common
    >>> from common.models.factory import create_backbone
    >>> vit, images = create_backbone("vit_digits").eval(), torch.rand(2, 3, 32, 32)
    >>> model = common.reduce_tokens(vit, "tram", keep_rate=0.5)
    >>> with TemporaryDirectory() as folder:
    ...     again = common.load(save(model, f"{folder}/tram.safetensors"), vit)
    >>> torch.equal(again(images), model(images))
    True

    Args:
        model: of :func:`common.reduce_tokens` or :func:`common.create_model`.
        path: ends in ``.safetensors``.

    Returns:
        ``path``.

    Raises:
        UsageError: another ending, a model that is not reduced, or a method without a name in the registry.
    """
    path = _checked(path)
    if not is_reduced(model):
        raise UsageError(f"a {type(model).__name__} cannot be saved; allowed: a model of reduce_tokens or create_model")
    method, options = REDUCERS.asked(model.reducer)
    if options.get(PLAN) is not None:
        options[PLAN] = model.reducer.plan.content  # also where the option was the path of a file
    schedule = model.reducer.schedule
    record = {"format": FORMAT, "method": method, "options": options, "backbone": _described(model)}
    record |= {"keep_rate": schedule.keep_rate, "reduction_loc": schedule.reduction_loc}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_tensors(state, path, {**expectations(model), HEADER: json.dumps(record)})
    return path


def load(path: str | Path, vit: VisionTransformer) -> ReducedVisionTransformer:
    """The model that :func:`common.save` wrote.

    >>> from tempfile import TemporaryDirectory
    >>> import common
    >>> from common.models.factory import create_backbone
    >>> model = common.create_model("vit_digits", reducer="tome", keep_rate=0.5)
    >>> with TemporaryDirectory() as folder:
    ...     load(common.save(model, f"{folder}/tome.safetensors"), create_backbone("vit_digits")).reducer.schedule
    Schedule(keep_rate=0.5, reduction_loc=(1, 3, 4))

    Args:
        path: its file.
        vit: a timm backbone of the same architecture; its weights do not matter, and stay as they are.

    Returns:
        The model in eval mode, with weights of its own, on the device of ``vit`` and in the number format of the file.

    Raises:
        UsageError: no such file, one that holds no reduced model, or one of another backbone.
    """
    path = _checked(path)
    record, tensors = _read(path)
    check_supported(vit)
    _refuse_other_backbone(path, record["backbone"], vit, tensors)
    options = dict(record["options"])
    if options.get(PLAN) is not None:
        options[PLAN] = SlimmingPlan.of_content(options[PLAN])
    rate = record["keep_rate"]
    where = {"keep_rate": tuple(rate) if isinstance(rate, list) else rate, "reduction_loc": record["reduction_loc"]}
    first, _ = next(vit.named_parameters())
    own = copy.deepcopy(vit).to(tensors[first].dtype)
    model = reduce_tokens(own, record["method"], **where, **options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UsageError(f"{str(path)!r} does not fit its own method: {' '.join(str(error).split())}") from error
    model.pretrained_cfg = getattr(vit, CFG, {}) | read_norm(path)
    return model.eval()


def _checked(path: str | Path) -> Path:
    if Path(path).suffix != SUFFIX:
        raise UsageError(f"reduced models are files that end in {SUFFIX}; given: {str(path)!r}")
    return Path(path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise UsageError(f"file {str(path)!r} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"file {str(path)!r} is damaged or truncated: {error}") from error
    if record.get("format") != FORMAT:
        raise UsageError(
            f"{str(path)!r} holds no reduced model of common.save; weights alone go to create_model(weights=...)"
        )
    return record, tensors


def _described(vit: VisionTransformer) -> dict[str, Any]:
    """What a backbone is, as far as its weights and its tokens depend on it, as JSON gives it back."""
    grid, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size
    sizes = {"depth": len(vit.blocks), "embed_dim": vit.embed_dim, "num_heads": vit.blocks[0].attn.num_heads}
    image = {"img_size": list(grid), "patch_size": list(patch), "num_prefix_tokens": vit.num_prefix_tokens}
    return {**sizes, **image, "num_classes": vit.num_classes, "global_pool": vit.global_pool}


def _refuse_other_backbone(
    path: Path, saved: Mapping[str, Any], vit: VisionTransformer, tensors: Mapping[str, Tensor]
) -> None:
    for name, value in _described(vit).items():
        if saved[name] != value:
            raise UsageError(f"{str(path)!r} is of a backbone with {name}={saved[name]}, this one has {value}")
    other = {name for name in tensors if not name.startswith("reducer.")} ^ set(vit.state_dict())
    if other:
        raise UsageError(
            f"{str(path)!r} is of another backbone: {', '.join(sorted(other)[:3])} "
            f"{'is' if len(other) == 1 else 'are'} in one of the two only"
        )
