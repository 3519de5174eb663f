"""The leaderboard's page: its statistics, its kept libraries, and what it does in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import chromium
import numpy as np
import pandas as pd
import pytest
import torch
from documents import FRONT, text_of
from scipy.stats import binomtest, ttest_rel

from common import list_reducers
from common.benchmark import compare
from common.errors import UsageError
from common.leaderboard.__main__ import main
from common.leaderboard.answers import sentences
from common.leaderboard.board import Board
from common.leaderboard.bootstrap import Bootstrap, mcnemar
from common.leaderboard.calls import call_text
from common.leaderboard.content import board_content, speed_key
from common.leaderboard.lines import contests
from common.leaderboard.page import VENDOR
from common.leaderboard.photographs import FUSED, GONE, find_weights, patch_bytes, pictures, traced
from common.leaderboard.readme import END, START, markdown, write_readme
from common.leaderboard.runs import speeds_of
from common.leaderboard.verified import VERIFIED
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.provenance import describe_device
from common.reducers import Method
from common.reducers.base import REDUCERS
from common.results import BY_IMAGE, read_runs, resolve, write_run
from common.setup import Setup
from common.studies import all_studies
from common.studies.leaderboard import _solutions
from common.studies.throughput import shown_images
from common.weights import save_state
from plan import load_plans

TESTS = Path(__file__).parent
QUICK = "results/quick"
STUDIES, DEVICE = all_studies(), describe_device("cpu")
KEPT = {
    "d3.min.js": ("v7.9.2", "912111098ea99503a6f4967361d2bbdc9dbf58cf9c678c8e27e5b02d1a07f0c1"),
    "plot.umd.min.js": ("v0.6.17", "4358086467740777dd788d6b27a95cebdbaefdd50c730a3060117073bd7134cb"),
    "sortable.min.js": ("", "68a43d520969e80dc5da4a72e54a5550a5e0885278f5debfbee6f8e8440ebfd3"),
    "sortable.a11y.min.js": ("", "f22f8df7644643acbeb79cd3518a9dffde198d77efa17aa3eb38154bae4eaa65"),
    "sortable-base.min.css": ("", "2cdc3a4351bb93d41b1234485a31392e35f25b8944dea8aa8dd9bec52c8f93f2"),
}


# --- what is kept of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEPT)
def test_kept_libraries_are_as_they_came_with_their_licences(name):
    version, digest = KEPT[name]
    content = (VENDOR / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == digest and version in content[:80].decode()
    assert (VENDOR / f"{name.partition('.')[0].partition('-')[0]}.LICENSE").read_text().strip()
    assert name in (VENDOR / "README.md").read_text()


# --- what is verified -----------------------------------------------------------------------------------------------


def test_every_method_says_what_it_was_checked_against():
    assert set(VERIFIED) == set(list_reducers()) - {"none"}
    assert VERIFIED["tram"].text == "reference + published numbers"
    assert VERIFIED["tome"].text == "properties" and VERIFIED["ppt"].text == "published numbers"


@pytest.mark.parametrize("method", sorted(VERIFIED))
def test_the_tests_that_it_names_are_there_and_are_of_the_method(method):
    of_many = {"test_contract.py", "test_cost.py", "test_patterns.py", "test_soft_merging.py"}  # from a list elsewhere
    for name in VERIFIED[method].tests:
        file, _, function = name.partition("::")
        text = (TESTS / file).read_text()
        assert f"def {function}(" in text or not function, name
        assert file in of_many or re.search(rf'"{method}"|reducers\.{method}\b|\b{method}\(', text), name


# --- intervals ------------------------------------------------------------------------------------------------------


def test_intervals_of_many_images_are_those_of_the_t_test():
    rng = np.random.default_rng(1)
    first, second = 100.0 * (rng.random((2, 3000)) < [[0.8], [0.75]])
    mean, low, high = Bootstrap.of(np.stack([first, second])).difference(np.array([1, 0]), np.array([0, 1]))
    expected = ttest_rel(first, second).confidence_interval(0.95)
    assert mean == pytest.approx(first.mean() - second.mean())
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.15)


def test_mixtures_are_linear_and_a_model_is_no_better_than_itself():
    pair = Bootstrap.of(np.random.default_rng(0).random((2, 50)))
    half = np.array([0.5, 0.5])
    assert pair.difference(half, half) == (0, 0, 0)
    whole, part = pair.difference(np.array([1, 0]), np.array([0, 1])), pair.difference(half, np.array([0, 1]))
    assert np.array(part) == pytest.approx(np.array(whole) / 2)


def test_mcnemar_counts_the_images_that_one_alone_has_right():
    first, second = np.array([1, 1, 1, 1, 0, 0, 1.0]), np.array([0, 0, 0, 1, 0, 1, 0.0])
    assert mcnemar(100 * first, 100 * second) == pytest.approx(binomtest(4, 5).pvalue)
    assert mcnemar(100 * first, 100 * first) == 1 and mcnemar(100 * first, np.full(7, 50.0)) is None


# --- at equal cost --------------------------------------------------------------------------------------------------


def run(method: str, saved: float, share: float, **given: object) -> dict[str, object]:
    hits = np.random.default_rng(round(1000 * share)).random(400) < share
    row = {"dataset": "d", "backbone": "vit_digits", "weights": "w.safetensors", "img_size": 32, "images": "x"}
    row |= {"n_val": 400, "recipe": "r", "dtype": "float32", "device": DEVICE, "epochs": 0, "lr": None, "n_train": 0}
    row |= {"method": method, "options": "", "keep_rate": str(round(1 - saved, 4)), "seed": 0, "run_id": method}
    row |= {"gmac": 2 * (1 - saved), "mac_cut": round(saved, 1), "counts": "", "accuracy": 100 * hits.mean()}
    return {**row, "divergence": saved, "agreement": 1 - saved, "accuracy" + BY_IMAGE: hits, **given}


DIGITS = {"backbone": "vit_digits", "weights": "gone", "dataset": "digits", "recipe": "r", "img_size": 32}
DIGITS |= {"dtype": "float32", "batch": 64, "device": "cpu", "profile": "p"}


def made_up(method: str, cut: float) -> dict[str, object]:
    """A row of the leaderboard study, on four images."""
    row = {"method": method, "options": "", "keep_rate": 1 - cut, "seed": 0, "epochs": 0, "n_train": 0, "mac_cut": cut}
    row |= {"saved": cut, "counts": None, "gmac": 2 * (1 - cut), "accuracy": 50.0, "accuracy_full": None, "n_val": 4}
    return {**row, "agreement": 1.0, "divergence": 0.0, "accuracy" + BY_IMAGE: np.array([True, False, True, False])}


@pytest.fixture
def board() -> Board:
    rows = [run("none", 0.0, 0.9), run("tome", 0.2, 0.85), run("tome", 0.4, 0.8), run("topk", 0.4, 0.6)]
    rows += [run("random", 0.4, share, seed=seed) for seed, share in enumerate((0.5, 0.52))]
    trained = [run("topk", saved, 0.88, epochs=3, n_train=100, mac_cut=None) for saved in (0.3, 0.4)]
    (contest,) = contests(pd.DataFrame(rows), pd.DataFrame(trained))
    return Board.of(contest)


def test_between_two_measured_points_a_line_is_straight_and_beyond_them_there_is_none(board):
    lines = board.contest.lines
    assert [(line.method, line.trained) for line in lines] == [
        ("tome", False), ("topk", False), ("random", False), ("topk", True)
    ]  # fmt: skip
    tome = lines[0].points["accuracy"]
    at = {saved: board.at(saved) for saved in (0.0, 0.1, 0.3, 0.4)}
    assert at[0.3][0].accuracy == pytest.approx(tome.mean()) and at[0.4][0].accuracy == pytest.approx(tome[1])
    assert at[0.1][0].accuracy == pytest.approx((board.contest.whole["accuracy"] + tome[0]) / 2)
    assert at[0.0][1].lost == (0, 0, 0) and at[0.3][0].second["divergence"] == pytest.approx(0.3)
    assert 3 not in at[0.1] and 3 in at[0.3], "a trained model is no unreduced one where it drops nothing"
    assert board.positions[-1] == pytest.approx(0.4)


def test_a_line_of_shrunk_images_begins_where_it_was_measured():
    """With all its tokens it is no unreduced model, so nothing lies between that and its first point."""
    shrunk = [run("tome", saved, 0.8, options="resize=24") for saved in (0.3, 0.4)]
    rows = [run("none", 0.0, 0.9), *shrunk, run("topk", 0.3, 0.7), run("topk", 0.4, 0.6)]
    (contest,) = contests(pd.DataFrame(rows), pd.DataFrame())
    board = Board.of(contest)
    assert [(line.options, line.begins_whole) for line in contest.lines] == [("resize=24", False), ("", True)]
    assert set(board.at(0.1)) == set(board.at(0.28)) == {1} and set(board.at(0.3)) == set(board.at(0.35)) == {0, 1}


def test_differences_are_to_the_rows_at_the_same_cost(board):
    at = board.at(0.4)
    chance = board.contest.lines[2].points["accuracy"].item()
    assert list(at) == [3, 0, 1, 2] and board.contest.lines[2].points["seeds"].item() == 2
    assert at[0].above["random"][0] == pytest.approx(at[0].accuracy - chance) and "random" not in at[2].above
    assert at[0].behind is None and at[1].behind[0] == pytest.approx(at[0].accuracy - at[1].accuracy)
    assert at[1].behind[1] > 0 > at[3].behind[0], "behind the best that was not trained"
    assert board.budgets == [0.2, 0.4] and board.mcnemar(0, 1, 0.4) < 1e-6 and board.mcnemar(0, 2, 0.4) is None


def test_runs_without_the_unreduced_model_are_left_out_by_name(capsys):
    assert not list(contests(pd.DataFrame([run("tome", 0.2, 0.8)]), pd.DataFrame()))
    assert f"left out: d with vit_digits, float32, {DEVICE}: the unreduced model" in capsys.readouterr().out


def test_processors_share_a_board_and_number_formats_do_not():
    rows = [run("none", 0.0, 0.9), run("tome", 0.2, 0.8, device="other"), run("none", 0.0, 0.9, dtype="bfloat16")]
    (contest,) = contests(pd.DataFrame(rows), pd.DataFrame())
    assert contest.place["device"] == f"{DEVICE} and other" and contest.lines[0].how["device"] == "other"


def test_without_budgets_models_are_compared_at_every_tenth_and_told_apart_by_their_options():
    rows = [run("none", 0.0, 0.9), run("tome", 0.35, 0.8, options="parity=true"), run("tome", 0.35, 0.7)]
    (contest,) = contests(pd.DataFrame(rows).assign(mac_cut=None), pd.DataFrame())
    board = Board.of(contest)
    assert board.budgets == [0.1, 0.2, 0.3]
    assert "ToMe (parity=true) at 10 to 30 % (" in sentences(board)[0] and " points over ToMe;" in sentences(board)[1]
    assert sentences(board)[2].startswith("Neither random patches nor a smaller image was run")


def test_the_call_gives_the_model():
    text = call_text("vit_digits", "random", "topk", "head_fusion=mean", "48 32 16")
    model = eval(text, {"common": __import__("common")})
    assert model.reducer.schedule.keep_rate == (48, 32, 16) and model.reducer.head_fusion == "mean"
    assert call_text("vit", "timm fb_in1k", "tome", "", "0.5").endswith("weights='timm')")


# --- what is kept of pictures ---------------------------------------------------------------------------------------


def test_bytes_of_patches_say_what_is_gone_merged_and_fused():
    torch.manual_seed(0)
    vit, x = create_backbone("vit_digits").eval(), torch.rand(2, 3, 32, 32)
    for method, fuses in (("topk", False), ("tome", False), ("evit", True)):
        _, trace = reduce_tokens(vit, method, keep_rate=0.5).eval().trace(x)
        found, tokens = patch_bytes(trace, fuses=fuses), trace.num_tokens[-1].tolist()
        assert found.shape == (2, 64) and found.dtype == np.uint8
        assert [len(set(each) - {GONE}) for each in found.tolist()] == tokens
        assert (found == GONE).any() == (method == "topk") and (found == FUSED).any() == fuses


def test_pictures_are_of_every_untrained_line(board, tmp_path):
    torch.manual_seed(0)
    save_state(create_backbone("vit_digits"), tmp_path / "w.safetensors")
    found = pictures(board, tmp_path / "w.safetensors")
    assert len(found["images"]) == 6 and found["grid"] == [8, 8] and "china.jpg" in found["about"]
    assert [len(each) for each in found["kept"].values()] == [2, 1, 1]
    assert all(len(base64.b64decode(text)) == 64 for kept in found["kept"].values() for text in kept[0]["groups"])
    left = set(base64.b64decode(found["kept"]["topk::0"][0]["groups"][0])) - {GONE}
    assert len(left) == int(0.6**3 * 64)


def test_weights_are_those_of_the_results_before_those_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    assert find_weights("w.safetensors", tmp_path) is None and find_weights("timm fb_in1k", tmp_path) == "timm"
    monkeypatch.setattr("common.leaderboard.photographs.resolve_weights", lambda *given: given)
    assert find_weights("digits", tmp_path, "vit_digits") == ("digits", "vit_digits")
    for folder in ("data/weights", "weights"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "w.safetensors").touch()
        assert find_weights("w.safetensors", tmp_path) == str(tmp_path / folder / "w.safetensors")


def test_without_weights_the_page_stands_and_says_why(board, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    assert list(traced([board, board], tmp_path)) == [None, None]
    assert list(traced([board], tmp_path, tmp_path / "gone.safetensors")) == [None]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("no photographs: no file w.safetensors in") and "does not exist" in second


# --- speed and own methods ------------------------------------------------------------------------------------------


def test_a_speed_belongs_to_the_same_model_and_names_the_machine(tmp_path, board):
    same = {"backbone": "vit_digits", "img_size": 32, "dtype": "float32", "batch": 64, "device": "cpu", "profile": "p"}
    fast = {"rounds": 3, "params": 1, "gmac_thop_compat": 1.0, "runtime": "eager", "seed": 0, "epochs": 0}
    rows = [
        {**fast, "method": method, "options": "", "keep_rate": rate, "gmac": gmac, "peak_memory_mb": 7.0}
        | {f"{name}{end}": value for name in ("fps", "speedup") for end in ("", "_q1", "_q3")}
        for method, rate, gmac, value in (("none", 1.0, 2.0, 1.0), ("tome", 0.6, 1.2, 1.5), ("tome", 0.5, 1.0, 1.9))
    ]
    write_run(rows, STUDIES["throughput"], tmp_path / "runs/throughput/a.csv", **same)
    speeds = speeds_of(tmp_path)
    tome, topk, *_ = board_content(board, speeds)["lines"]
    threads = torch.get_num_threads()
    where = f"{describe_device('cpu')}, {threads} thread{'s' * (threads > 1)}, float32, batch 64"
    measured = {"speedup": 1.5, "promise": 0.9, "memory": 7.0}
    assert [point["speed"] for point in tome["points"]] == [{}, measured]
    assert len(speeds) == 2 and topk["points"][0]["speed"] == {} and board_content(board, speeds)["speed"] == where
    bfloat16 = {(*key[:2], "bfloat16", *key[3:]): speed for key, speed in speeds.items()}
    assert board_content(board, bfloat16)["speed"] == ""


def test_the_speed_of_what_depends_on_the_images_is_found(monkeypatch):
    """Its budget is solved on the same images as on the leaderboard, so that both rows are of one model."""
    monkeypatch.setattr("common.setup.COST_IMAGES", 8)
    given, said = shown_images("vit_digits", "", "digits", 32, "pretrained")
    _, ats = compare("vit_digits", ["ats"], ["mac_cut=0.4"], **given, batch_size=2, rounds=1, device="cpu")
    setup = Setup("vit_digits", "", "digits", 32)
    assert torch.equal(given["images"], setup.cost_images()) and said["weights"] == setup.conditions["weights"]
    solution = dict(_solutions(setup, Method("ats"), [0.4]))[0.4]
    judged = {**ats, "keep_rate": solution.keep_rate}
    assert speed_key("vit_digits", ats) == speed_key("vit_digits", judged)
    assert ats["gmac"] == pytest.approx(solution.gmac)


def test_a_speed_is_found_by_the_numbers_of_tokens_that_a_keep_rate_leaves():
    """Budgets that are solved for heads of other sizes differ in the last digit."""
    row = {"img_size": 32, "dtype": "float32", "method": "tome", "options": ""}
    keys = [speed_key("vit_digits", {**row, "keep_rate": rate}) for rate in (0.6, 0.601, 0.65)]
    assert keys[0] == keys[1] != keys[2] and keys[0][-1] == (38, 23, 13)


def test_methods_of_ones_own_stand_among_the_others(tmp_path, monkeypatch):
    code = "from common.reducers.base import Reducer, register_reducer\n"
    code += "@register_reducer('my_own')\nclass MyOwn(Reducer):\n    family = 'mixes'\n"
    (tmp_path / "my_methods.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [made_up(name, cut) for name, cut in (("none", 0.0), ("my_own", 0.4), ("random", 0.4))]
    write_run(rows, STUDIES["leaderboard"], tmp_path / "runs/leaderboard/a.csv", image_ids=list("abcd"), **DIGITS)
    try:
        monkeypatch.chdir(tmp_path.parent)
        assert not main([tmp_path.name, "--module", "my_methods"])  # a folder, from where one works
    finally:
        REDUCERS._classes.pop("my_own", None)
    own, _ = data_of(tmp_path / "leaderboard.html")[0]["lines"]
    assert (own["label"], own["family"], own["verified"]) == ("my_own", "mixes", "not by this package")


def test_a_profile_with_a_leaderboard_makes_the_page():
    plans = {name: load_plans(name)[0] for name in ("gpu", "quick", "tram")}
    first = next(run for run in plans["gpu"].runs if run.study == "leaderboard")
    plans["the unreduced model alone"] = replace(plans["gpu"], runs=(first,))
    both = ["report.html", "leaderboard.html"]
    pages = {name: [Path(page).name for page in plan.pages] for name, plan in plans.items()}
    assert pages == {"gpu": both, "quick": both, "tram": both[:1], "the unreduced model alone": both[:1]}


# --- README ---------------------------------------------------------------------------------------------------------


def test_the_sentences_say_what_the_intervals_say(board):
    first, second, third = sentences(board)
    at = board.at(0.4)
    assert first.startswith("Most accurate at the same share of multiply-accumulates saved: ToMe at 20 to 40 % (")
    low = f"{at[1].behind[1]:+.1f}"
    assert "surely ahead of every other at 20 %, by " in second
    assert f"; at 40 %, by {at[1].behind[0]:+.1f} ({low} to " in second
    assert "points over Top-K" in second and third.endswith("than random patches: 2 of 2 at 20 % and 2 of 2 at 40 %.")


def test_the_answer_of_readme_is_made_from_the_committed_runs():
    runs = read_runs("results/gpu/nvidia_h100_80gb_hbm3", STUDIES["leaderboard"])
    board = Board.of(next(contests(runs, pd.DataFrame())))
    assert text_of(FRONT).split(START)[1].split(END)[0] == markdown(board)
    page = resolve("results/gpu/nvidia_h100_80gb_hbm3/leaderboard.html").read_text()
    assert data_of_text(page)[0]["sentences"] == sentences(board) and len(page.encode()) < 1_000_000


def test_a_file_without_markers_is_refused(board, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(UsageError, match="has no part from '<!-- leaderboard -->' to '<!-- end -->' to write to"):
        write_readme(path, board)
    path.write_text(f"a\n{START}old{END}\nb\n{END}")
    write_readme(path, board)
    assert path.read_text() == f"a\n{START}{markdown(board)}{END}\nb\n{END}"


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    shutil.copytree(resolve(QUICK) / "runs", folder / "runs")
    main([str(folder)])
    return folder / "leaderboard.html"


def data_of(page: Path) -> list[dict]:
    return data_of_text(page.read_text())


def data_of_text(page: str) -> list[dict]:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])["boards"]


def test_the_page_is_small_whole_and_the_same_again(page):
    text = page.read_text()
    assert len(text.encode()) < 1_000_000
    assert not re.search(r'(?:src|href)="(?!data:)', text) and "@import" not in text
    for name in KEPT:
        assert (VENDOR / name).read_text(encoding="utf-8-sig") in text
    for licence in ("Mike Bostock", "Observable, Inc.", "public domain"):
        assert licence in text
    (board,) = data_of(page)
    assert {line["method"] for line in board["lines"] if line["trained"]} >= {"tome", "topk"}
    main([str(page.parent)])
    assert page.read_text() == text


def test_a_folder_without_hits_by_image_is_refused(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    assert main([str(tmp_path)]) == 2
    assert "has no run with hits by image" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    if chromium.binary() is None:
        pytest.skip(f"no Chromium on PATH ({', '.join(chromium.NAMES)}); apt-get install chromium")
    found = chromium.Browser(tmp_path_factory.mktemp("chromium"))
    found.size(1280, 900)
    found.open(page)
    yield found
    found.close()


ROWS = "[...document.querySelectorAll('#table tbody tr')].map((row) => [...row.cells].map((cell) => cell.dataset.sort))"


def slide(browser: chromium.Browser, position: int) -> None:
    script = f"(() => {{ BUDGET.value = {position}; BUDGET.dispatchEvent(new Event('input')) }})()"
    browser.run(script.replace("BUDGET", "document.getElementById('budget')"))


def box_of(browser: chromium.Browser, selector: str) -> tuple[float, float]:
    """The middle of an element, which is scrolled into sight."""
    browser.run(f"document.querySelector('{selector}').scrollIntoView({{block: 'center'}})")
    box = browser.run(f"document.querySelector('{selector}').getBoundingClientRect().toJSON()")
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_the_slider_ranks_again_by_the_interpolated_accuracies_and_moves_the_line(browser, page):
    (board,) = data_of(page)
    places = []
    for position in (20, 33):
        slide(browser, position)
        places_there = {line["label"]: line["places"][position] for line in board["lines"]}
        there = {label: numbers[0] / 100 for label, numbers in places_there.items() if numbers}
        shown = browser.run(ROWS)
        assert [float(row[2]) for row in shown] == sorted(there.values(), reverse=True)
        assert {row[1]: float(row[2]) for row in shown} == there
        places.append(box_of(browser, "#plot .cursor")[0])
    width = browser.run("document.querySelector('#plot svg').clientWidth") - 56
    assert places[1] - places[0] == pytest.approx(13 / board["positions"][-1] * width, rel=0.02)
    assert browser.run("document.getElementById('saved').textContent") == "33 %"


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(browser):
    slide(browser, 20)
    script = "new Promise((done) => { document.querySelectorAll('#table th')[6].click(); setTimeout(done, 60) })"
    for reverse in (True, False):
        browser.run(script)
        values = [float(row[6]) for row in browser.run(ROWS) if row[6]]
        assert len(values) > 5 and values == sorted(values, reverse=reverse)


def test_filters_leave_out_families(browser, page):
    (board,) = data_of(page)
    click = "document.querySelector('#filters input[value=\"drops\"]').click()"
    browser.run(click)
    shown = {row[1] for row in browser.run(ROWS)}
    gone = {line["label"] for line in board["lines"] if line["family"] == "drops" and not line["null"]}
    assert shown and not shown & gone and "random" in shown
    browser.run(click)


def test_hover_says_schedule_and_call(browser):
    browser.move(*box_of(browser, "#table tbody tr"))
    strip = browser.run("document.getElementById('strip').textContent")
    assert "keep rate" in strip and "common.create_model('vit_digits', reducer=" in strip
    browser.move(*box_of(browser, "#plot [aria-label=dot] path"))
    tip = browser.run("document.querySelector('#plot [aria-label=tip]').textContent")
    assert "keep rate" in tip and "common.create_model(" in tip


def test_the_keyboard_opens_a_row_and_comes_back_to_it(browser):
    browser.run("document.querySelectorAll('#table tbody tr')[2].focus()")
    key = browser.run("document.activeElement.dataset.key")
    browser.press("Enter", 13)
    assert browser.run("document.getElementById('details').open")
    browser.press("Escape", 27)
    assert not browser.run("document.getElementById('details').open")
    browser.run("new Promise((done) => setTimeout(done, 60))")  # the event that it was closed comes later
    assert browser.run("document.activeElement.dataset.key") == key


def test_a_narrow_screen_scrolls_the_table_and_not_the_page(browser):
    browser.size(390, 800)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.querySelector('#plot svg').getBoundingClientRect().right") <= 390
    browser.size(1280, 900)


def test_nothing_went_wrong_and_no_request_left_the_page(browser, page):
    """After all that the tests before have done."""
    wrong = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert not [event for event in browser.events if event["method"] in wrong]
    requests = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    sent = {event["request"]["url"] for event in requests}
    assert {url for url in sent if not url.startswith("data:")} == {page.as_uri()}
