"""Explanations and idling: the numbers that the texts print are those of the committed runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
from documents import ROOT, printed, rows_below, running, section

from common.plots.slimming import what_differs
from common.report.paired import mean_interval, paired_difference
from common.results import read_runs
from common.studies import find_study

EXPLAINERS = {
    "gradient rollout": "gradient_rollout",
    "Chefer": "chefer",
    "MUTEX": "mutex",
    "integrated gradients (16 steps)": "integrated_gradients",
    "TRAM centrality": "tram",
    "raw attention": "raw_attention",
    "rollout": "rollout",
    "Grad-CAM": "grad_cam",
    "random": "random",
}
WITH_GRADIENTS = {"gradient_rollout", "chefer", "integrated_gradients", "grad_cam"}
TUNED = {"frozen": "frozen", "distilled on 2,000 images": "tuned"}


def table_of(study: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / f"results/imagenette/tables/{study}.csv")


def test_which_explanation_is_right() -> None:
    table = table_of("explain_benchmark").query("part == 'explainers' and n_images == 200 and reducer == 'none'")
    found = table.set_index("method")
    rows = printed("| explainer | insertion AUC (higher is better) | deletion AUC (lower is better) |")
    best = {"insertion": found["insertion_auc"].idxmax(), "deletion": found["deletion_auc"].idxmin()}
    assert len(found) == len(rows) == 9
    for name, cells in rows.items():
        row = found.loc[EXPLAINERS[name]]
        for cell, curve in zip(cells, best, strict=True):
            mean, error = f"{row[f'{curve}_auc']:.3f}", f"{row[f'{curve}_auc_sem']:.3f}"
            assert cell == f"{f'**{mean}**' if best[curve] == row.name else mean} ± {error}", name
    others = found.drop("random")
    assert (others[["insertion_p", "deletion_p"]] < 1e-7).all(axis=None)
    assert (others[["insertion_gain", "deletion_gain"]] > 0).all(axis=None)
    assert others.drop(WITH_GRADIENTS)["insertion_auc"].idxmax() == "mutex"
    times_attention, mutex = found.loc[["gradient_rollout", "chefer"]], found.loc["mutex"]
    assert (times_attention["insertion_auc"] > mutex["insertion_auc"]).all()
    assert (times_attention["deletion_auc"] < mutex["deletion_auc"]).all()
    assert (times_attention["seconds"] < mutex["seconds"]).all()


def test_what_makes_mutex_work() -> None:
    masks = table_of("explain_benchmark").query("part == 'masks' and n_images == 40").set_index("masks")
    areas = {row.Index: f"{row.insertion_auc:.3f} / {row.deletion_auc:.3f}" for row in masks.itertuples()}
    text = running(section("Explanations"))
    assert f"masks by *out*-degree alone ({areas['degree=out']}) do as well as all 54 ({areas['all']})" in text
    inwards = masks.loc["degree=in"]
    assert f"(gain {inwards['insertion_gain']:.2f}, p = {inwards['insertion_p']:.2f})" in text


def test_which_patches_may_idle() -> None:
    """Every row of the table is one that was measured with these labels, this attention and this backbone."""
    table = table_of("idling").query("part in ('thresholds', 'tuning') and n_val == 3925")
    heads = "labels, attention, backbone, idle patches of 196, of these back in the next block, MAC saved, top-1"
    first, *rows = rows_below(f"| {heads.replace(', ', ' | ')} |")
    whole = table[table["method"] == "none"].iloc[0]
    assert first[0] == "no idling" and first[-1] == f"{whole['accuracy_full']:.1f} ({whole['accuracy']:.1f})"
    assert len(rows) == 8
    for labels, attention, backbone, *cells in rows:
        chosen = table.query(f"attention == '{attention}' and stage == '{TUNED[backbone]}' and method == 'idle_mlp'")
        influence = chosen["options"].str.contains("influence=rollout")
        found = [told(row) for _, row in chosen[influence == labels.startswith("by influence")].iterrows()]
        assert [labels, *(cell.replace("**", "") for cell in cells)] in found, labels


def told(row: pd.Series) -> list[str]:
    """Labels and measures of a row, as the table has them."""
    by_influence = "influence=rollout" in row["options"]
    return [
        "by influence" if by_influence else f"by change, tau {row['tau']:.3f}",
        f"{row['patches_idle']:.0f}",
        f"{100 * row['reactivated']:.0f} %",
        f"{100 * row['mac_cut']:.1f} %",
        f"{row['accuracy_full']:.1f} ({row['accuracy']:.1f})",
    ]


def test_predictors_of_patches_that_stay_out() -> None:
    """Mean and standard deviation over the seeds of the runs in which nothing comes back."""
    runs = read_runs(ROOT / "results/imagenette", find_study("idling")).query("part == 'thresholds'")
    lasting = runs[runs["options"].fillna("").str.contains("re_entry=false") & runs["mac_cut_target"].notna()]
    printed_rows = rows_below("| MAC saved | idle patches of 196 | top-1 | agreement | divergence |")
    said = []
    for cells, (_, rows) in zip(printed_rows, lasting.groupby("mac_cut_target"), strict=True):
        assert rows["seed"].tolist() == [1, 2, 3] and (rows["reactivated"] == 0).all()
        assert set(rows["n_val"]) == {3925} and set(rows["n_train"]) == {1000}
        assert cells == [
            f"{over(100 * rows['mac_cut'], 1)} %",
            over(rows["patches_idle"], 0),
            f"{over(rows['accuracy_full'], 1)} ({rows['accuracy'].mean():.1f})",
            f"{over(100 * rows['agreement'], 1)} %",
            over(rows["divergence"], 3),
        ]
        said.append(mean_interval(-rows["accuracy_change"]))
    (fifth, low, high), (half, least, most) = said
    text = running(section("Predictors of patches that stay out"))
    assert f"costs {fifth:.2f} points (95 % interval over seeds {low:.2f} to {high:.2f}) at the smaller cut" in text
    assert f"and {half:.2f} ({least:.2f} to {most:.2f}) at the larger one" in text


def over(values: pd.Series, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def test_where_the_limit_of_one_mask_is() -> None:
    """Similarity, the best of the plans of equal cost, lengths by taper over three draws, gates that kept the plan."""
    runs = read_runs(ROOT / "results/imagenette", find_study("slimming"))
    text = running(section("Patch slimming"))
    cosines = runs.query("part == 'similarity'").groupby("block")["similarity"].mean()
    least = cosines.idxmin()
    assert f"falls from {cosines[0]:.2f} after the first block to {cosines[least]:.2f} after block {least}" in text
    assert f"and ends at {cosines[10]:.2f} after the last block with patches" in text

    equal = runs.query("part == 'equal_cost'")
    draws = sorted(equal["seed"].unique())
    assert set(equal["n_val"]) == {3925} and equal["mac_cut"].between(0.45, 0.453).all()
    table = printed(f"| other than uniform lengths | {' | '.join(f'draw {seed}' for seed in draws)} |")
    base = equal.iloc[0]
    assert len(table) == len(equal) / len(draws) - 1 == 10
    for place, (name, cells) in enumerate(table.items(), 1):
        rows = [equal[equal["seed"] == seed].iloc[place] for seed in draws]
        assert {what_differs(row, base) for row in rows} == {name}
        assert cells == [f"{row['divergence_change']:+.3f} ± {row['divergence_change_sem']:.3f}" for row in rows]
    uniform = equal.groupby("seed")["divergence"].first()
    assert "uniform lengths, {}, {} and {} nats".format(*(f"{each:.3f}" for each in uniform)) in text
    taper = equal.query("taper == 0.2 and floor == 1 and order == 'top-down'").set_index("seed")
    assert (taper["divergence_change"] / taper["divergence_change_sem"]).lt(-3).all()
    mean, low, high = mean_interval(taper["divergence_change"])
    assert f"mean {mean:.3f} nats, 95 % interval over draws {low:.3f} to {high:.3f}" in text and high < 0
    worse = equal.query("score == 'significance'")["divergence_change"]
    assert len(worse) == 3 and mean_interval(worse)[1] > 0
    shares = sorted((-100 * taper["divergence_change"] / uniform).round())
    share = f"by {shares[0]:.0f} to {shares[-1]:.0f} % of the divergence"
    assert share in text and f"{share} from the unreduced network" in running(section("What we found"))
    gains = [f"{row['gain']:.1f} ± {row['gain_sem']:.1f}" for _, row in taper.iterrows()]
    assert "in accuracy by {}, {} and {} points".format(*gains) in text
    more = 100 * (equal.groupby("seed")["mac_cut"].first() - taper["mac_cut"])
    assert more.round(1).tolist() == [0.2, 0.2, 0.2]

    stages = runs.query("part == 'stages' and score == 'coverage' and seed <= 3")
    tapered, uniform = (stages[stages["lengths"] == lengths] for lengths in ("tapered", "uniform"))
    assert tapered["seed"].tolist() == uniform["seed"].tolist() == [1, 2, 3] and set(stages["n_val"]) == {3925}
    printed_rows = rows_below("| 45 % saved, nothing tuned | top-1 | divergence |")
    for name, rows in (("eight tapers", tapered), ("uniform", uniform)):
        (cells,) = (cells for what, *cells in printed_rows if name in what)
        assert cells == [over(rows["accuracy_full"], 1), over(rows["divergence"], 3)]
    draws = [f"{-row.divergence_change:.4f} ± {row.divergence_change_sem:.4f}" for row in tapered.itertuples()]
    assert "diverge less by {}, {} and {} nats in the three draws".format(*draws) in text
    assert 0.0015 < (uniform["mac_cut"].mean() - tapered["mac_cut"].min()) < 0.0025
    _, low, high = mean_interval(-tapered["divergence_change"])
    assert f"no certain gain (95 % interval {low:.4f} to {high:.4f})" in text and low < 0
    assert "none in accuracy: {:+.2f} points ({:+.2f} to {:+.2f})".format(*mean_interval(tapered["gain"])) in text

    tuned = runs.query("part == 'stages' and score == 'coverage' and seed > 3").set_index("seed")
    assert set(tuned["n_val"]) == {3925} and set(tuned.index) == {4, 5, 6}
    printed_rows = rows_below("| 45 % saved | nothing tuned | divergence | blocks tuned | divergence |")
    for name, lengths in (("from +20 to -20 %", "falling"), ("uniform", "uniform")):
        (cells,) = (cells for what, *cells in printed_rows if name in what)
        rows = tuned[tuned["lengths"] == lengths].groupby("training")
        assert cells == [
            over(rows.get_group(training)[column], digits)
            for training in ("none", "blocks")
            for column, digits in (("accuracy_full", 1), ("divergence", 3))
        ]
    changes = {
        training: [f"{-row.divergence_change:.3f} ± {row.divergence_change_sem:.3f}" for row in rows.itertuples()]
        for training, rows in tuned[tuned["lengths"] == "falling"].groupby("training")
    }
    assert "by {}, {} and {} nats untuned".format(*changes["none"]) in text
    assert "and by {}, {} and {} with tuned blocks".format(*changes["blocks"]) in text
    falling = tuned[(tuned["lengths"] == "falling") & (tuned["training"] == "blocks")]
    mean, low, high = mean_interval(-falling["divergence_change"])
    assert f"half of the gain is left (mean {mean:.3f}, 95 % interval over draws {low:.3f} to {high:.3f})" in text
    gain = mean_interval(falling["gain"])
    assert "gain {:.2f} points ({:+.2f} to {:+.2f}) then".format(*gain) in text
    front = running(section("What we found"))
    assert "by {:.2f} points (95 % interval {:.2f} to {:.2f}) once blocks are tuned".format(*gain) in front

    gates = runs[(runs["part"] == "dynamic") & runs["seed"].isin([1, 2, 3]) & (runs["gates"] != "none")]
    assert len(gates) == 6 and (gates["divergence_change"] == 0).all()


SMALLER = {
    "ToMe on whole images": ("tome", ""),
    "DiffRate on whole images": ("diffrate", ""),
    "ToMe on 208 pixels": ("tome", "resize=208"),
    "ToMe on 192 pixels": ("tome", "resize=192"),
    "ToMe on 176 pixels": ("tome", "resize=176"),
    "DiffRate on 192 pixels": ("diffrate", "resize=192"),
    "DiffRate on 176 pixels": ("diffrate", "resize=176"),
    "a smaller image alone": ("downsample", ""),
}


def test_a_smaller_image_and_fewer_tokens() -> None:
    runs = read_runs(ROOT / "results/gpu/nvidia_h100_80gb_hbm3", find_study("leaderboard")).set_index(
        ["method", "options", "mac_cut"]
    )
    assert set(runs["n_val"]) == {3925}
    table = printed("| saved | 40 % | 50 % | 60 % |")
    assert set(table) == set(SMALLER)
    for name, cells in table.items():
        rows = [runs.loc[(*SMALLER[name], cut)] for cut in (0.4, 0.5, 0.6)]
        assert [cell.replace("**", "") for cell in cells] == [
            f"{row['accuracy_full']:.1f} ({row['accuracy']:.1f})" for row in rows
        ], name
    alone = [runs.loc[("downsample", "", cut)] for cut in (0.4, 0.5, 0.6)]
    text = running(section("A smaller image and fewer tokens"))
    assert "saves {:.0f}, {:.0f} and {:.0f} %".format(*(100 * row["saved"] for row in alone)) in text

    def ahead(row: pd.Series, other: pd.Series) -> tuple[float, ...]:
        return paired_difference(*(100 * np.asarray(each["accuracy_full_by_image"], float) for each in (row, other)))

    both, whole = runs.loc[("diffrate", "resize=176", 0.6)], runs.loc[("diffrate", "", 0.6)]
    assert "{:.1f} points (95 % interval {:.1f} to {:.1f}) above the smaller".format(*ahead(both, alone[2])) in text
    assert "{:.1f} ({:.1f} to {:.1f}) above DiffRate on whole images".format(*ahead(both, whole)) in text
    assert "that saves 52 % ({:+.1f}, {:+.1f} to {:+.1f})".format(*ahead(both, alone[1])) in text
    shrunk, whole = runs.loc[("tome", "resize=208")], runs.loc[("diffrate", "")]
    told = "ToMe on 208 pixels at 50 %: {:+.1f}, {:+.1f} to {:+.1f})"
    assert told.format(*ahead(shrunk.loc[0.5], whole.loc[0.5])) in text
    apart = [row.loc[0.4, "divergence"] for row in (whole, shrunk)]
    assert "divergence {:.2f} nats against {:.2f}".format(*apart) in text
    best = max(runs.loc[(*SMALLER[name], 0.6)]["accuracy_full"] for name in SMALLER if "whole" in name)
    told = f"DiffRate on images of 176 pixels reaches {both['accuracy_full']:.1f} %, the smaller image alone "
    told += f"{alone[2]['accuracy_full']:.1f} %, ToMe or DiffRate on whole images at most {best:.1f} %"
    assert told in running(section("What we found"))


def test_labels_as_decisions() -> None:
    bounds = table_of("idling").query("part == 'bounds' and n_val == 500").set_index("method")
    change, influence = (bounds[bounds["attention"] == kind]["accuracy_full"] for kind in ("modified", "standard"))
    text = running(section("Patch idling"))
    assert f"labels by change reach {change['idle_oracle']:.1f} % where chance has {change['idle_random']:.1f}" in text
    reached = [f"{influence[method]:.1f}" for method in ("idle_oracle", "idle_mlp", "idle_random")]
    assert "those by influence {}, their predictors {}, chance {}".format(*reached) in text


def test_what_reaches_the_clients() -> None:
    runs = read_runs(ROOT / "results/imagenette", find_study("serving")).query("clients == 16")
    names = {"ViT-Ti/16": "vit_tiny_patch16_224", "ViT-S/16": "vit_small_patch16_224"}
    ways = [(names[name], batch) for name in names for batch in (1, 8)]
    heads = [f"{name}, {way}" for name in names for way in ("one at a time", "in batches")]
    rows = printed(f"| 16 clients | {' | '.join(heads)} |")
    found = runs.set_index(["method", "backbone", "max_batch"])
    assert set(rows) == {"TRAM", "Top-K", "ToMe"} and set(runs["rounds"]) == {3} and (runs["requests"] >= 32).all()
    for method, cells in zip(("tram", "topk", "tome"), rows.values(), strict=True):
        measured = [found.loc[(method, *way)] for way in ways]
        assert cells == [f"{row['speedup']:.2f} ({row['p95_ms']:.0f} ms)" for row in measured]
    *most, last = (f"{found.loc[('none', *way), 'p95_ms']:.0f}" for way in ways)
    assert f"(unreduced: {', '.join(most)} and {last} ms)" in running(section("Speed on two cores"))
