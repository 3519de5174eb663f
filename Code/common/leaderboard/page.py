"""RESULTS_DIR/leaderboard.html: one page with everything in it, which needs neither network nor server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common import report
from common.leaderboard.board import Board
from common.leaderboard.content import board_content
from common.leaderboard.verified import MEANING
from common.results import resolve, write_atomically

HERE, VENDOR = Path(__file__).parent, Path(report.__file__).parent / "vendor"
STYLES = ("sortable-base.min.css", "page.css")
SCRIPTS = ("d3.min.js", "plot.umd.min.js", "sortable.min.js", "sortable.a11y.min.js", "page.js")
LICENCES = {"Observable Plot": "plot.LICENSE", "D3": "d3.LICENSE", "sortable": "sortable.LICENSE"}
NAME = "leaderboard.html"


def render(
    boards: Sequence[Board],
    speeds: Mapping[tuple, Mapping[str, float]] | None = None,
    pictures: Sequence[Mapping[str, Any] | None] = (),
    title: str = "",
) -> str:
    """HTML of the page.

    Args:
        boards: at least one.
        speeds: see :func:`common.leaderboard.content.board_content`.
        pictures: of each board, see :mod:`common.leaderboard.photographs`; None or none given: there are none.
    """
    content = [board_content(board, speeds or {}) for board in boards]
    different = [each for number, each in enumerate(pictures) if each is not None and each not in pictures[:number]]
    for board, shown in zip(content, pictures or [None] * len(content), strict=True):
        board["pictures"] = None if shown is None else different.index(shown)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        title=title or "Which token reduction, at which cost?",
        boards=content,
        data=_json({"boards": content, "pictures": different}),
        styles=[_inlined(name) for name in STYLES],
        scripts=[_inlined(name) for name in SCRIPTS],
        licences={name: _inlined(file) for name, file in LICENCES.items()},
        meaning=MEANING,
    )


def write_page(results_dir: str | Path, html: str) -> Path:
    """Write RESULTS_DIR/leaderboard.html, whole or not at all, and return its path."""
    path = resolve(results_dir) / NAME
    write_atomically(path, lambda file: file.write(html))
    return path


def _json(value: Any) -> Markup:
    """``value`` inside a script element, which nothing in it can end."""
    return Markup(json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/"))


def _inlined(name: str) -> Markup:
    """A file of this package, or of the kept libraries, as it stands."""
    own = HERE / name
    return Markup((own if own.is_file() else VENDOR / name).read_text(encoding="utf-8-sig"))
