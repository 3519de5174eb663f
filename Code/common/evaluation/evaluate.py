"""One pass over a split that notes every decision of a model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.data import head_classes, make_loader
from common.data.base import LabelledDataset
from common.errors import UsageError, require_choice
from common.evaluation.record import Record, Setting, Stage
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.reducers import Method, Reducer, reducer_class
from common.results import conditions
from common.rows import Rows
from common.tokens import GONE
from common.training import inference_pass, mean_average_precision, torch_device

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
        model: of ``create_model`` or ``reduce_tokens``; it moves to ``device``.
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
    with inference_pass([model.to(where)], loader, "evaluation") as batches:
        for images, targets in batches:
            with precision:
                logits, trace = model.trace(images, cls_at=cls_at)
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
        img_size=tuple(images.shape[2:]),
        grid_size=model.patch_grid(images),
        classes=None if classes is None else tuple(classes),
        versions={key: around[key] for key in VERSIONS},
        details=details or {},
    )
    return collected.record(setting, sum(parameter.numel() for parameter in model.parameters()))


def stage_blocks(reducer: Reducer) -> tuple[int, ...]:
    """The blocks in which ``reducer`` decides something."""
    return reducer.blocks if reducer.selects or reducer.clusters or reducer.idles else ()


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
        self.parts: dict[Hashable, Rows] = {}
        self.done = 0

    def add(self, logits: Tensor, targets: Tensor, trace: Trace) -> None:
        """``logits`` (B, C) of the dataset's classes, ``targets`` and ``trace`` of one batch."""
        losses = image_losses(logits, targets)
        self._require_finite("loss", losses.isfinite())
        self._note("loss", losses)
        if self.dataset.multi_label:
            self._note("logits", logits)  # average precision ranks all images
            self._note("targets", targets.to(torch.uint8))
            self._note("predictions", logits.sigmoid().to(torch.float16))
        else:
            self._note("targets", targets.int())
            self._note("predictions", logits.topk(min(TOP, logits.shape[1]), dim=1).indices.int())
        for block in self.blocks:
            self._note(("num_tokens", block), trace.num_tokens[block].int())
            if self.reducer.selects:
                self._note(("kept", block), trace.origin[block].int(), GONE)  # adaptive methods keep more or fewer
            if self.reducer.clusters:
                self._note(("destination", block), trace.destination[block].int())
            if self.reducer.idles:
                self._note(("computed", block), trace.active[block])
        for block, tokens in trace.cls.items():
            tokens = tokens.to("cpu", torch.float16)
            self._require_finite(f"CLS token (float16) after block {block}", tokens.isfinite().all(1))
            self._note(("cls", block), tokens)
        self.done += len(losses)

    def _note(self, part: Hashable, rows: Tensor, padding: int | None = None) -> None:
        self.parts.setdefault(part, Rows(len(self.dataset), padding)).add(rows)

    def _require_finite(self, what: str, finite: Tensor) -> None:
        if not finite.all():
            image = self.dataset.image_ids[self.done + int(finite.byte().argmin())]
            raise FloatingPointError(f"the {what} of image {image!r} is not finite")

    def record(self, setting: Setting, params: int) -> Record:
        """All batches together."""
        whole = {part: rows.rows.numpy() for part, rows in self.parts.items()}
        return Record(
            setting=setting,
            image_ids=tuple(self.dataset.image_ids),
            targets=whole["targets"],
            predictions=whole["predictions"],
            loss=whole["loss"],
            accuracy=self._accuracy(whole),
            params=params,
            stages={block: Stage(*(whole.get((part.name, block)) for part in fields(Stage))) for block in self.blocks},
            cls={part[1]: rows for part, rows in whole.items() if part[0] == "cls"},
        )

    def _accuracy(self, whole: Mapping[Hashable, np.ndarray]) -> dict[str, float]:
        if self.dataset.multi_label:
            logits, targets = torch.from_numpy(whole["logits"]), torch.from_numpy(whole["targets"])
            return {"map": mean_average_precision(logits, targets)}
        hits = whole["predictions"] == whole["targets"][:, None]
        return {"top1": 100.0 * float(hits[:, 0].mean()), "top5": 100.0 * float(hits.any(1).mean())}


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
