"""What a search by tolerance saves and what accuracy it leaves, from strict to lenient."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from torch import Tensor

from common.bench import Bench
from common.cost.closed_form import Shape
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.slimming.study import Row, compared, cost, slim_hits
from common.slimming.top_down import search


def tolerance_rows(
    bench: Bench,
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
    settings = {"epochs": 0, "seed": bench.seed} | how
    model, shape = reduce_tokens(bench.vit, "none"), Shape.of(bench.vit)
    whole = _hits(bench, model, limit_val)
    for tolerance in sorted(tolerances):
        vit = copy.deepcopy(bench.vit)
        plan = search(vit, bench.calibration_images, tolerance=tolerance, **settings)
        right = _hits(bench, reduce_tokens(vit, "patch_slimming", plan=plan), limit_val)
        row = {"study": "tolerances", "schedule": "searched", "stage": "tuned" if settings["epochs"] else "searched"}
        row |= {"tolerance": tolerance, "method": "patch_slimming"}
        yield {**row, **cost(shape, plan.lengths), **compared(right, whole)}


def _hits(bench: Bench, model: ReducedVisionTransformer, limit_val: int | None) -> Tensor:
    return slim_hits(bench, {"": model}, limit_val)[""]
