"""Tables of patch slimming for people: a row of headings and its notes for every part of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from common.report.sections import NONE, numbers, percent, quartiles, with_errors
from common.studies._slimming_published import PUBLISHED, PUBLISHED_TOKENS, PUBLISHED_TOP5
from common.studies._slimming_seeds import at_least_cut

TRAININGS = {"none": "before tuning", "blocks": "after block tuning", "network": "after distillation"}
TRAININGS["labels"] = "after fine-tuning on labels"
OTHERS = {"idle": "idle", "zero": "zero", "dropped": "dropped for good"}
CHOOSERS = {"none": "plan", "fixed": "gates, fixed", "threshold": "gates, threshold"}
WORDS = {"training": TRAININGS, "pruning": OTHERS, "gates": CHOOSERS}  # column -> value -> what it is called
_TOKENS = "Tokens by block"
_APART = ("Agreement (%)", "Divergence", "Change")  # from the unreduced network; Change as Gain
# Columns that stand only where a row of the table has a value.
_WHERE_ANY = {"Published (%)": PUBLISHED, "Tokens, published": PUBLISHED_TOKENS}
_WHERE_ANY |= {"Agreement (%)": "agreement", "Divergence": "divergence", "Change": "divergence_change"}
_WHERE_ANY |= {"Top-5 (%)": "top5", "Published top-5 (%)": PUBLISHED_TOP5, "Images/s": "fps", "Speed-up": "speedup"}


def no_labels(cells: pd.DataFrame) -> str:
    return "" if (cells["training"] == "labels").any() else "; on images only"


def _percent(share: float) -> str:
    return percent(round(share, 3))


def _spread_tokens(rows: pd.DataFrame) -> list[str]:
    """Tokens by block, as mean±sd where they depend on the image."""
    pairs = zip(rows["tokens"].str.split(), rows["tokens_sd"].str.split(), strict=True)
    return [" ".join(map("±".join, zip(means, sds, strict=True)) if sds else means) for means, sds in pairs]


# Heading -> the cells under it, in all tables.
_CELLS: Mapping[str, Callable[[pd.DataFrame], Any]] = {
    "Cut, at least": lambda rows: rows["mac_budget"].map(at_least_cut),
    "Tolerance": lambda rows: rows["tolerance"].map("{:g}".format),
    "Block": lambda rows: rows["block"].astype(str),
    "Computed": lambda rows: rows["kept_share"].map(percent),
    "Others": lambda rows: rows["pruning"].map(OTHERS),
    "Chosen by": lambda rows: rows["gates"].map(CHOOSERS),
    "Lengths": lambda rows: rows["lengths"].replace("", NONE),
    "Score": lambda rows: rows["score"].replace("", NONE),
    "Keys": lambda rows: rows["keys"],
    "Taper": lambda rows: rows["taper"].map(percent),
    "Last": lambda rows: rows["floor"].map(percent),
    "Order": lambda rows: rows["order"],
    "Scored on": lambda rows: rows["scored_on"].astype(str),
    "Cosine": lambda rows: with_errors(rows, "similarity", 3),
    "Stage": lambda rows: rows["training"].map(TRAININGS).mask(rows["method"] == "none", "unreduced"),
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
_PLAIN = "uniform lengths, top-down by the same score of all calibration images, the first row"
# Part -> what it is called, its table, its notes.
TABLES: Mapping[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame], tuple[str, ...]]] = {
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
        _frame(
            "Cut, at least", "Lengths", "Score", "Keys", "All classes (%)", "Gain", *_APART, "Images", "Cut", _TOKENS
        ),
        (
            "Nothing is tuned. Cut, at least: share of the multiplications to save. Keys selected: patches that a "
            "block does not compute are not seen in it either.",
            _GAIN.format("uniform lengths with patches by significance"),
            _APART_NOTE,
        ),
    ),
    "similarity": (
        "how alike patches are",
        _frame("Block", "Cosine"),
        (
            "Mean cosine of two different patches of an image that leave the block, unreduced, ± its standard error "
            "over images: the premise. In the paper's figure 3, read by eye, it climbs from 0.4 to above 0.8 in a "
            f"ViT-B. {_BLOCKS}",
        ),
    ),
    "equal_cost": (
        "plans of equal cost",
        _frame("Taper", "Last", "Score", "Order", "Scored on", "All classes (%)", "Gain", *_APART, "Images", _TOKENS),
        (
            "Nothing is tuned; each plan differs in one thing from the first, in two where a taper is bottom-up. "
            "Taper: how much more than the mean of all the first block computes, and the last but one less; last: of "
            "that, the share that the last block with patches computes. Bottom-up: from the first block on, by scores "
            "of what the slim network leaves; top-down: by scores of the unreduced network, each block keeping what "
            "the next one keeps.",
            _GAIN.format(_PLAIN),
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
