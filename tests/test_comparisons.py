"""./run_all.sh bench: both ways agree before they are timed, what was measured before stays, no ratio decides."""

import re
from dataclasses import replace
from importlib.metadata import version

import pandas as pd
import pytest
import torch

import bench
import comparisons
from bench import COLUMNS, main, save, saved, table
from common.cost.throughput import Throughput
from common.errors import UsageError
from comparisons import COMPARISONS, FULL, QUICK, Pair


@pytest.mark.parametrize("name", COMPARISONS)
def test_both_ways_agree_and_run(name, tmp_path):
    """The MAC ratio of a reduced model is the speed-up that it would reach without any overhead."""
    torch.manual_seed(0)
    pair = COMPARISONS[name][1](scale=replace(QUICK, folder=tmp_path))
    with torch.inference_mode():
        pair.baseline(pair.inputs), pair.ours(pair.inputs)
    macs = {"tram": 2.04, "tome": 2.02, "patch_slimming": 1.98, "idle_mlp": 1.553}
    assert pair.macs == (pytest.approx(macs[name], abs=0.01) if name in macs else None)


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("tram", "assert_identity", lambda vit, images: torch.testing.assert_close(vit(images), vit(images) + 1)),
        ("kmedoids", "cluster", lambda distance, weight, centers, *_, **__: (centers, distance.argmin(1))),
        ("mutex", "confidences_one_by_one", lambda vit, image, label, masks: torch.zeros(len(masks))),
        ("significance", "significance", lambda vit, images, layer: torch.ones(196).double()),
    ],
)
def test_what_gives_another_result_is_not_timed(name, part, wrong, monkeypatch):
    monkeypatch.setattr(comparisons, part, wrong)
    monkeypatch.setattr(bench, "interleaved", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(AssertionError, match=r"not (close|equal)"):
        main([name, "--quick"])


# what is printed and kept


@pytest.fixture
def csv(tmp_path, monkeypatch):
    """The file of earlier ratios, not there yet; two comparisons that are 2.0 (1.5 to 2.5) times as fast, untimed."""
    monkeypatch.setattr(bench, "SAVED", tmp_path / "bench.csv")

    def toy(macs):
        return lambda scale: Pair(torch.sin, torch.cos, torch.ones(scale.images), macs)

    def interleaved(calls, inputs, *, baseline, rounds):
        assert calls == {"baseline": torch.sin, "ours": torch.cos} and baseline == "baseline"
        ratio = (1, 1, 1) if rounds == 9 else (2.0, 1.5, 2.5)
        return {"ours": Throughput(1, 1, 1, *ratio, rounds)}

    monkeypatch.setattr(bench, "interleaved", interleaved)
    monkeypatch.setattr(bench, "COMPARISONS", {"sin": ("sine / cosine", toy(3.0)), "same": ("the same", toy(None))})
    return tmp_path / "bench.csv"


def row(comparison="sin", ratio=2.0, q1=1.5, q3=2.5, **conditions):
    here = {"device": "cpu (X)", "threads": 2, "torch": "2.15", "timm": "1", "commit": "abc", "date": "2026-01-02"}
    shared = {"comparison": comparison, "ratio": ratio, "ratio_q1": q1, "ratio_q3": q3, "macs": None, "rounds": 7}
    return pd.DataFrame([{**shared, **here, **conditions}], columns=COLUMNS)


def test_the_table_and_its_progress(csv, capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ["1 of 2: sin, sine / cosine", "2 of 2: same, the same"]
    lines = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert lines[1] == ["baseline / ours", "ratio", "quartiles", "MAC ratio", "before"]
    assert lines[2] == ["sine / cosine", "2.00x", "1.50-2.50", "3.00x", "not measured"]
    assert lines[3] == ["the same", "2.00x", "1.50-2.50", "not measured"]
    assert f"{torch.get_num_threads()} threads, torch {version('torch')}, commit" in out
    assert not csv.exists()


def test_only_save_writes_and_only_what_was_measured(csv, capsys):
    assert main(["--save", "--rounds", "3"]) == 0
    first = csv.read_text()
    assert saved(csv)[["comparison", "ratio", "macs", "rounds"]].to_dict("list") == {
        "comparison": ["same", "sin"],
        "ratio": [2.0, 2.0],
        "macs": [pytest.approx(float("nan"), nan_ok=True), 3.0],
        "rounds": [3, 3],
    }
    assert main(["--rounds", "9"]) == 0, "half as fast as before is no failure"
    assert "2.00x, slower now" in capsys.readouterr().out and csv.read_text() == first
    assert main(["sin", "--rounds", "9", "--save"]) == 0
    assert saved(csv)["ratio"].tolist() == [2.0, 1.0] and saved(csv)["rounds"].tolist() == [3, 9]


def test_other_devices_and_numbers_of_threads_stay_in_the_file(tmp_path):
    path = tmp_path / "bench.csv"
    for measured in (row(), row(threads=8), row(device="cuda (Y)"), row(ratio=3.0)):
        save(measured, path)
    found = saved(path)[["device", "threads", "ratio"]].to_dict("split")["data"]
    assert found == [["cpu (X)", 2, 3.0], ["cpu (X)", 8, 2.0], ["cuda (Y)", 2, 2.0]]


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        (row(ratio=1.4, q1=1.3, q3=1.49), "1.40x, faster now"),
        (row(ratio=1.6, q1=1.5, q3=1.7), "1.60x, same now"),
        (row(ratio=3.0, q1=2.51, q3=3.1), "3.00x, slower now"),
        (row(ratio=3.0, threads=8), "3.00x elsewhere"),
        (row(ratio=3.0, device="cpu (Z)"), "3.00x elsewhere"),
        (row("same"), "not measured"),
    ],
)
@pytest.mark.usefixtures("csv")
def test_a_ratio_has_changed_where_quartiles_are_apart(earlier, said):
    title, line, _, now, before = table(row(), earlier).splitlines()
    assert line.endswith(f" {said}") and len(title) == len(line) <= 120
    assert now == "now: cpu (X), 2 threads, torch 2.15, commit abc, 2026-01-02, 7 rounds"
    assert before.startswith(f"before: {earlier['device'][0]}, {earlier['threads'][0]} threads")


def test_what_is_compared_fits_the_table():
    assert max(len(about) for about, _ in COMPARISONS.values()) < 62 and FULL.images == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trem"], "unknown comparison 'trem'; allowed: same, sin"),
        (["--rounds", "0"], "rounds=0 is not allowed; give a whole number >= 1"),
        (["--threads", "0"], "threads=0 is not allowed; give a whole number >= 1"),
        (["--device", "tpv"], "device 'tpv' is not to be had here: "),
        (["--quick", "--save"], "--quick measures nothing that --save could keep; give one of them"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(csv, arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {message}") and len(err.splitlines()) == 1
    assert not csv.exists()


def test_a_file_with_other_columns_is_refused_before_anything_is_timed(csv, monkeypatch, capsys):
    csv.write_text("comparison,speed\nsin,2\n")
    monkeypatch.setattr(bench, "interleaved", lambda *_, **__: pytest.fail("timed"))
    assert main([]) == 2
    assert capsys.readouterr().err.startswith(f"error: {csv} has the columns comparison, speed; allowed: comparison, ")
    with pytest.raises(UsageError, match="has the columns"):
        save(row(), csv)
