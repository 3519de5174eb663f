"""One pass over a split that notes every decision of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.data import head_classes, make_loader
from common.data.base import LabelledDataset
from common.errors import UsageError, require_choice
from common.evaluation.record import Record, Setting, Stage
from common.models.reduced import ReducedVisionTransformer
from common.models.tokens import GONE
from common.models.trace import Trace
from common.reducers import Method, Reducer, reducer_class
from common.results import conditions
from common.training import mean_average_precision, torch_device

TOP = 5
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VERSIONS = ("torch", "timm", "commit", "device", "date")


def evaluate_model(
    model: ReducedVisionTransformer,
    dataset: LabelledDataset,
    *,
    batch_size: int,
    method: str,
    backbone: str,
    name: str = "",
    weights: str = "",
    details: Mapping[str, Any] | None = None,
    classes: Sequence[int] | None = None,
    cls_at: Sequence[int] = (),
    device: str | None = None,
    workers: int = 0,
    mixed_precision: str = "no",
) -> Record:
    """Evaluate ``model`` on ``dataset`` and note what it decided on every image.

    A method that draws at random in evaluation follows torch's random state.

    Args:
        model: of ``create_model`` or ``reduce_tokens``; it moves to ``device`` and to eval mode.
        method: its reducer with options, as text.
        backbone, name, weights, details: kept in the record, see :class:`Setting`.
        classes: outputs of the head that are the dataset's classes, in its order. By default those that
            :func:`common.data.head_classes` finds: all of them, or ten of 1000 ImageNet classes for Imagenette.
            Targets and predictions are positions in ``classes``.
        cls_at: blocks after which the CLS token is kept, before the final norm.
        device: "cpu", "cuda" ...; None = "cuda" when there is one.
        mixed_precision: "no", "bf16" or "fp16" (not on a CPU).

    Raises:
        UsageError: arguments, model and dataset do not fit together.
        FloatingPointError: the loss of an image, or a CLS token, is not finite; the message names the image.
    """
    method = _checked_method(method, model.reducer)
    where = torch_device(device)
    classes = _checked_classes(classes, model, dataset)
    model.check_cls_at(cls_at)
    loader = make_loader(dataset, batch_size, shuffle=False, seed=0, workers=workers)
    precision = _precision(mixed_precision, where)
    collected = _Collected(dataset, model.reducer)
    model.to(where).eval()
    for images, targets in tqdm(loader, desc="evaluation", leave=False):
        with precision:
            logits, trace = model.trace(images.to(where), cls_at=cls_at)
        logits = logits.float().cpu()
        collected.add(logits if classes is None else logits[:, list(classes)], targets, trace)
    around = conditions(device=str(where))
    setting = Setting(
        name=name,
        method=str(method),
        backbone=backbone,
        dataset=dataset.name,
        weights=weights,
        keep_rate=model.reducer.schedule.keep_rate,
        reduction_loc=collected.blocks,
        img_size=tuple(model.patch_embed.img_size),
        grid_size=tuple(model.patch_embed.grid_size),
        classes=None if classes is None else tuple(classes),
        versions={key: around[key] for key in VERSIONS},
        details=details or {},
    )
    return collected.record(setting, sum(parameter.numel() for parameter in model.parameters()))


def stage_blocks(reducer: Reducer) -> tuple[int, ...]:
    """The blocks in which ``reducer`` decides something."""
    return reducer.blocks if reducer.selects or reducer.clusters else ()


def image_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss (B,) of each image for ``logits`` (B, C).

    Args:
        targets: (B,) classes: cross-entropy. Or (B, C) zeros and ones: binary cross-entropy, mean over classes.
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none").mean(1)


class _Collected:
    """The rows of a record, batch by batch, under the name of their part, of a block's under (name, block)."""

    def __init__(self, dataset: LabelledDataset, reducer: Reducer) -> None:
        self.dataset, self.reducer, self.blocks = dataset, reducer, stage_blocks(reducer)
        self.logits: list[Tensor] = []  # only where average precision ranks all images
        self.parts: dict[Hashable, list[np.ndarray]] = defaultdict(list)
        self.done = 0

    def add(self, logits: Tensor, targets: Tensor, trace: Trace) -> None:
        """``logits`` (B, C) of the dataset's classes, ``targets`` and ``trace`` of one batch."""
        losses = image_losses(logits, targets)
        self._require_finite("loss", losses.isfinite())
        self.parts["loss"].append(losses.numpy())
        if self.dataset.multi_label:
            self.logits.append(logits)
            self.parts["targets"].append(targets.numpy().astype(np.uint8))
            self.parts["predictions"].append(logits.sigmoid().numpy().astype(np.float16))
        else:
            best = logits.topk(min(TOP, logits.shape[1]), dim=1).indices
            self.parts["targets"].append(_integers(targets))
            self.parts["predictions"].append(_integers(best))
        for block in self.blocks:
            self.parts["num_tokens", block].append(_integers(trace.num_tokens[block]))
            if self.reducer.selects:
                self.parts["kept", block].append(_integers(trace.origin[block]))
            if self.reducer.clusters:
                self.parts["assignment", block].append(_integers(trace.assignment[block]))
        for block, tokens in trace.cls.items():
            tokens = tokens.to("cpu", torch.float16)
            self._require_finite(f"CLS token (float16) after block {block}", tokens.isfinite().all(1))
            self.parts["cls", block].append(tokens.numpy())
        self.done += len(losses)

    def _require_finite(self, what: str, finite: Tensor) -> None:
        if not finite.all():
            image = self.dataset.image_ids[self.done + int(finite.byte().argmin())]
            raise FloatingPointError(f"the {what} of image {image!r} is not finite")

    def record(self, setting: Setting, params: int) -> Record:
        """All batches together."""
        whole = {key: _stacked(parts) for key, parts in self.parts.items()}
        return Record(
            setting=setting,
            image_ids=tuple(self.dataset.image_ids),
            targets=whole["targets"],
            predictions=whole["predictions"],
            loss=whole["loss"],
            accuracy=self._accuracy(whole),
            params=params,
            stages={
                block: Stage(*(whole.get((name, block)) for name in ("num_tokens", "kept", "assignment")))
                for block in self.blocks
            },
            cls={key[1]: rows for key, rows in whole.items() if key[0] == "cls"},
        )

    def _accuracy(self, whole: Mapping[Hashable, np.ndarray]) -> dict[str, float]:
        if self.dataset.multi_label:
            return {"map": mean_average_precision(torch.cat(self.logits), torch.from_numpy(whole["targets"]))}
        hits = whole["predictions"] == whole["targets"][:, None]
        return {"top1": 100.0 * float(hits[:, 0].mean()), "top5": 100.0 * float(hits.any(1).mean())}


def _integers(values: Tensor) -> np.ndarray:
    return values.to("cpu", torch.int32).numpy()


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of all batches; those of different length (the tokens that an adaptive method keeps) are padded with -1."""
    if parts[0].ndim == 1:
        return np.concatenate(parts)
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=GONE) for part in parts])


def _checked_method(text: str, reducer: Reducer) -> Method:
    method = Method.parse(text)
    if type(reducer) is not reducer_class(method.name):
        raise UsageError(f"method {text!r} is not what the model was made with: {type(reducer).__name__}")
    return method


def _checked_classes(
    classes: Sequence[int] | None, model: ReducedVisionTransformer, dataset: LabelledDataset
) -> Sequence[int] | None:
    if classes is None:
        return head_classes(model.num_classes, dataset)
    inside = [index for index in classes if 0 <= index < model.num_classes]
    if len(inside) != len(classes) or len(classes) != dataset.num_classes:
        raise UsageError(
            f"{len(classes)} classes up to {max(classes, default=None)} do not fit a head of {model.num_classes} "
            f"outputs and the {dataset.num_classes} classes of {dataset.name!r}; give one output per class"
        )
    return classes


def _precision(name: str, device: torch.device) -> AbstractContextManager:
    dtype = PRECISIONS[require_choice(name, PRECISIONS, "mixed_precision")]
    if name == "fp16" and device.type == "cpu":
        raise UsageError("mixed_precision 'fp16' is not possible on a CPU; allowed: no, bf16")
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
