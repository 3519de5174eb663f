"""One page for readers: RESULTS_DIR/report.html.

The page holds its style and drawings, needs no script, and shows the figures beside it; the same runs give the same
bytes. Figures of single runs come from RESULTS_DIR/figures/<study>/; summary figures are drawn into figures/summary/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import plots
from common.errors import UsageError
from common.plots.frames import backbone_name
from common.plots.style import explainer_label
from common.report.accepted import accepted_sentences
from common.report.claims import ABOUT, claims, summary
from common.report.published import published_sections
from common.report.rows import shared_rates
from common.report.sections import Answer, falling, method_label, percent
from common.report.tables import Findings, findings, shortened
from common.results import resolve, write_atomically

if TYPE_CHECKING:
    from common.studies import Study

# A study with more tables than this shows the first two; the others open on a click, as do tables with more rows.
_OPEN_SECTIONS, _OPEN_ROWS = 6, 40
_SETTING = ("study", "dataset", "backbone", "img_size", "epochs", "dtype", "batch")  # of what shares its keep rates


@dataclass(frozen=True)
class Chapter:
    """One study as the page shows it; ``captions`` by the place of the figure, from the page's folder.

    ``own_page`` is its page beside this one, "" where there is none.
    """

    found: Findings
    answers: list[Answer]
    captions: dict[PurePath, str]
    missing: list[str]
    left_out: list[str]
    own_page: str


def draw_summaries(results_dir: Path, found: Sequence[Findings]) -> dict[str, dict[str, Path]]:
    """Draw and save figures/summary/<study>_<name>.png of every study that has runs; their paths, by both names."""
    folder, others = results_dir / "figures" / "summary", {each.study.name: each.runs for each in found}
    drawn: dict[str, dict[str, Path]] = {}
    for each in found:
        name = each.study.name
        figures = each.study.figures(each.runs, others) if len(each.runs) else ()
        drawn[name] = {end: plots.save(figure, folder / f"{name}{end and f'_{end}'}.png") for end, figure in figures}
    return drawn


def _chapters(results_dir: Path, found: Sequence[Findings]) -> Iterator[Chapter]:
    drawn = draw_summaries(results_dir, found)
    for each in (each for each in found if len(each.runs)):
        study, folder = each.study, results_dir / "figures" / each.study.name
        captions = {path: study.captions[end] for end, path in drawn[study.name].items()}
        for path in sorted(folder.glob(study.run_figures)) if study.run_figures else ():
            run = path.relative_to(folder).with_suffix("").as_posix()
            caption = next((text for end, text in study.run_captions.items() if path.match(end)), study.captions[""])
            captions[path] = f"{caption} Run {run}."
        others = sorted(set(folder.glob("**/*.png")) - captions.keys())
        left_out = [path.relative_to(results_dir).as_posix() for path in others]
        answers = list(study.answers(each.table))
        captions = {path.relative_to(results_dir): caption for path, caption in captions.items()}
        own_page = study.own_page if study.own_page and (results_dir / study.own_page).is_file() else ""
        yield Chapter(each, answers, captions, shortened(list(each.missing)), shortened(left_out), own_page)


def render(results_dir: str | Path, studies: Mapping[str, Study], *, title: str = "", about: str = "") -> str:
    """HTML of the page. Raises UsageError when the folder holds no run at all."""
    folder = resolve(results_dir)
    found = [findings(folder, study) for study in studies.values()]
    runs = [each.runs for each in found if len(each.runs)]
    if not runs:
        raise UsageError(f"no runs under {str(results_dir)!r}; run a profile first")
    runs, judged = pd.concat(runs, ignore_index=True), claims(found)
    unrun = [each.study.title for each in found if not len(each.runs)]
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
        facts=facts(runs, [study.name for study in studies.values() if study.explains], accepted_sentences(folder)),
        unrun=unrun,
        chapters=list(_chapters(folder, found)),
        claims=judged,
        claims_about=(ABOUT, summary(judged)),
        published=published_sections(),
        open_sections=_OPEN_SECTIONS,
        open_rows=_OPEN_ROWS,
        digits=bool((runs["dataset"] == "digits").any()),
    )


def write_report(results_dir: str | Path, studies: Mapping[str, Study], *, title: str = "", about: str = "") -> Path:
    """Write RESULTS_DIR/report.html, whole or not at all, and return its path."""
    page = render(results_dir, studies, title=title, about=about)
    path = resolve(results_dir) / "report.html"
    write_atomically(path, lambda file: file.write(page))
    return path


def facts(runs: pd.DataFrame, explaining: Sequence[str] = (), accepted: Sequence[str] = ()) -> dict[str, str]:
    """What was run, for the head of the page: name -> text.

    Args:
        runs: of all studies.
        explaining: the studies whose ``method`` is an explainer.
        accepted: what is said of runs that earlier code made.
    """
    explained = runs["study"].isin(explaining)
    reduced = runs[(runs["method"] != "none") & ~explained]
    explainers = dict.fromkeys(explainer_label(method) for method in runs.loc[explained, "method"])
    budgets = [percent(share) for share in _budgets(reduced)]
    found = {
        "Profile": _several(runs["profile"]),
        "Runs": f"{runs['run_id'].groupby(runs['study']).nunique().sum()}",
        "Datasets": _several(runs["dataset"]),
        "Backbones": _several(runs["backbone"].map(backbone_name)),
        "Weights": _several(runs["weights"]),
        "Methods": ", ".join(dict.fromkeys(method_label(method) for method in reduced["method"])),
        "Explainers": ", ".join(explainers),
        "Keep rates": ", ".join(map(percent, _keep_rates(reduced))),
        "Budgets": f"{', '.join(budgets)} of the multiply-accumulates saved" if budgets else "",
        "Seeds": f"{runs['seed'].nunique()} ({_several(runs['seed'])})",
        "Number formats": _several(runs["dtype"]),
        "Device": _several(runs["device"]),
        "Threads": _several(runs["threads"]),
        "Versions": f"torch {_several(runs['torch'])}, timm {_several(runs['timm'])}",
        "Commit": _several(runs["commit"]),
        "Accepted": " ".join(accepted),
        "Dates": " to ".join(dict.fromkeys([runs["date"].min(), runs["date"].max()])),
    }
    return {name: text for name, text in found.items() if text}


def _budgets(reduced: pd.DataFrame) -> list[float]:
    """Shares of the multiply-accumulates that were to be saved, rising; those that came out are none."""
    given = reduced.reindex(columns=["mac_cut", "saved", "mac_cut_target", "mac_budget"]).astype(float)
    asked = given["mac_cut"].where(given["saved"].notna())  # beside what came out
    asked = asked.fillna(given["mac_cut_target"]).fillna(1 - given["mac_budget"])
    return sorted(set(asked.dropna().round(2)))


def _keep_rates(reduced: pd.DataFrame) -> list[str]:
    """Keep rates that were chosen, falling; where a budget was given, the keep rate is what came out."""
    chosen = reduced[reduced["mac_cut"].isna()] if "mac_cut" in reduced else reduced
    settings = chosen.groupby([name for name in _SETTING if name in chosen], dropna=False)
    return falling(rate for _, rows in settings for rate in shared_rates(rows))


def _several(values: pd.Series) -> str:
    found = sorted(value for value in values.dropna().unique() if value != "")
    return ", ".join(str(value) for value in found) or "not recorded"
