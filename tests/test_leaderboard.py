"""The leaderboard: equal budgets, paired differences, and the rows that every method has to beat."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from common import plots
from common.report.page import facts, render
from common.results import read_runs, write_run
from common.setup import Setup
from common.studies.base import STUDIES
from common.studies.leaderboard import Leaderboard, measure

STUDY = STUDIES["leaderboard"]
SAME = {"backbone": "vit_digits", "weights": "digits", "dataset": "digits", "recipe": "pretrained", "img_size": 32}
SAME |= {"dtype": "float32", "batch": 64, "device": "cpu", "profile": "p"}
IMAGES = [str(i) for i in range(200)]


@pytest.fixture(scope="module")
def rows():
    setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=40)
    return pd.DataFrame(measure(setup, ["none", "tome", "random", "downsample"], [0.2, 0.4], seeds=[0, 1, 2]))


def test_methods_save_what_the_budget_says_and_the_unreduced_model_nothing(rows):
    whole, reduced = rows[rows["method"] == "none"], rows[rows["method"] != "none"]
    assert whole[["mac_cut", "saved", "divergence", "agreement"]].to_numpy().tolist() == [[0, 0, 0, 1]]
    close = {"tome": 0.01, "random": 0.01, "downsample": 0.06}
    for _, row in reduced.iterrows():
        assert row["saved"] == pytest.approx(row["mac_cut"], abs=close[row["method"]])
        assert row["gmac"] == pytest.approx((1 - row["saved"]) * whole["gmac"].item())
        assert row["divergence"] > 0 and 0 <= row["agreement"] <= 1
    for _, row in rows.iterrows():
        assert row["accuracy"] == pytest.approx(100 * np.mean(row["accuracy_by_image"]))


def test_only_what_draws_is_run_for_every_seed(rows):
    assert rows[rows["method"] == "random"].groupby("mac_cut")["seed"].apply(list).tolist() == [[0, 1, 2]] * 2
    assert (rows[rows["method"] != "random"]["seed"] == 0).all()


def test_sampling_leaps_over_a_budget_which_is_said_with_the_nearest(capsys):
    """Of digits ATS samples the same few patches again and again: it keeps all 64, or a third of them."""
    setup = Setup("vit_digits", "digits", "digits", img_size=32, limit_val=40)
    assert not list(measure(setup, ["ats"], [0.4]))
    assert "cannot save 40.0% of the MAC; the nearest that it can is 6" in capsys.readouterr().err


def test_a_budget_that_a_method_cannot_meet_is_printed_and_has_no_row(capsys):
    setup = Setup("vit_digits", "", "digits", img_size=32, limit_val=8)
    assert not list(measure(setup, ["tome"], [0.9]))
    assert "left out: tome in blocks [1, 3, 4] cannot save 90.0% of the MAC; at most" in capsys.readouterr().err


# the table, on hits that are made up


def hits(share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(len(IMAGES)) < share


def row(method: str, right: np.ndarray, cut: float = 0.4, seed: int = 0, **given: object) -> dict[str, object]:
    numbers = {"mac_cut": cut, "saved": cut, "gmac": 1 - cut, "agreement": 0.5, "divergence": 0.1}
    same = {"method": method, "options": "", "keep_rate": 1 - cut, "seed": seed, "epochs": 0, "n_train": 0}
    by_image = {"accuracy": 100 * right.mean(), "accuracy_by_image": right}
    return {**same, **numbers, **by_image, "accuracy_full": None, "counts": None, "n_val": len(IMAGES), **given}


@pytest.fixture
def made_up() -> dict[str, np.ndarray]:
    right = {"none": hits(0.95, 0), "tome": hits(0.9, 1), "topk": hits(0.5, 2), "downsample": hits(0.7, 3)}
    return right | {f"random{seed}": hits(0.5, 10 + seed) for seed in range(3)}


@pytest.fixture
def table(made_up, tmp_path) -> pd.DataFrame:
    run = [row("none", made_up["none"], cut=0.0)]
    run += [row(name, made_up[name]) for name in ("tome", "topk", "downsample")]
    run += [row("random", made_up[f"random{seed}"], seed=seed) for seed in range(3)]
    write_run(run, Leaderboard, tmp_path / "runs/leaderboard/a.csv", image_ids=IMAGES, **SAME)
    return STUDY.summarise(read_runs(tmp_path, STUDY))


def test_differences_are_paired_over_the_images(table, made_up):
    tome = table[table["method"] == "tome"].iloc[0]
    chance = np.mean([made_up[f"random{seed}"] for seed in range(3)], axis=0)
    for name, other in (("lost", made_up["none"]), ("gain", chance)):
        expected = ttest_rel(100.0 * made_up["tome"], 100.0 * other).confidence_interval(0.95)
        assert [tome[f"{name}_low"], tome[f"{name}_high"]] == pytest.approx([expected.low, expected.high])
        assert tome[name] == pytest.approx(100 * (made_up["tome"].mean() - other.mean()))
    assert table[table["method"] == "none"][["lost", "lost_low"]].isna().all(axis=None)
    assert table[table["method"] == "random"][["gain", "gain_low"]].isna().all(axis=None)
    assert table[table["method"] == "random"]["n"].item() == 3


def test_families_are_those_of_the_methods(table):
    found = dict(zip(table["method"], table["family"], strict=True))
    assert (found["tome"], found["topk"], found["downsample"]) == ("merges", "drops", "resizes")


def test_the_answer_names_the_leader_and_counts_who_beats_the_null_rows(table, made_up):
    (answer,) = STUDY.answers(table)
    (point,) = answer.points
    right = {name: f"{100 * made_up[name].mean():.2f}" for name in ("tome", "downsample")}
    assert answer.text == "On digits at 32 px with vit_digits, off the shelf, 200 images, classes of the dataset:"
    assert point.startswith(f"40 % saved: ToMe {right['tome']} (paired difference to smaller image +")
    assert "; 1 of 2 surely above random (" in point
    assert point.endswith(f"surely above smaller image ({right['downsample']})")


def test_methods_are_compared_where_the_budget_says_although_images_come_in_steps(made_up, tmp_path):
    """The smaller images save 30 and 50 % in place of 40 and 60: half of each at 40 %, and nothing is known of 60."""
    run = [row("none", made_up["none"], cut=0.0), row("tome", made_up["tome"]), row("tome", made_up["topk"], cut=0.6)]
    for cut, saved, name in ((0.4, 0.3, "downsample"), (0.6, 0.5, "random0")):
        run.append(row("downsample", made_up[name], cut=cut, saved=saved, gmac=1 - saved))
    run.append(row("tome", made_up["random1"], saved=0.45, gmac=0.55, options="resize=16"))
    write_run(run, Leaderboard, tmp_path / "runs/leaderboard/a.csv", image_ids=IMAGES, **SAME)
    table = STUDY.summarise(read_runs(tmp_path, STUDY))
    found = table.set_index(["method", "options", "mac_cut"])["equal"]
    half = 50 * (made_up["downsample"].mean() + made_up["random0"].mean())
    assert found["downsample", "", 0.4] == pytest.approx(half)
    assert np.isnan(found["downsample", "", 0.6]) and np.isnan(found["tome", "resize=16", 0.4])
    (answer,) = STUDY.answers(table)
    assert answer.points[0].endswith(f"1 of 1 surely above smaller image ({half:.2f})")
    assert answer.points[1].endswith("neither null row was run")
    accuracy, *_ = STUDY.sections(table)
    assert accuracy.frame.set_index("Model").loc["smaller image"].tolist() == [f"{half:.2f}", "-"]


def test_certain_leaders_and_certain_gains_are_stressed(table):
    accuracy, gains, *_ = STUDY.sections(table)
    models = accuracy.frame["Model"].tolist()
    assert models[0] == "ToMe" and set(models) == {"ToMe", "Top-K", "smaller image", "random"}
    assert accuracy.best == {(0, "40 %")}
    tome = table[table["method"] == "tome"].iloc[0]
    half = (tome["gain_high"] - tome["gain_low"]) / 2
    assert gains.frame.loc[gains.frame["Model"] == "ToMe", "40 %"].item() == f"{tome['gain']:+.1f} ± {half:.1f}"
    assert (gains.frame["Model"].tolist().index("ToMe"), "40 %") in gains.best
    assert (gains.frame["Model"].tolist().index("Top-K"), "40 %") not in gains.best


def test_holes_are_told(made_up, tmp_path):
    run = [row("none", made_up["none"], cut=0.0), row("tome", made_up["tome"], cut=0.2), row("topk", made_up["topk"])]
    write_run(run, Leaderboard, tmp_path / "runs/leaderboard/a.csv", image_ids=IMAGES, **SAME)
    missing = STUDY.missing(read_runs(tmp_path, STUDY))
    assert missing == ["ToMe at 40 % of the MAC saved", "Top-K at 20 % of the MAC saved"]


def test_the_page_tells_budgets_and_not_the_keep_rates_that_came_out(table, tmp_path):
    runs = read_runs(tmp_path, STUDY)
    found = facts(runs)
    assert found["Budgets"] == "40 % of the multiply-accumulates saved"
    assert "Keep rates" not in found
    assert facts(runs.drop(columns="mac_cut"))["Keep rates"] == "60 %"


def test_the_report_links_the_page_of_its_own_where_it_is(table, tmp_path):
    (tmp_path / "leaderboard.html").write_text("")
    assert '<a href="leaderboard.html">' in render(tmp_path, STUDIES)
    (tmp_path / "leaderboard.html").unlink()
    assert "leaderboard.html" not in render(tmp_path, STUDIES)


def test_the_figure_of_the_unreduced_model_alone_has_its_mark(made_up):
    run = pd.DataFrame([{**row("none", made_up["none"], cut=0.0), **SAME}])
    (ax,) = plots.accuracy_at_budget(run, value="accuracy").axes
    (mark,) = ax.lines
    assert mark.get_xydata().tolist() == [[0, run["accuracy"].item()]] and mark.get_label() == "no reduction"


def test_the_unreduced_model_alone_makes_no_table_and_no_answer(made_up, tmp_path):
    run = [row("none", made_up["none"], cut=0.0)]
    write_run(run, Leaderboard, tmp_path / "runs/leaderboard/a.csv", image_ids=IMAGES, **SAME)
    table = STUDY.summarise(read_runs(tmp_path, STUDY))
    assert len(table) == 1 and not list(STUDY.sections(table)) and not list(STUDY.answers(table))
