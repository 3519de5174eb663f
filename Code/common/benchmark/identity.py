"""Whether a method's path through a model, without its effect, leaves the logits as they are."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.models.reduced import attach
from common.reducers import Reducer, Schedule, Signals
from common.reducers.base import Signal
from common.tokens import Selection, Tokens


class SelectAll(Reducer):
    """Scores as TRAM does and selects every patch in every block: all of a method's path, none of its effect."""

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal]:
        return frozenset({"head_max", "value_norm", "key_mean"})

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | None]:
        everything = torch.arange(tokens.num_patch_tokens, device=tokens.x.device)
        return tokens, Selection(everything.expand(len(tokens.x), -1))


def assert_identity(vit: VisionTransformer, images: Tensor) -> None:
    """Refuse to compare with ``vit`` unless selecting every patch of ``images`` gives its logits to 1e-5.

    Of the largest logit where that is above 1, as it is of trained weights.
    """
    model = attach(vit, SelectAll(vit, Schedule(1.0, (0,))))
    with torch.inference_mode():
        logits = vit(images)
        torch.testing.assert_close(model(images), logits, rtol=0, atol=1e-5 * max(1, logits.abs().max().item()))
