"""What the paper of patch slimming and its student reproduction print, beside rows of the same experiment."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from common.report.published import beside
from common.report.rows import architecture
from common.results import read_published

_NETWORK = ["architecture", "data", "img_size"]
_TRAINED = ["weights", "training", "gflops", "n_val"]
# Part -> what makes a printed value its counterpart, and what the source may state of the experiment.
_JOINED: Mapping[str, tuple[list[str], list[str]]] = {
    "stages": (["method"], ["lengths", "score", *_TRAINED]),
    "dynamic": (["method"], _TRAINED),
    "tolerances": (["tolerance"], ["weights", "score", "error_norm", "training", "n_val"]),
    "sensitivity": (["block", "kept_share"], ["weights", "score", "training", "n_val"]),
    "single_block": (["block", "kept_share", "score"], ["weights", "training", "n_val"]),
}
_WHERE = {
    "stages": "tables 1 and 3",
    "dynamic": "table 1",
    "tolerances": "figure 4, read by eye",
    "sensitivity": "figure 6, read by eye",
    "single_block": "figure 7, read by eye",
}
_FIGURE_5 = "Tokens, published: figure 5, read by eye."
PUBLISHED, PUBLISHED_TOP5, PUBLISHED_TOKENS = "published_accuracy", "published_top5", "published_tokens"
# What else than accuracies is printed of the counterparts of a part.
_MORE = {"stages": ("top5", "tokens"), "dynamic": ("top5",)}


def with_published(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with ``published_accuracy``, ``published_top5`` (percent, all classes) and ``published_tokens``.

    They are of the same experiment, and empty where there is none; ``differs`` then says what is another than in the
    nearest printed value of the same network and data. GFLOPs are compared as they are printed: by the authors'
    counter, to one decimal.
    """
    ours, printed = _comparable(runs), _printed()
    numbers, words = [PUBLISHED, PUBLISHED_TOP5], [PUBLISHED_TOKENS, "differs"]
    found = pd.DataFrame(index=runs.index, columns=[*numbers, *words], dtype=object)
    for part, (identity, stated) in _JOINED.items():
        rows, theirs, same = ours[ours["part"] == part], printed[printed["part"] == part], [*_NETWORK, *identity]
        if rows.empty:
            continue
        for value in ("accuracy", *_MORE.get(part, ())):
            values = beside(rows, theirs[theirs[value].notna()], same, stated, value)
            found.loc[rows.index, f"published_{value}"] = values[f"published_{value}"]
            if value == "accuracy":
                found.loc[rows.index, "differs"] = values["differs"]
    return runs.assign(**found[numbers].astype(float), **found[words].fillna(""))


def _comparable(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with the columns that printed values are told apart by."""
    return runs.assign(
        architecture=runs["backbone"].map(architecture),
        data=runs["dataset"].str.rpartition("/")[2],  # of "folder:/somewhere/imagenet-mini"
        gflops=runs["gmac_paper"].round(1),
        error_norm="a share of the output",  # what tolerances mean here
        training=runs["training"].mask(runs["part"] == "dynamic", "gates").replace("", "none"),
    )


def _printed() -> pd.DataFrame:
    """Rows of the tables and of the figures, each with the part of the study that has its counterpart."""
    tables, figures = read_published("patch_slimming"), read_published("patch_slimming_figures")
    parts = tables["method"].map({"dynamic_slimming": "dynamic"}).fillna("stages")
    rows = pd.concat([tables.assign(part=parts, tokens=pd.NA), figures], ignore_index=True)
    return rows.rename(columns={"backbone": "architecture", "dataset": "data"})


def comparability(rows: pd.DataFrame) -> tuple[str, ...]:
    """Notes to the rows of one part: where published values stand, and what keeps the others from it."""
    part, notes = rows["part"].iloc[0], []
    if rows[PUBLISHED].notna().any():
        notes.append(f"Published: Tang et al. (CVPR 2022), {_WHERE[part]}; the same experiment in all that they state.")
    if (rows[PUBLISHED_TOKENS] != "").any():
        notes.append(_FIGURE_5)
    others = [what for what in rows["differs"].drop_duplicates() if what]
    if others:
        notes.append(f"Printed values of this network are of another experiment where: {'. Or: '.join(others)}.")
    return tuple(notes)
