"""Patch slimming: plans before and after training, and what their patches could be chosen by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from common.options import Many, Share, Whole, field_kinds
from common.report.rows import refuse_repeats
from common.report.sections import NONE, Answer, Section, numbers, percent, quartiles, setting_title, with_errors
from common.schema import REQUIRED, count, means, number, text
from common.slimming.plans import PRUNING
from common.slimming.ranking import SCORES
from common.slimming.rows import LEARNED, SIGNIFICANCES, UNIFORM
from common.slimming.top_down import SearchSettings
from common.studies._slimming_published import (
    PUBLISHED,
    PUBLISHED_TOKENS,
    PUBLISHED_TOP5,
    comparability,
    with_published,
)
from common.studies._slimming_seeds import over_seeds, seeds_point, seeds_sections
from common.studies.base import Study, register_study
from common.studies.throughput import quartiles_of

SEEDLESS = ["dataset", "backbone", "img_size"]
SETTING = [*SEEDLESS, "seed"]
_SEARCHED, _ONE_BLOCK = ("stages", "tolerances", "budgets"), ("sensitivity", "single_block")
_MEASURED = (*_SEARCHED, "dynamic", *_ONE_BLOCK)
_search = field_kinds(SearchSettings)
_UNLABELLED = {
    "agreement": number("images with the unreduced network's first class among all of the head", "share"),
    "divergence": number("Kullback-Leibler, from the unreduced network over all classes of the head, nats"),
    "divergence_change": number("of divergence, from what the part compares with, same images, nats"),
}
_SPEED = {
    **quartiles_of("fps", "images per second over the rounds", "1/s"),
    **quartiles_of("speedup", "seconds of the unreduced network / own seconds in the same round", "ratio"),
    "rounds": count("passes of each network, in turn"),
}


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
        "training": text(
            "none; of the blocks one by one; of the network from its old logits; of the network on labels"
        ).only("stages", "tolerances"),
        "mac_budget": number("share of the MAC that may be spent", "share").only("stages", "budgets"),
        "tolerance": number("error that a block may make, as a share of its output", "ratio").only("tolerances"),
        "block": count("that is scored, or alone computes fewer patches", "block").only(*_ONE_BLOCK, "heads"),
        "kept_share": number("share of its patches that this block computes", "share").only(*_ONE_BLOCK),
        "pruning": text("what becomes of its other patches: idle, zero, dropped").only(*_ONE_BLOCK),
        **means(
            accuracy=number("top-1 among the classes of the dataset", "percent", optional=True).only(*_MEASURED),
            accuracy_full=number("top-1 among all classes of the head", "percent").only(*_MEASURED),
            top5=number("the right class among five, of all of the head", "percent", optional=True, before="").only(
                *_MEASURED
            ),
            gain=number("of accuracy_full over what the part compares with, same images", "points", optional=True),
            **{
                name: replace(column, optional=True, before="").only(*_MEASURED) for name, column in _UNLABELLED.items()
            },
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
        **{name: replace(column, optional=True, before="").only("stages") for name, column in _SPEED.items()},
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
        **{
            name: _search[name] for name in ("mac_budget", "counter", "tolerance", "step", "error_norm", "error_images")
        },
        "rounds": Whole,
        "lengths": Many[Literal[LEARNED, UNIFORM]],
        "score": Literal[(*SCORES, *SIGNIFICANCES)],
        "pruning": Many[Literal[PRUNING]],
        "block": Whole,
        **dict.fromkeys(("kept_share", "sensitivity_kept_share"), Share),
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, in the order in which they were measured, and what is printed of the same experiment."""
        names = list(self.columns)
        refuse_repeats(runs, [*SETTING, "method", *names[: names.index("accuracy")]])
        shown = [*SETTING, "method", *names, PUBLISHED, PUBLISHED_TOP5, PUBLISHED_TOKENS, "differs"]
        return with_published(runs)[shown].reset_index(drop=True)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """What was measured over seeds first, where there are several; then every seed with all of it."""
        titles = {part: what for part, (what, *_) in _TABLES.items()}
        words = {"training": _TRAININGS, "pruning": _OTHERS, "gates": _CHOOSERS}
        for _, rows in data.groupby(SEEDLESS, sort=False, dropna=False):
            yield from seeds_sections(rows, titles, words)
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, parts = setting_title(rows), dict(list(rows.groupby("part", sort=False)))
            for part, (what, frame_of, notes) in _TABLES.items():
                if part in parts:
                    notes = (*notes, *comparability(parts[part]))
                    seed = f", seed {rows['seed'].iloc[0]}" if _of_several(data, rows) else ""
                    folded = part == "heads" or bool(seed)
                    yield Section(f"{title}{seed}: {what}", frame_of(parts[part]), notes, folded=folded)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """Per setting: what all lengths cost and lose, before and after training, over its seeds."""
        for _, rows in data[data["part"] == "stages"].groupby(SEEDLESS, sort=False, dropna=False):
            baseline = rows.loc[rows["method"] == "none", "accuracy_full"].iloc[0]
            goals = over_seeds(rows).groupby(["mac_budget", "lengths", "score"], sort=False)
            points = [seeds_point(cells, baseline, _TRAININGS) + _no_labels(cells) for _, cells in goals]
            seeds = f", mean of {rows['seed'].nunique()} seeds" if rows["seed"].nunique() > 1 else ""
            text = f"{setting_title(rows)}{seeds}: {baseline:.2f} % without reduction, among all classes of the head."
            yield Answer(text, tuple(points))


# Tables for people

_TRAININGS = {"none": "before tuning", "blocks": "after block tuning", "network": "after distillation"}
_TRAININGS["labels"] = "after fine-tuning on labels"
_OTHERS = {"idle": "idle", "zero": "zero", "dropped": "dropped for good"}
_CHOOSERS = {"none": "plan", "fixed": "gates, fixed", "threshold": "gates, threshold"}
_TOKENS = "Tokens by block"
_APART = ("Agreement (%)", "Divergence", "Change")  # from the unreduced network; Change as Gain
# Columns that stand only where a row of the table has a value.
_WHERE_ANY = {"Published (%)": PUBLISHED, "Tokens, published": PUBLISHED_TOKENS}
_WHERE_ANY |= {"Agreement (%)": "agreement", "Divergence": "divergence", "Change": "divergence_change"}
_WHERE_ANY |= {"Top-5 (%)": "top5", "Published top-5 (%)": PUBLISHED_TOP5, "Images/s": "fps", "Speed-up": "speedup"}


def _of_several(data: pd.DataFrame, rows: pd.DataFrame) -> bool:
    """Whether the setting of ``rows`` has other seeds in ``data``."""
    same = (data[SEEDLESS] == rows[SEEDLESS].iloc[0]).all(axis=1)
    return data.loc[same, "seed"].nunique() > 1


def _no_labels(cells: pd.DataFrame) -> str:
    return "" if (cells["training"] == "labels").any() else "; on images only"


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
    "Agreement (%)": lambda rows: numbers(100 * rows["agreement"], 2),
    "Divergence": lambda rows: with_errors(rows, "divergence", 3),
    "Change": lambda rows: with_errors(rows, "divergence_change", 4),
    "GMAC": lambda rows: numbers(rows["gmac"], 3),
    "Cut": lambda rows: rows["mac_cut"].map(_percent),
    "GMAC, paper": lambda rows: numbers(rows["gmac_paper"], 3),
    "Cut, paper": lambda rows: rows["mac_cut_paper"].map(_percent),
    "Top-5 (%)": lambda rows: with_errors(rows, "top5", 2),
    "Published (%)": lambda rows: numbers(rows[PUBLISHED], 1),
    "Published top-5 (%)": lambda rows: numbers(rows[PUBLISHED_TOP5], 1),
    "Images/s": lambda rows: [quartiles(row, "fps", 0) for _, row in rows.iterrows()],
    "Speed-up": lambda rows: [quartiles(row, "speedup", 2) for _, row in rows.iterrows()],
    _TOKENS: _spread_tokens,
    "Tokens, published": lambda rows: rows[PUBLISHED_TOKENS].replace("", NONE),
    "Images": lambda rows: rows["n_val"].astype(str),
}


def _frame(*headings: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: pd.DataFrame({name: _CELLS[name](rows) for name in headings if _has(rows, name)})


def _has(rows: pd.DataFrame, heading: str) -> bool:
    if heading not in _WHERE_ANY:
        return True
    values = rows[_WHERE_ANY[heading]]
    return (values.notna() & (values != "")).any()


def _plans(rows: pd.DataFrame) -> pd.DataFrame:
    """The unreduced network once, though the run of every budget has measured it."""
    rows = rows[(rows["method"] != "none") | ~rows.duplicated(["method", "n_val"])]
    accuracies = (
        "Accuracy (%)",
        "All classes (%)",
        "Gain",
        *_APART,
        "Published (%)",
        "Top-5 (%)",
        "Published top-5 (%)",
    )
    speed = ("Images/s", "Speed-up")
    counted = (*speed, "GMAC", "Cut", "GMAC, paper", "Cut, paper", _TOKENS, "Tokens, published", "Images")
    return _frame("Lengths", "Score", "Stage", *accuracies, *counted)(rows)


def _by_block(rows: pd.DataFrame, index: str, values: str) -> pd.DataFrame:
    return rows.pivot(index=index, columns="block", values=values).rename(columns=str).rename_axis(columns=None)


def _sensitivity(rows: pd.DataFrame) -> pd.DataFrame:
    tables = [_accuracy_by_block(rows, "accuracy_full", "", 2)]
    if _has(rows, "Published (%)"):
        tables.append(_accuracy_by_block(rows, PUBLISHED, ", published", 0))
    return pd.concat(tables, ignore_index=True)


def _accuracy_by_block(rows: pd.DataFrame, values: str, what: str, digits: int) -> pd.DataFrame:
    wide = _by_block(rows, "kept_share", values).sort_index(ascending=False).apply(numbers, digits=digits)
    return wide.rename(index=lambda share: percent(1 - share) + what).reset_index(names="Pruned")


def _heads(rows: pd.DataFrame) -> pd.DataFrame:
    return _by_block(rows, "score", "rank_correlation").apply(numbers, digits=2).reset_index(names="Score")


_ACCURACY = (
    "Accuracy: among the classes of the dataset; all classes: among all of the head; each ± its standard error over "
    "images. Gain: difference to uniform lengths at the same stage, with patches by the same score, among all classes "
    "and on the same images, ± its standard error. Coverage: patches that carry what others carry do not count. Tuned "
    "on images only, but for what is fine-tuned on labels. Top-5: the right class among the five most probable of all. "
    "Images/s and speed-up: median [quartiles] over rounds in turn with the unreduced network, which is the 1."
)
_COST = (
    "GMAC is what the slim model executes; GMAC, paper counts as the authors do: keys and values for all tokens. "
    "Cut: share saved."
)
_GAIN = (
    "Gain: difference to {} on the same images, ± its standard error. All classes: accuracy among all of the head, ± "
    "its standard error over images."
)
_APART_NOTE = (
    "Without labels, over all classes of the head: agreement, images with the unreduced network's first class; "
    "divergence from it (Kullback-Leibler, nats); change, of the divergence, from what Gain is the difference to."
)
_BLOCKS = "Blocks count from 0."
# Part -> what it is called, its table, its notes.
_TABLES: Mapping[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
    "stages": ("plans", _plans, (_ACCURACY, _APART_NOTE, _COST)),
    "tolerances": (
        "tolerances",
        _frame("Tolerance", "All classes (%)", "Gain", *_APART, "Top-5 (%)", "Images", "Cut", "Cut, paper", _TOKENS),
        (
            "Each block keeps the fewest patches with which the output of the next one errs by no more than the "
            "tolerance, a share of its squared norm (mean over tokens).",
            _GAIN.format("the unreduced network"),
            _APART_NOTE,
        ),
    ),
    "budgets": (
        "budgets, scores and keys",
        _frame("Budget", "Lengths", "Score", "Keys", "All classes (%)", "Gain", *_APART, "Images", "Cut", _TOKENS),
        (
            "Nothing is tuned. Budget: share of the multiplications that may be spent. Keys selected: patches that a "
            "block does not compute are not seen in it either.",
            _GAIN.format("uniform lengths with patches by significance"),
            _APART_NOTE,
        ),
    ),
    "dynamic": (
        "patches for each image",
        _frame(
            "Chosen by",
            "All classes (%)",
            "Gain",
            *_APART,
            "Published (%)",
            "Top-5 (%)",
            "Published top-5 (%)",
            "Images",
            _TOKENS,
        ),
        (
            "Nothing but the gates is trained. Fixed: as many patches in every image; threshold: as many on average, "
            "± the standard deviation over images.",
            _GAIN.format("the plan"),
            _APART_NOTE,
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
        _frame("Block", "Computed", "Others", "Score", "All classes (%)", "Gain", "Published (%)", "Images"),
        (
            "One block computes a part of its patches, nothing is tuned. The others idle: they pass it unchanged, and "
            f"the next computes them again; or they are dropped for good. {_BLOCKS}",
            _GAIN.format("random masks"),
        ),
    ),
    "heads": ("scores compared", _heads, (f"Spearman's correlation with the exact significance, by block. {_BLOCKS}",)),
}
