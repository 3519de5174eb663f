"""Patches that may idle, learnt for a network of one's own from images without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer

from common.data.unlabelled import Images, Unlabelled, as_calibration, digest, split
from common.errors import UsageError
from common.idling.budget import check_possible, solve_thresholds
from common.idling.candidates import LABEL_STAGE, THRESHOLD, fit_predictors
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.models.support import obstacle
from common.options import Count, Positive, Share, ShareBelow1, Whole, checked
from common.reducers import Method
from common.setup import Setup

LEAST = 16  # images: any fewer say nothing about thresholds
# What loses least on real images, and a predictor that costs a small ViT little: a patch that came back would hold what
# it was before the blocks that it skipped, which does more harm than its absence.
BEST = {"influence": "fisher", "attention": "standard", "re_entry": False, "hidden": 32}
DECIDED = ("score_threshold", "tau", "keep_rate", "reduction_loc", "counts", "learns")  # by the fit itself


@checked
def fit(
    vit: VisionTransformer,
    images: Images,
    *,
    mac_cut: ShareBelow1 = 0.2,
    idle_share: Share | None = None,
    held_out: Share = 0.25,
    epochs: Count = LABEL_STAGE.epochs,
    lr: Positive = LABEL_STAGE.lr,
    batch_size: Count = LABEL_STAGE.batch_size,
    seed: Whole = 0,
    output_dir: str | Path | None = None,
    **options: object,
) -> ReducedVisionTransformer:
    """Let patches of ``vit`` skip blocks: small predictors learn which, thresholds are solved for a budget.

    The predictors learn from the frozen network which patches may idle for little to be lost, by its gradients
    (:func:`common.reducers.similarity.fisher`); then, on images that they did not learn from,
    :func:`common.idling.solve_thresholds` finds how sure they must be. No labels are used. A patch that idles does not
    come back, and a head that reads the CLS token alone gets no more of the last block.

    >>> import torch
    >>> from common.models.factory import create_backbone
    >>> model = fit(create_backbone("vit_digits"), torch.rand(16, 3, 32, 32), mac_cut=0.2, epochs=1)
    >>> model(torch.rand(2, 3, 32, 32)).shape, model.reducer.thresholds.shape
    (torch.Size([2, 10]), torch.Size([6]))

    Args:
        vit: a timm backbone in float32; it is put into eval mode, and its weights stay as they are.
        images: (N, 3, H, W), normalised as the weights expect; a ``Dataset`` of images or of tuples that begin with
            one; or a ``DataLoader``. At least 16; thousands are of use.
        mac_cut: share of the multiply-accumulates to save, predictors paid for.
        idle_share: share of all patches in all blocks that may idle by the labels; None = ``mac_cut``.
        held_out: share of the images that thresholds are solved on, and no predictor learns from.
        epochs, lr, batch_size: of the predictors.
        seed: of the split, of the predictors and of the order of images.
        output_dir: a folder that a stopped training goes on from.
        **options: of the method ``idle_mlp``: ``influence="none", re_entry=True, last_block="whole"`` are the published
            labels and patches that come back, ``attention="modified"`` lets idle patches be seen.

    Returns:
        The reduced model in eval mode, which shares the modules of ``vit``. :func:`common.save` keeps it as one file.

    Raises:
        UsageError: whatever was given does not fit; in one line, before anything is computed.
    """
    forbidden = [name for name in DECIDED if name in options]
    if forbidden:
        raise UsageError(f"{forbidden[0]} is not an option of a fit, which decides it; allowed: others of idle_mlp")
    lean = {} if obstacle(vit, "idle_mlp", "cls") else {"last_block": "cls"}
    text = str(Method("idle_mlp", tuple({**BEST, **lean, **options}.items())))
    how = {
        "batch_size": batch_size,
        "seed": seed,
        "folder": "" if output_dir is None else str(Path(output_dir).absolute()),
    }
    config = replace(LABEL_STAGE, epochs=epochs, lr=lr, batch_size=batch_size)
    device = _device(vit)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _check_cut(vit, text, mac_cut)
        apart = _apart(vit, images, held_out, seed)
        setup = Setup.around(vit.eval(), apart, **how, device=str(device), quiet=True)
        share = mac_cut if idle_share is None else idle_share
        model = fit_predictors(setup, text, config, idle_share=share).model
        solve_thresholds(model, setup.loader(), mac_cut)
    model.pretrained_cfg = dict(getattr(vit, "pretrained_cfg", {}))  # a training says there what its images were
    return model


def _check_cut(vit: VisionTransformer, text: str, cut: float) -> None:
    method = Method.parse(text)
    check_possible(reduce_tokens(vit, method.name, score_threshold=THRESHOLD, **dict(method.options)), cut)


def _device(vit: VisionTransformer) -> torch.device:
    parameter = next(vit.parameters())
    if parameter.dtype != torch.float32:
        raise UsageError(f"a backbone in {parameter.dtype} is given; allowed: float32")
    return parameter.device


def _apart(vit: VisionTransformer, images: Images, held_out: float, seed: int) -> dict[str, Unlabelled]:
    """The images to learn from, and those to solve thresholds on."""
    found = as_calibration(images, vit, least=LEAST)
    data = Unlabelled(found, vit, f"images {digest(vit, found)}")
    learnt, solved = (data.select(places) for places in split(found, held_out, seed))
    return {"train_set": learnt, "val_set": solved, "calibration": solved}
