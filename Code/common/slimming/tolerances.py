"""What a search by tolerance saves and what accuracy it leaves, from strict to lenient."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from torch import Tensor

from common.cost.closed_form import Shape
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.setup import Setup
from common.slimming.study import Row, compared, cost, slim_hits
from common.slimming.top_down import search


def tolerance_rows(
    setup: Setup,
    tolerances: Sequence[float],
    *,
    limit_val: int | None = None,
    **how: object,
) -> Iterator[Row]:
    """Accuracy, among all classes of the head, of what :func:`search` finds for every one of ``tolerances``.

    Tang et al. (CVPR 2022), figure 4. ``gain`` is the difference to the unreduced network on the same images, with its
    standard error.

    Args:
        limit_val: validation images; None = all.
        **how: of :class:`common.slimming.settings.SearchSettings`; without ``epochs`` nothing is tuned.
    """
    if not tolerances:
        return
    settings = {"epochs": 0, "seed": setup.seed} | how
    model, shape = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit)
    whole = _hits(setup, model, limit_val)
    for tolerance in sorted(tolerances):
        vit = copy.deepcopy(setup.vit)
        plan = search(vit, setup.calibration_images, tolerance=tolerance, **settings)
        right = _hits(setup, reduce_tokens(vit, "patch_slimming", plan=plan), limit_val)
        row = {"part": "tolerances", "schedule": "searched", "stage": "tuned" if settings["epochs"] else "searched"}
        row |= {"tolerance": tolerance, "method": "patch_slimming"}
        yield {**row, **cost(shape, plan.lengths), **compared(right, whole)}


def _hits(setup: Setup, model: ReducedVisionTransformer, limit_val: int | None) -> Tensor:
    return slim_hits(setup, {"": model}, limit_val)[""]
