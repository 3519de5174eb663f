"""One page for readers: ``python -m common.report RESULTS_DIR`` writes RESULTS_DIR/report.html.

The page is self-contained (style, figures and drawings inside, no script) and the same runs give the same bytes.
Figures of single runs come from RESULTS_DIR/figures/<study>/; summary figures are drawn here into figures/summary/.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from common import plots
from common.errors import UsageError
from common.plots.mutex_studies import PARAMETERS
from common.report.published import published_sections
from common.report.summary.rows import VARIANT, architecture
from common.report.tables import TITLES, Study, shortened, study
from common.report.text import CAPTIONS, QUESTIONS, Answer, answers, facts
from common.results import read_runs, resolve, write_atomically

# These figures of single runs show something of their own; the others repeat what the summary figures show.
_RUN_FIGURES = {
    "visualize": "**/*.png",
    "gallery": "**/*.png",
    "sizing": "**/*.png",
    "slimming": "**/*.png",
    "explain": "**/*.png",
    "explain_benchmark": "*/curves.png",
}
# What a study's summary figures are called, behind its own name.
_SUMMARIES = ("", "_cost", "_speed", "_plane", "_parameters", "_masks")
MAX_FIGURE_BYTES = 2_000_000
# A study with more tables than this shows the first two; the others open on a click.
_OPEN_SECTIONS = 6


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: PNG as a data URI, its caption, and what it is for those who cannot see it."""

    uri: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Chapter:
    """One study as the page shows it."""

    study: Study
    question: str
    answers: list[Answer]
    pictures: list[Picture]
    missing: list[str]
    left_out: list[str]


def summary_figures(studies: dict[str, Study]) -> Iterator[tuple[str, Figure]]:
    """Draw (name, figure) for every study that has runs; the name starts with the study's."""
    found = {name: each for name, each in studies.items() if len(each.runs)}
    if "throughput" in found:
        yield "throughput", plots.speedup_vs_keep_rate(found["throughput"].runs)
    if "off_the_shelf" in found:
        runs = found["off_the_shelf"].runs
        heads = [name for name in ("accuracy", "accuracy_full") if runs[name].notna().any()]
        yield "off_the_shelf", plots.accuracy_vs_keep_rate(runs, value=heads)
        yield "off_the_shelf_cost", plots.accuracy_mac_pareto(runs, value=heads[-1])
    if "method_grid" in found:
        runs = add_speedup(found["method_grid"].runs, studies["throughput"].runs)
        yield "method_grid_cost", plots.accuracy_mac_pareto(runs)
    for name in ("finetune", "scratch"):
        if name in found:
            yield name, plots.accuracy_vs_keep_rate(found[name].runs)
            with_speed = add_speedup(found[name].runs, studies["throughput"].runs)
            if (with_speed["speedup"].notna() & (with_speed["method"] != "none")).any():
                yield f"{name}_speed", plots.accuracy_mac_pareto(with_speed, value="val_accuracy")
    if "explain_benchmark" in found:
        runs = found["explain_benchmark"].runs
        for figure, draw, studies_shown in (
            ("plane", plots.insertion_deletion_plane, ["explainers"]),
            ("parameters", plots.parameter_study, list(PARAMETERS)),
            ("masks", plots.mask_ablation, ["masks"]),
        ):
            if runs["study"].isin(studies_shown).any():
                yield f"explain_benchmark_{figure}", draw(runs)
    if "explain_agreement" in found:
        yield "explain_agreement", plots.agreement_matrix(found["explain_agreement"].runs)


def add_speedup(runs: pd.DataFrame, throughput: pd.DataFrame) -> pd.DataFrame:
    """``runs`` with the float32 ``speedup`` at the largest batch measured for the same model, else NaN."""
    speed = throughput[throughput["dtype"] == "float32"].sort_values("batch", kind="stable")
    speed = speed.assign(architecture=speed["backbone"].map(architecture))
    key = ["architecture", "img_size", *VARIANT]
    speed = speed.drop_duplicates(key, keep="last")[[*key, "speedup"]]
    return runs.assign(architecture=runs["backbone"].map(architecture)).merge(speed, on=key, how="left")


def write_summary_figures(results_dir: Path, studies: dict[str, Study]) -> dict[str, Path]:
    """Draw and save figures/summary/<name>.png; return their paths by name."""
    folder = results_dir / "figures" / "summary"
    return {name: plots.save(figure, folder / f"{name}.png") for name, figure in summary_figures(studies)}


def _chapters(results_dir: Path, studies: dict[str, Study]) -> Iterator[Chapter]:
    summary = write_summary_figures(results_dir, studies)
    room = MAX_FIGURE_BYTES - sum(path.stat().st_size for path in summary.values())
    for name, each in studies.items():
        own = [f"{name}{end}" for end in _SUMMARIES]
        pictures = [_picture(path, CAPTIONS[key]) for key, path in summary.items() if key in own]
        left_out, folder = [], results_dir / "figures" / name
        shown = set(folder.glob(_RUN_FIGURES[name])) if name in _RUN_FIGURES else set()
        for path in sorted(folder.glob("**/*.png")):
            room -= path.stat().st_size if path in shown else 0
            if path in shown and room >= 0:
                run = path.relative_to(folder).with_suffix("").as_posix()
                pictures.append(_picture(path, f"{CAPTIONS[name]} Run {run}."))
            else:
                left_out.append(path.relative_to(results_dir).as_posix())
        said = answers(name, each.data) if len(each.runs) else []
        yield Chapter(each, QUESTIONS[name], said, pictures, shortened(list(each.missing)), shortened(left_out))


def _picture(path: Path, caption: str) -> Picture:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(f"data:image/png;base64,{data}", caption, f"Figure {path.stem}: {caption}")


def render(results_dir: str | Path, *, title: str = "", about: str = "") -> str:
    """HTML of the page. Raises UsageError when the folder holds no run at all."""
    folder = resolve(results_dir)
    runs = read_runs(folder)
    if runs.empty:
        raise UsageError(f"no runs under {str(results_dir)!r}; run a profile first")
    studies = {name: study(folder, name) for name in TITLES}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title or f"Token reduction: {', '.join(sorted(runs['profile'].unique()))}",
        about=about,
        facts=facts(runs),
        chapters=list(_chapters(folder, studies)),
        published=published_sections(),
        open_sections=_OPEN_SECTIONS,
        digits=bool((runs["dataset"] == "digits").any()),
    )


def write_report(results_dir: str | Path, *, title: str = "", about: str = "") -> Path:
    """Write RESULTS_DIR/report.html, whole or not at all, and return its path."""
    page = render(results_dir, title=title, about=about)
    path = resolve(results_dir) / "report.html"
    write_atomically(path, lambda file: file.write(page))
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.report", description="Write one page about all runs.")
    parser.add_argument("results_dir", help="folder with runs/ and figures/, e.g. results/quick")
    parser.add_argument("--title", default="", help="heading of the page")
    parser.add_argument("--about", default="", help="one paragraph below the heading")
    given = parser.parse_args(arguments)
    try:
        path = write_report(given.results_dir, title=given.title, about=given.about)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0
