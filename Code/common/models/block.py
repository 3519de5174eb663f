"""The one transformer block that knows how to run with fewer tokens.

It owns no weights: it calls the modules of a timm ``Block`` (norm1, attn.qkv, attn.q_norm, attn.k_norm, attn.proj,
ls1, norm2, mlp, ls2 ...) in timm's order and gives the reducer its turn in between. What the reducer needs to know
decides when that is: before the block computes anything, once the keys are there, or with signals of the attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor

from common import attention
from common.attention import Heads
from common.models import packed
from common.models.packed import Packing, Rows
from common.precision import without_autocast
from common.reducers.base import BLOCK_OUTPUT, CLS_LOGITS, NO_SIGNALS, Reducer, Signal, Signals
from common.tokens import Choice, Gate, Selection, Tokens


@dataclass(frozen=True)
class Attended:
    """A block after attention, before its output projection.

    Attributes:
        tokens: those that came in.
        choice: which of them go on, and how; None = all.
        normed: (B, N, D) what attention saw of them.
        mixed: (B, K, H·d) A·V of the chosen ones; of all under a gate.
        signals: what the reducer asked for.
        rows: where the chosen ones were in ``tokens``; None under a gate, and when all go on. Where they are packed,
            ``mixed`` is (1, T, H·d).
    """

    tokens: Tokens
    choice: Choice
    normed: Tensor
    mixed: Tensor
    signals: Signals
    rows: Rows


@dataclass(frozen=True)
class Added:
    """A block after its attention branch, before the MLP.

    Attributes:
        tokens: those that go on to the MLP; all that came in where some idle.
        choice: which of ``tokens`` do not idle; None where nobody does.
        x: (B, K, D) features of those that do not idle, or (1, T, D) packed.
        rows: where these are in ``tokens``.
    """

    tokens: Tokens
    choice: Choice
    x: Tensor
    rows: Rows


def reduced_block(block: Block, tokens: Tokens, layer: int, reducer: Reducer) -> Tokens:
    """Run ``block`` on ``tokens`` and let ``reducer`` drop, merge or idle some; timm's numbers where it does not."""
    tokens = reducer.before_block(tokens, layer)
    wanted = reducer.needs(layer, tokens)
    if wanted is None and tokens.policy is None:
        return tokens.with_x(_whole(block, tokens))
    if tokens.policy is not None or wanted not in (NO_SIGNALS, BLOCK_OUTPUT, CLS_LOGITS):
        added = _project(block, _choose_by_signals(block, tokens, layer, reducer, wanted or NO_SIGNALS), layer, reducer)
    elif wanted == CLS_LOGITS:
        added = _project(block, _choose_by_keys(block, tokens, layer, reducer), layer, reducer)
    else:
        tokens, choice, output = _choose_before_attention(block, tokens, layer, reducer, wanted)
        if isinstance(choice, Gate) or (choice is not None and choice.keys == "selected"):
            return _run_whole(block, tokens, choice, output)
        added = _project(block, _attend(block, tokens, choice), layer, reducer)
    return _finish(block, added)  # maps and signals are gone: the MLP, which takes most memory, has it for itself


def prefix_block(block: Block, tokens: Tokens, layer: int, reducer: Reducer) -> Tokens:
    """Run the last ``block`` for the prefix tokens alone: what a head that reads no patches reads of it.

    Which patches go on then matters only where those that do see nobody else; where they see all, nothing is scored.
    """
    tokens, count = reducer.before_block(tokens, layer), tokens.num_prefix_tokens
    wanted = reducer.needs(layer, tokens)
    if wanted == BLOCK_OUTPUT and reducer.keys == "selected":
        return _only_prefix(tokens, reduced_block(block, tokens, layer, reducer).prefix)
    if wanted == NO_SIGNALS and reducer.keys == "selected":
        tokens, choice = _select(reducer, tokens, Signals(), layer)
        tokens = tokens if choice is None else tokens.keep(choice)
    if wanted == CLS_LOGITS:
        attended = _choose_by_keys(block, tokens, layer, reducer, count)
        normed, mixed = attended.normed, attended.mixed  # (B, N, D), (B, prefix, H·d)
    else:
        normed = block.norm1(tokens.x)
        heads = packed.heads_of(block, tokens, normed, normed[:, :count])
        mixed = attention.mix(block.attn, heads, tokens.attention_bias())
    x = tokens.prefix + block.ls1(attention.project(block.attn, mixed, normed[:, :count]))
    return _only_prefix(tokens, _mlp(block, x))


def _only_prefix(tokens: Tokens, x: Tensor) -> Tokens:
    return Tokens(x, tokens.num_prefix_tokens, tokens.grid_size)


def _choose_before_attention(
    block: Block, tokens: Tokens, layer: int, reducer: Reducer, wanted: frozenset[Signal]
) -> tuple[Tokens, Choice, Tensor | None]:
    """The choice before the block computes anything of its own, and its whole output where that was asked for."""
    output = None
    if wanted == BLOCK_OUTPUT:
        with _learning(reducer):
            output = _whole(block, tokens)  # (B, N, D)
    return *_select(reducer, tokens, Signals(output=output), layer), output


def _run_whole(block: Block, tokens: Tokens, choice: Selection | Gate, output: Tensor | None) -> Tokens:
    """timm's own block on all tokens, gated, or on those chosen, who see each other only."""
    if isinstance(choice, Gate):
        if output is None or choice.keys != "all":
            output = block(tokens.x, attn_mask=tokens.bias_of_gate(choice, tokens.attention_bias()))
        return tokens.blend(choice, output)
    packing = Packing.of(block, tokens, choice) if choice.idle else None
    if packing is not None:
        return packed.put(tokens, choice, _packed(block, packing.take(tokens.x), packing), packing)
    active = tokens.keep(choice)
    active = active.with_x(_whole(block, active))
    return tokens.put(choice, active.x) if choice.idle else active


def _whole(block: Block, tokens: Tokens) -> Tensor:
    """timm's own block on all tokens (B, N, D)."""
    packing = Packing.of(block, tokens)
    if packing is None:
        return block(tokens.x, attn_mask=tokens.attention_bias())
    return packing.put(tokens.x, _packed(block, packing.take(tokens.x), packing))


def _packed(block: Block, x: Tensor, packing: Packing) -> Tensor:
    """timm's block on packed tokens (1, T, D), who see those of their own image."""
    normed = block.norm1(x)
    return _mlp(block, _add(block, x, packed.mix_within(block.attn, Heads.of(block.attn, normed), packing), normed))


def _attend(block: Block, tokens: Tokens, selection: Selection | None) -> Attended:
    """Attention of tokens that were chosen before it: the others do not even get queries."""
    attn, normed, bias = block.attn, block.norm1(tokens.x), tokens.attention_bias()
    rows = packed.chosen_rows(block, tokens, selection)
    heads = packed.heads_of(block, tokens, normed, None if rows is None else packed.take(normed, rows))
    mixed = packed.mix(attn, heads, tokens, selection, rows, bias)
    return Attended(tokens, selection, normed, mixed, Signals(), rows)


def _choose_by_keys(block: Block, tokens: Tokens, layer: int, reducer: Reducer, queries: int | None = None) -> Attended:
    """Keys of all, then the choice, then queries and values of the chosen, who see each other only.

    Args:
        queries: of the first so many of the chosen; None = of all.
    """
    attn, normed = block.attn, block.norm1(tokens.x)
    with _learning(reducer):
        logits, keys = attention.cls_logits(attn, normed)  # (B, N), (B, H, N, d)
    tokens, selection = _select(reducer, tokens, Signals(cls_logits=logits), layer)
    rows = tokens.rows(selection)  # (B, K)
    mixed = attention.mix(attn, Heads.around(attn, normed, rows, keys, queries), None)  # (B, K, H·d)
    return Attended(tokens, selection, normed, mixed, Signals(), rows)


def _choose_by_signals(
    block: Block, tokens: Tokens, layer: int, reducer: Reducer, wanted: frozenset[Signal]
) -> Attended:
    """Signals of the attention first, then the choice, then A·V of what was chosen."""
    attn, normed, bias = block.attn, block.norm1(tokens.x), tokens.attention_bias()
    heads, mixed, maps = packed.heads_of(block, tokens, normed), None, {}
    if tokens.policy is not None:
        mixed = attention.mix_by_policy(attn, heads, tokens.policy)  # (B, N, H·d)
    elif wanted & attention.MAPS.keys():
        mixed, maps = attention.mix_explicitly(attn, heads, bias, wanted)  # (B, N, H·d)
    with _learning(reducer):
        signals = Signals(**maps, **attention.cheap_signals(attn, heads, bias, wanted))

    tokens, choice = _select(reducer, tokens, signals, layer)
    rows = None
    if isinstance(choice, Gate):
        mixed = attention.mix(attn, heads, tokens.bias_of_gate(choice, bias))
    else:
        rows = packed.chosen_rows(block, tokens, choice)
        if mixed is None:
            mixed = packed.mix(attn, packed.at(heads, rows), tokens, choice, rows, bias)  # (B, K, H·d)
        else:
            mixed = packed.take(mixed, rows)  # (B, K, H·d)
    return Attended(tokens, choice, normed, mixed, signals, rows)


def _project(block: Block, attended: Attended, layer: int, reducer: Reducer) -> Added:
    """Projection, residual, and ``after_attention`` where no token idles."""
    tokens, choice, rows, normed = attended.tokens, attended.choice, attended.rows, attended.normed
    normed = packed.take(normed, rows) if attention.is_gated(block.attn) else normed
    x = _add(block, packed.take(tokens.x, rows), attended.mixed, normed)  # (B, K, D)
    if isinstance(choice, Gate) or (choice is not None and choice.idle):
        return Added(tokens, choice, x, rows)
    tokens = packed.keep(tokens, choice, x, rows)
    tokens = reducer.after_attention(tokens, attended.signals, layer)
    return Added(tokens, None, tokens.x, None)


def _finish(block: Block, added: Added) -> Tokens:
    """The MLP."""
    tokens = added.tokens
    if added.choice is None:
        return tokens.with_x(packed.one_by_one(block, partial(_mlp, block), tokens))
    x = _mlp(block, added.x)
    return (
        tokens.blend(added.choice, x)
        if isinstance(added.choice, Gate)
        else packed.put(tokens, added.choice, x, added.rows)
    )


def _add(block: Block, x: Tensor, mixed: Tensor, normed: Tensor) -> Tensor:
    """The features ``x`` (B, K, D) and what attention adds to them."""
    return x + block.drop_path1(block.ls1(attention.project(block.attn, mixed, normed)))


def _mlp(block: Block, x: Tensor) -> Tensor:
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _select(reducer: Reducer, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Choice]:
    with without_autocast(tokens.x.device):  # scores of half precision would tie
        return reducer.select_queries(tokens, signals, layer)


def _learning(reducer: Reducer) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(torch.is_grad_enabled() and reducer.learns_from_signals)
