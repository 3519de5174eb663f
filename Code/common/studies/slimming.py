"""Patch slimming: plans before and after training, and what their patches could be chosen by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.options import Count, Many, Share, Whole, field_kinds
from common.report.rows import refuse_repeats
from common.report.sections import Answer, Section, setting_title
from common.schema import REQUIRED, count, means, number, text
from common.slimming.allocation import SHARINGS
from common.slimming.plans import PRUNING
from common.slimming.ranking import SCORES, SIGNIFICANCES
from common.slimming.top_down import SearchSettings
from common.studies._slimming_published import (
    PUBLISHED,
    PUBLISHED_TOKENS,
    PUBLISHED_TOP5,
    comparability,
    with_published,
)
from common.studies._slimming_seeds import SEEDLESS, of_several, over_seeds, seeds_point, seeds_sections
from common.studies._slimming_tables import TABLES, TRAININGS, WORDS, no_labels
from common.studies.base import Study, register_study
from common.studies.throughput import quartiles_of

SETTING = [*SEEDLESS, "seed"]
_SEARCHED, _ONE_BLOCK = ("stages", "tolerances", "budgets", "equal_cost"), ("sensitivity", "single_block")
_MEASURED = (*_SEARCHED, "dynamic", *_ONE_BLOCK)
_search = field_kinds(SearchSettings)
_UNLABELLED = {
    "agreement": number("images with the unreduced network's first class among all of the head", "share"),
    "divergence": number("Kullback-Leibler, from the unreduced network over all classes of the head, nats"),
    "divergence_change": number("of divergence, from what the part compares with, same images, nats"),
}
_VARIED = {
    "taper": number("tokens of the first block over the mean of all, less 1", "share"),
    "floor": number("tokens of the last block with patches, of what the taper gives it", "share"),
    "order": text("top-down, scores of the unreduced network; bottom-up, of what the slim one leaves"),
    "scored_on": count("training images that patches are scored on"),
}
_SIMILARITY = number("mean cosine of two patches that leave the block", "correlation")
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
        "lengths": text(
            "how tokens are shared out: falling evenly; uniform; learned, by errors of blocks; best of eight tapers",
            optional=True,
        ).only("stages", "budgets"),
        "score": text("what patches are chosen by", optional=True),
        **{name: replace(column, before="").only("equal_cost") for name, column in _VARIED.items()},
        "keys": text("tokens seen in a block: all, or the selected, which it computes").only("budgets"),
        "gates": text("none, of a plan; or how many patches they choose: fixed, threshold").only("dynamic"),
        "training": text(
            "none; of the blocks one by one; of the network from its old logits; of the network on labels"
        ).only("stages", "tolerances"),
        "mac_budget": number("share of the MAC that may be spent", "share", optional=True).only(
            "stages", "budgets", "equal_cost", "dynamic"
        ),
        "tolerance": number("error that a block may make, as a share of its output", "ratio").only("tolerances"),
        "block": count("that is scored, or alone computes fewer patches", "block").only(
            *_ONE_BLOCK, "heads", "similarity"
        ),
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
            similarity=replace(_SIMILARITY, before="").only("similarity"),
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
    parts = (*_MEASURED, "heads", "similarity")
    setting = SETTING
    captions = {
        "": "Tokens that each block computes, the same in every image; accuracy against multiplications; plans of "
        "equal cost beside uniform lengths; and what is left, or gained over chance, when one block alone computes "
        "fewer patches. Blocks count from 0.",
        "limits": "Plans of equal cost beside uniform lengths, nothing tuned: left of 0 is nearer to the unreduced "
        "network. A point for each seed, by which the calibration images are drawn.",
    }
    run_figures = "**/*.png"
    parameters = {
        **{
            name: _search[name] for name in ("mac_budget", "counter", "tolerance", "step", "error_norm", "error_images")
        },
        "rounds": Whole,
        "lengths": Many[Literal[SHARINGS]],
        **dict.fromkeys(("score", "other_score"), Literal[(*SCORES, *SIGNIFICANCES)]),
        "pruning": Many[Literal[PRUNING]],
        "block": Whole,
        **dict.fromkeys(("kept_share", "sensitivity_kept_share", "taper", "floor"), Share),
        "scored_on": Many[Count],
        "similarity_images": Whole,
    }

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """All rows, in the order in which they were measured, and what is printed of the same experiment."""
        names = list(self.columns)
        refuse_repeats(runs, [*SETTING, "method", *names[: names.index("accuracy")]])
        shown = [*SETTING, "method", *names, PUBLISHED, PUBLISHED_TOP5, PUBLISHED_TOKENS, "differs"]
        return with_published(runs)[shown].reset_index(drop=True)

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        """What was measured over seeds first, where there are several; then every seed with all of it."""
        titles = {part: what for part, (what, *_) in TABLES.items()}
        for _, rows in data.groupby(SEEDLESS, sort=False, dropna=False):
            yield from seeds_sections(rows, titles, WORDS)
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            title, parts = setting_title(rows), dict(list(rows.groupby("part", sort=False)))
            for part, (what, frame_of, notes) in TABLES.items():
                if part in parts:
                    notes = (*notes, *comparability(parts[part]))
                    seed = f", seed {rows['seed'].iloc[0]}" if of_several(data, rows) else ""
                    folded = part == "heads" or bool(seed)
                    yield Section(f"{title}{seed}: {what}", frame_of(parts[part]), notes, folded=folded)

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        equal = runs[runs["part"] == "equal_cost"]
        if len(equal):
            yield "limits", plots.slimming_limits(equal)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        """Per setting: what all lengths cost and lose, before and after training, over its seeds."""
        for _, rows in data[data["part"] == "stages"].groupby(SEEDLESS, sort=False, dropna=False):
            baseline = rows.loc[rows["method"] == "none", "accuracy_full"].iloc[0]
            plans, points = over_seeds(rows), []
            alike = plans["n"].nunique() == 1
            for _, cells in plans.groupby(["mac_budget", "lengths", "score"], sort=False):
                own = "" if alike else _mean_of(cells)
                points.append(seeds_point(cells, baseline, TRAININGS) + own + no_labels(cells))
            title = f"{setting_title(rows)}{_mean_of(plans) if alike else ''}"
            text = f"{title}: {baseline:.2f} % without reduction, among all classes of the head."
            yield Answer(text, tuple(points))


def _mean_of(plans: pd.DataFrame) -> str:
    count = plans["n"].iloc[0]
    return f", mean of {count} seeds" if count > 1 else ""
