"""Explanations that follow attention back from the output to the patches."""

from __future__ import annotations

import torch
from torch import Tensor

from common.explain.base import Explainer, Explanation, predicted, register_explainer
from common.models.observe import AttentionLayer, attention_layers
from common.options import Count
from common.reducers.topk import HEAD_FUSION, HeadFusion


class _Attention(Explainer):
    """Relevance that starts at what the head reads and passes through ``step`` of each block, the last one first."""

    def explain(self, images: Tensor, labels: Tensor | None) -> Explanation:
        logits, layers = attention_layers(self.model, images)
        labels = predicted(logits, labels)
        gradients = [None] * len(layers)
        if self.differentiates:
            score = logits.gather(1, labels[:, None]).sum()
            gradients = torch.autograd.grad(score, [layer.attention for layer in layers])
        with torch.no_grad():
            relevance = self.relevance(layers, gradients)
        return Explanation(self.on_grid(relevance, images), labels)

    def relevance(self, layers: list[AttentionLayer], gradients: list[Tensor | None]) -> Tensor:
        """(B, P) from the maps of all blocks and the gradients of the explained logits with respect to them."""
        row = self._read_by_head(layers[-1])
        for number in reversed(range(len(layers))):
            layer = layers[number]
            row = self.step(row, layer.attention.detach().float(), gradients[number])
            prefix = layer.num_prefix_tokens
            patches = layer.to_patches(row[:, prefix:])
            if number:
                before = layers[number - 1]
                lost = before.num_prefix_tokens - prefix  # of a model that drops its prefix tokens on the way
                row = torch.cat([row[:, :prefix], row.new_zeros(len(row), lost), before.from_patches(patches)], dim=1)
        return patches

    def step(self, row: Tensor, attention: Tensor, gradient: Tensor | None) -> Tensor:
        """Relevance ``row`` (B, N) of a block's outputs -> of its inputs."""
        raise NotImplementedError

    def _read_by_head(self, layer: AttentionLayer) -> Tensor:
        """Shares (B, N) of the last tokens in what the head reads: CLS (and distillation) token, or all it averages."""
        shares = layer.attention.new_zeros(layer.attention.shape[::3], dtype=torch.float32)
        prefix = layer.num_prefix_tokens
        if self.model.global_pool == "token" and not self.model.reducer.pools_mean:
            shares[:, : 2 if hasattr(self.model, "head_dist") else 1] = 1.0
        else:
            shares[:, :prefix] = float(self.model.pool_include_prefix)
            shares[:, prefix:] = 1.0 if layer.valid is None else layer.valid.float()
        return shares / shares.sum(1, keepdim=True)


@register_explainer("raw_attention")
class RawAttention(_Attention):
    """What the head's token attends to in the last block; where the head averages patches, the mean over them.

    Args:
        head_fusion: "mean" or "max" over heads.
    """

    explains_class = False

    def __init__(self, model, *, head_fusion: HeadFusion = "mean", batch_size: Count = 32) -> None:
        super().__init__(model, batch_size=batch_size)
        self.head_fusion = head_fusion

    def relevance(self, layers: list[AttentionLayer], gradients: list[Tensor | None]) -> Tensor:
        last = layers[-1]
        fused = HEAD_FUSION[self.head_fusion](last.attention.float())
        row = (self._read_by_head(last)[:, None] @ fused)[:, 0]
        return last.to_patches(row[:, last.num_prefix_tokens :])


@register_explainer("rollout")
class Rollout(_Attention):
    """Attention rollout: the product over blocks of (A + I) / 2, A the mean over heads.

    Abnar, Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, equation 1.
    """

    explains_class = False

    def step(self, row: Tensor, attention: Tensor, gradient: Tensor | None) -> Tensor:
        return (row + _through(row, attention.mean(1))) / 2


@register_explainer("gradient_rollout")
class GradientRollout(_Attention):
    """Rollout of gradient x attention: positive part of the mean over heads, plus I, rows scaled to sum 1."""

    differentiates = True

    def step(self, row: Tensor, attention: Tensor, gradient: Tensor | None) -> Tensor:
        weighted = (attention * gradient).mean(1).clamp(min=0)
        row = row / (1 + weighted.sum(2))
        return row + _through(row, weighted)


@register_explainer("chefer")
class Chefer(_Attention):
    """Relevance R <- R + E_h[(dA * A)+] R over the blocks, dA the gradient of the explained logit.

    Chefer, Gur, Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", ICCV 2021, equations 5 and 6.
    """

    differentiates = True

    def step(self, row: Tensor, attention: Tensor, gradient: Tensor | None) -> Tensor:
        return row + _through(row, (attention * gradient).clamp(min=0).mean(1))


def _through(row: Tensor, matrix: Tensor) -> Tensor:
    """(B, N) times (B, N, N)."""
    return (row[:, None] @ matrix)[:, 0]
