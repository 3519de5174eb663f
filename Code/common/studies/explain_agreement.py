"""Whether reducers keep what explanations call important."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from common import plots
from common.plots import EXPLAINERS
from common.report.explained import digits_note, explainer_labels, model_place, seed_title, with_errors
from common.report.rows import in_order, refuse_repeats
from common.report.sections import NONE, Answer, Section, method_label, percent, setting_title, where_text
from common.schema import FLOAT, INT, TEXT, columns
from common.studies.base import REQUIRED, Study, register_study

SETTING = ["dataset", "backbone", "img_size", "keep_rate", "n_images", "seed"]


@register_study
class ExplainAgreement(Study):
    """Whether reducers keep the patches that an explanation calls important."""

    name, title = "explain_agreement", "Explanations and what reducers keep"
    question = "Do reducers keep the patches that an explanation calls important?"
    place = 120
    columns = {
        **columns(TEXT, "reducer"),
        **columns(INT, "layer", "n_images"),
        **columns(FLOAT, "rank_correlation", "rank_correlation_sem", optional=True),
        **columns(FLOAT, "iou"),
        **columns(FLOAT, "iou_sem", optional=True),
        **columns(FLOAT, "iou_chance"),
    }
    required = (*REQUIRED, "dataset")
    setting = SETTING
    captions = {
        "": "Explainers (rows) against reducers (columns): rank correlation of the heat with the scores of the "
        "reducer's first stage, and how far the hottest patches overlap with those left, above chance.",
    }
    explains = True

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Rank correlation and IoU of every explainer with every reducer; ``above_chance`` = IoU - that of chance."""
        key = [*SETTING, "reducer", "layer", "method", "options"]
        refuse_repeats(runs, key)
        measures = ["rank_correlation", "rank_correlation_sem", "iou", "iou_sem", "iou_chance"]
        table = in_order(runs[[*key, *measures]], SETTING, EXPLAINERS)
        table = table.assign(above_chance=table["iou"] - table["iou_chance"], _model=table["reducer"].map(model_place))
        by = [*SETTING, "_model", "reducer", "layer"]
        return table.sort_values(by, kind="stable", ignore_index=True).drop(columns="_model")

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        correlation = (
            "Spearman's correlation, in [-1, 1], of the heat with the scores by which the reducer's first stage "
            "chooses; mean ± standard error over images."
        )
        overlap = (
            "Intersection over union of the patches that the reducer has left and as many of the hottest; mean ± "
            "standard error over images; in brackets the difference to random heat. Blocks are counted from 1."
        )
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            row = rows.iloc[0]
            title = f"{setting_title(rows)}, keep rate {percent(row['keep_rate'])}, {row['n_images']} images"
            title = ", ".join(filter(None, (title, seed_title(rows, data))))
            scored = rows[rows["rank_correlation"].notna()]
            if len(scored):
                cells = with_errors(scored, "rank_correlation", 2)
                yield Section(f"{title}: rank correlation", _matrix(scored, cells), (correlation, *digits_note(rows)))
            pairs = zip(with_errors(rows, "iou", 2), rows["above_chance"], strict=True)
            cells = [f"{text} ({difference:+.2f})" for text, difference in pairs]
            yield Section(f"{title}: IoU", _matrix(rows, cells), (overlap, *digits_note(rows)))

    def figures(self, runs: pd.DataFrame, others: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, Figure]]:
        yield "", plots.agreement_matrix(runs)

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        measures = {"rank_correlation": "rank correlation is highest", "above_chance": "IoU exceeds chance most"}
        for _, rows in data.groupby(SETTING, sort=False, dropna=False):
            points = []
            for name, what in measures.items():
                known = rows[rows[name].notna()]
                if len(known):
                    place = int(known[name].argmax())
                    reducer = method_label(*known["reducer"].iloc[place].partition(":")[::2])
                    points.append(
                        f"{what} between {explainer_labels(known)[place]} and {reducer}: {known[name].iloc[place]:+.2f}"
                    )
            row = rows.iloc[0]
            where = f"{where_text(rows)}, keep rate {percent(row['keep_rate'])}"
            yield Answer(f"On {row['n_images']} images of {where}:", tuple(points))


def _matrix(rows: pd.DataFrame, cells: Sequence[str]) -> pd.DataFrame:
    """``cells``, one for each of ``rows``, with explainers down and reducers, as they were read, across."""
    wide = rows.assign(cell=cells, label=explainer_labels(rows)).pivot(
        index="label", columns=["reducer", "layer"], values="cell"
    )
    wide = wide.reindex(list(dict.fromkeys(explainer_labels(rows)))).fillna(NONE)
    columns = dict.fromkeys(zip(rows["reducer"], rows["layer"], strict=True))
    named = {f"{method_label(*name.partition(':')[::2])}, block {layer + 1}": (name, layer) for name, layer in columns}
    return pd.DataFrame(
        {"Explainer": wide.index.tolist(), **{label: wide[key].tolist() for label, key in named.items()}}
    )
