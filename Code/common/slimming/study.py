"""What the notebooks of patch slimming work with: a backbone and its data, scores by name, accuracy of many plans."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from common.data import head_classes, load_dataset, make_loader
from common.data.base import LabelledDataset
from common.data.loading import subset
from common.digits_backbone import resolve_weights
from common.errors import require_choice
from common.idling.training import TASK_STAGE, tune
from common.models.factory import create_backbone
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.reducers.slimming_plan import SlimmingPlan
from common.rows import Rows
from common.slimming.baselines import SCORES
from common.slimming.branches import branches
from common.slimming.calibration import Batches, take
from common.slimming.costs import Costs
from common.slimming.scores import HEAD_HANDLING, Scoring, significances
from common.training import predict, torch_device

Row = dict[str, object]
# Ways to sum the paths of heads, to see the features and the shortcut; "significance" is as published.
SIGNIFICANCES = {
    "significance": Scoring(),
    "significance, ln": Scoring(feature="ln"),
    "significance, value": Scoring(feature="value"),
    "significance, shortcut": Scoring(shortcut=True),
    **{f"significance, {name}": Scoring(name) for name in HEAD_HANDLING[1:]},
}
RIVALS = tuple(name for name in SCORES if name != "significance")


@dataclass(frozen=True)
class Bench:
    """A backbone with the images that it is slimmed on and those that show what is left.

    Attributes:
        vit: in eval mode, with its own head.
        calibration: (n, 3, H, W) training images as they are evaluated.
        train_set: training images, augmented.
    """

    vit: VisionTransformer
    calibration: Tensor
    train_set: LabelledDataset
    val_set: LabelledDataset
    batch_size: int
    seed: int

    def loader(self, limit: int | None = None) -> DataLoader:
        """``limit`` validation images, the classes as even as possible, in their order; None = all."""
        return make_loader(subset(self.val_set, limit, self.seed), self.batch_size, shuffle=False, seed=self.seed)

    def distilled(self, plan: SlimmingPlan, tuned: VisionTransformer, epochs: int, lr: float) -> VisionTransformer:
        """A copy of ``tuned``, all of which learnt under ``plan`` to agree with the original network, without labels.

        The last step of Tang et al. (CVPR 2022), which they do on labels.
        """
        vit = copy.deepcopy(tuned)
        model, teacher = reduce_tokens(vit, "patch_slimming", plan=plan), reduce_tokens(self.vit, "none")
        settings = {"batch_size": self.batch_size, "seed": self.seed, "device": next(vit.parameters()).device.type}
        few = subset(self.val_set, min(self.batch_size, len(self.val_set)), self.seed)
        config = replace(TASK_STAGE, epochs=epochs, lr=lr, **settings)
        for epoch in tune(model, teacher, (self.train_set, few), config):
            if epoch.epoch:
                print(f"distilled: epoch {epoch.epoch} of {epochs}, loss {epoch.train_loss:.3f}")
        return vit.eval()

    @torch.inference_mode()
    def hits(
        self, slim: Mapping[Hashable, ReducedVisionTransformer], limit: int | None = None
    ) -> dict[Hashable, Tensor]:
        """1 where the most probable of all classes of the head is right (n,), float64, in every model of ``slim``.

        Args:
            slim: models of the backbone's own modules, see :func:`common.slimming.branches.branches`.
            limit: validation images; None = all.
        """
        model, loader = reduce_tokens(self.vit, "none"), self.loader(limit)
        found = {key: Rows(len(loader.sampler)) for key in slim}
        for images, labels in tqdm(loader, "plans", leave=False):
            for key, tokens in branches(model, slim, images.to(next(model.parameters()))):
                found[key].add(hits(model.classify(tokens).cpu(), labels, self.val_set))
        return {key: rows.rows for key, rows in found.items()}

    def stage_rows(
        self, found: Mapping[str, tuple[SlimmingPlan, Mapping[str, VisionTransformer]]], budget: float
    ) -> list[Row]:
        """Accuracy of the unreduced network, and of every plan in it ("searched") and in what was trained for it.

        Args:
            found: schedule -> its plan, and the backbone at the end of every stage of training ("tuned" ...).
            budget: share of the multiplications that all of them may spend.
        """
        models: dict[tuple[str, str], nn.Module] = {("", "unreduced"): reduce_tokens(self.vit, "none")}
        for schedule, (plan, trained) in found.items():
            for stage, vit in {"searched": self.vit, **trained}.items():
                models[schedule, stage] = reduce_tokens(vit, "patch_slimming", plan=plan)
        predictions, labels = predict(models, self.loader())
        costs, rows = Costs.of(self.vit), []
        for (schedule, stage), prediction in predictions.items():
            lengths = found[schedule][0].lengths if schedule else [costs.num_tokens] * costs.depth
            row = {"study": "stages", "schedule": schedule, "stage": stage, "share": budget, **cost(costs, lengths)}
            row["method"] = "patch_slimming" if schedule else "none"
            rows.append({**row, **accuracies(prediction.logits, labels, self.val_set)})
        return rows


def open_bench(
    backbone: str,
    weights: str,
    dataset: str,
    *,
    img_size: int,
    recipe: str,
    num_calibration: int,
    limit_train: int | None = None,
    limit_val: int | None = None,
    batch_size: int,
    seed: int,
    device: str | None = None,
) -> Bench:
    """Load ``backbone`` with its own head, and the data."""
    opened = {"img_size": img_size, "recipe": recipe, "seed": seed}
    train_set = load_dataset(dataset, "train", train=True, limit=limit_train, **opened)
    calibration = images_of(load_dataset(dataset, "train", limit=num_calibration, **opened))
    val_set = load_dataset(dataset, "val", limit=limit_val, **opened)
    vit = create_backbone(backbone, weights=resolve_weights(weights, backbone), img_size=img_size).eval()
    return Bench(vit.to(torch_device(device)), calibration, train_set, val_set, batch_size, seed)


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


def compared(right: Tensor, other: Tensor) -> Row:
    """Percent of ``right`` (n,), and the difference to ``other`` on the same images, with their standard errors."""
    gain, count = 100 * (right - other), len(right)
    return {
        "accuracy": 100 * right.mean().item(),
        "accuracy_sem": 100 * right.std().item() / count**0.5,
        "gain": gain.mean().item(),
        "gain_sem": gain.std().item() / count**0.5,
        "n_val": count,
    }


def cost(costs: Costs, lengths: Sequence[int], counter: str = "compact") -> Row:
    """What is executed (by ``counter``) and what the authors count, what is saved of each, the tokens by block."""
    row: Row = {"tokens": " ".join(map(str, lengths))}
    for name, end in ((counter, ""), ("paper", "_paper")):
        row[f"gmac{end}"] = costs.macs(lengths, name) / 1e9
        row[f"cut{end}"] = costs.cut(lengths, name)
    return row


@torch.inference_mode()
def mean_scores(vit: VisionTransformer, images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Mean score (L - 1, P) of every patch in every block but the last, in the unreduced network, float64.

    Args:
        name: of :data:`SIGNIFICANCES`, or a rival: "attention", "single_block", "random".
        seed: of "random", which is the same for all images.
    """
    require_choice(name, (*SIGNIFICANCES, *RIVALS), "score")
    model, span = reduce_tokens(vit, "none"), range(len(vit.blocks) - 1)
    if name in SIGNIFICANCES:
        return significances(model, images, span, SIGNIFICANCES[name])
    images = images[:1] if name == "random" else images
    total = torch.zeros(len(span), vit.patch_embed.num_patches, dtype=torch.float64)
    for number, batch in enumerate(tqdm(Batches(images, 16), name, leave=False)):
        tokens = model.embed(batch.to(next(model.parameters())))
        for layer in span:
            total[layer] += SCORES[name](model, tokens, layer, Scoring(seed=seed), number).double().sum(0).cpu()
            tokens = model.advance(tokens, range(layer, layer + 1))
    return total / len(images)


def correlation_rows(bench: Bench, layers: Sequence[int]) -> Iterator[Row]:
    """Spearman's correlation of every other score with the published significance, by block."""
    exact = mean_scores(bench.vit, bench.calibration, "significance")
    for name in [*list(SIGNIFICANCES)[1:], *(rival for rival in RIVALS if rival != "random")]:
        scores = mean_scores(bench.vit, bench.calibration, name)
        for layer in layers:
            correlation = float(spearmanr(scores[layer], exact[layer]).statistic)
            row = {"study": "heads", "schedule": name, "layer": layer, "rank_correlation": correlation}
            yield {**row, "stage": "searched", "method": "patch_slimming"}
