"""What the notebooks of patch slimming measure: accuracy of plans before and after tuning, and of single blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence

import torch
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.data import head_classes
from common.data.base import LabelledDataset
from common.models.reduced import reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.rows import Rows
from common.slimming.baselines import SCORES
from common.slimming.branches import branches, dropped_at, slimmed
from common.slimming.calibration import Batches, take
from common.slimming.costs import Costs
from common.slimming.scores import HEAD_HANDLING, Scoring, significances
from common.training import predict

Row = dict[str, object]


def images_of(dataset: LabelledDataset) -> Tensor:
    """All images (n, 3, H, W) of ``dataset``, decoded once."""
    return take(dataset, torch.arange(len(dataset)))


def accuracies(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> Row:
    """Accuracy in percent among the classes of ``dataset``, and with its standard error among all of the head.

    A head that has no other classes has no second accuracy; the error is then that of the first.
    """
    inside = head_classes(logits.shape[1], dataset)
    chosen = logits if inside is None else logits[:, inside]
    right = 100.0 * (chosen.argmax(1) == labels).double()
    full = 100.0 * hits(logits, labels, dataset)
    row = {"accuracy": right.mean().item(), "accuracy_full": None if inside is None else full.mean().item()}
    return {**row, "accuracy_sem": full.std().item() / len(full) ** 0.5, "n_val": len(labels)}


def hits(logits: Tensor, labels: Tensor, dataset: LabelledDataset) -> Tensor:
    """1 where the most probable of all classes of the head is right (n,), float64."""
    inside = head_classes(logits.shape[1], dataset)
    return (logits.argmax(1) == (labels if inside is None else torch.tensor(inside)[labels])).double()


def cost(vit: VisionTransformer, plan: SlimmingPlan) -> Row:
    """Both counters, what is saved by them, and the tokens that each block computes."""
    costs, row = Costs.of(vit), {"tokens": " ".join(map(str, plan.lengths))}
    for counter, end in (("compact", ""), ("paper", "_paper")):
        row[f"gmac{end}"] = costs.macs(plan.lengths, counter) / 1e9
        row[f"cut{end}"] = costs.cut(plan.lengths, counter)
    return row


def stage_rows(
    vit: VisionTransformer,
    found: Mapping[str, tuple[SlimmingPlan, VisionTransformer]],
    dataset: LabelledDataset,
    loader: DataLoader,
) -> list[Row]:
    """Accuracy of the unreduced network, and of every plan in it ("searched") and in the blocks tuned for it ("tuned").

    Args:
        found: schedule -> its plan and the backbone whose blocks were tuned.
    """
    models: dict[tuple[str, str], nn.Module] = {("", "unreduced"): reduce_tokens(vit, "none")}
    for schedule, (plan, tuned) in found.items():
        models[schedule, "searched"] = reduce_tokens(vit, "patch_slimming", plan=plan)
        models[schedule, "tuned"] = reduce_tokens(tuned, "patch_slimming", plan=plan)
    predictions, labels = predict(models, loader)
    rows = []
    for (schedule, stage), prediction in predictions.items():
        plan = found[schedule][0] if schedule else _everything(vit)
        row = {"study": "stages", "schedule": schedule, "stage": stage, **cost(vit, plan)}
        row["method"] = "patch_slimming" if schedule else "none"
        rows.append({**row, **accuracies(prediction.logits, labels, dataset)})
    return rows


def _everything(vit: VisionTransformer) -> SlimmingPlan:
    patches = vit.patch_embed.num_patches
    return SlimmingPlan.of_patches([range(patches)] * len(vit.blocks), patches, vit.num_prefix_tokens)


@torch.inference_mode()
def block_scores(vit: VisionTransformer, images: Tensor, score: str, seed: int = 0) -> Tensor:
    """Mean ``score`` (L - 1, P) of every patch in every block but the last, in the unreduced network."""
    model, depth = slimmed(reduce_tokens(vit, "none"), SlimmingPlan.whole(vit)), len(vit.blocks)
    total = torch.zeros(depth - 1, vit.patch_embed.num_patches, dtype=torch.float64)
    for number, batch in enumerate(tqdm(Batches(images, 16), score, leave=False)):
        tokens = model.embed(batch.to(next(model.parameters())))
        for layer in range(depth - 1):
            total[layer] += SCORES[score](model, tokens, layer, Scoring(seed=seed), number).double().sum(0).cpu()
            tokens = model.advance(tokens, range(layer, layer + 1))
    return total / len(images)


@torch.inference_mode()
def predict_plans(
    vit: VisionTransformer, plans: Mapping[Hashable, SlimmingPlan], loader: DataLoader
) -> tuple[dict[Hashable, Tensor], Tensor]:
    """Logits (n, classes) of ``vit`` under every plan, without tuning, and the labels (n,)."""
    model, count = reduce_tokens(vit.eval(), "none"), len(loader.sampler)
    logits, labels = {key: Rows(count) for key in plans}, Rows(count)
    for images, targets in tqdm(loader, "plans", leave=False):
        for key, tokens in branches(model, plans, images.to(next(model.parameters()))):
            logits[key].add(model.classify(tokens).float().cpu())
        labels.add(targets)
    return {key: rows.rows for key, rows in logits.items()}, labels.rows


def single_block_rows(
    vit: VisionTransformer,
    calibration: Tensor,
    dataset: LabelledDataset,
    loader: DataLoader,
    *,
    layers: Sequence[int],
    shares: Sequence[float],
    scores: Sequence[str],
    random_masks: int = 3,
) -> Iterator[Row]:
    """Accuracy when one block drops patches for good, chosen by a score or by chance, without any tuning.

    ``gain`` is the difference to random masks (the mean over several) on the same images, with its standard error.
    """
    ranks = {(name, 0): block_scores(vit, calibration, name) for name in scores}
    ranks |= {("random", seed): block_scores(vit, calibration[:1], "random", seed) for seed in range(random_masks)}
    model, plans = reduce_tokens(vit, "none"), {}
    for (name, seed), ranked in ranks.items():
        for layer in layers:
            order = ranked[layer].argsort(descending=True, stable=True).tolist()
            for share in shares:
                plans[name, seed, layer, share] = dropped_at(model, layer, order[: round(share * len(order))])
    logits, labels = predict_plans(vit, plans, loader)
    for layer in layers:
        for share in shares:
            chance = [hits(logits["random", seed, layer, share], labels, dataset) for seed in range(random_masks)]
            floor = torch.stack(chance).mean(0)
            for name in [*scores, "random"]:
                key = (name, 0, layer, share)
                right = floor if name == "random" else hits(logits[key], labels, dataset)
                yield {
                    "study": "single_block",
                    "schedule": name,
                    "layer": layer,
                    "share": share,
                    "stage": "searched",
                    "method": "patch_slimming",
                    **cost(vit, plans[key]),
                    **_mean(right, floor),
                }


def _mean(right: Tensor, floor: Tensor) -> Row:
    gain, count = 100 * (right - floor), len(right)
    return {
        "accuracy": 100 * right.mean().item(),
        "accuracy_sem": 100 * right.std().item() / count**0.5,
        "gain": gain.mean().item(),
        "gain_sem": gain.std().item() / count**0.5,
        "n_val": count,
    }


def head_rows(vit: VisionTransformer, calibration: Tensor, layers: Sequence[int]) -> Iterator[Row]:
    """Spearman's correlation of each way to handle heads, and of each rival score, with the exact significance."""
    model = reduce_tokens(vit, "none")
    span = range(len(vit.blocks) - 1)
    exact = significances(model, calibration, span)
    found = {name: significances(model, calibration, span, Scoring(name)) for name in HEAD_HANDLING[1:]}
    found |= {name: block_scores(vit, calibration, name) for name in ("attention", "single_block")}
    for name, scores in found.items():
        for layer in layers:
            correlation = float(spearmanr(scores[layer], exact[layer]).statistic)
            row = {"study": "heads", "schedule": name, "layer": layer, "rank_correlation": correlation}
            yield {**row, "stage": "searched", "method": "patch_slimming"}
