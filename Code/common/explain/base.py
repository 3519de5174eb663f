"""The call that all explainers share, and their registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.errors import UsageError
from common.images import check_images
from common.models.observe import as_reduced, untouched
from common.models.support import has_head, num_outputs
from common.options import Count, accepted_by
from common.registry import Registry, options_text


@dataclass(frozen=True)
class Explanation:
    """How much each patch of B images speaks for a class.

    Attributes:
        heatmaps: (B, h, w) float32, one value per patch of the grid; more = more important, the scale is the method's.
        labels: (B,) the classes that were explained; None where the model has none.
        masks: (B, M, h, w) True where a mask of MUTEX shows a patch, or None.
        confidences: (B, M) probability of the label when only that is shown, or None.
    """

    heatmaps: Tensor
    labels: Tensor | None = None
    masks: Tensor | None = None
    confidences: Tensor | None = None


class Explainer:
    """Base of all explainers: ``explainer(images, labels)`` gives heatmaps and leaves the model as it was.

    >>> class Brightness(Explainer):
    ...     def explain(self, images, labels):
    ...         heat = torch.nn.functional.adaptive_avg_pool2d(images.mean(1), self.model.patch_grid(images))
    ...         return Explanation(heat, predicted(self.model(images), labels))
    >>> from common import create_model
    >>> Brightness(create_model("vit_digits"))(torch.rand(2, 3, 32, 32), labels=3).heatmaps.shape
    torch.Size([2, 8, 8])

    Class attributes:
        differentiates: the method needs gradients.
        explains_class: its heatmaps are of a class; if not, a model without a head will do.

    Args:
        model: a timm VisionTransformer, reduced or not; any size, any depth, any number of prefix tokens.
        batch_size: images, or variants of them, that go through the model at once: it bounds the memory.

    Raises:
        UsageError: a model that is not supported, or has no head where the method explains a class.
    """

    differentiates = False
    explains_class = True

    def __init__(self, model: VisionTransformer, *, batch_size: Count = 32) -> None:
        self.model, self.batch_size = as_reduced(model), batch_size
        if self.explains_class and not has_head(self.model):
            mine = EXPLAINERS.name_of(type(self))
            allowed = ", ".join(name for name in list_explainers() if not EXPLAINERS.get(name).explains_class)
            raise UsageError(
                f"explainer {mine!r} explains a class, and the model has no head (num_classes=0); allowed: {allowed}"
            )

    def __call__(self, images: Tensor, labels: Tensor | int | None = None) -> Explanation:
        """Explain ``images`` with the model in eval mode.

        Args:
            images: (B, 3, H, W), normalised as the model expects them.
            labels: (B,) classes, or one for all images; None = what the model predicts. 0 is a class like any other.
                A model without a head has none.

        Raises:
            UsageError: images or labels do not fit the model.
        """
        check_images(self.model, images)
        if not len(images):
            raise UsageError("there are no images to explain; give at least one")
        with untouched(self.model), torch.inference_mode(not self.differentiates):  # False turns gradients on
            # a copy, so that images that were made in inference mode can be differentiated too
            images = images.detach().to(next(self.model.parameters()), copy=True).requires_grad_(self.differentiates)
            parts = images.split(self.batch_size)
            wanted = [None] * len(parts)
            if labels is not None:
                wanted = self._checked_labels(labels, images).split(self.batch_size)
            found = [self.explain(part, label) for part, label in zip(parts, wanted, strict=True)]
        names = [name for name, part in vars(found[0]).items() if part is not None]
        if not has_head(self.model):
            names.remove("labels")  # what would be the largest feature
        # detached, they are ordinary tensors, whatever mode they were made in
        return Explanation(**{name: torch.cat([vars(part)[name].detach() for part in found]) for name in names})

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        """The method itself for at most ``batch_size`` images, in eval mode; ``labels`` (B,) or None as in the call."""
        raise NotImplementedError

    def on_grid(self, values: Tensor, images: Tensor) -> Tensor:
        """Values (..., P) of the patches of ``images`` (B, 3, H, W) -> (..., h, w)."""
        return values.unflatten(-1, self.model.patch_grid(images))

    def _checked_labels(self, labels: Tensor | int, images: Tensor) -> Tensor:
        if not has_head(self.model):
            raise UsageError("labels are given, and the model has no head (num_classes=0); allowed: labels=None")
        given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if not np.issubdtype(given.dtype, np.integer) or given.shape not in ((), (len(images),)):
            raise UsageError(f"labels {given.tolist()!r} are not allowed; give a class, or one per image")
        classes = num_outputs(self.model)
        outside = given[(given < 0) | (given >= classes)]
        if len(outside):
            raise UsageError(f"label {outside[0]} is not allowed; allowed: 0 to {classes - 1}")
        return torch.from_numpy(np.broadcast_to(given, len(images)).astype(np.int64)).to(images.device)


def predicted(logits: Tensor, labels: Tensor | None) -> Tensor:
    """``labels``, or where they are None the most probable classes (B,) of ``logits`` (B, classes)."""
    return logits.argmax(1) if labels is None else labels


EXPLAINERS: Registry[type[Explainer]] = Registry("explainer")
register_explainer = EXPLAINERS.register
list_explainers = EXPLAINERS.names
ExplainerText = Annotated[str, accepted_by(EXPLAINERS.read)]


def create_explainer(text: str, model: VisionTransformer, **options: object) -> Explainer:
    """The explainer written as ``name`` or ``name:key=value,key=value`` for ``model``; ``options`` may add to it.

    >>> from common import create_model
    >>> explainer = create_explainer("raw_attention:head_fusion=max", create_model("vit_digits"))
    >>> explainer(torch.rand(2, 3, 32, 32)).heatmaps.shape
    torch.Size([2, 8, 8])
    """
    name, written = EXPLAINERS.read(text)
    return EXPLAINERS.get(name)(model, **{**options, **dict(written)})


def explainer_columns(text: str) -> dict[str, str]:
    """The columns "method" and "options" of tables, for the explainer written as in :func:`create_explainer`."""
    name, options = EXPLAINERS.read(text)
    return {"method": name, "options": options_text(options)}
