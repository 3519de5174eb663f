"""Every link and anchor of the texts leads somewhere, and each text is told once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from documents import DOCUMENTS, FRONT, MANUAL, ROOT, headings, lines_outside_code, part, section, text_of

LINK = re.compile(r"(?:\]\(|<img src=\")([^()\s\"]+)[)\"]")
NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").glob("*/*.ipynb"))


def links(text: str) -> list[str]:
    """Targets of links and images, of which none is an address elsewhere."""
    plain = re.sub(r"`[^`\n]*`", "code", "\n".join(line for _, line in lines_outside_code(text)))
    return [target for target in LINK.findall(plain) if not re.match(r"[a-z]+:", target)]


def anchors(path: Path) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, hyphens for spaces; a second one of a name gets -1."""
    seen, found = Counter(), set()
    for _, _, title in headings(text_of(path)):
        name = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in links(text_of(document)):
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists() and path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


def test_links_are_seen_and_code_is_none() -> None:
    text = '[a](b.md#c) ![`d`](e.png)\n<img src="l.png" width="9">[`f`](g) [h](https://i.org) `[j](k)`\n'
    text += "```python\nl[m](n)\n# [o](p)\n```\n"
    assert links(text) == ["b.md#c", "e.png", "l.png", "g"]


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text(
        "# TRAM's protocol\n## Compile, export, serve\n```bash\n# no heading\n```\n## A `b_c` d\n## A `b_c` d\n"
    )
    assert anchors(path) == {"trams-protocol", "compile-export-serve", "a-b_c-d", "a-b_c-d-1"}


def test_a_part_and_a_section_are_found_wherever_they_stand() -> None:
    assert part("plan table").startswith("| profile | runs |")
    assert section("Shipped profiles").strip().startswith("| profile | what |")
    with pytest.raises(ValueError, match="not enough values"):
        part("no such table")


def test_the_front_page_stays_one() -> None:
    """The rest has its own place; every document of the manual can be reached from here."""
    text = text_of(FRONT)
    assert len(text.splitlines()) <= 320
    reached, new = set(), {FRONT}
    while new:
        reached |= new
        new = {(path.parent / target.partition("#")[0]).resolve() for path in new for target in links(text_of(path))}
        new = (new & set(MANUAL)) - reached
    assert reached == {path for path in MANUAL if path.parent.name != "vendor"}


def test_the_front_page_lists_every_notebook() -> None:
    assert sorted(target for target in links(section("Notebooks")) if target.endswith(".ipynb")) == NOTEBOOKS
