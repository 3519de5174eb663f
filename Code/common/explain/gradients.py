"""Explanations by gradients, computed by the libraries that other fields use too: ``pip install -e '.[explain]'``."""

from __future__ import annotations

from operator import itemgetter

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.errors import require_package
from common.explain.base import Explainer, Explanation, predicted, register_explainer
from common.models.observe import AttentionLayer, watch
from common.models.reduced import ReducedVisionTransformer
from common.options import Count

EXTRA = "explain"


@register_explainer("grad_cam")
class GradCam(Explainer):
    """Grad-CAM on the patch tokens that enter the last block, after its first norm, by the library pytorch-grad-cam.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017.
    The library scales every heatmap to [0, 1].
    """

    differentiates = True

    def __init__(self, model: VisionTransformer, *, batch_size: Count = 32) -> None:
        super().__init__(model, batch_size=batch_size)
        self._library = require_package("pytorch_grad_cam", EXTRA, "explainer 'grad_cam'")

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        model = _LastLayer(self.model, self.model.patch_grid(images))

        class PatchCam(self._library.GradCAM):
            """Puts tokens, which of a reduced model fill no grid, where their patches are."""

            def get_target_width_height(self, images: Tensor) -> tuple[int, int]:
                return model.grid_size[::-1]

            def get_cam_image(self, images, layer, targets, activations, gradients, eigen_smooth=False) -> np.ndarray:
                activations, gradients = model.on_grid(activations), model.on_grid(gradients)
                return super().get_cam_image(images, layer, targets, activations, gradients, eigen_smooth)

        cam = PatchCam(model, [self.model.blocks[-1].norm1], Tensor.float)  # numpy knows no bfloat16
        try:
            heat = cam(images, None if labels is None else [itemgetter(label) for label in labels])
        finally:
            cam.activations_and_grads.release()
        return Explanation(torch.from_numpy(heat).to(images.device), predicted(cam.outputs, labels))


class _LastLayer(nn.Module):
    """The model, with the attention of its last block kept as ``layer``."""

    def __init__(self, model: ReducedVisionTransformer, grid_size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.grid_size = model, grid_size

    def forward(self, images: Tensor) -> Tensor:
        return watch(self.model, images, self._keep).float()

    def on_grid(self, tokens: np.ndarray) -> np.ndarray:
        """Features (B, N, D) of the tokens in the last block -> (B, D, h, w)."""
        features = torch.from_numpy(tokens).transpose(1, 2)[..., self.layer.num_prefix_tokens :]
        patches = self.layer.to_patches(features.to(self.layer.assignment.device))
        return patches.unflatten(-1, self.grid_size).cpu().numpy()

    def _keep(self, layer: AttentionLayer) -> None:
        self.layer = layer


@register_explainer("integrated_gradients")
class IntegratedGradients(Explainer):
    """Integrated gradients of the logit from a constant image, summed over the pixels of each patch, by captum.

    Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017. Heatmaps are signed; their sum is the
    logit minus that of the constant image, up to the error of the integral. SimpleViT normalises every patch and so
    sees the whole image however faint it is: all of the change happens at the very start of the path, the heat is about
    0.

    Args:
        n_steps: points of the Gauss-Legendre rule.
        baseline: the constant, as a normalised pixel value; 0 is the mean colour of the training images.
    """

    differentiates = True

    def __init__(
        self, model: VisionTransformer, *, n_steps: Count = 32, baseline: float = 0.0, batch_size: Count = 32
    ) -> None:
        super().__init__(model, batch_size=batch_size)
        self._library = require_package("captum.attr", EXTRA, "explainer 'integrated_gradients'")
        self.n_steps, self.baseline = n_steps, baseline

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        if labels is None:
            with torch.no_grad():
                labels = self.model(images).argmax(1)
        method = self._library.IntegratedGradients(self.model)
        options = {"n_steps": self.n_steps, "internal_batch_size": self.batch_size}
        pixels = method.attribute(images, self.baseline, labels, **options).float()
        patch = self.model.patch_embed.patch_size
        heat = nn.functional.avg_pool2d(pixels.sum(1), patch, ceil_mode=True, divisor_override=1)  # padded at the end
        return Explanation(heat, labels)
