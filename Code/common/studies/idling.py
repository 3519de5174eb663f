"""Patches that idle and come back: what is measured of models with idle patches, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from common import schema
from common.cost.closed_form import Shape
from common.cost.throughput import interleaved
from common.data.base import LabelledDataset
from common.data.transforms import denormalise
from common.idling.candidates import Candidate, tune
from common.idling.outcomes import Outcome, outcomes, predictor_quality
from common.idling.similarity import PatchSimilarities
from common.models.reduced import ReducedVisionTransformer
from common.reducers import Method
from common.reducers.base import divergence
from common.report import sections as show
from common.report.rows import VARIANT, over_seeds
from common.report.sections import NONE, WHOLE, Answer, Section, number, numbers
from common.results import BY_IMAGE
from common.schedule import KeepRate
from common.schema import FLOAT, REQUIRED, SEM, means
from common.setup import Setup
from common.studies.base import Study, register_study
from common.training import TrainConfig
from common.training.metrics import hits, hits_by_image, means_with_errors

SETTING = ["dataset", "backbone", "img_size"]
_MODELS = {
    "thresholds": "thresholds on the frozen backbone",
    "tuning": "frozen and tuned backbone",
    "bounds": "oracle, predictor and random at equal counts",
    "rates": "learning rates of the distillation, on training images that are not trained on",
    "context": "context for the predictor",
    "re_entry": "with and without re-entry",
    "idlevit": "IdleViT, distilled with and without its token cut loss",
}
_OF_MODELS = {
    "attention": schema.text("what computed patches attend to, see common.reducers.idling"),
    "stage": schema.text("of the backbone: frozen, or tuned by distillation"),
    "tau": schema.number("similarity above which the labels let a patch idle", optional=True),
    "idle_share": schema.number("share of patches that the labels let idle, where tau was set for it", optional=True),
    "mac_cut_target": schema.number("mac_cut that the thresholds were solved for", "share", optional=True),
    "reactivated": schema.number("share of idle patches that the next block computes", "share", optional=True),
    **means(
        patches_idle=schema.number("patches that skip a block, over all blocks", "count"),
        gmac=schema.number("per image, what deciding costs included", "GMAC"),
        mac_cut=schema.number("share of the unreduced MAC that is saved", "difference"),
        accuracy=schema.number("top-1 among the classes of the dataset", "percent"),
        accuracy_full=schema.number("top-1 among all classes of a head that has others", "percent", optional=True),
        accuracy_change=schema.number("of top-1 in the whole head, from unreduced", "points", optional=True),
        divergence=schema.number("Kullback-Leibler, from the unreduced model").only("rates"),
    ),
    "predictor_accuracy": schema.number("of decisions, over blocks", "percent").only("context"),
    "balanced_accuracy": schema.number("the same, both labels weighed alike", "percent").only("context"),
    "auroc": schema.number("of the predicted chance, over blocks", "share").only("context"),
    "speedup": schema.number("over the unreduced model, median of rounds", "ratio").only("tuning"),
}
_NOTE = (
    "Idle: patches that skip a block, mean over blocks and images. Back: share of them that the next block computes. "
    "MAC saved: against the unreduced model, predictors paid for, image by image; aim: that of the thresholds. "
    "Top-1 in percent, with the head restricted to the dataset's classes and in full. Tuned: distilled from the "
    "unreduced model, no labels. Learning rate, trained on: of the last training."
)
_SIMILARITY_NOTE = (
    "Across: cosine of the same patch before and after the block. Within: mean cosine of different patches of one "
    "image after it; input: before any block. Means over images. Blocks count from 0, as timm's blocks.N."
)


@register_study
class Idling(Study):
    """Which patches may skip a block, and what it costs to let them."""

    name, title = "idling", "Patches that idle and come back"
    parameters = {"keep_rate": KeepRate}
    question = "Which patches may skip a block, and what does it cost to let them?"
    place = 130
    columns = {
        "part": schema.text("the comparison that the row belongs to; input: the patches that enter the first block"),
        "block": schema.count("the block that patches are compared before and after", "block").only("similarity"),
        **means(
            similarity=schema.number("cosine of a patch before and after the block", "correlation").only("similarity"),
            within_similarity=schema.number("cosine of different patches", "correlation").only("input", "similarity"),
        ),
        **{name: column.only(*(column.parts or _MODELS)) for name, column in _OF_MODELS.items()},
        "n_val": schema.count("images that this was measured on"),
    }
    required = (*REQUIRED, "dataset", "seed", "epochs")
    parts = ("input", "similarity", *_MODELS)
    setting = SETTING
    captions = {
        "": "Patches that each block computes, idle ones black, blocks counted from 0 as timm's blocks.N; or accuracy "
        "against the arithmetic saved, hollow: idle patches are not seen.",
    }
    run_figures = "*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Every row in the order of the runs, mean over seeds.

        A tau that was set for a share of idle patches differs a little from seed to seed: there the share is the key.
        """
        runs = runs.assign(tau_given=runs["tau"].where(runs["idle_share"].isna()))
        key = [
            *SETTING,
            "part",
            *VARIANT,
            "attention",
            "stage",
            "tau_given",
            "idle_share",
            "mac_cut_target",
            "lr",
            "block",
        ]
        key += ["n_train", "n_val", "epochs"]
        metrics = [name for name, column in self.columns.items() if column.kind == FLOAT and name not in key]
        table = over_seeds(runs, key, metrics)
        return table.loc[:, ~table.columns.str.endswith(f"{SEM}_sd")].drop(columns="tau_given")

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """One table for each comparison of each setting."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            tables = rows.groupby(rows["part"].replace("input", "similarity"))
            for part, what in {"similarity": "how similar patches are", **_MODELS}.items():
                if part in tables.groups:
                    found = tables.get_group(part)
                    title = f"{show.setting_title(found)}: {what}, {found['n_val'].iloc[0]} images"
                    yield _similarity(title, found) if part == "similarity" else _models(title, found)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """What the models of each setting lose, by thresholds, tuning and bounds."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            full = rows["accuracy_full"].notna().any()
            value = "accuracy_full" if full else "accuracy"
            changed = rows[rows["part"].isin(["thresholds", "tuning"]) & (rows["method"] != "none")]
            points = [_change(model, value) for _, model in changed.iterrows()]
            points += _order(rows[rows["part"] == "bounds"], value)
            head = "all classes of the head" if full else "its own head"
            # the frozen models are in both parts
            yield Answer(f"On {show.where_text(rows)} ({head}):", tuple(dict.fromkeys(points)))


def _similarity(title: str, rows: pd.DataFrame) -> Section:
    columns = {
        "Block": rows["block"].astype("string").fillna("input").tolist(),
        "Across": numbers(rows["similarity"]),
        "Within": numbers(rows["within_similarity"]),
    }
    return Section(title, pd.DataFrame(columns), (_SIMILARITY_NOTE,), folded=True)


def _models(title: str, rows: pd.DataFrame) -> Section:
    """All that the rows hold; columns that are empty in all of them are left out."""
    columns = {
        "Model": show.labels(rows),
        "Attention": rows["attention"].tolist(),
        "Backbone": rows["stage"].tolist(),
        "Keep": [show.percent(rate) if rate != WHOLE else NONE for rate in rows["keep_rate"]],
        "Tau": numbers(rows["tau"]),
        "Idle": numbers(rows["patches_idle"], 1),
        "Back": numbers(rows["reactivated"]),
        "Aim (%)": numbers(100 * rows["mac_cut_target"], 0),
        "MAC saved (%)": numbers(100 * rows["mac_cut"], 1),
        "Top-1": [show.spread(*pair) for pair in zip(rows["accuracy"], rows["accuracy_sd"], strict=True)],
        "Top-1, all classes": [
            show.spread(*pair) for pair in zip(rows["accuracy_full"], rows["accuracy_full_sd"], strict=True)
        ],
        "Divergence": numbers(rows["divergence"], 4),
        "Balanced accuracy": numbers(rows["balanced_accuracy"], 1),
        "AUROC": numbers(rows["auroc"]),
        "Speed-up": numbers(rows["speedup"], 2),
        "Learning rate": [NONE if pd.isna(rate) else f"{rate:g}" for rate in rows["lr"]],
        "Trained on": [f"{images:,}" if images else NONE for images in rows["n_train"]],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NONE}}
    return Section(title, pd.DataFrame(shown), (_NOTE,))


def _described(row: Mapping[str, object]) -> str:
    cut = f"{100 * row['mac_cut']:.0f} % of the MAC saved"
    return f"{_labels(row)}, {row['attention']} attention, {row['stage']}, {cut}"


def _labels(row: Mapping[str, object]) -> str:
    """What the predictor of a model learnt."""
    return "by influence" if "influence=rollout" in str(row["options"]) else "by change"


def _change(row: pd.Series, value: str) -> str:
    error = row[f"accuracy_change{SEM}"]
    sure = "" if pd.isna(error) else f" ± {error:.2f}"
    return f"{_described(row)}: {number(row[value])} %, {row['accuracy_change']:+.2f}{sure} points"


def _order(rows: pd.DataFrame, value: str) -> Iterator[str]:
    """Oracle, predictor and random side by side, for each predictor."""
    starts = (rows["method"] == "idle_oracle").cumsum()
    for _, group in rows.groupby(starts):
        found = [f"{show.method_label(row['method'])} {number(row[value])}" for _, row in group.iterrows()]
        images = show.counted(int(group["n_val"].iloc[0]), "image")
        yield f"equal numbers of patches in every block, {_labels(group.iloc[0])}, {images}: {', '.join(found)}"


# What the notebooks measure


def similarity_rows(found: PatchSimilarities, seed: int) -> list[dict[str, object]]:
    """Rows of a model that computes everything: the patches that enter it, and those before and after each block."""
    across, within = found.across.double().mean(2), found.within.double()  # (n, L), (n, L + 1)
    model = {"method": "none", "keep_rate": 1.0, "n_train": 0, "epochs": 0, "seed": seed, "n_val": len(within)}
    rows = [{**model, "part": "input", **means_with_errors(within_similarity=within[:, 0])}]
    for block in range(across.shape[1]):
        measured = means_with_errors(similarity=across[:, block], within_similarity=within[:, block + 1])
        rows.append({**model, "part": "similarity", "block": block, **measured})
    return rows


def measure(
    setup: Setup, part: str, candidates: Sequence[Candidate], images: LabelledDataset | None = None
) -> tuple[list[dict[str, object]], list[Outcome]]:
    """A row of ``part`` for every candidate, and what the rows are made from.

    Args:
        candidates: where the first is the unreduced model, the rows tell the difference from it.
        images: all of them are classified; by default all validation images.
    """
    images = setup.val_set if images is None else images
    found, labels = outcomes([each.model for each in candidates], setup.loader(images))
    right, rows = [hits(each.logits, labels, images) for each in found], []
    for candidate, outcome, own in zip(candidates, found, right, strict=True):
        measured = {
            name.removesuffix(BY_IMAGE): 100 * torch.as_tensor(values)
            for name, values in hits_by_image(outcome.logits, labels, images).items()
        }
        if candidates[0].text == "none":
            measured["accuracy_change"] = 100 * (own - right[0])
        rows.append({"part": part, **_row(candidate, outcome), **means_with_errors(**measured)})
    return rows, found


def _row(candidate: Candidate, found: Outcome) -> dict[str, object]:
    """What ``candidate`` is and costs."""
    method, reducer = Method.parse(candidate.text), candidate.model.reducer
    cut = 1 - found.macs / Shape.of(candidate.model).unreduced
    return {
        "method": method.name,
        "options": method.options_text,
        "keep_rate": reducer.schedule.keep_rate,
        "attention": getattr(reducer, "attention", "standard"),
        "stage": candidate.stage,
        "tau": candidate.tau,
        "idle_share": candidate.idle_share,
        "mac_cut_target": candidate.cut,
        **means_with_errors(patches_idle=found.idle.mean(1), gmac=found.macs / 1e9, mac_cut=cut),
        "reactivated": found.reactivated,
        "lr": candidate.lr,
        "n_train": candidate.n_train,
        "epochs": candidate.epochs,
        "seed": candidate.seed,
        "n_val": len(found.logits),
    }


def try_rates(
    setup: Setup, start: Candidate, cut: float, config: TrainConfig, rates: Sequence[float], count: int | None
) -> list[dict[str, object]]:
    """Stage 2 of ``start`` with each of the learning ``rates``: rows of the part "rates" on calibration images.

    Args:
        config, count: see :func:`common.idling.candidates.tune`.
    """
    trials = [tune(setup, start, cut, replace(config, lr=rate), count) for rate in rates]
    dense = Candidate("none", setup.reduced("none"), seed=start.seed)
    rows, found = measure(setup, "rates", [dense, *trials], setup.calibration)
    for row, outcome in zip(rows, found, strict=True):
        pairs = zip(outcome.logits.split(1), found[0].logits.split(1), strict=True)
        row.update(means_with_errors(divergence=torch.stack([divergence(*pair) for pair in pairs])))
    return rows[1:]


def prediction(setup: Setup, candidate: Candidate, images: LabelledDataset) -> dict[str, float]:
    """How well the predictors of ``candidate`` know their labels, mean over the blocks where both labels occur."""
    blocks = predictor_quality(candidate.model, setup.loader(images)).values()
    known = pd.DataFrame([vars(block) for block in blocks]).dropna().drop(columns="confusion")
    return known.mean().rename({"accuracy": "predictor_accuracy"}).to_dict()


def speeds(setup: Setup, candidates: Sequence[Candidate], rounds: int = 3) -> list[float]:
    """Median speed-up of every candidate over the first, interleaved, on one batch of validation images."""
    images = setup.some(min(setup.batch_size, len(setup.val_set))).stack()
    models = {place: each.model.eval() for place, each in enumerate(candidates)}
    measured = interleaved(models, images.to(setup.where), baseline=0, rounds=rounds)
    return [measured[place].speedup for place in models]


def idle_shares_by_block(rows: Sequence[Mapping[str, object]], found: Sequence[Outcome]) -> dict[str, Tensor]:
    """Share of the patches that idle in each block (depth,), mean over images, by what each reduced model is."""
    pairs = [(row, each) for row, each in zip(rows, found, strict=True) if row["method"] != "none"]
    return {_described(row): (~each.active).double().mean((0, 2)) for row, each in pairs}


def computed_patches(
    setup: Setup, model: ReducedVisionTransformer, places: Sequence[int], among: int = 10
) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (n, 3, H, W) in [0, 1], patches that each block computes (n, depth, P), and classes.

    Args:
        places: of the images among ``among`` validation images, the classes as even as possible.
    """
    few = setup.some(among).select(torch.tensor(list(places)))
    images = few.stack()
    _, trace = model.trace(images.to(setup.where))
    classes = [few.classes[label] for label in few.labels]
    return denormalise(images, few.mean, few.std), torch.stack(trace.active, dim=1).cpu(), classes
