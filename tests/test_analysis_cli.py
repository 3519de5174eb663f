"""From records to tables and figures: what the command line leaves, for every axis, and what it refuses."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from decided import record_of_stages
from documents import code_blocks, section
from PIL import Image
from scipy.stats import spearmanr

from common.analysis import AXES, compare, compare_maps, figures, token_depth
from common.analysis.__main__ import main
from common.evaluation import Record, Stage
from common.training import TrainConfig, digits_backbone

IMAGES, PATCHES, BLOCKS = 20, 16, (1, 3)
ACCURACY = {"topk": 70.0, "evit": 71.0, "ats": 66.0, "tome": 72.5, "dpcknn": 68.0, "none": 74.0}


def run(method="topk", rate=0.5, *, channels=0, **changes) -> Record:
    """A run of the digits' backbone that keeps random patches, or groups them."""
    draw = np.random.default_rng(list(repr((method, rate, sorted(changes.items()))).encode()))
    counts = [int(PATCHES * rate), int(PATCHES * rate**2)]
    order, stages = draw.random((IMAGES, PATCHES)).argsort(1), {}
    for block, count, before in zip(BLOCKS, counts, (PATCHES, counts[0]), strict=True):
        chosen = {"kept": order[:, :count]}
        if method in ("tome", "dpcknn"):
            chosen = {"destination": draw.integers(0, count, (IMAGES, before))}
        stages[block] = Stage(np.full(IMAGES, count), **chosen)
    known = {
        "accuracy": {"top1": ACCURACY[method.partition(":")[0]] - 20 * (1 - rate), "top5": 99.0},
        "depth": 6,
        "seed": 0,
        "width": 64,
    }
    known["cls"] = {5: draw.normal(size=(IMAGES, channels))} if channels else {}
    given = known | {"keep_rate": rate, "dataset": "digits"} | changes
    return record_of_stages({} if method == "none" else stages, method, (4, 4), IMAGES, **given)


def saved(folder: Path, runs) -> Path:
    for number, record in enumerate(runs):
        record.save(folder / str(number) / "decisions.npz")
    return folder


def written(capsys) -> list[str]:
    """Names of the files that were printed, one a line."""
    return [Path(line).name for line in capsys.readouterr().out.splitlines()]


def called(folder: Path, axis: str, *more: str) -> tuple[int, Path]:
    return main([str(folder), "--axis", axis, "--out", str(folder / "out"), *more]), folder / "out"


def test_methods_are_compared_in_tables_and_figures(tmp_path, capsys):
    runs = [run(method, rate) for method in ("topk", "evit", "ats", "tome", "dpcknn") for rate in (0.9, 0.5)]
    status, out = called(saved(tmp_path, [*runs, run("none", 1.0)]), "methods")
    tables = ["runs_methods.csv", "comparisons_methods.csv", "correlations_methods.csv", "depths_methods.csv"]
    pictures = ["iou_block-3_methods.png", "nmi_block-3_methods.png", "depth_methods.png"]
    assert status == 0 and written(capsys) == [*tables, *pictures]
    assert sorted(path.name for path in out.iterdir()) == sorted([*tables, *pictures])
    assert all(Image.open(out / name).format == "PNG" for name in pictures)
    table = pd.read_csv(out / "comparisons_methods.csv")
    wanted = compare(runs[0], runs[2])
    found = table[(table["a"] == runs[0].setting.key) & (table["b"] == runs[2].setting.key)]
    assert found["metric"].tolist() == wanted["metric"].tolist() and found["mean"].tolist() == wanted["mean"].tolist()
    assert len(table[["a", "b"]].drop_duplicates()) == 2 * (3 + 1), (
        "three keep patches and two group them, at two rates"
    )
    known = pd.read_csv(out / "runs_methods.csv").set_index("key")
    row = known.loc["digits/seed-0/evit_vit_digits-1_3-_0.5"]
    assert (row["method"], row["keep_rate"], row["top1"], row["tokens"]) == ("evit", 0.5, 61.0, 4.0)
    depths = pd.read_csv(out / "depths_methods.csv")
    np.testing.assert_allclose(
        depths[depths["run"] == runs[0].setting.key].pivot(index="row", columns="column", values="mean"),
        token_depth(runs[0]).mean(0).reshape(4, 4),
    )


def test_correlations_of_methods_are_run_by_run(tmp_path):
    """Every run with all others of its rate, an unreduced one rate by rate; both orders of a pair count once each."""
    runs = [run(method, rate, channels=3) for method in ("topk", "evit", "ats", "tome") for rate in (0.9, 0.5)]
    status, out = called(saved(tmp_path, [*runs, run("none", 1.0, channels=3)]), "methods")
    table = pd.read_csv(out / "correlations_methods.csv")
    keys, plain = [each.setting.key for each in runs], "digits/seed-0/vit_digits--_"
    assert status == 0 and set(table["group"]) == {*keys, f"{plain}0.9", f"{plain}0.5"}
    assert set(table.loc[table["metric"] == "cka", "pairs"]) == {3, 4}, "the unreduced run is in its own groups only"
    assert not {"ioa", "pwcca"} & set(table["metric"]), "they are known in one order only"
    pairs = pd.read_csv(out / "comparisons_methods.csv").query("metric == 'cka'")
    known = pd.read_csv(out / "runs_methods.csv").set_index("key")["top1"]
    for group, run_a, others in ((keys[3], keys[3], keys[1::2]), (f"{plain}0.9", plain, keys[0::2])):
        both = pairs[
            ((pairs["a"] == run_a) | (pairs["b"] == run_a)) & (pairs["a"].isin(others) | pairs["b"].isin(others))
        ]
        both = both[(both["a"] != plain) & (both["b"] != plain)] if run_a != plain else both
        partner = both["a"].where(both["b"] == run_a, both["b"])
        assert set(partner) == set(others) - {run_a}
        wanted = spearmanr([known[run_a] - known[other] for other in partner], both["mean"]).statistic
        (row,) = table.query(f"group == '{group}' and metric == 'cka' and difference == 'signed' "
                             "and statistic == 'spearman'").to_dict("records")  # fmt: skip
        assert row["value"] == pytest.approx(wanted)


def test_rates_are_compared_within_a_method_and_correlated_by_it(tmp_path, capsys):
    runs = [run(method, rate) for method in ("topk", "tome") for rate in (0.9, 0.7, 0.5)]
    status, out = called(saved(tmp_path, [*runs, run("evit")]), "rates")
    assert status == 0 and written(capsys)[4:] == [
        "iou_excess_block-3_rates.png",
        "nmi_block-3_rates.png",
        "depth_rates.png",
    ]
    table = pd.read_csv(out / "comparisons_rates.csv")
    assert len(table[["a", "b"]].drop_duplicates()) == 6 and len(pd.read_csv(out / "runs_rates.csv")) == 6
    groups = set(pd.read_csv(out / "correlations_rates.csv")["group"])
    assert groups == {"digits/seed-0/topk_vit_digits-1_3", "digits/seed-0/tome_vit_digits-1_3"}


def test_capacities_are_correlated_by_method(tmp_path):
    sizes = {"deit_small_patch16_224": 384, "deit_tiny_patch16_224": 192}
    runs = [run(method, rate, backbone=name, width=width)
            for method in ("topk", "evit") for rate in (0.9, 0.5) for name, width in sizes.items()]  # fmt: skip
    status, out = called(saved(tmp_path, runs), "capacity")
    table = pd.read_csv(out / "correlations_capacity.csv")
    assert status == 0 and set(table["group"]) == {"digits/seed-0/topk", "digits/seed-0/evit"}
    assert set(table["pairs"]) == {2}
    assert pd.read_csv(out / "comparisons_capacity.csv")["a"].str.contains("small").all()
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert drawn == ["depth_capacity.png", "iou_excess_capacity.png"], "no matrices of two"


def test_pairs_of_few_runs_are_drawn_block_by_block(tmp_path):
    """Groups that are all in one token share everything, and are not drawn; pairs say what else runs differ in."""
    sizes = {"deit_small_patch16_224": 384, "deit_tiny_patch16_224": 192}
    runs = [run(method, dataset=name, backbone=backbone, width=width)
            for method in ("topk:head_fusion=mean", "tome") for name in ("digits", "noise")
            for backbone, width in sizes.items()]  # fmt: skip
    for record in runs[4:]:
        record.stages[3].destination[:] = 0
    status, out = called(saved(tmp_path, runs), "capacity")
    tables = figures.read_tables(out, "capacity")
    rows = figures.in_pairs(figures._telling(tables[1]), figures.in_words(tables[0]), "capacity")
    assert status == 0 and set(rows["pair"]) == {f"{name}, DeiT-S/16 and DeiT-Ti/16" for name in ("digits", "noise")}
    told = rows.groupby("metric")[["method", "options", "block"]].agg(lambda cells: sorted(set(cells)))
    assert told.loc["ami"].tolist() == [["tome"], [""], [1]] and told.loc["nmi", "block"] == [1, 3]
    assert told.loc["iou_excess"].tolist() == [["topk"], ["head_fusion=mean"], [1, 3]]


def test_maps_of_data_sets_stand_side_by_side_at_each_rate(tmp_path):
    runs = [run(rate=rate, dataset=name) for rate in (0.9, 0.5) for name in ("digits", "noise")]
    _, out = called(saved(tmp_path, runs), "datasets")
    words = figures.in_words(figures.read_tables(out, "datasets")[0])
    assert figures._columns(words, "datasets") == ["dataset", "rate"]
    assert figures._columns(words[words["rate"] == "keep rate 0.9"], "datasets") == ["dataset"]


def test_seeds_and_runs_without_accuracy_are_not_correlated(tmp_path, capsys):
    status, out = called(saved(tmp_path, [run("ats"), run("ats", seed=1)]), "seeds")
    assert status == 0 and "no correlations_seeds.csv: the records hold none" in capsys.readouterr().out
    status, out = called(saved(tmp_path / "b", [run(rate=rate, accuracy={}) for rate in (0.9, 0.5)]), "rates")
    assert status == 0 and not (out / "correlations_rates.csv").exists()


def test_of_data_sets_the_depth_maps_are_compared(tmp_path, capsys):
    runs = [run(), run(dataset="noise"), run("tome"), run("tome", dataset="noise")]
    status, out = called(saved(tmp_path, runs), "datasets")
    assert status == 0 and written(capsys)[-1] == "depth_datasets.png"
    table = pd.read_csv(out / "comparisons_datasets.csv")
    maps = [token_depth(each).mean(0).reshape(4, 4) for each in runs[:2]]
    assert dict(zip(table["metric"], table["mean"], strict=True)) == pytest.approx(compare_maps(*maps))
    assert set(table["a"]) == {runs[0].setting.key} and table["block"].isna().all() and set(table["n"]) == {IMAGES}


def test_with_parity_the_files_of_the_reference_stand_beside_them(tmp_path, capsys):
    runs = [run(rate=rate, dataset="imagenet", channels=3) for rate in (0.9, 0.5)]
    status, out = called(saved(tmp_path, [*runs, run("evit", dataset="imagenet")]), "rates", "--parity")
    names = [f"{kind}_comparison_rates_IM.csv" for kind in ("pruning", "cls_features", "collated", "correlations")]
    assert status == 0 and written(capsys)[-5:] == ["token_stats_IM.json", *names]
    assert "evit_vit_digits-1_3-_0.5" in (out / "token_stats_IM.json").read_text(), "every run, compared or not"


def test_another_measure_is_drawn_from_the_tables(tmp_path, capsys):
    runs = [run(method, rate) for method in ("topk", "evit", "ats") for rate in (0.9, 0.5)]
    _, out = called(saved(tmp_path, runs), "methods")
    capsys.readouterr()
    assert figures.main([str(out), "--axis", "methods", "--metric", "iou_excess", "--block", "1"]) == 0
    assert written(capsys) == ["iou_excess_block-1_methods.png"] and (out / "iou_excess_block-1_methods.png").is_file()
    for more, message in (
        (["--metric", "nmi"], "no metric 'nmi'; allowed: ioa after 1, 3; iou after 1, 3; iou_excess after 1, 3"),
        (["--metric", "iou", "--block", "2"], "no metric 'iou' after block 2; allowed: ioa after 1, 3; "),
        (["--metric", "ioa"], "unknown metric that is the same in both orders 'ioa'; allowed: "),
        (["--axis", "rates"], "there is no runs_rates.csv in "),
    ):
        assert figures.main([str(out), "--axis", "methods", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")


def test_options_are_named_where_a_method_has_several():
    methods = ("topk:head_fusion=mean", "topk:head_fusion=max", "ats:sampler=random", "mine")
    runs = pd.DataFrame({"key": methods, "method": methods, "backbone": "deit_small_patch16_224", "weights": "timm"})
    runs = runs.assign(dataset="digits", seed=[0, 1, None, 2], keep_rate="0.9 0.7", reduction_loc="3 6", depth=12)
    words = figures.in_words(runs)
    assert words["method"].tolist() == ["Top-K\n(head_fusion=mean)", "Top-K\n(head_fusion=max)", "ATS", "mine"]
    assert words["seeded"].tolist() == ["seed 0", "seed 1", "", "seed 2"] and set(words["backbone"]) == {"DeiT-S/16"}
    assert set(words["rate"]) == {"keep rate 0.9 0.7"} and set(words["depth"]) == {12}
    assert words["order"].tolist()[:3] == [2, 2, 3] and words["order"].max() == words.loc["mine", "order"], "last"


def test_methods_that_only_group_have_no_depth_maps_beside_those_of_the_unreduced_model(tmp_path, capsys):
    runs = [run("tome", channels=3), run("dpcknn", channels=3), run("none", 1.0, channels=3)]
    status, out = called(saved(tmp_path, runs), "methods")
    assert status == 0 and written(capsys)[4:] == ["nmi_block-3_methods.png", "cka_block-5_methods.png"]
    assert set(pd.read_csv(out / "depths_methods.csv")["mean"]) == {6.0}


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_has_words_and_labels(axis):
    assert figures.OWN[axis][0] in figures.WORDS


def test_panels_hold_runs_that_differ_in_the_axis_alone(tmp_path):
    runs = [run(method, rate, seed=seed) for method in ("topk", "evit") for rate in (0.9, 0.5) for seed in (0, 1)]
    status, out = called(saved(tmp_path, [*runs, run("none", 1.0, channels=3), run("ats", 0.9, channels=3)]), "methods")
    assert status == 0
    runs, comparisons = figures.read_tables(out, "methods")
    table = figures.labelled(comparisons, figures.in_words(runs), "methods")
    found = {(row.panel, row.label_a, row.label_b) for row in table.itertuples()}
    wanted = {(f"keep rate {rate} · seed {seed}", "Top-K", "EViT") for rate in (0.9, 0.5) for seed in (0, 1)}
    first = "keep rate 0.9 · seed 0"
    assert found == wanted | {(first, "Top-K", "ATS"), (first, "EViT", "ATS"), (first, "no reduction", "ATS")}


@pytest.mark.parametrize(
    ("runs", "axis", "more", "message"),
    [
        (
            [],
            "rates",
            [],
            r"^error: no record in '.*': a record is a file decisions.npz of python -m common.evaluation$",
        ),
        (
            [{}],
            "rates",
            [],
            r"^error: of 1 records no two differ along axis 'rates' alone; give more, or another axis$",
        ),
        ([{}], "depth", [], r"^error: .*axis 'depth'.* allowed: capacity, datasets, methods, rates, seeds$"),
        (
            [{}, {}],
            "rates",
            [],
            r"^error: '.*0/decisions.npz' and '.*1/decisions.npz' are both digits/seed-0/topk_.*0.5",
        ),
        ([{}, {"rate": 0.9, "image_ids": tuple("abcdefghijklmnopqrst")}], "rates", [], "are not of the same images"),
        ([{"method": "tome"}, {"method": "tome", "dataset": "noise"}], "datasets", [], "hold nothing that could be"),
        ([{}, {"seed": 1}], "seeds", ["--parity"], "^error: the reference has no files of axis 'seeds'; allowed: "),
        (
            [{}, {"rate": 0.9}, {"seed": 1}],
            "rates",
            ["--parity"],
            "the reference has one run topk_.* on digits; given two",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, runs, axis, more, message):
    status, out = called(saved(tmp_path, [run(**given) for given in runs]), axis, *more)
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert status == 2 and captured.out == "" and re.search(message, line)
    assert not out.exists()


def test_the_lines_of_the_manual_lead_to_a_figure(tmp_path, monkeypatch):
    """With fewer epochs for the backbone than its user gets, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits_backbone, "FOLDER", tmp_path)
    monkeypatch.setattr(digits_backbone, "CONFIG", TrainConfig(epochs=1, device="cpu"))
    (block,) = code_blocks(section("Which tokens do methods keep?"), "bash")
    lines = block.replace("\\\n", " ").splitlines()
    assert len(lines) == 3
    for line in lines:
        python, flag, module, *arguments = shlex.split(line)
        assert (python, flag) == ("python", "-m")
        name = f"{module}.__main__" if find_spec(module).submodule_search_locations else module
        assert import_module(name).main(arguments) == 0
    drawn = sorted(path.name for path in (tmp_path / "patterns").glob("*.png"))
    assert drawn == ["depth_methods.png", "iou_block-4_methods.png", "iou_excess_block-3_methods.png"]
