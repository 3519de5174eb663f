"""Whether reducers keep what explanations call important."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.explain.agreement import Decisions, agreement, decisions_of
from common.explain.base import Explanation, explainer_columns
from common.explain.explanations import Explanations
from common.report.paired import lead_text, leader_of
from common.report.sections import NONE, Answer, Section, percent, where_text, with_errors, written_label
from common.results import BY_IMAGE
from common.schema import REQUIRED, count, means, number
from common.studies import _explained as explained
from common.studies.base import Study, register_study
from common.training.metrics import means_with_errors

_TABLE = [*explained.SETTING, "keep_rate", "n_images", "seed"]
_CORRELATION = (
    "Spearman's correlation, in [-1, 1], of the heat with the scores by which the reducer's first stage chooses; mean "
    "± standard error over images."
)
_OVERLAP = (
    "Intersection over union of the patches that the reducer has left and as many of the hottest; mean ± standard "
    "error over images; in brackets the difference to random heat."
)
_BLOCKS = "Blocks count from 0, as timm's blocks.N; what is left is read after the block named."
_LEADING = {"rank_correlation": "rank correlation is highest", "above_chance": "IoU exceeds chance most"}
Row = dict[str, object]


def agreement_rows(
    found: Explanations,
    explainers: Sequence[str],
    reducers: Sequence[str],
    keep_rate: float | tuple[float, ...],
    block: int | None = None,
) -> Iterator[Row]:
    """Explanations of the unreduced backbone compared with what each reducer, which sees every image once, keeps.

    Args:
        block: see :func:`common.explain.agreement.decisions_of`.
    """
    loader = found.setup.loader(found.dataset)
    for reducer in reducers:
        decisions = decisions_of(found.setup.reduced(reducer, keep_rate=keep_rate), loader, block)
        for explainer in explainers:
            same = {**explainer_columns(explainer), "reducer": reducer, "keep_rate": keep_rate}
            yield same | agreement_row(found.explain(explainer), decisions)


def agreement_row(explanation: Explanation, decisions: Decisions) -> Row:
    """What one explainer shares with one reducer, as columns of the table "explain_agreement"."""
    row = {"block": decisions.block, "n_images": len(decisions.kept)}
    for name, values in agreement(explanation.heatmaps, decisions).items():
        row |= means_with_errors(**{name: values})
        row |= {name + BY_IMAGE: values.numpy()} if name in _LEADING else {}
    return row


@register_study
class ExplainAgreement(Study):
    """Whether reducers keep the patches that an explanation calls important."""

    name, title = "explain_agreement", "Explanations and what reducers keep"
    question = "Do reducers keep the patches that an explanation calls important?"
    place = 120
    columns = {
        "reducer": explained.REDUCER,
        "block": count("after which the patches that are left are read", "block"),
        "n_images": count("that are explained"),
        **means(
            rank_correlation=number("of the heat with the scores of the first stage", "correlation", optional=True),
            iou=number("Jaccard index of the patches left and as many of the hottest", "share"),
            iou_chance=number("its exact mean over all random heatmaps", "share"),
            above_chance=number("iou minus iou_chance", "difference"),
        ),
    }
    required = (*REQUIRED, "dataset")
    setting = _TABLE
    captions = {
        "": "Explainers (rows) against reducers (columns): rank correlation of the heat with the scores of the "
        "reducer's first stage, and how far the hottest patches overlap with those left, above chance.",
    }
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Rank correlation and IoU of every explainer with every reducer."""
        key = [*_TABLE, "reducer", "block", "method", "options"]
        table = explained.in_table(runs, _TABLE, key, self.columns)
        table = table.assign(_model=table["reducer"].map(explained.reducer_place))
        by = [*_TABLE, "_model", "reducer", "block"]
        return table.sort_values(by, kind="stable", ignore_index=True).drop(columns="_model")

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for _, rows in data.groupby(_TABLE, sort=False, dropna=False):
            row, notes = rows.iloc[0], (_BLOCKS, *explained.digits_note(rows))
            apart = f"keep rate {percent(row['keep_rate'])}", f"{row['n_images']:,} images"
            title = explained.title_of(rows, data, *apart)
            scored = rows[rows["rank_correlation"].notna()]
            if len(scored):
                cells = with_errors(scored, "rank_correlation", 2)
                yield Section(f"{title}: rank correlation", _matrix(scored, cells), (_CORRELATION, *notes))
            pairs = zip(with_errors(rows, "iou", 2), rows["above_chance"], strict=True)
            cells = [f"{text} ({difference:+.2f})" for text, difference in pairs]
            yield Section(f"{title}: IoU", _matrix(rows, cells), (_OVERLAP, *notes))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "", plots.agreement_matrix(runs)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        for _, rows in data.groupby(_TABLE, sort=False, dropna=False):
            where = f"{where_text(rows)}, keep rate {percent(rows['keep_rate'].iloc[0])}"
            points = [_best(rows[rows[name].notna()], name) for name in _LEADING if rows[name].notna().any()]
            yield Answer(f"On {rows['n_images'].iloc[0]:,} images of {where}:", tuple(points))


def _best(rows: pd.DataFrame, name: str) -> str:
    """Which explainer and reducer agree most, and how far they are ahead on the same images."""
    reducers = rows["reducer"].map(written_label)
    pairs = [" and ".join(pair) for pair in zip(explained.labels(rows), reducers, strict=True)]
    place = int(rows[name].argmax())
    ahead = lead_text(leader_of(rows, name), pairs) if len(rows) > 1 else ""
    return f"{_LEADING[name]} between {pairs[place]}: {rows[name].iloc[place]:+.2f}{ahead}"


def _matrix(rows: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with explainers down and reducers, as they were read, across."""
    rows = rows.assign(cell=cells, label=explained.labels(rows))
    wide = rows.pivot(index="label", columns=["reducer", "block"], values="cell").reindex(rows["label"].unique())
    read = dict.fromkeys(zip(rows["reducer"], rows["block"], strict=True))
    columns = {f"{written_label(reducer)}, block {block}": wide[reducer, block] for reducer, block in read}
    return pd.DataFrame(columns).fillna(NONE).reset_index(names="Explainer")
