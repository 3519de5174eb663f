"""A study is one file: the one that CONTRIBUTING.md adds has its table, its figure and its section on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
from documents import code_blocks, section

from common.errors import UsageError
from common.report.page import write_report
from common.report.tables import write_tables
from common.results import read_run, write_run
from common.schema import CONDITIONS, FLOAT, INT, TEXT, UNITS, Column, Table, means, number, text
from common.studies import Study, all_studies, find_study, register_study
from common.studies.base import STUDIES

RUN = {"profile": "toy", "method": "tram", "backbone": "vit_digits", "img_size": 32, "keep_rate": 0.5, "device": "cpu"}


@pytest.fixture
def registry() -> Iterator[None]:
    """Afterwards the studies are those of before, whatever a test registers."""
    before = dict(all_studies())
    yield
    STUDIES.clear()
    STUDIES.update(before)


@pytest.mark.usefixtures("registry")
def test_the_study_of_the_manual_is_on_the_page(tmp_path: Path) -> None:
    code, use = code_blocks(section("Add a study"), "python")
    space: dict[str, object] = {"csv": tmp_path / "runs/brightness/a.csv", "profile": "toy"}
    exec(code, space)
    study = find_study("brightness")
    assert list(all_studies())[-1] == "brightness", "a chapter without a place comes last"
    exec(use, space)
    table = study.summarise(pd.concat([read_run(space["csv"], study)]))
    write_tables(tmp_path, [study])
    printed = (tmp_path / "tables/brightness.md").read_text()
    page = write_report(tmp_path, {"brightness": study}).read_text()
    assert study.title in printed and study.title in page and study.question in page
    assert (tmp_path / "figures/summary/brightness.png").is_file()
    assert '<img src="figures/summary/brightness.png"' in page
    assert study.captions[""] in page
    (answer,) = study.answers(table)
    assert answer.text in page and answer.text
    assert pd.read_csv(tmp_path / "tables/brightness.csv").shape[0] == len(table)


@pytest.mark.parametrize("name", all_studies())
def test_studies_declare_what_is_needed(name: str) -> None:
    """Every column says what it holds; every setting and required condition is one; every figure can have a caption."""
    study = find_study(name)
    columns = {**CONDITIONS, **study.columns}
    assert set(study.required) | set(study.setting) <= set(columns)
    assert not set(study.columns) & set(CONDITIONS), "a condition is no measure"
    assert all(
        column.meaning and column.unit in UNITS and column.kind in (TEXT, INT, FLOAT) for column in columns.values()
    )
    assert {part for column in columns.values() for part in column.parts} <= set(study.parts)
    assert ("part" in study.columns) == bool(study.parts)
    assert study.title and study.question.endswith("?") and type(study).__doc__
    assert not study.run_figures or study.captions[""]


@pytest.mark.usefixtures("registry")
def test_a_name_is_taken_once() -> None:
    with pytest.raises(UsageError, match=r"study 'sizing' is registered already, by Sizing"):
        register_study(type("Other", (Study,), {"name": "sizing"}))


class Measured(Table):
    """A table with two parts."""

    name, required, parts = "measured", ("method",), ("whole", "block")
    columns: ClassVar = {
        "part": text("what was measured"),
        **means(accuracy=number("top-1", "percent").only("whole")),
        "mac_cut": number("share of the MAC saved", "share", optional=True),
        "block": Column(INT, "counted from 0", "block").only("block"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"part": "whole", "accuracy": 101.0}, r"row 0 .*'accuracy' that is no percent; allowed: 0 to 100$"),
        ({"part": "whole", "accuracy": 50.0, "mac_cut": 35.0}, r"'mac_cut' that is no share; allowed: 0 to 1$"),
        ({"part": "block", "block": -1}, r"'block' that is no block; allowed: 0 to inf$"),
        ({"part": "block", "block": 0, "accuracy": 3.0}, r"a value in 'accuracy', which is of whole only$"),
        ({"part": "whole"}, r"^row 0 of a measured run has missing columns \['accuracy'\] and unknown columns \[\]"),
        ({"part": "other", "accuracy": 1.0}, r"^unknown part of measured 'other'; allowed: block, whole$"),
    ],
)
def test_a_column_means_one_thing(tmp_path: Path, row: dict, message: str) -> None:
    study = Measured()
    with pytest.raises(UsageError, match=message):
        write_run([row], study, tmp_path / "a.csv", **RUN)
    assert not list(tmp_path.iterdir())
    write_run([{"part": "whole", "accuracy": 50.0}, {"part": "block", "block": 0}], study, tmp_path / "a.csv", **RUN)
    assert read_run(tmp_path / "a.csv", study)["block"].tolist() == [pd.NA, 0]
