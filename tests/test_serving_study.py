"""The study of serving: shares of the promise, waiting, its tables, figure and sentences, from known numbers."""

from __future__ import annotations

import pytest
from fake_runs import answered, found_in, serving_run, summarised

from common import plots
from common.errors import UsageError
from common.results import read_runs
from common.studies import find_study

GAINS = {"none": 1.0, "tram": 1.8, "topk": 1.6}


def test_promise_and_waiting_are_against_the_unreduced_model_under_the_same_load(tmp_path):
    """The MAC ratio is 2: 1.8 times as many images are 90 % of it, 1.0 times are half; p95 falls by as much."""
    serving_run(tmp_path, GAINS)
    table = summarised(tmp_path, "serving").set_index(["max_batch", "clients", "method"])
    assert len(table) == 2 * 2 * 3
    for clients in (1, 4):
        assert table.loc[(4, clients, "tram"), "promise"] == pytest.approx(0.9)
        assert table.loc[(4, clients, "topk"), "promise"] == pytest.approx(0.8)
        assert table.loc[(1, clients, "tram"), "promise"] == pytest.approx(0.5)
        assert table.loc[(4, clients, "tram"), "p95_ratio"] == pytest.approx(1 / 1.8)
        assert (table.loc[(1, clients), "p95_ratio"] == 1).all()
    assert table.loc[(4, 4, "none"), ["promise", "p95_ratio", "p95_ms"]].tolist() == [1, 1, 400]


def test_without_the_unreduced_model_nothing_is_said_of_a_promise(tmp_path):
    serving_run(tmp_path, {"tram": 1.8})
    table = summarised(tmp_path, "serving")
    assert table[["promise", "p95_ratio"]].isna().all(axis=None) and answered("serving", table) == []


def test_sentences_and_tables(tmp_path):
    serving_run(tmp_path, GAINS)
    alone, batches = answered("serving", summarised(tmp_path, "serving"))
    assert alone.text == "ViT-S/16, float32, one image at a time: 50 to 50 % of the MAC ratio reaches the clients."
    assert batches.text == "ViT-S/16, float32, batches of up to 4: 80 to 90 % of the MAC ratio reaches the clients."
    assert batches.points[0] == (
        "TRAM, keep 50 %, 4 clients: 1.80 times as many images a second (90 % of the MAC ratio); 95 % of the requests "
        "answered within 222 ms in place of 400 ms"
    )
    one, several = found_in(tmp_path, "serving").sections
    assert (one.title, several.title[-18:]) == ("ViT-S/16, float32, 224 px, one image at a time", "batches of up to 4")
    row = several.frame.iloc[4]
    assert row[["Clients", "Model", "Keep", "Speed-up"]].tolist() == ["4", "TRAM", "50 %", "1.80 [1.70, 1.90]"]
    assert row[["Share of promise", "p50 (ms)", "p95 (ms)"]].tolist() == ["90 %", "122.2", "222.2"]
    assert several.frame.iloc[3]["Share of promise"] == "-"


def test_the_same_load_twice_is_refused(tmp_path):
    for name in "ab":
        serving_run(tmp_path, GAINS, name=name)
    with pytest.raises(UsageError, match=r"the same condition .* was run more than once: a, b"):
        summarised(tmp_path, "serving")


def test_figure_has_waiting_above_and_speed_below_for_each_way(tmp_path):
    """Four panels; above the lines are the percentiles over the clients, below the speed-ups, the promise at 2."""
    serving_run(tmp_path, GAINS)
    fig = plots.serving_load(read_runs(tmp_path, find_study("serving")))
    assert len(fig.axes) == 4
    above, below = fig.axes[1], fig.axes[3]
    assert above.get_title() == "ViT-S/16\nbatches of up to 4"
    lines = {line.get_label(): line.get_ydata().tolist() for line in above.get_lines()}
    assert lines["no reduction"] == [100, 400]
    assert lines["TRAM, keep 50 %"] == pytest.approx([100 / 1.8, 400 / 1.8])
    drawn = {tuple(line.get_ydata()) for line in below.get_lines() if len(line.get_ydata())}
    assert {(1.8, 1.8), (1.6, 1.6), (2.0, 2.0), (1, 1)} <= drawn
    assert [tick.get_text() for tick in above.get_xticklabels()] == ["1", "4"]
