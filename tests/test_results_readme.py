"""The numbers that the texts print are those of the committed runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from documents import part, printed, running, section, text_of
from fake_runs import throughput_run

import speed_table
from common.report.paired import paired_difference
from common.results import read_runs
from common.studies import find_study
from common.studies._slimming_seeds import over_seeds

ROOT = Path(__file__).parents[1]
FOUND = "What we found"  # on the front page, in a sentence each
METHODS = {
    "no reduction": ("none", ""),
    "TRAM": ("tram", ""),
    "Top-K": ("topk", "head_fusion=mean"),
    "Top-K (max over heads)": ("topk", ""),
    "EViT": ("evit", ""),
    "ATS": ("ats", ""),
    "ATS (random, as published)": ("ats", "sampler=random"),
    "DynamicViT": ("dynamicvit", ""),
    "ToMe": ("tome", ""),
    "K-Medoids": ("kmedoids", ""),
    "DPC-KNN": ("dpcknn", ""),
    "DPC-KNN (plain means)": ("dpcknn", "equal_weight=true"),
    "PatchMerger": ("patchmerger", ""),
    "PatchMerger (untrained queries)": ("patchmerger", ""),
    "PatchMerger (parity)": ("patchmerger", "parity=true"),
    "Sinkhorn": ("sinkhorn", ""),
    "SiT": ("sit", ""),
    "l1 pattern": ("l1", ""),
    "l2 pattern": ("l2", ""),
    "l∞ pattern": ("linf", ""),
    "random patches (three seeds)": ("random", ""),
    "a smaller image": ("downsample", ""),
    "random patches": ("random", ""),
    "PiToMe": ("pitome", ""),
    "DiffRate": ("diffrate", ""),
    "PPT": ("ppt", ""),
}


def measured(study: str, name: str, keep_rate: float, **where: object) -> pd.Series:
    table = pd.read_csv(ROOT / f"results/imagenette/tables/{study}.csv", keep_default_na=False)
    method, options = METHODS[name]
    chosen = (table["method"] == method) & (table["options"] == options)
    for column, value in {"keep_rate": keep_rate, **where}.items():
        chosen &= table[column].astype(float) == value
    rows = table[chosen].drop_duplicates("accuracy")
    assert len(rows) == 1, f"{len(rows)} rows of {study} for {name} at {keep_rate}"
    return rows.iloc[0]


def both(row: pd.Series) -> str:
    return f"{float(row['accuracy_full']):.1f} ({float(row['accuracy']):.1f})"


def test_accuracy_off_the_shelf() -> None:
    rows = printed("| method | 90 % | 70 % | 50 % | 25 % | GMAC at 50 % |")
    assert len(rows) == 16
    for name, cells in rows.items():
        if name.startswith("no reduction"):
            row = measured("off_the_shelf", "no reduction", 1)
            assert name == f"no reduction: {both(row)}" and cells[-1] == f"{float(row['gmac']):.2f}"
            continue
        found = {rate: measured("off_the_shelf", name, rate, n_val=3925) for rate in (0.9, 0.7, 0.5, 0.25)}
        wanted = [*(both(row) for row in found.values()), f"{float(found[0.5]['gmac']):.2f}"]
        assert cells == wanted, name


def test_what_methods_have_to_beat() -> None:
    """The paired differences that the text tells, of all classes, on all images; random: the mean of its seeds."""
    runs = read_runs(ROOT / "results/imagenette", find_study("off_the_shelf"))
    runs = runs[runs["n_val"] == 3925]

    def right(name: str, keep_rate: float) -> np.ndarray:
        method, options = METHODS[name]
        chosen = (runs["method"] == method) & (runs["options"] == options) & (runs["keep_rate"] == str(keep_rate))
        return 100 * np.mean([np.asarray(each, float) for each in runs[chosen]["accuracy_full_by_image"]], axis=0)

    def apart(name: str, other: str, keep_rate: float) -> tuple[float, ...]:
        return paired_difference(right(name, keep_rate), right(other, keep_rate))

    smaller, chance, tome = "a smaller image", "random patches (three seeds)", "ToMe"
    printed_there = printed("| method | 90 % | 70 % | 50 % | 25 % | GMAC at 50 % |")
    others = [name for name in printed_there if name in METHODS and name not in (smaller, chance)]
    assert len(others) == 13
    assert [round(value, 1) for value in apart(smaller, tome, 0.5)] == [2.4, 1.1, 3.7]
    assert round(apart(smaller, tome, 0.25)[0]) == 34
    assert all(apart(smaller, name, rate)[1] > 0 for name in others for rate in (0.5, 0.25))
    assert [round(value, 1) for value in apart(tome, smaller, 0.7)] == [1.6, 0.5, 2.7]
    assert [name for name in others if apart(name, smaller, 0.7)[1] > 0] == [tome]
    assert not [name for name in others if apart(name, smaller, 0.9)[1] > 0]
    low, high = apart("K-Medoids", chance, 0.5)[1:]
    assert low < 0 < high
    losing = {name for name in others if apart(name, chance, 0.5)[2] < 0}
    assert losing == {
        "ATS (random, as published)",
        "PatchMerger (untrained queries)",
        *(n for n in others if "pattern" in n),
    }
    gains = [apart(name, chance, 0.5)[0] for name in others if name not in losing | {"K-Medoids"}]
    assert min(gains) > 3 and max(gains) < 10.05


def gpu_table(study: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / f"results/gpu/nvidia_h100_80gb_hbm3/tables/{study}.csv", keep_default_na=False)


def one_row(table: pd.DataFrame, name: str, keep_rate: float, **values: object) -> pd.Series:
    method, options = METHODS[name]
    chosen = (table["method"] == method) & (table["keep_rate"].astype(float) == keep_rate)
    chosen &= table["options"] == options
    for column, value in values.items():
        chosen &= table[column].astype(type(value)) == value
    found = table[chosen].drop_duplicates([c for c in table if not c.startswith("published")])
    assert len(found) == 1, (name, keep_rate, values)
    return found.iloc[0]


def test_accuracy_after_training() -> None:
    rows, table = printed("| method | 50 %: before | after | 25 %: before | after |"), gpu_table("method_grid")
    assert (
        len(rows) == 13 and set(table["n_val"].astype(int)) == {3925} and set(table["n_train"].astype(int)) == {0, 9469}
    )

    def accuracy(name: str, keep_rate: float, epochs: int) -> float:
        return float(one_row(table, name, keep_rate, epochs=epochs)["accuracy"])

    for name, cells in rows.items():
        if name.startswith("no reduction"):
            assert re.findall(r"\d+\.\d", name) == [f"{accuracy('no reduction', 1, epochs):.1f}" for epochs in (0, 3)]
            continue
        wanted = [accuracy(name, rate, epochs) for rate in (0.5, 0.25) for epochs in (0, 3)]
        assert cells == [f"{value:.1f}" for value in wanted], name
    lost = {name: accuracy("no reduction", 1, 3) - accuracy(name, 0.25, 3) for name in list(rows)[1:]}
    assert [round(lost[name], 1) for name in ("ToMe", "DPC-KNN")] == [2.5, 2.5]
    assert round(accuracy("no reduction", 1, 0) - accuracy("ToMe", 0.25, 0)) == 21
    assert "ToMe loses 21 points off the shelf and 2.5 after three epochs, as DPC-KNN does" in running(section(FOUND))
    assert all(0 < lost[name] - lost["ToMe"] < 3 for name in ("EViT", "ATS", "Top-K", "TRAM"))
    assert 6 < lost["l2 pattern"] - lost["ToMe"] < 7


def test_accuracy_after_trams_training() -> None:
    tables = {
        "imagenette": gpu_table("finetune"),
        "fashion-mnist": pd.read_csv(ROOT / "results/imagenette/tables/finetune.csv", keep_default_na=False),
    }
    trained = {"imagenette": {"epochs": 5, "n": 3}, "fashion-mnist": {"epochs": 2, "n": 1}}
    rows = printed("| method | Imagenette, 50 % | 25 % | FashionMNIST, 50 % | 25 % |")

    def last(dataset: str, name: str, keep_rate: float) -> str:
        found = one_row(tables[dataset], name, keep_rate, dataset=dataset, **trained[dataset])
        mean = f"{float(found['last']):.1f}"
        return f"{mean} ± {float(found['last_sd']):.1f}" if dataset == "imagenette" else mean

    first, *others = rows
    whole = [last(dataset, "no reduction", 1) for dataset in tables]
    assert first == "no reduction: {} on Imagenette, {} on FashionMNIST".format(*whole) and len(others) == 4
    for name in others:
        cases = [(dataset, rate) for dataset in tables for rate in (0.5, 0.25)]
        assert rows[name] == [last(dataset, name, rate) for dataset, rate in cases], name


def test_slimming_over_seeds() -> None:
    runs = read_runs(ROOT / "results/gpu/nvidia_h100_80gb_hbm3", find_study("slimming")).query("part == 'stages'")
    plans, gmac = over_seeds(runs), runs.groupby(["mac_budget", "lengths"])["gmac"].mean()
    rows = printed("| tokens per block | GMAC | before tuning | blocks tuned | distilled |")
    names = {"learned": "for the least error at the output", "uniform": "{} in every block"}
    whole = runs[runs["method"] == "none"].iloc[0]
    wanted = {"all 197": ["1.25", f"{whole['accuracy_full']:.1f} ({whole['accuracy']:.1f})"]}
    for (budget, lengths), stages in plans.groupby(["mac_budget", "lengths"], sort=False):
        assert stages["training"].tolist() == ["none", "blocks", "network"] and set(stages["n"]) == {3}
        name = f"cut of {100 * (1 - budget):.0f} %, {names[lengths].format({0.8: 171, 0.55: 119}[budget])}"
        cells = [
            f"{row.accuracy_full:.1f} ± {row.accuracy_full_sd:.1f} ({row.accuracy:.1f})" for row in stages.itertuples()
        ]
        wanted[name] = [f"{gmac[budget, lengths]:.2f}", *cells]
    assert rows == wanted
    last = plans.query("lengths == 'learned' and training == 'network'").set_index("mac_budget")
    found = last[["gain", "gain_low", "gain_high"]].round(2)
    assert found.loc[0.8].tolist() == [0.2, -1.75, 2.14] and found.loc[0.55].tolist() == [-0.07, -1.21, 1.07]
    text = running(section("Patch slimming"))
    assert "+0.20 points after distillation (95 % interval of the mean over seeds -1.75 to +2.14)" in text
    assert "-0.07 (-1.21 to +1.07) at 45 %" in text
    assert "tie with uniform ones: +0.20 points (-1.75 to +2.14) at a cut of 20 %" in running(section(FOUND))


def test_speed_of_one_image() -> None:
    rows = printed("| ViT-S/16, batch 1, keep | speed-up (quartiles) | MAC ratio | of the ceiling |")
    table = pd.read_csv(ROOT / "results/imagenette/tables/throughput.csv", keep_default_na=False)
    table = table[(table["status"] == "measured") & (table["dtype"] == "float32")]
    table = table[(table["batch"].astype(float) == 1) & (table.get("runtime", "eager") == "eager")]
    table = table[table["backbone"].isin(["vit_small_patch16_224", "deit_small_patch16_224"])]
    assert len(rows) == len(table) - 2 == 18  # but for the unreduced model of each backbone
    for name, cells in rows.items():
        method, _, keep = name.partition(", ")
        rate = {"50 %": "0.5"}.get(keep, f"r={keep.partition(' ')[0]}")
        chosen = (table["method"] == METHODS[method][0]) & (table["keep_rate"] == rate)
        (_, row), *others = table[chosen].iterrows()
        whole = table[(table["method"] == "none") & (table["backbone"] == row["backbone"])].iloc[0]
        speedup, ceiling = float(row["speedup"]), row["ceiling"]
        assert not others and cells == [
            f"{speedup:.2f} ({float(row['speedup_q1']):.2f}-{float(row['speedup_q3']):.2f})",
            f"{float(whole['gmac']) / float(row['gmac']):.2f}",
            *([f"{100 * speedup / float(ceiling):.0f} %"] if ceiling else []),
        ]
        assert rate != "0.5" or speedup > 1.5
    assert "at least 1.5 times with any method at batch 1" in running(section(FOUND))


def test_speed_on_every_runtime() -> None:
    found = part("runtime table")
    assert found == speed_table.table() == speed_table.parts(text_of(speed_table.DOCUMENT))[1]
    rows = [line.strip("| ").split(" | ") for line in found.splitlines()]
    at_16 = [float(row[rows[0].index("eager, batch 16")].split()[0]) for row in rows[3:]]
    assert min(at_16) > 1.8 and max(at_16) < 2.3 and "about twice as fast at batch 16" in running(section(FOUND))


def test_a_setting_of_the_speed_table_has_a_column_once_it_was_measured(tmp_path: Path) -> None:
    """1.5 times as fast at a MAC ratio of 2 is 75 % of it, 1.8 times is 90 %; what was not measured is empty."""
    for name, gain, given in (("a", 1.5, {}), ("b", 1.8, {"runtime": "onnxruntime", "dtype": "int8"})):
        path = throughput_run(tmp_path, {("none", 1.0): 1.0, ("tram", 0.5): gain}, name=name)
        pd.read_csv(path).assign(**given, gmac=[4.6, 2.3]).to_csv(path, index=False)
    assert speed_table.table(tmp_path).splitlines()[:5] == [
        "| ViT-S/16, keep 50 % | MAC ratio | eager, batch 16 | onnxruntime, int8, batch 16 |",
        "| --- | --: | --: | --: |",
        "| no reduction: images/s |  | 20.0 | 20.0 |",
        "| TRAM | 2.00 | 1.50 (75 %) | 1.80 (90 %) |",
        "| Top-K |  |  |  |",
    ]


def test_speed_on_a_gpu() -> None:
    rows = printed("| method, keep 50 % | ViT-B, batch 256 | of the ceiling | ViT-S, batch 256 | batch 64 | batch 1 |")
    table = gpu_table("throughput").query("status == 'measured'")
    assert len(rows) == 16 and set(table["device"]) == {"cuda (NVIDIA H100 80GB HBM3)"}
    for name, cells in rows.items():
        places = [("vit_base_patch16_224", 256), *(("vit_small_patch16_224", batch) for batch in (256, 64, 1))]
        found = [one_row(table, name, 0.5, backbone=backbone, batch=str(batch)) for backbone, batch in places]
        speedups = [float(row["speedup"]) for row in found]
        share = f"{100 * speedups[0] / float(found[0]['ceiling']):.0f} %" if found[0]["ceiling"] else ""
        wanted = [f"{value:.2f}" for value in speedups]
        assert cells == [wanted[0], share, *wanted[1:]], name
        ceilings = [float(row["ceiling"]) for row in found[2:] if row["ceiling"]]
        assert max(speedups[2:] + ceilings) < 1  # nothing is faster at small batches, not even plain slicing
    best = max(float(cells[0]) for name, cells in rows.items() if name != "a smaller image")
    assert "no method makes it faster at batch 1 or 64" in running(section(FOUND))
    assert f"a ViT-B at batch 256 becomes up to {best} times as fast" in running(section(FOUND))


def test_which_tokens_methods_keep() -> None:
    """Numbers of claims about keep rates and fixed patterns, of maps of both data sets, of CLS tokens and accuracy."""
    text = running(section("What methods decide"))
    own, fixed = "at another rate is 0.99 and 1.00 of what is possible", "a fixed pattern keeps: 0.02 to 0.03"
    for said in (own, "ATS does not (0.35)", fixed, "0.42 (ATS), 0.56 (Top-K) and 0.63 (EViT)"):
        assert said in text
    front = running(section(FOUND))
    assert "0.99 and 1.00 of the overlap that is possible beyond chance; ATS does not (0.35)" in front
    assert "keeps what a fixed pattern keeps (0.02 to 0.03)" in front
    claims = (ROOT / "results/imagenette/tables/claims.md").read_text(encoding="utf-8")
    for said in ("Top-K 0.99", "EViT 1.00", "ATS 0.35", "ATS 0.03", "EViT 0.02"):
        assert said in claims
    assert "(0.97, 0.97 and 0.16; 2,000 images)" in text and f"{fixed}, off the shelf and fine-tuned" in text
    trained = [line for line in claims.splitlines() if "after 1 epoch on 2,000 images" in line]
    for said in ("Top-K (head_fusion=mean) 0.97", "EViT 0.97", "ATS 0.16", "Top-K (head_fusion=mean) 0.03", "ATS 0.02"):
        assert any(said in line for line in trained)
    clothes = (ROOT / "results/gpu/nvidia_h100_80gb_hbm3/tables/claims.md").read_text(encoding="utf-8")
    for said in ("ATS 0.42", "Top-K 0.56", "EViT 0.63"):
        assert said in clothes
    data = gpu_table("patterns_across_data").query("part == 'halves'")
    assert data["PCC"].astype(float).min() >= 0.925 and set(data["n_images"].astype(int)) == {3925, 10000}
    assert "(-0.03 to 0.01, three draws)" in text and "(0.02 to 0.12): what it keeps is mostly chance" in text
    table = pd.read_csv(ROOT / "results/imagenette/tables/reduction_patterns.csv").query("n_images == 1000")
    patterns = ["l1", "l2", "linf"]
    chance = table[(table["part"] == "methods") & ((table["method"] == "random") | (table["other"] == "random"))]
    chance = chance[~chance["method"].isin(patterns) & ~chance["other"].isin(patterns)]["iou_excess"].dropna()
    assert [round(chance.min(), 2), round(chance.max(), 2)] == [-0.03, 0.01] and len(chance) == 108
    drawn = table[(table["part"] == "seeds") & (table["method"] == "ats")]
    means = drawn.groupby(["keep_rate", "block"])["iou_excess"].mean()
    assert [round(means.min(), 2), round(means.max(), 2)] == [0.02, 0.12]
    found = pd.read_csv(ROOT / "results/imagenette/tables/pattern_proxies.csv")
    late = found[(found["pairs"] == "with unreduced") & found["block"].isin([9, 11])]
    sizes = late["correlation"].abs().round(2).groupby(late["n_models"])
    assert sizes.min().to_dict() == {17: 0.89, 41: 0.98} and sizes.max().to_dict() == {17: 0.96, 41: 0.99}
    assert "of 41 models almost perfectly (0.98 to 0.99), that of the 17 fine-tuned ones" in text
    assert "nearly so (0.89 to 0.96)" in text


def test_who_idles_and_comes_back() -> None:
    """Accuracies and divergences at equal cost, and the paired differences that the text tells."""
    runs = read_runs(ROOT / "results/gpu/nvidia_h100_80gb_hbm3", find_study("leaderboard"))
    lean = "last_block=cls"
    models = {
        "IdleViT's rule, patches come back": ("idle_topk", ""),
        "the same, idle for good": ("idle_topk", "re_entry=false"),
        "the same, and the last block for the head only": ("idle_topk", f"{lean},re_entry=false"),
        "ToMe": ("tome", ""),
        "ToMe, and the last block for the head only": ("tome", lean),
    }

    def at(name: str, cut: float) -> pd.Series:
        method, options = models[name]
        found = runs[(runs["method"] == method) & (runs["options"] == options) & (runs["mac_cut"] == cut)]
        assert len(found) == 1 and found["saved"].item() == pytest.approx(cut, abs=0.002)
        return found.iloc[0]

    def apart(row: pd.Series, other: pd.Series) -> list[float]:
        hits = [100 * np.asarray(each["accuracy_full_by_image"], float) for each in (row, other)]
        return [round(value, 2) for value in paired_difference(*hits)]

    rows = printed("| no training | 20 % saved | 30 % | 40 % |")
    assert list(rows) == list(models)
    for name, cells in rows.items():
        found = [at(name, cut) for cut in (0.2, 0.3, 0.4)]
        assert cells == [f"{row['accuracy_full']:.1f} ({row['divergence']:.3f})" for row in found], name
    text, front = running(section("Idle patches that come back")), running(section(FOUND))
    returning, gone, least, tome, tome_lean = models
    mean, low, high = apart(at(gone, 0.2), at(returning, 0.2))
    assert f"that costs {mean:.1f} points (95 % interval {low:.1f} to {high:.1f}) at 20 %" in text
    assert f"its return costs {mean:.1f} points at 20 % fewer" in front
    mean, low, high = apart(at(least, 0.2), runs[runs["method"] == "none"].iloc[0])
    assert f"idling loses {-mean:.2f} points at 20 % ({-high:.2f} to {-low:.2f})" in text and low < 0 < high
    assert f"idling loses {-mean:.2f} (95 % interval {-high:.2f} to {-low:.2f})" in front
    mean, low, high = apart(at(least, 0.2), at(tome, 0.2))
    assert low < 0 < high
    mean, low, high = apart(at(tome_lean, 0.4), at(tome, 0.4))
    assert f"gives ToMe {mean:+.2f} ({low:.2f} to {high:.2f}) at 40 %" in text
