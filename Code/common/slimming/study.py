"""What the notebooks of patch slimming work with: scores by name, accuracy of many plans."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from tqdm import tqdm

from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.rows import Rows
from common.setup import Setup
from common.slimming.branches import branches
from common.slimming.ranking import RANKINGS, network_scores
from common.slimming.scores import HeadHandling, Scoring
from common.training import accuracies, predict
from common.training.distillation import DISTILLATION
from common.training.metrics import hits, mean_and_error

Row = dict[str, object]
LEARNED, UNIFORM = "learned", "uniform"  # how a budget is shared out among the blocks
# Ways to sum the paths of heads, to see the features and the shortcut; "significance" is as published.
SIGNIFICANCES = {
    "significance": Scoring(),
    "significance, ln": Scoring(feature="ln"),
    "significance, value": Scoring(feature="value"),
    "significance, shortcut": Scoring(shortcut=True),
    **{f"significance, {name}": Scoring(name) for name in get_args(HeadHandling)[1:]},
}
RIVALS = tuple(name for name in RANKINGS if name != "significance")


def distilled(setup: Setup, plan: SlimmingPlan, tuned: VisionTransformer, epochs: int, lr: float) -> VisionTransformer:
    """A copy of ``tuned``, all of which learnt under ``plan`` to agree with the original network, without labels.

    The last step of Tang et al. (CVPR 2022), which they do on labels.
    """
    vit = copy.deepcopy(tuned)
    config = replace(DISTILLATION, epochs=epochs, lr=lr, batch_size=setup.batch_size)
    setup.distil(reduce_tokens(vit, "patch_slimming", plan=plan), setup.training(), config)
    return vit.eval()


@torch.inference_mode()
def slim_hits(
    setup: Setup, slim: Mapping[Hashable, ReducedVisionTransformer], limit: int | None = None
) -> dict[Hashable, Tensor]:
    """1 where the most probable of all classes of the head is right (n,), float64, in every model of ``slim``.

    Args:
        slim: models of the backbone's own modules, see :func:`common.slimming.branches.branches`.
        limit: validation images; None = all.
    """
    model, loader = reduce_tokens(setup.vit, "none"), setup.loader(setup.some(limit))
    found = {key: Rows(len(loader.sampler)) for key in slim}
    for images, labels in tqdm(loader, "plans", leave=False):
        for key, tokens in branches(model, slim, images.to(next(model.parameters()))):
            found[key].add(hits(model.classify(tokens).cpu(), labels, setup.val_set))
    return {key: rows.rows for key, rows in found.items()}


def stage_rows(
    setup: Setup, found: Mapping[str, tuple[SlimmingPlan, Mapping[str, VisionTransformer]]], budget: float
) -> list[Row]:
    """Accuracy of the unreduced network, and of every plan in it ("searched") and in what was trained for it.

    ``gain`` is the difference of "learned" to "uniform" at the same stage, among all classes of the head and on the
    same images, with its standard error; None where there is no such plan.

    Args:
        found: schedule -> its plan, and the backbone at the end of every stage of training ("tuned" ...). A name like
            "learned, coverage" says that patches were chosen by another score than the significance.
        budget: share of the multiplications that all of them may spend.
    """
    models: dict[tuple[str, str], nn.Module] = {("", "unreduced"): reduce_tokens(setup.vit, "none")}
    for schedule, (plan, trained) in found.items():
        for stage, vit in {"searched": setup.vit, **trained}.items():
            models[schedule, stage] = reduce_tokens(vit, "patch_slimming", plan=plan)
    predictions, labels = predict(models, setup.loader(setup.val_set))
    right = {key: hits(prediction.logits, labels, setup.val_set) for key, prediction in predictions.items()}
    shape, rows = Shape.of(setup.vit), []
    for (schedule, stage), prediction in predictions.items():
        lengths = found[schedule][0].lengths if schedule else [shape.num_tokens] * shape.depth
        row = {"part": "stages", "schedule": schedule, "stage": stage, "share": budget, **cost(shape, lengths)}
        row |= {"method": "patch_slimming" if schedule else "none"}
        other = right.get((schedule.replace(LEARNED, UNIFORM), stage)) if schedule else None
        row |= compared(right[schedule, stage], other)
        rows.append({**row, **accuracies(prediction.logits, labels, setup.val_set)})
    return rows


def compared(right: Tensor, other: Tensor | None) -> Row:
    """Percent of ``right`` (n,), and the difference to ``other`` on the same images, with their standard errors."""
    accuracy, error = mean_and_error(100 * right)
    gain, gain_error = (None, None) if other is None else mean_and_error(100 * (right - other))
    row = {"accuracy": accuracy, "accuracy_sem": error, "gain": gain, "gain_sem": gain_error}
    return {**row, "n_val": len(right)}


def cost(shape: Shape, lengths: Sequence[int], counter: str = "compact") -> Row:
    """What is executed (by ``counter``) and what the authors count, what is saved of each, the tokens by block."""
    row: Row = {"tokens": " ".join(map(str, lengths))}
    for name, end in ((counter, ""), ("paper", "_paper")):
        macs = slim_macs(shape, lengths, name)
        row |= {f"gmac{end}": macs / 1e9, f"cut{end}": 1 - macs / shape.unreduced}
    return row


def mean_scores(vit: VisionTransformer, images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Score (L - 1, P) of every patch in every block but the last, in the unreduced network, float64.

    Args:
        name: of :data:`SIGNIFICANCES`, or a rival: "coverage", "attention", "single_block", "random".
        seed: of "random", which is the same for all images.
    """
    require_choice(name, (*SIGNIFICANCES, *RIVALS), "score")
    model = reduce_tokens(vit, "none")
    if name in SIGNIFICANCES:
        return network_scores("significance", model, images, SIGNIFICANCES[name])
    return network_scores(name, model, images[:1] if name == "random" else images, Scoring(seed=seed))


def correlation_rows(setup: Setup, layers: Sequence[int]) -> Iterator[Row]:
    """Spearman's correlation of every other score with the published significance, by block."""
    exact = mean_scores(setup.vit, setup.calibration_images, "significance")
    for name in [*list(SIGNIFICANCES)[1:], *(rival for rival in RIVALS if rival != "random")]:
        scores = mean_scores(setup.vit, setup.calibration_images, name)
        for layer in layers:
            correlation = float(spearmanr(scores[layer], exact[layer]).statistic)
            row = {"part": "heads", "schedule": name, "layer": layer, "rank_correlation": correlation}
            yield {**row, "stage": "searched", "method": "patch_slimming"}
