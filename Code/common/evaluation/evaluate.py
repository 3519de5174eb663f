"""One pass over a split that notes every decision of a model."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.budget import cost_images
from common.cost.counter import gmac_of
from common.data import head_classes, make_loader
from common.data.base import LabelledDataset
from common.data.on_device import on_device
from common.devices import torch_device
from common.errors import UsageError, require_choice
from common.evaluation.record import Record, Setting, Stage
from common.models.reduced import ReducedVisionTransformer
from common.models.trace import Trace
from common.options import Whole, check
from common.reducers import Method, Reducer, reducer_class
from common.results import conditions
from common.rows import Rows
from common.tokens import GONE
from common.training import inference_pass, mean_average_precision

TOP = 5
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
VERSIONS = ("torch", "timm", "commit", "device", "date")
LARGEST = torch.finfo(torch.float16).max


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
    scores: bool = False,
    soft_weights: int = 0,
    seed: int | None = None,
    decisions_only: bool = False,
    device: str | None = None,
    workers: int = 0,
    mixed_precision: str = "no",
) -> Record:
    """Evaluate ``model`` on ``dataset`` and note what it decided on every image.

    >>> from common import create_model, load_dataset
    >>> model = create_model("vit_digits", reducer="tome", keep_rate=0.5)
    >>> data = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, data, batch_size=60, method="tome", backbone="vit_digits", seed=0)
    >>> record.setting.key, len(record), record.stages[3].destination.shape, round(record.gmac, 4)
    ('digits/seed-0/tome_vit_digits-1_3_4-_0.5', 360, (360, 32), 0.008)

    Args:
        model: of ``create_model`` or ``reduce_tokens``; it moves to ``device``.
        method: its reducer with options, as text.
        backbone, name, weights, details: kept in the record, see :class:`Setting`.
        classes: outputs of the head that are the dataset's classes, in its order. By default those that
            :func:`common.data.head_classes` finds: all of them, or ten of 1000 ImageNet classes for Imagenette.
            Targets and predictions are positions in ``classes``.
        cls_at: blocks after which the CLS token is kept, before the final norm.
        scores: keep what the method scores patches by, where it does: 2 bytes per patch and stage.
        soft_weights: of soft merging (PatchMerger, Sinkhorn, SiT) keep in how many tokens each patch weighs most, and
            how much: 4 bytes for each of them, per patch and stage.
        seed: what a method that draws at random in evaluation follows, with the number of the batch; kept in the
            record. None = torch's random state.
        decisions_only: the head's classes may be others than the dataset's: predictions are classes of the head, there
            is no accuracy, and the losses are NaN.
        device: "cpu", "cuda" ...; None = "cuda" when there is one.
        mixed_precision: "no", "bf16" or "fp16" (not on a CPU).

    Raises:
        UsageError: arguments, model and dataset do not fit together.
        FloatingPointError: the output for an image, or a CLS token, is not finite; the message names the image.
    """
    method = _checked_method(method, model.reducer)
    where = torch_device(device)
    classes = None if decisions_only else _checked_classes(classes, model, dataset)
    model.check_cls_at(cls_at)
    check("soft_weights", soft_weights, Whole)
    loader = on_device(make_loader(dataset, batch_size, shuffle=False, seed=0, workers=workers), where)
    precision = _precision(mixed_precision, where)
    noted = {"scores": int(scores), "soft_weights": soft_weights}
    collected = _Collected(dataset, model.reducer, noted, judged=not decisions_only)
    with inference_pass([model.to(where)], loader, "evaluation") as batches:
        for number, (images, targets) in enumerate(batches):
            with precision, _drawing(seed, number, where):
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
        depth=len(model.blocks),
        width=model.embed_dim,
        seed=seed,
        scored=model.reducer.scored if scores else "",
        noted=noted,
        versions={key: around[key] for key in VERSIONS} | {"date": _now()},
        details=details or {},
    )
    size = {"params": sum(parameter.numel() for parameter in model.parameters())}
    return collected.record(setting, **size, gmac=gmac_of(model, lambda: cost_images(dataset)))


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

    def __init__(self, dataset: LabelledDataset, reducer: Reducer, noted: Mapping[str, int], *, judged: bool) -> None:
        self.dataset, self.reducer, self.blocks, self.judged = dataset, reducer, stage_blocks(reducer), judged
        self.scores, self.soft_weights = noted["scores"] and bool(reducer.scored), noted["soft_weights"]
        self.parts: dict[Hashable, Rows] = {}
        self.done = 0

    def add(self, logits: Tensor, targets: Tensor, trace: Trace) -> None:
        """``logits`` (B, C) of the dataset's classes, ``targets`` and ``trace`` of one batch."""
        self._require_finite("output", logits.isfinite().all(1))
        losses = image_losses(logits, targets) if self.judged else torch.full((len(logits),), float("nan"))
        self._note("loss", losses)
        if self.dataset.multi_label:
            if self.judged:
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
            if self.reducer.fuses:
                self._note(("fused", block), trace.fused(block))
            self._note_numbers(block, trace)
        for block, tokens in trace.cls.items():
            tokens = tokens.to("cpu", torch.float16)
            self._require_finite(f"CLS token (float16) after block {block}", tokens.isfinite().all(1))
            self._note(("cls", block), tokens)
        self.done += len(losses)

    def _note_numbers(self, block: int, trace: Trace) -> None:
        """Scores and soft weights, where they were asked for."""
        if self.scores:
            nothing = torch.full(trace.assignment[block].shape, float("nan"))  # a batch of ATS may have none to drop
            scores = trace.scores.get(block, nothing).clamp(-LARGEST, LARGEST)
            self._note(("scores", block), scores.to(torch.float16))
        if self.soft_weights and block in trace.weights:
            weights = trace.weights[block]  # (B, K, P)
            heaviest = weights.topk(min(self.soft_weights, weights.shape[1]), dim=1)
            self._note(("holders", block), heaviest.indices.transpose(1, 2).int())  # (B, P, M)
            self._note(("shares", block), heaviest.values.transpose(1, 2).to(torch.float16))

    def _note(self, part: Hashable, rows: Tensor, padding: int | None = None) -> None:
        self.parts.setdefault(part, Rows(len(self.dataset), padding)).add(rows)

    def _require_finite(self, what: str, finite: Tensor) -> None:
        if not finite.all():
            image = self.dataset.image_ids[self.done + int(finite.byte().argmin())]
            raise FloatingPointError(f"the {what} of image {image!r} is not finite")

    def record(self, setting: Setting, params: int, gmac: float) -> Record:
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
            gmac=gmac,
        )

    def _accuracy(self, whole: Mapping[Hashable, np.ndarray]) -> dict[str, float]:
        if not self.judged:
            return {}
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


@contextmanager
def _drawing(seed: int | None, batch: int, device: torch.device) -> Iterator[None]:
    """Random numbers that follow from ``seed`` and the number of the ``batch``; the caller's stay as they are."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence([seed % 2**64, batch]).generate_state(1)[0]))
        yield


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _precision(name: str, device: torch.device) -> AbstractContextManager:
    dtype = PRECISIONS[require_choice(name, PRECISIONS, "mixed_precision")]
    if name == "fp16" and device.type == "cpu":
        raise UsageError("mixed_precision 'fp16' is not possible on a CPU; allowed: no, bf16")
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
