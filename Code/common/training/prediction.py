"""Logits of models over a dataset."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.images import check_images
from common.models.observe import untouched
from common.rows import Rows
from common.training.accelerator import interleave, progress
from common.training.metrics import score


@dataclass
class Prediction:
    """Logits (n, classes) of one model, float32 on the CPU, and images per second without the first batch."""

    logits: Tensor
    images_per_second: float


def evaluate(model: nn.Module, loader: DataLoader, accelerator: Accelerator | None = None) -> tuple[float, float]:
    """Mean cross-entropy and accuracy in percent over ``loader``; for several labels per image BCE and mAP.

    With an ``accelerator`` of several processes, whose loaders must share out the data as
    :func:`common.data.make_loader` does, every process gets the exact result over all images.
    """
    if accelerator is None:
        predictions, labels = predict({"model": model}, loader)
        return score(predictions["model"].logits, labels)
    with accelerator.autocast():
        predictions, labels = predict({"model": model}, loader, quiet=not accelerator.is_main_process)
    return score(interleave(accelerator, predictions["model"].logits), interleave(accelerator, labels))


@contextmanager
def inference_pass(
    models: Iterable[nn.Module], loader: DataLoader, title: str, *, quiet: bool = False
) -> Iterator[Iterable[tuple[Tensor, Tensor]]]:
    """The batches of ``loader``, (images on the device and in the dtype of ``models``, labels), with a progress bar.

    Inside, the models are in eval mode and nothing is differentiated; then they are as before, also after an error.

    Examples:
        >>> import common
        >>> from common.data import make_loader
        >>> model = common.create_model("vit_digits", reducer="topk", keep_rate=0.5)
        >>> loader = make_loader(common.load_dataset("digits", "val", img_size=32, limit=20), 8, shuffle=False, seed=0)
        >>> with inference_pass([model], loader, "logits", quiet=True) as batches:
        ...     [tuple(model(images).shape) for images, _ in batches]
        [(8, 10), (8, 10), (4, 10)]
    """
    models = list(models)
    parameter = next(models[0].parameters())
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(untouched(model))
        stack.enter_context(torch.inference_mode())
        yield (
            (_for_model(images, models[0]).to(parameter), labels) for images, labels in progress(loader, title, quiet)
        )


def _for_model(images: Tensor, model: nn.Module) -> Tensor:
    """``images`` as they are, refused where a ViT does not take them: bytes would become numbers without a word."""
    if isinstance(model, VisionTransformer):
        check_images(model, images)
    return images


def predict(
    models: Mapping[Hashable, nn.Module], loader: DataLoader, *, quiet: bool = False
) -> tuple[dict[Hashable, Prediction], Tensor]:
    """Predictions of every model over ``loader``, each batch decoded once; and all its labels."""
    count = len(loader.sampler)
    outputs, seconds, labels = {key: Rows(count) for key in models}, {key: [] for key in models}, Rows(count)
    sizes = []
    with inference_pass(models.values(), loader, "evaluation", quiet=quiet) as batches:
        for images, targets in batches:
            for key, model in models.items():
                start = time.perf_counter()
                outputs[key].add(model(images).float().cpu())
                seconds[key].append(time.perf_counter() - start)
            labels.add(targets)
            sizes.append(len(targets))
    warm = slice(1, None) if len(sizes) > 1 else slice(None)  # the first batch pays for what is made once
    speed = {key: sum(sizes[warm]) / sum(seconds[key][warm]) for key in models}
    return {key: Prediction(outputs[key].rows, speed[key]) for key in models}, labels.rows
