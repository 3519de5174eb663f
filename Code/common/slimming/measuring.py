"""What plans cost, how fast they are and which images they have right, as columns of "slimming"."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.cost.throughput import interleaved
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.none import NoReduction
from common.rows import Rows
from common.setup import Setup
from common.slimming.plans import encode_all
from common.training import inference_pass
from common.training.metrics import from_unreduced, hits_among, hits_by_image, means_with_errors

Row = dict[str, object]
MEASURED = ("accuracy", "accuracy_full", "top5", "agreement", "divergence")
_UNITS = (100, 100, 100, 1, 1)  # accuracies in percent


def hits_of(
    setup: Setup, models: Mapping[Hashable, ReducedVisionTransformer], limit: int | None = None, *, shared: bool = False
) -> dict[Hashable, Tensor]:
    """What each of ``models`` makes of every validation image (n, 5), float64, in the order of :data:`MEASURED`.

    Right among the classes of the dataset, among all of the head, and among the five most probable of the latter; and
    without labels, over all classes of the head: the first class is that of the unreduced network, and the divergence
    from it.

    Args:
        limit: images; None = all.
        shared: the models are of the backbone's own modules, see :func:`common.slimming.plans.encode_all`.
    """
    whole, loader = reduce_tokens(setup.vit, "none"), setup.loader(setup.some(limit))
    found = {key: Rows(len(loader.sampler)) for key in models}
    same = {key for key, model in models.items() if isinstance(model.reducer, NoReduction)}
    with inference_pass([whole, *models.values()], loader, "plans") as batches:
        for images, labels in batches:
            target = whole(images).cpu()
            if shared:
                outputs = ((key, whole.classify(tokens)) for key, tokens in encode_all(whole, models, images))
            else:
                outputs = ((key, target if key in same else model(images)) for key, model in models.items())
            for key, logits in outputs:
                logits = logits.cpu()
                right = list(hits_by_image(logits, labels, setup.val_set).values())
                top5 = hits_among(logits, labels, setup.val_set, 5)
                labelled = torch.from_numpy(np.stack([right[0], right[-1], top5], axis=1)).double()
                unlabelled = torch.stack(list(from_unreduced(logits, target).values()), dim=1).double()
                found[key].add(torch.cat([labelled, unlabelled], dim=1))
    return {key: rows.rows for key, rows in found.items()}


def measures(found: Tensor, other: Tensor | None) -> Row:
    """Means of ``found`` (n, 5), see :func:`hits_of`, and how it differs from ``other`` on the same images."""
    values = dict(zip(MEASURED, (found * found.new_tensor(_UNITS)).T, strict=True))
    if other is not None:
        values["gain"] = 100 * (found[:, 1] - other[:, 1])
        values["divergence_change"] = found[:, 4] - other[:, 4]
    return {"n_val": len(found), **means_with_errors(**values)}


def cost(shape: Shape, lengths: Sequence[int], counter: str = "compact") -> Row:
    """What is executed, by ``counter``, and what the authors count; what is saved of each; the tokens by block."""
    row: Row = {"tokens": " ".join(map(str, lengths))}
    for name, end in ((counter, ""), ("paper", "_paper")):
        macs = slim_macs(shape, lengths, name)
        row |= {f"gmac{end}": macs / 1e9, f"mac_cut{end}": 1 - macs / shape.unreduced}
    return row


def speeds(
    setup: Setup, models: Mapping[Hashable, ReducedVisionTransformer], baseline: Hashable, rounds: int
) -> dict[Hashable, Row]:
    """Images per second of each of ``models``, and its speed-up over ``baseline``, on a batch of validation images.

    Args:
        rounds: passes of each, in turn; 0 = nothing is timed, and there is nothing in the result.
    """
    if not rounds:
        return {}
    images = setup.some(min(setup.batch_size, len(setup.val_set))).stack().to(setup.where)
    return {key: asdict(each) for key, each in interleaved(models, images, baseline=baseline, rounds=rounds).items()}
