"""The texts that people write: a table is found by its marker, a section by its heading, wherever it stands."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("*.md", "Code/**/*.md", "notebooks/*.md", "results/*.md", "results/published/*.md")
DOCUMENTS = tuple(sorted(path for place in PLACES for path in ROOT.glob(place)))
MANUAL = tuple(path for path in DOCUMENTS if path.name in ("README.md", "CONTRIBUTING.md"))
FRONT = ROOT / "README.md"


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def running(text: str) -> str:
    """``text`` without its line breaks, to look for a sentence in it."""
    return " ".join(text.split())


def lines_outside_code(text: str) -> list[tuple[int, str]]:
    """Numbered lines, without those of fenced code."""
    found, fenced = [], False
    for number, line in enumerate(text.splitlines()):
        fence = line.startswith("```")
        if not (fence or fenced):
            found.append((number, line))
        fenced ^= fence
    return found


def headings(text: str) -> list[tuple[int, int, str]]:
    """(number of its line, level, title) of each heading."""
    marked = ((number, re.fullmatch(r"(#+) (.+)", line)) for number, line in lines_outside_code(text))
    return [(number, len(found[1]), found[2]) for number, found in marked if found]


def part(name: str) -> str:
    """What stands between the markers ``<!-- name -->`` and ``<!-- end -->`` of one document."""
    start = f"<!-- {name} -->\n"
    (text,) = (text for text in map(text_of, MANUAL) if start in text)
    _, inside = text.split(start)
    inside, end, _ = inside.partition("\n<!-- end -->\n")
    assert end, f"{name} has no end"
    return inside


def section(title: str) -> str:
    """What stands below a heading of one document, up to the next heading of its level or above."""
    below = [(text, *found) for text in map(text_of, MANUAL) for found in headings(text) if found[1] > 1]
    ((text, start, level),) = ((text, start, level) for text, start, level, name in below if name == title)
    ends = [number for number, other, _ in headings(text) if number > start and other <= level]
    return "\n".join(text.splitlines()[start + 1 : ends[0] if ends else None])


def rows_below(header: str) -> list[list[str]]:
    """Cells of the rows of the one table under ``header``."""
    (text,) = (text for text in map(text_of, MANUAL) if f"\n{header}\n" in text)
    lines = text.partition(f"\n{header}\n")[2].splitlines()[1:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in takewhile(is_row, lines)]


def is_row(line: str) -> bool:
    return line.startswith("|")


def printed(header: str) -> dict[str, list[str]]:
    """The rows of the one table under ``header`` by their first cells."""
    return {first: cells for first, *cells in rows_below(header)}


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
