"""Arithmetic: counted, derived by hand, and as published."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from common.plots.frames import backbone_name
from common.report.rows import VARIANT
from common.report.sections import NONE, Answer, Section, numbers, percent
from common.schedule import KeepRate
from common.schema import count, number, text
from common.studies.base import Study, register_study

SETTING = ["source"]
SIZING_NOTE = (
    "Linear, Attention and Total are GMAC per image; By hand compares Total with the sum derived from the schedule. "
    "GMAC, thop counts as the published GFlops do; thop itself is what this library reports of the same network."
)


@register_study
class Sizing(Study):
    """Whether the arithmetic saved is what the authors say."""

    name, title = "sizing", "Arithmetic"
    parameters = {"keep_rate": KeepRate}
    question = "Is the arithmetic saved what the authors say?"
    place = 20
    columns = {
        "source": text("the published table"),
        "model": text("the row's name there"),
        "params": count("parameters, of layers that thop has a rule for"),
        "published_params": count("the printed number", optional=True),
        "gmac_linear": number("of linear layers and convolutions", "GMAC"),
        "gmac_attention": number("of products of two activations", "GMAC"),
        "gmac": number("all that is executed", "GMAC"),
        "gmac_closed_form": number("the same by hand; a random sampler has none", "GMAC", optional=True),
        "gmac_thop_compat": number("in the convention of thop, counted here", "GMAC"),
        "gmac_thop": number("what thop itself reports", "GMAC"),
        "published_gflops": number("the printed number, which is thop's", "GMAC", optional=True),
    }
    setting = SETTING
    captions = {"": "Counted arithmetic beside the published numbers."}
    run_figures = "**/*.png"

    def summarise(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Counted MACs beside the published GFlops; ``relative_error`` compares like with like (both thop's way)."""
        metrics = list(runs.columns[runs.columns.get_loc("source") : runs.columns.get_loc("run_id")])
        table = runs[["source", "model", "backbone", "img_size", *VARIANT, *metrics[2:]]]
        return table.assign(
            closed_form_error=table["gmac"] / table["gmac_closed_form"] - 1,
            relative_error=table["gmac_thop_compat"] / table["published_gflops"] - 1,
        )

    def sections(self, data: pd.DataFrame) -> Iterator[Section]:
        for source, rows in data.groupby("source", sort=False):
            frame = pd.DataFrame(
                {
                    "Model": rows["model"],
                    "Backbone": [backbone_name(name) for name in rows["backbone"]],
                    "Keep": rows["keep_rate"].map(percent),
                    "Linear": numbers(rows["gmac_linear"], 4),
                    "Attention": numbers(rows["gmac_attention"], 4),
                    "Total": numbers(rows["gmac"], 4),
                    "By hand": rows["closed_form_error"].map(lambda error: _relative(error, "equal")),
                    "GMAC, thop": numbers(rows["gmac_thop_compat"], 4),
                    "thop itself": numbers(rows["gmac_thop"], 4),
                    "Published GFlops": numbers(rows["published_gflops"], 4),
                    "Difference": rows["relative_error"].map(_relative),
                }
            )
            sizes = ", ".join(f"{size} px" for size in sorted(rows["img_size"].unique()))
            yield Section(f"Published table {source}, {sizes}", frame, (SIZING_NOTE, _largest_error(rows)))

    def answers(self, data: pd.DataFrame) -> Iterator[Answer]:
        compared = data[data["relative_error"].notna()]
        fixed, random = compared[compared["method"] != "ats"], compared[compared["method"] == "ats"]
        if len(fixed):
            largest = 100 * fixed["relative_error"].abs().max()
            yield Answer(
                f"{len(fixed)} published GFlops of deterministic models were counted again, the same way; "
                f"the largest difference is {largest:.3f} %."
            )
        if len(random):
            largest = 100 * random["relative_error"].abs().max()
            yield Answer(
                f"ATS draws its tokens at random, so its published counts are one draw each: our counts for its "
                f"{len(random)} rows differ by up to {largest:.1f} %."
            )
        exact = data["closed_form_error"].dropna().abs()
        if len(exact):
            agree = int((exact < 1e-9).sum())
            yield Answer(f"Our total equals the sum derived by hand from the schedule in {agree} of {len(exact)} rows.")


def _relative(error: float, none: str = "0") -> str:
    if pd.isna(error):
        return NONE
    return none if abs(error) < 1e-9 else f"{100 * error:+.3f} %"


def _largest_error(rows: pd.DataFrame) -> str:
    errors = rows[rows["method"] != "ats"]["relative_error"].abs().dropna()
    largest = f"{100 * errors.max():.3f} %" if len(errors) else "none published"
    return f"Largest difference of a deterministic row: {largest}. ATS samples at random; its count is not one number."
