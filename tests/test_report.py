"""The page: whole, self-contained, the same twice, and saying what the numbers say."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import found_in, method_grid_run, throughput_run, training_run, whole_study

from common.report import page as report
from common.report.accepted import sha256
from common.report.rows import add_speedup
from common.results import read_runs
from common.studies import all_studies, find_study
from common.studies.__main__ import main

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = whole_study(tmp_path_factory.mktemp("study"))
    for name in ("visualize/a.png", "finetune/b.png"):
        path = folder / "figures" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(PIXEL)
    assert main(["report", str(folder), "--title", "A <study>", "--about", "Digits & more."]) == 0
    text = (folder / "report.html").read_text()
    assert main(["report", str(folder), "--title", "A <study>", "--about", "Digits & more."]) == 0
    assert (folder / "report.html").read_text() == text, "the same runs give the same page"
    return text


class Tags(HTMLParser):
    """Checks that elements close in order; collects ids and links."""

    VOID = frozenset({"meta", "img", "br", "wbr", "rect", "path", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed_and_navigable(page: str) -> None:
    tags = Tags(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    missing = re.findall(r"<em>([^<]*)</em>", page.partition("<dt>Not run here</dt>")[2].partition("</dd>")[0])
    chapters = {name for name, study in all_studies().items() if study.title not in missing}
    assert len(missing) == len(all_studies()) - len(chapters) > 0
    assert set(tags.ids) == {"what", "setup", "reading", *chapters, "claims", "published", "limits"}
    assert [link.removeprefix("#") for link in tags.links] == tags.ids


def test_page_is_self_contained(page: str) -> None:
    tags = Tags(page)
    assert len(tags.sources) == 12, "eleven summary figures and one of a run"
    assert all(source.startswith("figures/") and source.endswith(".png") for source in tags.sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert len(page) < 160_000  # of 18 studies


def test_page_escapes_and_shows_title_and_facts(page: str) -> None:
    assert "<h1>A &lt;study&gt;</h1>" in page
    assert "Digits &amp; more." in page
    for name, text in (("Seeds", "3 (0, 1, 2)"), ("Runs", "42"), ("Commit", "abc1234"), ("Dates", "2025-11-20")):
        assert f"<dt>{name}</dt><dd>{text}</dd>" in page
    assert "not comparable with those of the paper" in page


def test_page_answers_from_the_numbers(page: str) -> None:
    text = page.replace("\u00a0", " ")
    assert "On digits at 32 px with ViT-S/16, after 2 epochs: 97.10 ± 0.10 % (3 seeds) without reduction." in text
    assert "keep 50 %: TRAM is highest, 93.10 ± 0.10 % (3 seeds), 4.00 points lower" in text
    grid = "On imagenette at 224 px with ViT-Ti/16, "
    assert f"{grid}off the shelf: 98.00 % (1 seed) without reduction." in text
    assert f"{grid}after 5 epochs on 2,000 images: 99.05 ± 0.07 % (2 seeds) without reduction." in text
    assert "<li>lowest mean ranks: Top-K 1.00; TRAM 1.50</li>" in text
    assert "keep 50 %: 1.90 to 2.00 times as fast (least: TRAM on ViT-S/16, 224 px, batch 16; most: Top-K" in text
    assert "keep 50 %: Top-K is highest at equal cost, 61.00 % (1 seed), 13.20 points lower (no paired test)" in text
    assert (
        "24 patches are left at the end; the prediction is the same as the full model&#39;s on 75 % of 4 images" in text
    )
    assert "the largest difference is 0.010 %" in text


def test_page_lists_figures_it_does_not_hold(page: str) -> None:
    assert "<code>figures/finetune/b.png</code>" in page
    assert "<code>figures/visualize/a.png" not in page


def test_published_numbers_stand_in_their_own_section(page: str) -> None:
    before, _, after = page.partition('<section id="published">')
    assert "96.36" in after
    assert "96.36" not in before
    assert "TRAM README since commit cfb65fb" in after
    assert "94.89" in after and "94.89" not in before


def test_the_page_says_which_results_stand_although_the_code_changed(tmp_path: Path) -> None:
    path = throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.9})
    assert "Accepted" not in report.render(tmp_path, all_studies())
    row = {"study": "throughput", "run_id": path.stem, "csv_sha256": sha256(path), "code_sha256": "0"}
    pd.DataFrame([{**row, "date": "2026-01-02", "commit": "abc1234"}]).to_csv(tmp_path / "accepted.csv", index=False)
    page = report.render(tmp_path, all_studies())
    assert "accepted as they are (2026-01-02, commit abc1234): throughput (1)." in page


def test_studies_that_were_not_run_are_said_to_be(tmp_path: Path) -> None:
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.9})
    page = report.render(tmp_path, all_studies())
    assert "<dt>Not run here</dt>" in page and "<em>Accuracy when trained from scratch</em>" in page
    assert 'id="throughput"' in page and 'id="scratch"' not in page, "no chapter without a run"
    assert "embedded default" not in page


def test_speedup_joins_the_same_model_only(tmp_path: Path) -> None:
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.9})
    same = {"backbone": "vit_small_patch16_224.augreg_in21k_ft_in1k", "img_size": 224}
    training_run(tmp_path, [10.0, 90.0], method="tram", keep_rate=0.5, seed=0, **same)
    training_run(tmp_path, [10.0, 90.0], method="tram", keep_rate=0.25, seed=0, **same)
    training_run(tmp_path, [10.0, 90.0], method="tram", keep_rate=0.5, seed=0)
    found = add_speedup(read_runs(tmp_path, find_study("finetune")), read_runs(tmp_path, find_study("throughput")))
    assert found["run_id"].nunique() == 3, "runs without a measured speed stay"
    measured = found[found["speedup"].notna()]
    assert measured["run_id"].nunique() == 1
    assert measured["speedup"].unique().tolist() == [1.9]


def test_speedup_is_empty_where_no_speed_was_measured(tmp_path: Path) -> None:
    method_grid_run(tmp_path, {("tram", 0.5): 90.0})
    found = add_speedup(read_runs(tmp_path, find_study("method_grid")), read_runs(tmp_path, find_study("throughput")))
    assert len(found) == 1
    assert found["speedup"].isna().all()


def test_grid_joins_the_speed_of_its_largest_float32_batch(tmp_path: Path) -> None:
    method_grid_run(tmp_path, {("none", 1.0): 98.0, ("tram", 0.5): 90.0, ("tram", 0.9): 97.0})
    tiny = {"backbone": "vit_tiny_patch16_224"}
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.7}, name="b", batch=64, **tiny)
    throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): 1.5}, name="a", batch=8, **tiny)
    found = {name: found_in(tmp_path, name).runs for name in ("method_grid", "throughput")}
    ((name, figure),) = find_study("method_grid").figures(found["method_grid"], found)
    assert name == "cost"
    gmac, speed = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in speed.lines}
    assert lines["TRAM"] == [[1.7, 90.0]]
    assert next(line for line in gmac.lines if line.get_label() == "TRAM").get_ydata().tolist() == [97.0, 90.0]


def test_command_line_refuses_a_folder_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no runs under")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
