"""How far into the network each patch comes, and how many tokens are left."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from common.analysis.arrays import marked
from common.analysis.intervals import bootstrap
from common.analysis.sets import kept_mask
from common.errors import UsageError
from common.evaluation import Record, Stage
from common.options import Count, ShareBelow1, checked


@checked
def token_depth(record: Record, *, depth: Count | None = None) -> np.ndarray:
    """How many blocks (n, P) each patch comes through: b if the stage in block b drops it, ``depth`` if none does.

    "Which Tokens to Use?" (Haurum et al., 2023), figure of average token depths. Blocks count from 0, so a patch
    that block 3 drops has been through 0, 1 and 2. Where patches idle it counts the blocks that computed them. The mean
    over the images, reshaped to ``record.setting.grid_size``, is a map (:func:`common.analysis.compare_maps`).

    Args:
        depth: blocks of the network; None = those that the record says.

    Raises:
        UsageError: tokens that are no patches, a depth that the stages exceed, or no depth at all.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="l2", keep_rate=0.5, reduction_loc=(2, 4))
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, digits, batch_size=360, method="l2", backbone="vit_digits")
    >>> token_depth(record).mean(0).reshape(8, 8)[3]
    array([2., 4., 6., 6., 6., 6., 4., 2.])
    """
    depth = record.setting.depth if depth is None else depth
    if depth is None or depth <= max(record.stages, default=0):
        raise UsageError(f"depth={depth} is not allowed with stages {list(record.stages)}; give the number of blocks")
    masks = {block: kept_mask(record, block) for block in record.stages}
    idle = any(stage.computed is not None for stage in record.stages.values())
    return blocks_passed(masks, (len(record), record.setting.num_patches), depth, idle)


def blocks_passed(masks: Mapping[int, np.ndarray], shape: tuple[int, int], depth: int, idle: bool) -> np.ndarray:
    """Depth (n, P) by the patches kept after each of the reductions, block -> (n, P); see :func:`token_depth`.

    Args:
        shape: n and P.
        idle: patches that are not in a mask come back after the block.
    """
    passed = np.full(shape, float(depth))
    for block, mask in sorted(masks.items(), reverse=True):
        if idle:
            passed -= ~mask
        else:
            passed[~mask] = block
    return passed


@checked
def token_statistics(record: Record, *, parity: bool = False, confidence: ShareBelow1 = 0.95) -> pd.DataFrame:
    """How many tokens are left after each stage, as a share of the P patches.

    Args:
        parity: as the reference implementation counts: distinct kept patches, which leaves out EViT's fused token, or
            distinct groups that a token was sent to. Of soft merging these are the tokens that are some token's
            favourite, which may be far fewer than the network computes.
        confidence: of the interval.

    Returns:
        One row per stage: block, metric ("kept_fraction"), mean, sd (spread of the images, population), low, high
        (interval of the mean, see :func:`bootstrap`), n (images). No rows without reduction.

    >>> from common import create_model, load_dataset
    >>> from common.evaluation import evaluate_model
    >>> model = create_model("vit_digits", reducer="evit", keep_rate=0.5, reduction_loc=(2,))
    >>> digits = load_dataset("digits", "val", img_size=32)
    >>> record = evaluate_model(model, digits, batch_size=360, method="evit", backbone="vit_digits")
    >>> token_statistics(record)["mean"].tolist(), token_statistics(record, parity=True)["mean"].tolist()
    ([0.515625], [0.5])
    """
    count = _distinct if parity else _alive
    rows = []
    for block, stage in record.stages.items():
        share = count(stage, record.setting.num_patches) / record.setting.num_patches
        mean = bootstrap(share, confidence=confidence)
        rows.append([block, "kept_fraction", mean.value, share.std(), mean.low, mean.high, len(record)])
    return pd.DataFrame(rows, columns=["block", "metric", "mean", "sd", "low", "high", "n"])


def _alive(stage: Stage, patches: int) -> np.ndarray:
    return stage.num_tokens.astype(np.float64)


def _distinct(stage: Stage, patches: int) -> np.ndarray:
    """Distinct kept patches (n,), or the tokens that some token was sent to."""
    found = stage.kept if stage.kept is not None else stage.destination
    return _alive(stage, patches) if found is None else marked(found, patches).sum(1).astype(np.float64)
