"""Runs to tables: ``python -m common.report.tables RESULTS_DIR`` writes RESULTS_DIR/tables/<study>.csv and .md.

The CSV holds the numbers of :mod:`common.report.summary`; the Markdown the same as a person would print them.
RESULTS_DIR/tables/published.md prints the authors' own numbers, apart from ours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from common.errors import UsageError, require_choice
from common.report import explanations, grids, idling, slimming
from common.report import sections as printed
from common.report.published import published_sections
from common.report.sections import Section
from common.report.summary import SUMMARIES, holes
from common.results import read_runs, resolve, write_atomically

TITLES = {
    "throughput": "Speed",
    "sizing": "Arithmetic",
    "off_the_shelf": "Accuracy without training",
    "finetune": "Accuracy after fine-tuning",
    "method_grid": "Ten methods, one protocol",
    "scratch": "Accuracy when trained from scratch",
    "visualize": "What is kept",
    "gallery": "What every method keeps or merges",
    "slimming": "Patch slimming",
    "explain": "Explanations of single images",
    "explain_benchmark": "How good are the explanations?",
    "explain_agreement": "Explanations and what reducers keep",
    "idling": "Patches that idle and come back",
}
_SECTIONS: dict[str, Callable[[pd.DataFrame], Iterator[Section]]] = {
    "throughput": printed.throughput_sections,
    "sizing": printed.sizing_sections,
    "off_the_shelf": grids.off_the_shelf_sections,
    "finetune": printed.training_sections,
    "method_grid": grids.method_grid_sections,
    "scratch": printed.training_sections,
    "visualize": printed.visualize_sections,
    "gallery": printed.gallery_sections,
    "slimming": slimming.slimming_sections,
    "explain": explanations.explain_sections,
    "explain_benchmark": explanations.explain_benchmark_sections,
    "explain_agreement": explanations.explain_agreement_sections,
    "idling": idling.idling_sections,
}
_MISSING_SHOWN = 20


@dataclass(frozen=True)
class Study:
    """One table of runs: its numbers, its printed sections, and what was not run (in words)."""

    name: str
    title: str
    runs: pd.DataFrame
    data: pd.DataFrame
    sections: tuple[Section, ...]
    missing: tuple[str, ...]


def study(results_dir: str | Path, name: str) -> Study:
    """Read and summarise the runs of one table; without runs the study is empty and ``missing`` says so."""
    require_choice(name, TITLES, "study")
    runs = read_runs(results_dir, name)
    if runs.empty:
        missing = (f"no run of this study: no CSV in runs/{name}",)
        return Study(name, TITLES[name], runs, runs, (), missing)
    data = SUMMARIES[name](runs)
    return Study(name, TITLES[name], runs, data, tuple(_SECTIONS[name](data)), tuple(holes(runs, name)))


def markdown(title: str, sections: Iterable[Section], missing: Iterable[str] = ()) -> str:
    """One Markdown document: a heading per section, its table with numbers to the right, its notes."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.title}", markdown_table(section), *section.notes]
    missing = list(missing)
    if missing:
        parts += ["## Not run", "\n".join(f"- {line}" for line in shortened(missing))]
    return "\n\n".join(parts) + "\n"


def markdown_table(section: Section) -> str:
    """GitHub table of a section; cells in ``best`` are bold."""
    columns = list(section.frame.columns)
    rows = [columns, ["---" if section.align(column) == "left" else "---:" for column in columns]]
    for place, cells in enumerate(section.frame.itertuples(index=False, name=None)):
        texts = [str(cell).replace("|", "\\|") for cell in cells]
        pairs = zip(columns, texts, strict=True)
        rows.append([f"**{text}**" if (place, column) in section.best else text for column, text in pairs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shortened(lines: list[str]) -> list[str]:
    """At most twenty lines; what is left out is counted."""
    rest = len(lines) - _MISSING_SHOWN
    return lines if rest <= 0 else [*lines[:_MISSING_SHOWN], f"and {rest} more"]


def write_tables(results_dir: str | Path) -> list[Path]:
    """Write tables/<study>.csv and .md for every study, and tables/published.md; return their paths."""
    folder = resolve(results_dir) / "tables"
    written = []
    for found in (study(results_dir, name) for name in TITLES):
        _write(folder / f"{found.name}.csv", found.data.to_csv(index=False, lineterminator="\n", float_format="%.8g"))
        _write(folder / f"{found.name}.md", markdown(found.title, found.sections, found.missing))
        written += [folder / f"{found.name}.csv", folder / f"{found.name}.md"]
    _write(folder / "published.md", markdown("Published numbers", published_sections()))
    return [*written, folder / "published.md"]


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.report.tables", description="Aggregate runs into tables.")
    parser.add_argument("results_dir", help="folder with runs/, e.g. results/quick")
    given = parser.parse_args(arguments)
    try:
        written = write_tables(given.results_dir)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(written)} files in {written[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
