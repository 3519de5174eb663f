"""The contract between a reducer and the block that it reduces, and the registry of reducers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from common.options import Count
from common.reducers.untrained import Fresh
from common.registry import Registry
from common.schedule import BESIDE, BUDGETS, Schedule
from common.tokens import Gate, Keys, Selection, Tokens

LastBlock = Literal["whole", "cls"]
Signal = Literal[
    "cls_attention", "head_max", "attention", "received", "key_mean", "value_norm", "logit_mean", "cls_logits", "output"
]
# What :meth:`Reducer.needs` may return besides sets of signals of the attention.
NO_SIGNALS: frozenset[Signal] = frozenset()  # the reducer acts in this block, and chooses before it computes anything
CLS_LOGITS: frozenset[Signal] = frozenset({"cls_logits"})  # it chooses once the keys are there
BLOCK_OUTPUT: frozenset[Signal] = frozenset({"output"})  # it compares patches before and after the whole block


@dataclass(frozen=True)
class Signals:
    """What a block computed on its way and a reducer may look at; only what it asked for is there.

    Attributes:
        cls_attention: (B, H, N) softmax row of the CLS query.
        head_max: (B, N, N) maximum over heads of the attention maps, row = query, column = key.
        attention: (B, H, N, N) all attention maps.
        received: (B, N) attention that each token receives, summed over heads and queries.
        key_mean: (B, N, d) keys averaged over heads.
        value_norm: (B, H, N) Euclidean norm of the values, float32.
        logit_mean: (B, N, N) scaled products of queries (rows) and keys, averaged over heads, float32.
        cls_logits: (B, N) the first row of that. Wanted alone, nothing but keys is computed before the reducer selects
            whose queries and values are; these see each other only, whatever ``Selection.keys`` says.
        output: (B, N, D) what the whole block makes of the tokens. Only alone; it saves nothing: for labels and bounds.
    """

    cls_attention: Tensor | None = None
    head_max: Tensor | None = None
    attention: Tensor | None = None
    received: Tensor | None = None
    key_mean: Tensor | None = None
    value_norm: Tensor | None = None
    logit_mean: Tensor | None = None
    cls_logits: Tensor | None = None
    output: Tensor | None = None


class Teaching(NamedTuple):
    """What an unreduced teacher makes of a batch, in float32.

    Attributes:
        logits: (B, classes).
        patches: (B, P, D) after the final norm.
        prefix: (B, N - P, D) after the final norm; the CLS token first, where there is one.
    """

    logits: Tensor
    patches: Tensor
    prefix: Tensor


class Reducer(nn.Module):
    """Base of all methods: keeps everything. A method overrides only the hooks where it acts.

    ``cut`` is asked before the patch embedding. The hooks run in this order inside each block: ``before_block``,
    attention, ``select_queries``, residual, ``after_attention``, MLP; and ``finish`` once after the last block. A
    reducer keeps no state between images: what it must remember from block to block travels in ``Tokens.carry``.

    >>> import torch
    >>> from common.models.factory import create_backbone
    >>> from common.models.reduced import attach
    >>> class EverySecond(Reducer):
    ...     def before_block(self, tokens, layer):
    ...         if layer not in self.blocks:
    ...             return tokens
    ...         kept = torch.arange(0, tokens.num_patch_tokens, 2).expand(len(tokens.x), -1)  # (B, K)
    ...         return tokens.keep(Selection(kept))
    >>> vit = create_backbone("vit_digits")
    >>> _, trace = attach(vit, EverySecond(vit, Schedule(1.0, (2,)))).trace(torch.rand(1, 3, 32, 32))
    >>> [tokens.item() for tokens in trace.num_tokens]
    [64, 64, 32, 32, 32, 32]

    Class attributes:
        family: what becomes of a patch that goes: it "drops", "merges" into another, "mixes" into all tokens or "idles"
            for a while; or the image "resizes".
        needs_class_token: the method reads the attention of a CLS token.
        reads_prefix_only: the method may drop all patches, so the head must read prefix tokens alone.
        learns_from_signals: gradients flow through the signals (default: selection runs without gradient).
        masks: rows of the sequence may be masked: padding, or in training tokens that the model shall do without.
        selects: its tokens are patches, or clusters with a patch as their centre (``Trace.selected``).
        idles: patches skip blocks and come back: all of them go on to the end (``Trace.active``).
        clusters: it groups patches, so that tokens stand for several of them (``Trace.assignment``).
        fuses: behind the patches that it keeps it appends one token made of the others.
        scored: what its scores of patches are (``Trace.scores``), in words; "" = it scores none.
        adaptive: it keeps more of some images than of others, so its cost depends on the images.
        by_rate: its keep rate alone decides what it costs, so that one can be solved for a budget; else it goes by a
            plan, by thresholds, or by predictors that must be trained first.
        draws: it draws at random in evaluation too.
        wants_teacher: its training loss uses the outputs of an unreduced teacher where there is one.
        pools_mean: it classifies from the mean of its patch tokens, whatever the backbone does.
        signals: what it reads in the blocks that drop patches; None = nothing (see :meth:`needs`).
        keys: whom the patches that it selects attend to, see :class:`common.tokens.Selection`.
        last_block, resize: see :func:`shared_options`.
        untrained: one line that says what is random until its parameters are trained or loaded, and how they are; "" =
            nothing is. A model says it at its first evaluation, as whatever else :meth:`caution` gives.
        in_pieces: why a graph of fixed shapes cannot hold it, in words: torch.compile runs it in pieces, and no file of
            it can be made (:func:`common.export`). "" = one graph holds it.
    """

    family: Literal["drops", "merges", "mixes", "idles", "resizes"] = "drops"
    needs_class_token = False
    reads_prefix_only = False
    learns_from_signals = False
    masks = False
    selects = False
    idles = False
    clusters = False
    fuses = False
    scored = ""
    adaptive = False
    by_rate = True
    draws = False
    wants_teacher = False
    pools_mean = False
    signals: frozenset[Signal] | None = None
    keys: Keys = "all"
    last_block: LastBlock = "whole"
    resize: int | None = None
    untrained = ""
    in_pieces = ""

    def __init__(self, vit: VisionTransformer, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self._fresh: Fresh | None = None

    def remember_start(self) -> None:
        """Note, once, what the parameters are made with: a model does it that gets this reducer."""
        if self.untrained and self._fresh is None:
            self._fresh = Fresh(self)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks in which the method reduces."""
        return self.schedule.reduction_loc

    def needs(self, layer: int, tokens: Tokens) -> frozenset[Signal] | None:
        """Signals for block ``layer``; None: the block runs as timm's own and the two hooks below rest.

        With :data:`NO_SIGNALS` tokens are selected before the block computes anything; only the selected get queries.
        """
        return None if self.drops_at(layer, tokens) is None else self.signals

    def cut(self, full: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the patches that an image is cut into, which by itself has ``full``; it is resized."""
        return full

    def before_block(self, tokens: Tokens, layer: int) -> Tokens:
        """Cluster, merge or drop before block ``layer``."""
        return tokens

    def select_queries(self, tokens: Tokens, signals: Signals, layer: int) -> tuple[Tokens, Selection | Gate | None]:
        """Choose the patch tokens that go on (or do not idle), before the block pays for their output; None = all."""
        return tokens, None

    def after_attention(self, tokens: Tokens, signals: Signals, layer: int) -> Tokens:
        """Prune, fuse or merge between attention and MLP."""
        return tokens

    def finish(self, tokens: Tokens) -> Tokens:
        """Last word before the final norm and pooling."""
        return tokens

    def training_loss(self, tokens: Tokens, logits: Tensor, teacher: Teaching | None) -> Tensor:
        """What the method adds to the loss, a scalar.

        Args:
            tokens: those after the final norm, as ``model(images, return_tokens=True)`` returns them.
            logits: (B, classes) of the reduced model.
            teacher: the outputs of an unreduced model, where there is one.
        """
        return logits.new_zeros(())

    def caution(self) -> str:
        """What a user should know before the first evaluation, since decisions are void without it; "" = nothing."""
        return self.untrained if self._fresh is not None and self._fresh.is_untouched(self) else ""

    def drops_at(self, layer: int, tokens: Tokens) -> int | None:
        """How many patch tokens block ``layer`` must keep, or None when it has nothing to drop."""
        target = self.schedule.target(layer, tokens.num_patches)
        return target if target is not None and target < tokens.num_patch_tokens else None

    def extra_repr(self) -> str:
        return f"keep_rate={self.schedule.keep_rate}, reduction_loc={list(self.schedule.reduction_loc)}"


def random_until_trained(what: str, parts: str) -> str:
    """The line :attr:`Reducer.untrained` of a method whose ``parts`` a training of the whole model teaches."""
    how = "python -m common.training trains them, weights= and common.load bring trained ones"
    return f"{what} is random: the {parts} are untrained; {how}"


def init_linear(module: nn.Module) -> None:
    """Linear layers as timm's ViT starts them: weights truncated normal of deviation 0.02, no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


def divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a model's class probabilities from its teacher's, mean over the batch."""
    own, wanted = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return F.kl_div(own, wanted, reduction="batchmean", log_target=True)


def divergence_by_image(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """What :func:`divergence` is the mean of, (B,)."""
    own, wanted = logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    return F.kl_div(own, wanted, reduction="none", log_target=True).sum(-1)


def shared_options(reducer: Reducer, *, last_block: LastBlock = "whole", resize: Count | None = None) -> None:
    """The options that every method takes.

    Args:
        last_block: "whole", or "cls": in evaluation the last block computes only the prefix tokens, for a head that
            reads no others. The logits are the same, for 7 % fewer multiply-accumulates in an unreduced ViT of 12
            blocks. What shows tokens (a trace, features, an explanation) still computes all of them. It is not the
            default because the unreduced model of a comparison is timm's, and papers count the whole block.
        resize: pixels, a multiple of the patch size: images come in as before and are resized so that their longer side
            has so many (bicubic, antialiased; the position embedding is resampled), and the method starts from the
            patches of these smaller images, which keep rates, traces and heatmaps are of. Budgets stay shares of the
            model on whole images. At deep cuts it is better to shrink an image a little and to reduce its tokens than
            either alone. None: images as they are.
    """
    reducer.last_block, reducer.resize = last_block, resize


REDUCERS: Registry[type[Reducer]] = Registry(
    "reducer", shared_options, beside=("keep_rate", "reduction_loc", *BUDGETS, *BESIDE)
)
register_reducer = REDUCERS.register
list_reducers = REDUCERS.names
reducer_class = REDUCERS.get
reducer_options = REDUCERS.options
check_options = REDUCERS.check_options
