"""The models that are compared, and what they cost: made and counted once, whatever the conditions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.budget import met, solved
from common.cost.ceiling import FirstTokens, Lengths, has_ceiling, recorded_lengths
from common.cost.counter import count_macs, counts_of
from common.errors import UsageError
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers import Method
from common.schedule import is_budget, read_budget, read_keep_rate

Variant = tuple[Method, float]  # and its keep rate


@dataclass(frozen=True)
class Candidate:
    """A model to be timed, and what it costs.

    Attributes:
        method, keep_rate: of the row.
        model: shares its weights with the others.
        costs: params, gmac, gmac_thop_compat.
        lengths: of the model that takes its first tokens; None = it has none, see :func:`has_ceiling`.
    """

    method: Method
    keep_rate: float
    model: nn.Module
    costs: Mapping[str, float]
    lengths: Lengths | None

    @property
    def variant(self) -> Variant:
        return self.method, self.keep_rate


def checked_rate(rate: float | str, conditions: Iterable[tuple[str, str, int]]) -> float | tuple[float, ...] | str:
    """The keep rate or the budget ``rate``, to be measured by so many runtimes, number formats and batches."""
    rate, conditions = read_keep_rate(rate), list(conditions)
    if is_budget(rate) and read_budget(rate).keys() & {"latency_ms", "speedup"}:
        if len(conditions) > 1:
            there = f"one number format and one batch; given {len(conditions)} of them"
            raise UsageError(f"keep_rate={rate!r} holds for {there}")
        if conditions[0][0] != "eager":
            raise UsageError(f"keep_rate={rate!r} holds for eager models; given runtime {conditions[0][0]!r}")
    return rate


def models_of(
    vit: VisionTransformer,
    methods: Sequence[Method],
    keep_rates: Sequence[float | tuple[float, ...] | str],
    images: Callable[[], Tensor],
    **how: object,
) -> dict[Variant, ReducedVisionTransformer]:
    """``vit`` with each of ``methods`` at each of ``keep_rates``, or at those of a budget; first without reduction.

    A method that cannot meet a budget is left out there, and a line on stderr says so.

    Args:
        images, **how: of :func:`common.budget.solved`.

    Raises:
        OutOfReachError: none can.
    """
    reduced = [(method, rate) for method in methods if method.name != "none" for rate in keep_rates]
    found = met(reduced, lambda variant: solved(vit, *variant, images, **how), required=True)
    rates = [(Method("none"), 1.0), *((method, rate) for (method, _), rate in found)]
    return {
        (method, rate): reduce_tokens(vit, method.name, keep_rate=rate, **dict(method.options))
        for method, rate in rates
    }


def counted_on(
    device: torch.device,
    vit: VisionTransformer,
    models: Mapping[Variant, ReducedVisionTransformer],
    images: Tensor | None = None,
) -> list[Candidate]:
    """All ``models`` and what they cost; the first one, which reduces nothing, is ``vit`` itself.

    Args:
        images: (n, 3, H, W), whose mean cost it is of models that keep more of some than of others; None = of one
            random image.
    """
    vit.to(device)
    first, *others = (_counted(*variant, model.to(device).eval(), images) for variant, model in models.items())
    return [replace(first, model=vit, lengths=None), *others]


def _counted(method: Method, keep_rate: float, model: ReducedVisionTransformer, images: Tensor | None) -> Candidate:
    with recorded_lengths(model) as lengths:
        if model.reducer.adaptive and images is not None:
            macs = counts_of(model, images)
        else:
            macs = [count_macs(model, model.patch_embed.img_size)]
    costs = {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "gmac": sum(each.total for each in macs) / len(macs) / 1e9,
        "gmac_thop_compat": sum(each.thop_compat for each in macs) / len(macs) / 1e9,
    }
    model.cautioned = True  # what is timed may be untrained
    return Candidate(method, keep_rate, model, costs, tuple(map(tuple, lengths)) if has_ceiling(model) else None)


def timed_models(vit: VisionTransformer, candidates: Sequence[Candidate], ceilings: bool) -> dict[Hashable, nn.Module]:
    """The models of ``candidates`` by their variants; with ``ceilings`` also those of the first tokens, by lengths."""
    models: dict[Hashable, nn.Module] = {each.variant: each.model for each in candidates}
    lengths = dict.fromkeys(each.lengths for each in candidates if ceilings and each.lengths is not None)
    return models | {each: FirstTokens(vit, each).eval() for each in lengths}
