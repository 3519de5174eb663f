"""What idling saves, by hand: MAC of a block that computes n of its N tokens.

``common.macs`` counts the same by running a model on one image; here the number of computed patches is given, which
thresholds decide image by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer
from common.reducers.idle_mlp import Pruner
from common.reducers.idling import ATTENTION, Idling
from common.sizing import Shape

BY_KEYS = "by_keys"  # keys of all for the decision, everything else among the computed: IdleViT


def block_macs(shape: Shape, computed: float, attention: str) -> float:
    """MAC of one block. With D the width, M that of the MLP, n computed and N all tokens, prefix tokens in both::

        standard                 n (4 D^2 + 2 D M) + 2 n^2 D
        modified, cls_sees_all   n (2 D^2 + 2 D M) + 2 N D^2 + 2 n N D
        by_keys                  n (3 D^2 + 2 D M) + N D^2 + 2 n^2 D, and D^2 + N D for the CLS query

    Args:
        computed: patches computed; all of them gives the unreduced block, whatever ``attention``, but for "by_keys".
    """
    require_choice(attention, (*ATTENTION, BY_KEYS), "attention")
    dim, mlp = shape.dim, 2 * shape.dim * shape.mlp_dim
    n, whole = computed + shape.prefix, shape.num_patches + shape.prefix
    if attention == "standard":
        return n * (4 * dim**2 + mlp) + 2 * n**2 * dim
    if attention == BY_KEYS:
        return n * (3 * dim**2 + mlp) + whole * dim**2 + 2 * n**2 * dim + dim**2 + whole * dim
    return n * (2 * dim**2 + mlp) + 2 * whole * dim**2 + 2 * n * whole * dim


def pruner_macs(pruner: Pruner, num_patches: int) -> int:
    """MAC of predicting for ``num_patches`` patches; the CLS token's part is computed once."""
    hidden, dim = pruner.own.weight.shape
    macs = num_patches * (hidden * dim + hidden)
    if pruner.cls is not None:
        macs += hidden * dim
    if pruner.around is not None:
        width = pruner.squeeze.out_features
        macs += num_patches * width * (dim + 9 + hidden)
    return macs


def model_macs(
    shape: Shape, computed: Mapping[int, float] | Sequence[float], attention: str, extra: float = 0.0
) -> float:
    """MAC of one image.

    Args:
        computed: block -> patches that it computes, or one number per block; a block that is left out computes all, in
            the ordinary way.
        extra: what deciding costs, all blocks together.
    """
    given = computed if isinstance(computed, Mapping) else dict(enumerate(computed))
    dense = block_macs(shape, shape.num_patches, "standard")
    blocks = [block_macs(shape, given[layer], attention) if layer in given else dense for layer in range(shape.depth)]
    return shape.num_patches * shape.patch_dim * shape.dim + sum(blocks) + shape.dim * shape.classes + extra


def deciding_macs(model: ReducedVisionTransformer, layers: Sequence[int]) -> float:
    """MAC that the pruners of ``layers`` spend on one image; 0 for methods without."""
    pruners = getattr(model.reducer, "pruners", {})
    return sum(pruner_macs(pruners[str(layer)], model.patch_embed.num_patches) for layer in layers if pruners)


def attention_of(reducer: Idling) -> str:
    """How ``reducer`` pays for its attention, as :func:`block_macs` calls it."""
    return BY_KEYS if reducer.needs_class_token else reducer.attention
