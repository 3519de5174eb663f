"""MAC of reduced models by closed form: how many tokens each part of a block computes under each kind of method.

Three kinds: methods that follow a :class:`common.reducers.Schedule` (TRAM, TopK, PatchMerger), plans of patch slimming,
and idle patches. None of them is thop's way of counting, see :mod:`common.cost.published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.cost.closed_form import Number, Shape, block_macs, block_parts, total_macs
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Schedule
from common.reducers.idle_mlp import Predictor
from common.reducers.idling import ATTENTION, Idling

SCHEDULED = ("none", "tram", "topk", "patchmerger")
COUNTERS = ("compact", "paper", "square")
BY_KEYS = "by_keys"  # keys of all for the decision, everything else among the computed: IdleViT


# Methods that follow a schedule


@dataclass(frozen=True)
class BlockLengths:
    """Patch tokens (prefix not counted) that enter block ``layer``'s attention and MLP, and that it merged from."""

    layer: int
    attention: int
    mlp: int
    merged_from: int | None = None


def block_lengths(shape: Shape, reducer: str, schedule: Schedule) -> list[BlockLengths]:
    """Tokens per block: TRAM and TopK drop between attention and MLP, PatchMerger merges before the attention."""
    require_choice(reducer, SCHEDULED, "reducer with a closed form")
    tokens, lengths = shape.num_patches, []
    for layer in range(shape.depth):
        target = schedule.target(layer, shape.num_patches) or tokens
        if reducer == "patchmerger" and target < tokens:
            lengths.append(BlockLengths(layer, target, target, merged_from=tokens))
        else:
            lengths.append(BlockLengths(layer, tokens, target))
        tokens = target
    return lengths


def scheduled_parts(shape: Shape, reducer: str, schedule: Schedule) -> list[dict[str, int]]:
    """MAC of each block of this package's models by part: qkv, attention, proj, mlp, score.

    Args:
        reducer: one of ``SCHEDULED``; a sampler such as ATS has no closed form.
    """
    last_scored, blocks = schedule.last_drop(shape.num_patches), []
    for block in block_lengths(shape, reducer, schedule):
        keys, rows = block.attention + shape.num_prefix_tokens, block.mlp + shape.num_prefix_tokens
        queries, score, projected = keys, 0, 3 * keys
        if block.merged_from is not None:
            score = 2 * block.attention * block.merged_from * shape.dim
        elif shape.only_prefix(block.layer):
            score = 0  # nobody is chosen whom the head would read
        elif reducer == "tram" and block.layer <= last_scored:
            score = 2 * block.attention**2  # two products of a vector with the (n, n) adjacency
        elif reducer == "topk" and rows < keys:
            queries, score = rows, keys * shape.dim  # the CLS row once more; attention only for the kept queries
        if shape.only_prefix(block.layer):
            queries = rows = shape.num_prefix_tokens
            projected = queries + 2 * keys
        blocks.append({**block_parts(shape, queries, keys, rows, projected=projected), "score": score})
    return blocks


def scheduled_macs(shape: Shape, reducer: str, schedule: Schedule) -> int:
    """MAC of one image, see :func:`scheduled_parts`."""
    blocks = [sum(parts.values()) for parts in scheduled_parts(shape, reducer, schedule)]
    left = block_lengths(shape, reducer, schedule)[-1].mlp + shape.num_prefix_tokens
    return total_macs(shape, blocks, left)


# Patch slimming


def slim_block_macs(shape: Shape, computed: Number, entering: Number, counter: str) -> Number:
    """MAC of a block that computes some of the tokens ``entering`` it.

    Args:
        counter: "compact", what the slim model executes: keys and values of the tokens entering. "paper", how the
            authors count their savings (Tang et al., CVPR 2022, section 4.5): those of all N tokens. "square", what a
            model executes whose blocks see no more than they compute, as the reducer's ``keys="selected"`` has it.
    """
    keys = {"compact": entering, "paper": shape.num_tokens, "square": computed}
    return block_macs(shape, computed, keys[require_choice(counter, COUNTERS, "counter")])


def slim_macs(shape: Shape, lengths: Sequence[int], counter: str = "compact") -> int:
    """MAC of one image whose blocks compute ``lengths`` tokens, prefix tokens included, by one of ``COUNTERS``."""
    entering = [shape.num_tokens, *lengths[:-1]]
    blocks = [slim_block_macs(shape, *each, counter) for each in zip(lengths, entering, strict=True)]
    if shape.only_prefix(shape.depth - 1):
        keys = lengths[-1] if counter == "square" else entering[-1]
        blocks[-1] = block_macs(shape, shape.num_prefix_tokens, shape.num_tokens if counter == "paper" else keys)
    return total_macs(shape, blocks)


# Idle patches


def idle_block_macs(shape: Shape, computed: Number, attention: str, *, only_prefix: bool = False) -> Number:
    """MAC of a block that computes n of its N tokens; with D the width, M that of the MLP, prefix tokens in both::

        standard                 n (4 D^2 + 2 D M) + 2 n^2 D
        modified, cls_sees_all   n (2 D^2 + 2 D M) + 2 N D^2 + 2 n N D
        by_keys                  n (3 D^2 + 2 D M) + N D^2 + 2 n^2 D, and D^2 + N D for the CLS query

    Args:
        computed: patches computed; all of them gives the unreduced block, whatever ``attention``, but for "by_keys".
        only_prefix: of the patches only what prefix tokens see is computed, see :meth:`Shape.only_prefix`.
    """
    require_choice(attention, (*ATTENTION, BY_KEYS), "attention")
    n, whole = computed + shape.num_prefix_tokens, shape.num_tokens
    queries = shape.num_prefix_tokens if only_prefix else n
    if attention == BY_KEYS:
        return block_macs(shape, queries, n, projected=queries + n + whole) + shape.dim**2 + whole * shape.dim
    return block_macs(shape, queries, n if attention == "standard" else whole)


def idle_macs(shape: Shape, computed: Mapping[int, Number], attention: str) -> Number:
    """MAC of one image, without what deciding costs.

    Args:
        computed: block -> patches that it computes; a block that is left out computes all, in the ordinary way.
    """
    blocks = []
    for layer in range(shape.depth):
        how = attention if layer in computed else "standard"
        patches = computed.get(layer, shape.num_patches)
        blocks.append(idle_block_macs(shape, patches, how, only_prefix=shape.only_prefix(layer)))
    return total_macs(shape, blocks)


def predictor_macs(predictor: Predictor, num_patches: int) -> int:
    """MAC of predicting for ``num_patches`` patches; the CLS token's part is computed once."""
    weights = {name: weight.numel() for name, weight in predictor.named_parameters() if name.endswith("weight")}
    once = weights.pop("cls.weight", 0)
    return once + num_patches * sum(weights.values())


def deciding_macs(model: ReducedVisionTransformer, layers: Sequence[int]) -> int:
    """MAC that the predictors of ``layers`` spend on one image; 0 for methods without."""
    predictors = getattr(model.reducer, "predictors", {})
    patches = Shape.of(model).num_patches
    return sum(predictor_macs(predictors[str(layer)], patches) for layer in layers if predictors)


def attention_of(reducer: Idling) -> str:
    """How ``reducer`` pays for its attention, as :func:`idle_block_macs` calls it."""
    return BY_KEYS if reducer.needs_class_token else reducer.attention
