"""What others read about this package: licence, citation, changelog, and that they agree with pyproject.toml."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
RELEASES = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)

WORKS = {  # first author -> year, DOI (the report of a student contest has none), for each title's first words
    "Efficient token pruning": ("Marchetti", 2025, "10.1016/j.eswa.2025.127449"),
    "Which Tokens to Use?": ("Haurum", 2023, "10.1109/ICCVW60793.2023.00085"),
    "Patch Slimming": ("Tang", 2022, "10.1109/CVPR52688.2022.01185"),
    "ViT-pruning": (None, 2025, None),
    "Multiplex network-based": ("Marchetti", 2025, "10.1007/s00521-025-11591-x"),
}


def test_citation_has_what_cff_1_2_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    for entry in (CITATION, *CITATION["references"]):
        assert entry["title"]
        assert all(("name" in author) != ("family-names" in author) for author in entry["authors"])
    assert CITATION["message"]
    assert isinstance(CITATION["date-released"], date)


def test_the_five_works_are_cited() -> None:
    for work, (title, facts) in zip(CITATION["references"], WORKS.items(), strict=True):
        assert work["title"].startswith(title)
        assert (work["authors"][0].get("family-names"), work["year"], work.get("doi")) == facts


@pytest.mark.parametrize("work", CITATION["references"], ids=lambda work: work["title"])
def test_a_reference_has_its_kind_and_its_venue(work: dict) -> None:
    venue = {"article": "journal", "conference-paper": "conference", "report": "repository-code"}[work["type"]]
    assert work[venue]


def test_versions_and_dates_agree() -> None:
    assert RELEASES[0] == ("Unreleased", "")
    assert (CITATION["version"], CITATION["date-released"].isoformat()) == RELEASES[1]
    assert PROJECT["version"] == CITATION["version"]
    dates = [day for _, day in RELEASES[1:]]
    assert dates == sorted(dates, reverse=True), "newest first"


def test_licence_is_the_same_everywhere() -> None:
    assert PROJECT["license"] == CITATION["license"] == "MIT"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")


def test_only_pyproject_has_the_public_address() -> None:
    """Everything else that needs it is written from there; the notebooks' own test compares them."""
    assert set(PROJECT["urls"]) <= {"Repository"}
    assert "repository-code" not in CITATION and "url" not in CITATION
