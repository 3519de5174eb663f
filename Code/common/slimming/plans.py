"""One backbone under many plans: their models share its modules, and what they all compute alike runs once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

from torch import Tensor

from common.models.reduced import ReducedVisionTransformer, attach
from common.reducers.patch_slimming import PatchSlimming
from common.reducers.slimming_plan import SlimmingPlan
from common.schedule import Schedule
from common.tokens import Tokens


def slimmed(model: ReducedVisionTransformer, plan: SlimmingPlan, keys: str = "all") -> ReducedVisionTransformer:
    """``model``, with the same modules, following ``plan``."""
    return attach(model, PatchSlimming(model, Schedule(1.0, (0,)), plan=plan, keys=keys))


def dropped_at(model: ReducedVisionTransformer, layer: int, patches: Sequence[int]) -> SlimmingPlan:
    """The plan that keeps everything before block ``layer``, ``patches`` from there on, and none in the last block."""
    num_patches, depth = model.patch_embed.num_patches, len(model.blocks)
    kept = [range(num_patches)] * layer + [patches] * (depth - 1 - layer) + [()]
    return SlimmingPlan.of_patches(kept, num_patches, model.num_prefix_tokens)


def best_first(scores: Tensor, without: Sequence[int] = ()) -> list[int]:
    """All patches but some, by their scores (P,), the highest first."""
    left_out = set(without)
    return [patch for patch in scores.argsort(descending=True, stable=True).tolist() if patch not in left_out]


def nested(scores: Tensor, lengths: Sequence[int], num_prefix_tokens: int = 1) -> SlimmingPlan:
    """The plan of ``lengths`` whose blocks keep the patches of the one above and add those that they score highest.

    Args:
        scores: (L - 1, P) of every patch in every block but the last.
        lengths: tokens of the L blocks, prefix tokens included; they never grow, the last is ``num_prefix_tokens``.
    """
    kept: list[tuple[int, ...]] = [()]
    for ranked, length in zip(scores.flip(0), reversed(lengths[:-1]), strict=True):
        above = kept[-1]
        kept.append((*above, *best_first(ranked, above)[: length - num_prefix_tokens - len(above)]))
    return SlimmingPlan.of_patches(kept[::-1], scores.shape[1], num_prefix_tokens)


def encode_all(
    model: ReducedVisionTransformer, slim: Mapping[Hashable, ReducedVisionTransformer], images: Tensor
) -> Iterator[tuple[Hashable, Tokens]]:
    """Key and final tokens, as :meth:`encode` gives them, of ``images`` in every model ``slim``, in no order.

    Blocks up to the first in which a model drops anything run once for all of them.

    Args:
        model: unreduced.
        slim: models of the same modules, whose reducers do nothing before the first of their ``blocks``.
    """
    first = {key: min(each.reducer.blocks, default=0) for key, each in slim.items()}
    tokens = model.embed(images)
    for layer in range(len(model.blocks)):
        for key in [key for key, start in first.items() if start == layer]:
            yield key, slim[key].encode(tokens, first=layer)
        tokens = model.advance(tokens, range(layer, layer + 1))
