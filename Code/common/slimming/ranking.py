"""The score of every patch by name, averaged over images or chosen for all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from common.models.reduced import ReducedVisionTransformer
from common.slimming.baselines import SCORES
from common.slimming.calibration import Batches, Calibration
from common.slimming.coverage import carried, coverage
from common.slimming.scores import Scoring, significances
from common.tokens import Tokens

COVERAGE = "coverage"
RANKINGS = (*SCORES, COVERAGE)


@torch.inference_mode()
def block_scores(
    name: str,
    model: ReducedVisionTransformer,
    batches: Iterable[Tokens],
    layer: int,
    how: Scoring,
    kept: Sequence[int] = (),
) -> Tensor:
    """Score (P,) of every patch in block ``layer``, float64: the mean over images, or what it adds to the coverage.

    Args:
        name: of :data:`RANKINGS`.
        batches: all tokens that enter block ``layer``.
        kept: patches that stay anyway; "coverage" looks for those that add most to them.
    """
    if name == COVERAGE:
        values, weights = zip(*(carried(model, tokens, layer) for tokens in batches), strict=True)
        return coverage(torch.cat(values), torch.cat(weights), kept).cpu()
    found = [SCORES[name](model, tokens, layer, how, number).double() for number, tokens in enumerate(batches)]
    return torch.cat(found).mean(0).cpu()


@torch.inference_mode()
def network_scores(name: str, model: ReducedVisionTransformer, images: Calibration, how: Scoring) -> Tensor:
    """:func:`block_scores` (L - 1, P) in every block but the last of the unreduced ``model``.

    The features of all ``images`` are held for one block.
    """
    span = range(len(model.blocks) - 1)
    if name == "significance":
        return significances(model, images, span, how)
    parameter, scores = next(model.parameters()), []
    batches = [model.embed(batch.to(parameter)) for batch in Batches(images, 16)]
    for layer in tqdm(span, name, leave=False):
        scores.append(block_scores(name, model, batches, layer, how))
        batches = [model.advance(tokens, range(layer, layer + 1)) for tokens in batches]
    return torch.stack(scores)
