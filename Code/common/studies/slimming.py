"""Patch slimming: plans before and after training, and what their patches could be chosen by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.errors import require_choice
from common.models.reduced import ReducedVisionTransformer, reduce_tokens
from common.options import Many, Share, Whole, field_kinds
from common.reducers.slimming_plan import SlimmingPlan
from common.report.rows import refuse_repeats
from common.report.sections import NONE, Answer, Section, numbers, percent, setting_title, with_errors
from common.rows import Rows
from common.schema import count, means, number, text
from common.setup import Setup
from common.slimming.allocation import allocate, error_curves, sensitivity, uniform_lengths
from common.slimming.gates import GATE_LR, calibrate_thresholds, fit_gates
from common.slimming.one_block import PRUNING, one_block, one_block_lengths
from common.slimming.plans import best_first, encode_all, nested, slimmed
from common.slimming.ranking import SCORES, network_scores
from common.slimming.scores import HeadHandling, Scoring
from common.slimming.top_down import SearchSettings, search
from common.studies.base import REQUIRED, Study, register_study
from common.training import inference_pass
from common.training.distillation import DISTILLATION
from common.training.metrics import hits_by_image, means_with_errors

Row = dict[str, object]
SETTING = ["dataset", "backbone", "img_size", "seed"]
LEARNED, UNIFORM = "learned", "uniform"  # how a budget is shared out among the blocks
_COUNTERS = {"all": "compact", "selected": "square"}  # what is executed, by the keys of a block
# Other ways to sum the paths of heads, to see the features and the shortcut.
SIGNIFICANCES = {
    "significance, ln": Scoring(feature="ln"),
    "significance, value": Scoring(feature="value"),
    "significance, shortcut": Scoring(shortcut=True),
    **{f"significance, {name}": Scoring(name) for name in get_args(HeadHandling)[1:]},
}
_SEARCHED, _ONE_BLOCK = ("stages", "tolerances", "budgets"), ("sensitivity", "single_block")
_MEASURED = (*_SEARCHED, "dynamic", *_ONE_BLOCK)
_search = field_kinds(SearchSettings)


@register_study
class Slimming(Study):
    """How many tokens each block can do without, the same in every image."""

    name, title = "slimming", "Patch slimming"
    question = "How many tokens can each block do without, the same in every image, after tuning on images alone?"
    place = 90
    columns = {
        "part": text("what the row is of"),
        "lengths": text("how tokens are shared out among the blocks: learned, uniform", optional=True).only(
            "stages", "budgets"
        ),
        "score": text("what patches are chosen by", optional=True),
        "keys": text("tokens seen in a block: all, or the selected, which it computes").only("budgets"),
        "gates": text("none, of a plan; or how many patches they choose: fixed, threshold").only("dynamic"),
        "training": text("none; of the blocks one by one; of the network").only("stages", "tolerances"),
        "mac_budget": number("share of the MAC that may be spent", "share").only("stages", "budgets"),
        "tolerance": number("error that a block may make, as a share of its output", "ratio").only("tolerances"),
        "block": count("that is scored, or alone computes fewer patches", "block").only(*_ONE_BLOCK, "heads"),
        "kept_share": number("share of its patches that this block computes", "share").only(*_ONE_BLOCK),
        "pruning": text("what becomes of its other patches: idle, zero, dropped").only(*_ONE_BLOCK),
        **means(
            accuracy=number("top-1 among the classes of the dataset", "percent", optional=True).only(*_MEASURED),
            accuracy_full=number("top-1 among all classes of the head", "percent").only(*_MEASURED),
            gain=number("of accuracy_full over what the part compares with, same images", "points", optional=True),
        ),
        "rank_correlation": number("Spearman's, with the published significance", "correlation").only("heads"),
        "gmac": number("what is executed", "GMAC").only(*_MEASURED),
        "mac_cut": number("share of the unreduced network's that is saved", "share").only(*_MEASURED),
        "gmac_paper": number("with keys and values of all tokens, as the authors count", "GMAC").only(*_MEASURED),
        "mac_cut_paper": number("share saved, as the authors count", "share").only(*_MEASURED),
        "tokens": text("computed by each block; a mean over images where they depend on the image").only(*_MEASURED),
        "tokens_sd": text("standard deviation over images of tokens", optional=True).only("dynamic"),
        "n_val": count("images of the accuracies").only(*_MEASURED),
        "n_calibration": count("training images, without labels, to score, tune and measure errors on"),
    }
    required = (*REQUIRED, "dataset", "seed")
    parts = (*_MEASURED, "heads")
    setting = SETTING
    captions = {
        "": "Tokens that each block computes, the same in every image; accuracy against multiplications; and what is "
        "left, or gained over chance, when one block alone computes fewer patches. Blocks count from 0."
    }
    run_figures = "**/*.png"
    parameters = {
        **{name: _search[name] for name in ("mac_budget", "tolerance", "step", "error_norm", "error_images")},
        "lengths": Many[Literal[LEARNED, UNIFORM]],
        "score": Literal[(*SCORES, *SIGNIFICANCES)],
        "pruning": Many[Literal[PRUNING]],
        "block": Whole,
        **dict.fromkeys(("kept_share", "sensitivity_kept_share"), Share),
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, in the order in which they were measured."""
        names = list(self.columns)
        refuse_repeats(runs, [*SETTING, "method", *names[: names.index("accuracy")]])
        return runs[[*SETTING, "method", *names]].reset_index(drop=True)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, parts = setting_title(rows), dict(list(rows.groupby("part", sort=False)))
            for part, (what, frame_of, notes) in _TABLES.items():
                if part in parts:
                    yield Section(f"{title}: {what}", frame_of(parts[part]), notes, folded=part == "heads")

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """Per setting: what all lengths cost and lose, before and after training."""
        for _, rows in data[data["part"] == "stages"].groupby(SETTING, sort=False, dropna=False):
            baseline = rows.loc[rows["method"] == "none", "accuracy_full"].iloc[0]
            points = []
            for (lengths, score, cut), cells in rows[rows["method"] != "none"].groupby(
                ["lengths", "score", "mac_cut"], sort=False
            ):
                lost = zip(
                    numbers(baseline - cells["accuracy_full"], 2), cells["training"].map(_TRAININGS), strict=True
                )
                name = lengths if score == "significance" else f"{lengths}, {score}"
                points.append(
                    f"{name} tokens, {_percent(cut)} of the multiplications saved: points lost "
                    f"{', '.join(map(' '.join, lost))}; on images only"
                )
            text = f"{setting_title(rows)}: {baseline:.2f} % without reduction, among all classes of the head."
            yield Answer(text, tuple(points))


# What is measured


@dataclass(frozen=True)
class Stage:
    """A plan and a backbone that was trained to follow it.

    Attributes:
        training: "none", of the "blocks" one by one, or of the whole "network".
        conditions: epochs, learning rate and number of images of all training.
    """

    plan: SlimmingPlan
    vit: VisionTransformer
    training: str = "none"
    conditions: Row = field(default_factory=dict)

    @property
    def model(self) -> ReducedVisionTransformer:
        return reduce_tokens(self.vit, "patch_slimming", plan=self.plan)


def searched(setup: Setup, folder: Path | None = None, **settings: Any) -> list[Stage]:
    """The plan that a search finds, before the tuning of blocks and, where blocks are tuned, after it.

    Args:
        folder: where a stopped search goes on from.
        **settings: of :class:`common.slimming.top_down.SearchSettings`.
    """
    vit = copy.deepcopy(setup.vit)
    plan = search(vit, setup.calibration_images, output_dir=folder, seed=setup.seed, **settings)
    how, images = plan.settings, plan.settings["images"]
    given = {"epochs": how["epochs"], "lr": how["lr"], "n_train": images - round(images * how["held_out"])}
    return [Stage(plan, setup.vit), Stage(plan, vit, "blocks", given)][: 2 if how["epochs"] else 1]


def distilled(setup: Setup, stage: Stage, epochs: int, lr: float) -> Stage:
    """``stage`` after its whole network learnt, on images alone, to agree with the unreduced one.

    The last step of Tang et al. (CVPR 2022), which they do on labels.
    """
    after, data = replace(stage, vit=copy.deepcopy(stage.vit), training="network"), setup.training()
    setup.distil(after.model, data, replace(DISTILLATION, epochs=epochs, lr=lr, batch_size=setup.batch_size))
    after.vit.eval()
    return replace(
        after, conditions={"epochs": stage.conditions.get("epochs", 0) + epochs, "lr": lr, "n_train": len(data[0])}
    )


def hits_of(
    setup: Setup, models: Mapping[Hashable, ReducedVisionTransformer], limit: int | None = None, *, shared: bool = False
) -> dict[Hashable, Tensor]:
    """Which validation images are right (n, 2), float64: among the classes of the dataset, and all of the head.

    Args:
        limit: images; None = all.
        shared: the models are of the backbone's own modules, see :func:`common.slimming.plans.encode_all`.
    """
    whole, loader = reduce_tokens(setup.vit, "none"), setup.loader(setup.some(limit))
    found = {key: Rows(len(loader.sampler)) for key in models}
    with inference_pass([whole, *models.values()], loader, "plans") as batches:
        for images, labels in batches:
            if shared:
                outputs = ((key, whole.classify(tokens)) for key, tokens in encode_all(whole, models, images))
            else:
                outputs = ((key, model(images)) for key, model in models.items())
            for key, logits in outputs:
                right = list(hits_by_image(logits.cpu(), labels, setup.val_set).values())
                found[key].add(torch.from_numpy(np.stack([right[0], right[-1]], axis=1)).double())
    return {key: rows.rows for key, rows in found.items()}


def measures(right: Tensor, other: Tensor | None) -> Row:
    """Accuracies of ``right`` (n, 2), see :func:`hits_of`, and the gain over ``other`` on the same images."""
    values = {"accuracy": right[:, 0], "accuracy_full": right[:, 1]}
    if other is not None:
        values["gain"] = right[:, 1] - other[:, 1]
    return {"n_val": len(right), **means_with_errors(**{name: 100 * value for name, value in values.items()})}


def cost(shape: Shape, lengths: Sequence[int], counter: str = "compact") -> Row:
    """What is executed, by ``counter``, and what the authors count; what is saved of each; the tokens by block."""
    row: Row = {"tokens": " ".join(map(str, lengths))}
    for name, end in ((counter, ""), ("paper", "_paper")):
        macs = slim_macs(shape, lengths, name)
        row |= {f"gmac{end}": macs / 1e9, f"mac_cut{end}": 1 - macs / shape.unreduced}
    return row


def stage_rows(setup: Setup, found: Mapping[tuple[str, str], Sequence[Stage]], mac_budget: float) -> Iterator[Row]:
    """Accuracy of the unreduced network and of every stage of plans that cost no more than ``mac_budget``.

    ``gain`` is over uniform lengths with patches by the same score and after the same training, if there are any.

    Args:
        found: (lengths, score) -> the stages of their plan.
    """
    stages = {(*name, stage.training): stage for name, each in found.items() for stage in each}
    unreduced, shape = ("", "", "none"), Shape.of(setup.vit)
    models = {unreduced: reduce_tokens(setup.vit, "none"), **{key: stage.model for key, stage in stages.items()}}
    right = hits_of(setup, models)
    for key in models:
        row = {"part": "stages", **dict(zip(("lengths", "score", "training"), key, strict=True))}
        lengths = [shape.num_tokens] * shape.depth
        if key == unreduced:
            row["method"] = "none"
        else:
            row, lengths = row | stages[key].conditions, stages[key].plan.lengths
        other = right.get((UNIFORM, *key[1:]))
        yield {**row, "mac_budget": mac_budget, **cost(shape, lengths), **measures(right[key], other)}


def tolerance_rows(
    setup: Setup, tolerances: Sequence[float], *, epochs: int = 0, limit_val: int | None = None, **how: Any
) -> Iterator[Row]:
    """Accuracy of what the search finds for each of ``tolerances`` (Tang et al., CVPR 2022, figure 4).

    ``gain`` is over the unreduced network.

    Args:
        epochs, **how: of :class:`common.slimming.top_down.SearchSettings`.
        limit_val: validation images; None = all.
    """
    if not tolerances:
        return
    models = {each: searched(setup, tolerance=each, epochs=epochs, **how)[-1] for each in sorted(tolerances)}
    whole = reduce_tokens(setup.vit, "none")
    right = hits_of(setup, {None: whole, **{key: stage.model for key, stage in models.items()}}, limit_val)
    for tolerance, stage in models.items():
        row = {"part": "tolerances", "tolerance": tolerance, "training": stage.training, **stage.conditions}
        row["score"] = stage.plan.settings["score"]
        costing = cost(Shape.of(setup.vit), stage.plan.lengths)
        yield {**row, **costing, **measures(right[tolerance], right[None])}


def mean_scores(vit: VisionTransformer, images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Score (L - 1, P) of every patch in every block but the last, in the unreduced network, float64.

    Args:
        name: of :data:`common.slimming.ranking.SCORES` or :data:`SIGNIFICANCES`.
        seed: of "random", which is the same for all images.
    """
    require_choice(name, (*SCORES, *SIGNIFICANCES), "score")
    how, images = SIGNIFICANCES.get(name, Scoring(seed=seed)), images[:1] if name == "random" else images
    return network_scores("significance" if name in SIGNIFICANCES else name, reduce_tokens(vit, "none"), images, how)


def budget_plans(
    setup: Setup, budgets: Sequence[float], error_images: int
) -> dict[tuple[float, str, str, str], SlimmingPlan]:
    """By budget, lengths, score and keys: learned and uniform lengths, and uniform ones whose patches others chose.

    "single_block" with "selected" keys is the student reproduction (CENG502, 2023): patches by the score of one block,
    and blocks that see no more than they compute, which saves keys, so that more tokens fit into the same budget.

    Args:
        error_images: calibration images, the last ones, that the learned lengths are found on.
    """
    names = ("significance", "coverage", "single_block", "random")
    scores = {name: mean_scores(setup.vit, setup.calibration_images, name) for name in names}
    images, shape, plans = setup.calibration_images[-error_images:], Shape.of(setup.vit), {}
    found = sensitivity(reduce_tokens(setup.vit, "none"), images, scores["significance"])
    curves = error_curves(found, shape.num_patches)
    for budget in budgets:
        lengths = {(LEARNED, "significance", "all"): allocate(curves, shape, budget)}
        lengths |= {(UNIFORM, name, "all"): uniform_lengths(shape, budget) for name in names}
        lengths[UNIFORM, "single_block", "selected"] = uniform_lengths(shape, budget, _COUNTERS["selected"])
        for name, each in lengths.items():
            plans[(budget, *name)] = nested(scores[name[1]], each, shape.num_prefix_tokens)
    return plans


def budget_rows(
    setup: Setup, budgets: Sequence[float], error_images: int = 64, limit_val: int | None = None
) -> Iterator[Row]:
    """Accuracy of :func:`budget_plans`; ``gain`` is over uniform lengths with patches by significance.

    Args:
        limit_val: validation images; None = all.
    """
    if not budgets:
        return
    plans, whole = budget_plans(setup, budgets, error_images), reduce_tokens(setup.vit, "none")
    slim = {key: slimmed(whole, plan, keys=key[-1]) for key, plan in plans.items()}
    right = hits_of(setup, slim, limit_val, shared=True)
    for key, plan in plans.items():
        row = {"part": "budgets", **dict(zip(("mac_budget", "lengths", "score", "keys"), key, strict=True))}
        costing = cost(Shape.of(setup.vit), plan.lengths, _COUNTERS[key[-1]])
        yield {**row, **costing, **measures(right[key], right[key[0], UNIFORM, "significance", "all"])}


def dynamic_rows(
    setup: Setup, plan: SlimmingPlan, *, epochs: int, num_images: int, limit_val: int | None = None
) -> Iterator[Row]:
    """Patches that gates choose image by image, and those of the ``plan``, over which is ``gain``; nothing else learns.

    Args:
        epochs, num_images: of the gates, on calibration images.
        limit_val: validation images; None = all.
    """
    images = setup.calibration_images[:num_images]
    torch.manual_seed(setup.seed)
    fixed = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan).eval()
    fit_gates(fixed, images, epochs=epochs)
    threshold = reduce_tokens(setup.vit, "dynamic_slimming", plan=plan, budget="threshold").eval()
    threshold.reducer.gates.load_state_dict(fixed.reducer.gates.state_dict())
    calibrate_thresholds(threshold, images)
    slim = {"none": slimmed(reduce_tokens(setup.vit, "none"), plan), "fixed": fixed, "threshold": threshold}
    right = hits_of(setup, slim, limit_val, shared=True)
    trained = {"method": "dynamic_slimming", "epochs": epochs, "lr": GATE_LR, "n_train": num_images}
    for gates in slim:
        row = {"part": "dynamic", "score": "significance", "gates": gates, **cost(Shape.of(setup.vit), plan.lengths)}
        row |= trained if gates != "none" else {}
        row |= _tokens(threshold, images, setup.batch_size) if gates == "threshold" else {}
        yield {**row, **measures(right[gates], right["none"])}


def _tokens(model: ReducedVisionTransformer, images: Tensor, batch_size: int) -> Row:
    """Mean and standard deviation over ``images`` of the tokens that each block computes."""
    device, prefix = next(model.parameters()).device, model.num_prefix_tokens
    traces = [model.trace(batch.to(device))[1].num_tokens for batch in images.split(batch_size)]
    counts = [prefix + torch.cat([trace[layer] for trace in traces]).double() for layer in range(len(model.blocks))]
    rounded = {"tokens": (each.mean() for each in counts), "tokens_sd": (each.std() for each in counts)}
    return {name: " ".join(f"{value.item():.0f}" for value in values) for name, values in rounded.items()}


def one_block_rows(
    setup: Setup,
    *,
    blocks: Sequence[int],
    kept_shares: Sequence[float],
    scores: Sequence[str],
    pruning: Sequence[str] = ("idle",),
    random_masks: int = 0,
    limit_val: int | None = None,
) -> Iterator[Row]:
    """Accuracy when one block computes a share of its patches, chosen by a score or by chance, without any tuning.

    Args:
        scores: see :func:`mean_scores`.
        random_masks: how many; ``gain`` is over their mean. With 0 there is none: the part is "sensitivity".
        limit_val: validation images; None = all.
    """
    names = [(score, 0) for score in scores] + [("random", seed) for seed in range(random_masks)]
    ranks = {name: mean_scores(setup.vit, setup.calibration_images, *name) for name in names}
    model, shape, last = reduce_tokens(setup.vit, "none"), Shape.of(setup.vit), len(setup.vit.blocks) - 1
    counts, slim = {}, {}
    for how, block, share in product(pruning, blocks, kept_shares):
        count = counts[how, block, share] = 0 if block == last else round(share * shape.num_patches)
        for name, ranked in ranks.items():
            patches = best_first(ranked[block])[:count] if count else []
            slim[name, (how, block, share)] = one_block(model, block, patches, how)
    right = hits_of(setup, slim, limit_val, shared=True)
    for cell, count in counts.items():
        row = dict(zip(("pruning", "block", "kept_share"), cell, strict=True))
        row |= {"part": "single_block" if random_masks else "sensitivity"}
        counter = "compact" if cell[0] == "dropped" else "paper"  # what idles still has keys
        row |= cost(shape, one_block_lengths(shape, cell[1], count, cell[0]), counter)
        shown = {score: right[(score, 0), cell] for score in scores}
        if random_masks:
            shown["random"] = torch.stack([right[("random", seed), cell] for seed in range(random_masks)]).mean(0)
        for score, each in shown.items():
            yield {**row, "score": score, **measures(each, shown.get("random"))}


def correlation_rows(setup: Setup, blocks: Sequence[int]) -> Iterator[Row]:
    """Spearman's correlation of every other score with the published significance, by block."""
    published = mean_scores(setup.vit, setup.calibration_images, "significance")
    for name in [*SIGNIFICANCES, *(score for score in SCORES if score not in ("significance", "random"))]:
        scores = mean_scores(setup.vit, setup.calibration_images, name)
        for block in blocks:
            correlation = float(spearmanr(scores[block], published[block]).statistic)
            yield {"part": "heads", "score": name, "block": block, "rank_correlation": correlation}


# Tables for people

_TRAININGS = {"none": "before tuning", "blocks": "after block tuning", "network": "after distillation"}
_OTHERS = {"idle": "idle", "zero": "zero", "dropped": "dropped for good"}
_CHOOSERS = {"none": "plan", "fixed": "gates, fixed", "threshold": "gates, threshold"}
_TOKENS = "Tokens by block"


def _percent(share: float) -> str:
    return percent(round(share, 3))


def _spread_tokens(rows: pd.DataFrame) -> list[str]:
    """Tokens by block, as mean±sd where they depend on the image."""
    pairs = zip(rows["tokens"].str.split(), rows["tokens_sd"].str.split(), strict=True)
    return [" ".join(map("±".join, zip(means, sds, strict=True)) if sds else means) for means, sds in pairs]


# Heading -> the cells under it, in all tables.
_CELLS: Mapping[str, Callable[[pd.DataFrame], Any]] = {
    "Budget": lambda rows: rows["mac_budget"].map(percent),
    "Tolerance": lambda rows: rows["tolerance"].map("{:g}".format),
    "Block": lambda rows: rows["block"].astype(str),
    "Computed": lambda rows: rows["kept_share"].map(percent),
    "Others": lambda rows: rows["pruning"].map(_OTHERS),
    "Chosen by": lambda rows: rows["gates"].map(_CHOOSERS),
    "Lengths": lambda rows: rows["lengths"].replace("", NONE),
    "Score": lambda rows: rows["score"].replace("", NONE),
    "Keys": lambda rows: rows["keys"],
    "Stage": lambda rows: rows["training"].map(_TRAININGS).mask(rows["method"] == "none", "unreduced"),
    "Accuracy (%)": lambda rows: with_errors(rows, "accuracy", 2),
    "All classes (%)": lambda rows: with_errors(rows, "accuracy_full", 2),
    "Gain": lambda rows: with_errors(rows, "gain", 2),
    "GMAC": lambda rows: numbers(rows["gmac"], 3),
    "Cut": lambda rows: rows["mac_cut"].map(_percent),
    "GMAC, paper": lambda rows: numbers(rows["gmac_paper"], 3),
    "Cut, paper": lambda rows: rows["mac_cut_paper"].map(_percent),
    _TOKENS: _spread_tokens,
    "Images": lambda rows: rows["n_val"].astype(str),
}


def _frame(*headings: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: pd.DataFrame({heading: _CELLS[heading](rows) for heading in headings})


def _plans(rows: pd.DataFrame) -> pd.DataFrame:
    """The unreduced network once, though the run of every budget has measured it."""
    rows = rows[(rows["method"] != "none") | ~rows.duplicated(["method", "n_val"])]
    counted = ("GMAC", "Cut", "GMAC, paper", "Cut, paper", _TOKENS, "Images")
    return _frame("Lengths", "Score", "Stage", "Accuracy (%)", "All classes (%)", "Gain", *counted)(rows)


def _by_block(rows: pd.DataFrame, index: str, values: str) -> pd.DataFrame:
    return rows.pivot(index=index, columns="block", values=values).rename(columns=str).rename_axis(columns=None)


def _sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    wide = _by_block(rows, "kept_share", "accuracy_full").sort_index(ascending=False).apply(numbers, digits=2)
    return wide.rename(index=lambda share: percent(1 - share)).reset_index(names="Pruned")


def _heads(rows: pd.DataFrame) -> pd.DataFrame:
    return _by_block(rows, "score", "rank_correlation").apply(numbers, digits=2).reset_index(names="Score")


_ACCURACY = (
    "Accuracy: among the classes of the dataset; all classes: among all of the head; each ± its standard error over "
    "images. Gain: difference to uniform lengths at the same stage, with patches by the same score, among all classes "
    "and on the same images, ± its standard error. Coverage: patches that carry what others carry do not count. Tuned "
    "on images only."
)
_COST = (
    "GMAC is what the slim model executes; GMAC, paper counts as the authors do: keys and values for all tokens. "
    "Cut: share saved."
)
_GAIN = (
    "Gain: difference to {} on the same images, ± its standard error. All classes: accuracy among all of the head, ± "
    "its standard error over images."
)
_BLOCKS = "Blocks count from 0."
# Part -> what it is called, its table, its notes.
_TABLES: Mapping[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
    "stages": ("plans", _plans, (_ACCURACY, _COST)),
    "tolerances": (
        "tolerances",
        _frame("Tolerance", "All classes (%)", "Gain", "Images", "Cut", "Cut, paper", _TOKENS),
        (
            "Each block keeps the fewest patches with which the output of the next one errs by no more than the "
            "tolerance, a share of its squared norm (mean over tokens).",
            _GAIN.format("the unreduced network"),
        ),
    ),
    "budgets": (
        "budgets, scores and keys",
        _frame("Budget", "Lengths", "Score", "Keys", "All classes (%)", "Gain", "Images", "Cut", _TOKENS),
        (
            "Nothing is tuned. Budget: share of the multiplications that may be spent. Keys selected: patches that a "
            "block does not compute are not seen in it either.",
            _GAIN.format("uniform lengths with patches by significance"),
        ),
    ),
    "dynamic": (
        "patches for each image",
        _frame("Chosen by", "All classes (%)", "Gain", "Images", _TOKENS),
        (
            "Nothing but the gates is trained. Fixed: as many patches in every image; threshold: as many on average, "
            "± the standard deviation over images.",
            _GAIN.format("the plan"),
        ),
    ),
    "sensitivity": (
        "how fragile each block is",
        _sensitivity,
        (
            "Accuracy (%) among all classes of the head when the most significant patches of one block are computed "
            f"and the others pass it unchanged, by block. No head reads the patches of the last one. {_BLOCKS}",
        ),
    ),
    "single_block": (
        "one block alone",
        _frame("Block", "Computed", "Others", "Score", "All classes (%)", "Gain", "Images"),
        (
            "One block computes a part of its patches, nothing is tuned. The others idle: they pass it unchanged, and "
            f"the next computes them again; or they are dropped for good. {_BLOCKS}",
            _GAIN.format("random masks"),
        ),
    ),
    "heads": ("scores compared", _heads, (f"Spearman's correlation with the exact significance, by block. {_BLOCKS}",)),
}
