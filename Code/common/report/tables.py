"""Runs to tables: RESULTS_DIR/tables/<study>.csv and .md.

The CSV holds the numbers as the study summarises them, the Markdown the same as a person would print them.
RESULTS_DIR/tables/published.md prints the authors' own numbers, apart from ours; claims.csv and claims.md what our
runs say of their claims.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from common.report.claims import claims, claims_markdown, claims_table
from common.report.published import published_sections
from common.report.rows import SAMPLED, SAMPLES
from common.report.sections import Section
from common.results import BY_IMAGE, read_runs, resolve, write_atomically

if TYPE_CHECKING:
    from common.studies import Study

_MISSING_SHOWN = 20


@dataclass(frozen=True)
class Findings:
    """One study as it was run: its runs, its numbers, its printed sections, and what was not run (in words)."""

    study: Study
    runs: pd.DataFrame
    table: pd.DataFrame
    sections: tuple[Section, ...]
    missing: tuple[str, ...]


def findings(results_dir: str | Path, study: Study) -> Findings:
    """Read and summarise the runs of ``study``; without runs there is nothing in it and ``missing`` says so."""
    runs = read_runs(results_dir, study)
    if runs.empty:
        return Findings(study, runs, runs, (), (f"no run of this study: no CSV in runs/{study.name}",))
    table = study.summarise(runs)
    return Findings(study, runs, table, tuple(study.sections(table)), tuple(study.missing(runs)))


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
    rows = [columns, ["---" if section.sides[column] == "left" else "---:" for column in columns]]
    for place, cells in enumerate(section.frame.itertuples(index=False, name=None)):
        texts = [str(cell).replace("|", "\\|") for cell in cells]
        pairs = zip(columns, texts, strict=True)
        rows.append([f"**{text}**" if (place, column) in section.best else text for column, text in pairs])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def shortened(lines: list[str]) -> list[str]:
    """At most twenty lines; what is left out is counted."""
    rest = len(lines) - _MISSING_SHOWN
    return lines if rest <= 0 else [*lines[:_MISSING_SHOWN], f"and {rest} more"]


def write_tables(results_dir: str | Path, studies: Iterable[Study]) -> list[Path]:
    """Write tables/<study>.csv and .md for every study, claims.csv and .md, and published.md; return their paths."""
    folder = resolve(results_dir) / "tables"
    written, every = [], [findings(results_dir, study) for study in studies]
    for found in every:
        name, table = found.study.name, found.table
        compared = [column for column in table if column.endswith((BY_IMAGE, SAMPLES)) or column in ("images", SAMPLED)]
        table = table.drop(columns=compared)
        _write(folder / f"{name}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.8g"))
        _write(folder / f"{name}.md", markdown(found.study.title, found.sections, found.missing))
        written += [folder / f"{name}.csv", folder / f"{name}.md"]
    judged = claims(every)
    _write(folder / "claims.csv", claims_table(judged).to_csv(index=False, lineterminator="\n"))
    _write(folder / "claims.md", claims_markdown(judged))
    _write(folder / "published.md", markdown("Published numbers", published_sections()))
    return [*written, *(folder / name for name in ("claims.csv", "claims.md", "published.md"))]


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text))
