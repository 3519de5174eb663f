"""Patches that idle and come back: what the rows of models with idle patches hold, and what is told of them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common import schema
from common.idling.rows import described, labels
from common.report import sections as show
from common.report.rows import VARIANT, over_seeds
from common.report.sections import NONE, WHOLE, Answer, Section, number, numbers
from common.schedule import KeepRate
from common.schema import FLOAT, REQUIRED, SEM, means
from common.studies.base import Study, register_study

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
    "idle_share": schema.number(
        "share of patches that the labels let idle, where tau was set for it", optional=True, before=""
    ),
    "mac_cut_target": schema.number("mac_cut that the thresholds were solved for", "share", optional=True),
    "reactivated": schema.number("share of idle patches that the next block computes", "share", optional=True),
    **means(
        patches_idle=schema.number("patches that skip a block, over all blocks", "count"),
        gmac=schema.number("per image, what deciding costs included", "GMAC"),
        mac_cut=schema.number("share of the unreduced MAC that is saved", "difference"),
        accuracy=schema.number("top-1 among the classes of the dataset", "percent"),
        accuracy_full=schema.number("top-1 among all classes of a head that has others", "percent", optional=True),
        accuracy_change=schema.number("of top-1 in the whole head, from unreduced", "points", optional=True),
        idle_outside=schema.number(
            "share of the idle patches that lie outside the box of the object", "share", optional=True, before=""
        ),
        outside=schema.number("the same of all patches: what chance gives", "share", optional=True, before=""),
        agreement=schema.number(
            "share of images whose most probable class, of all of the head, is the unreduced model's",
            "share",
            optional=True,
            before="",
        ),
        divergence=schema.number(
            "Kullback-Leibler, from the unreduced model over all classes of the head, nats", optional=True, before=""
        ),
    ),
    "predictor_accuracy": schema.number("of decisions, over blocks", "percent").only("context"),
    "balanced_accuracy": schema.number("the same, both labels weighed alike", "percent").only("context"),
    "auroc": schema.number("of the predicted chance, over blocks", "share").only("context"),
    "speedup": schema.number("over the unreduced model, median of rounds", "ratio").only("tuning"),
}
_NOTE = (
    "Idle: patches that skip a block, mean over blocks and images. Back: share of them that the next block computes. "
    "Outside: share of the idle patches that lie outside the box of the object, where the data have boxes; by chance: "
    "of all patches. MAC saved: against the unreduced model, predictors paid for, image by image; aim: that of the "
    "thresholds. Top-1 in percent, with the head restricted to the dataset's classes and in full; agreement and "
    "divergence: with and from the unreduced model over all classes of its head, no labels. Tuned: distilled "
    "from the unreduced model, no labels. Learning rate, trained on: of the last training."
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
        "": "Patches that each block computes, idle ones black. Blocks count from 0, as timm's blocks.N.",
    }
    run_figures = "*.png"
    run_captions = {"study-*.png": "Accuracy against the arithmetic saved. Hollow: idle patches are not seen."}

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Every row in the order of the runs, mean over seeds.

        What was found differs from seed to seed and is no key: a tau that was set for a share of idle patches, where
        the share is one; and the learning rate of a distillation, but where several are compared.
        """
        found = (runs["stage"] == "tuned") & (runs["part"] != "rates")
        runs = runs.assign(tau_given=runs["tau"].where(runs["idle_share"].isna()), lr_given=runs["lr"].mask(found))
        key = [
            *SETTING,
            "part",
            *VARIANT,
            "attention",
            "stage",
            "tau_given",
            "idle_share",
            "mac_cut_target",
            "lr_given",
            "block",
        ]
        key += ["n_train", "n_val", "epochs"]
        metrics = [name for name, column in self.columns.items() if column.kind == FLOAT and name not in key]
        table = over_seeds(runs, key, ["lr", *metrics])
        return table.loc[:, ~table.columns.str.endswith(f"{SEM}_sd")].drop(columns=["tau_given", "lr_given", "lr_sd"])

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """One table for each comparison of each setting."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            tables = rows.groupby(rows["part"].replace("input", "similarity"))
            for part, what in {"similarity": "how similar patches are", **_MODELS}.items():
                if part in tables.groups:
                    found = tables.get_group(part)
                    title = f"{show.setting_title(found)}: {what}, {found['n_val'].iloc[0]:,} images"
                    yield _similarity(title, found) if part == "similarity" else _models(title, found)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """What the models of each setting lose, by thresholds, tuning and bounds."""
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            full = rows["accuracy_full"].notna().any()
            value = "accuracy_full" if full else "accuracy"
            changed = rows[rows["part"].isin(["thresholds", "tuning"]) & (rows["method"] != "none")]
            points = [_change(model, value) for _, model in changed.iterrows()]
            points += _order(rows[rows["part"] == "bounds"], value)
            points += [_outside(model) for _, model in changed[changed["idle_outside"].notna()].iterrows()]
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
        "Outside (%)": numbers(100 * rows["idle_outside"], 1),
        "Outside by chance (%)": numbers(100 * rows["outside"], 1),
        "MAC saved (%)": numbers(100 * rows["mac_cut"], 1),
        "Top-1": [show.spread(*pair) for pair in zip(rows["accuracy"], rows["accuracy_sd"], strict=True)],
        "Top-1, all classes": [
            show.spread(*pair) for pair in zip(rows["accuracy_full"], rows["accuracy_full_sd"], strict=True)
        ],
        "Agreement (%)": numbers(100 * rows["agreement"], 1),
        "Divergence": numbers(rows["divergence"], 4),
        "Balanced accuracy": numbers(rows["balanced_accuracy"], 1),
        "AUROC": numbers(rows["auroc"]),
        "Speed-up": numbers(rows["speedup"], 2),
        "Learning rate": [NONE if pd.isna(rate) else f"{rate:.3g}" for rate in rows["lr"]],
        "Trained on": [f"{images:,}" if images else NONE for images in rows["n_train"]],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NONE}}
    return Section(title, pd.DataFrame(shown), (_NOTE,))


def _change(row: pd.Series, value: str) -> str:
    error = row[f"accuracy_change{SEM}"]
    sure = "" if pd.isna(error) else f" ± {error:.2f}"
    return f"{described(row)}: {number(row[value])} %, {row['accuracy_change']:+.2f}{sure} points"


def _outside(row: pd.Series) -> str:
    """Whether idle patches go around the object, by its box."""
    outside, error, chance = (100 * row[name] for name in ("idle_outside", f"idle_outside{SEM}", "outside"))
    said = (
        f"{outside:.1f} ± {error:.1f} % of its idle patches lie outside the box of the object, by chance {chance:.1f} %"
    )
    return f"{described(row)}: {said}"


def _order(rows: pd.DataFrame, value: str) -> Iterator[str]:
    """Oracle, predictor and random side by side, for each predictor."""
    starts = (rows["method"] == "idle_oracle").cumsum()
    for _, group in rows.groupby(starts):
        found = [f"{show.method_label(row['method'])} {number(row[value])}" for _, row in group.iterrows()]
        images = show.counted(int(group["n_val"].iloc[0]), "image")
        yield f"equal numbers of patches in every block, {labels(group.iloc[0])}, {images}: {', '.join(found)}"
