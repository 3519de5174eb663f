"""The printed numbers: all there, none altered, and consistent with each other."""

from __future__ import annotations

import pandas as pd
import pytest

from common.cost.closed_form import Shape
from common.cost.methods import slim_macs
from common.errors import UsageError
from common.models.factory import create_backbone
from common.results import read_published

METHODS = {"none", "tram", "topk", "ats", "patchmerger"}
RUN, STATED = "backbone method options keep_rate", "weights head start recipe epochs batch lr n_train dtype"
SIZES = ("base", "small", "tiny")


def cell(frame: pd.DataFrame, column: str, **where: object) -> object:
    rows = frame
    for name, value in where.items():
        rows = rows[rows[name] == value]
    values = rows[column].unique()
    assert len(values) == 1, f"{len(values)} values of {column} for {where}"
    return values[0]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("tram_accuracy", 60, f"source model {RUN} img_size fps gflops dataset accuracy {STATED}"),
        ("tram_throughput_vit", 30, f"source run model {RUN} img_size batch fps gflops params"),
        ("tram_throughput_simple_vit", 18, f"source run model {RUN} img_size batch fps gflops params"),
        ("tram_training", 7, None),
        ("trewa_efficiency", 21, f"source model {RUN} img_size batch fps gflops"),
    ],
)
def test_tables_are_complete_and_every_row_names_its_source(name: str, rows: int, columns: str | None) -> None:
    frame = read_published(name)
    assert len(frame) == rows
    assert columns is None or list(frame.columns) == columns.split()
    assert frame["source"].str.len().min() > 10
    assert (frame.loc[frame["method"] == "none", "keep_rate"] == 1.0).all()
    assert set(frame.loc[frame["method"] != "none", "keep_rate"]) <= {0.75, 0.5}


def test_accuracy_covers_each_model_once_per_table() -> None:
    frame = read_published("tram_accuracy")
    assert not frame.duplicated(["source", "model", "dataset"]).any()
    assert frame.groupby("source").size().to_dict() == dict.fromkeys(frame["source"].unique(), 15)
    assert set(frame["method"]) == METHODS
    assert frame["img_size"].unique().tolist() == [224]
    unreduced = frame[frame["method"] == "none"]
    assert len(unreduced) == 12, "the unreduced model stands in both tables of its size"
    assert unreduced.groupby(["backbone", "dataset"])["accuracy"].nunique().max() == 1


@pytest.mark.parametrize(
    ("backbone", "keep_rate", "ratio"),
    [("base", 0.75, 1.35), ("base", 0.5, 1.84), ("small", 0.75, 1.29), ("small", 0.5, 1.71)],
)
def test_speed_ratios_of_the_readme(backbone: str, keep_rate: float, ratio: float) -> None:
    frame, name = read_published("tram_accuracy"), f"vit_{backbone}_patch16_224"
    tram = cell(frame, "fps", backbone=name, method="tram", keep_rate=keep_rate)
    assert round(tram / cell(frame, "fps", backbone=name, method="none"), 2) == ratio


@pytest.mark.parametrize(
    ("method", "backbone", "keep_rate", "dataset", "accuracy", "gflops"),
    [
        ("none", "base", 1.0, "imagenette", 97.43, 16.8808),
        ("tram", "base", 0.75, "fashion-mnist", 93.50, 11.8498),
        ("ats", "base", 0.5, "cifar10", 93.00, 7.8111),
        ("patchmerger", "base", 0.75, "imagenette", 84.97, 11.4968),
        ("topk", "small", 0.75, "fashion-mnist", 94.12, 2.9973),
        ("tram", "small", 0.5, "imagenette", 95.57, 2.1359),
        ("patchmerger", "small", 0.5, "fashion-mnist", 92.85, 2.0136),
    ],
)
def test_cells_of_the_readme(
    method: str, backbone: str, keep_rate: float, dataset: str, accuracy: float, gflops: float
) -> None:
    rows = read_published("tram_accuracy")
    where = {"method": method, "backbone": f"vit_{backbone}_patch16_224", "keep_rate": keep_rate, "dataset": dataset}
    assert cell(rows, "accuracy", **where) == accuracy
    assert cell(rows, "gflops", **where) == gflops


def test_tram_is_the_best_reduced_model_everywhere_but_once() -> None:
    frame = read_published("tram_accuracy")
    reduced = frame[frame["method"] != "none"]
    best = reduced.loc[reduced.groupby(["backbone", "keep_rate", "dataset"])["accuracy"].idxmax()]
    other = best[best["method"] != "tram"]
    assert other[["method", "backbone", "keep_rate", "dataset"]].values.tolist() == [
        ["topk", "vit_small_patch16_224", 0.75, "fashion-mnist"]
    ]


def test_benchmark_runs_of_vit() -> None:
    frame = read_published("tram_throughput_vit")
    assert frame.groupby(["run", "backbone"])["method"].agg(set).map(lambda found: found == METHODS).all()
    assert cell(frame, "fps", run=1, model="TRAM_Base") == 1408.75
    assert cell(frame, "fps", run=2, model="PatchMerger_Tiny") == 8196.53
    assert cell(frame, "params", model="ViT_net_Small") == 21_581_962
    assert cell(frame, "gflops", model="Transformer_topk_Tiny") == 0.2830
    gflops = frame.groupby("model")["gflops"].nunique()
    assert gflops[gflops > 1].index.tolist() == ["ATS_Base", "ATS_Small", "ATS_Tiny"]
    assert [cell(frame, "gflops", run=run, model="ATS_Base") for run in (1, 2)] == [4.0943, 4.0989]
    lighter = [
        cell(frame, "params", model=f"ViT_net_{size.title()}") - cell(frame, "params", model=f"TRAM_{size.title()}")
        for size in SIZES
    ]
    assert lighter == [3072, 2304, 1920], "TRAM's patch embedding there has two LayerNorms less"
    printed = frame.loc[frame["method"] == "tram", ["run", "source"]]
    assert printed["source"].str.contains("MultiViT").tolist() == (printed["run"] == 1).tolist()


def test_benchmark_runs_of_simple_vit() -> None:
    frame = read_published("tram_throughput_simple_vit")
    assert set(frame["backbone"]) == {f"simple_vit_{size}_patch16_160" for size in SIZES}
    assert set(frame["method"]) == {"none", "tram", "patchmerger"}
    assert (frame.groupby("model")["gflops"].nunique() == 1).all()
    assert cell(frame, "fps", run=2, model="ViT_net_Base") == 793.01
    assert cell(frame, "params", model="PatchMerger_Base") - cell(frame, "params", model="TRAM_Base") == 4608
    assert cell(frame, "gflops", model="TRAM_Tiny") == 0.2777


def test_training_outputs_agree_with_their_own_counts() -> None:
    frame = read_published("tram_training")
    done = frame[frame["status"] == "complete"]
    assert len(done) == 5
    assert (100 * done["correct"] / done["n_val"]).round(2).tolist() == done["accuracy"].tolist()
    assert done["accuracy"].tolist() == [97.10, 94.75, 31.29, 35.13, 32.08]
    assert done["seconds"].tolist() == [233.16, 168.30, 115.46, 85.03, 38.62]
    assert done["val_loss"].tolist() == [0.0969, 0.1576, 1.9280, 1.8440, 1.9115]
    assert frame["loss_batch_0"].tolist() == [3.0068, 3.1193, 2.3164, 2.0651, 2.4202, 1.7858, 2.3164]
    assert frame["loss_batch_100"].dropna().tolist() == [0.2629, 0.2090, 1.9757, 1.9515, 2.0073, 1.6933]
    assert frame.loc[frame["status"] == "interrupted", "accuracy"].isna().all()


def test_trewa_lists_seven_methods_for_three_sizes() -> None:
    frame = read_published("trewa_efficiency")
    assert frame.groupby("method").size().to_dict() == dict.fromkeys([*METHODS, "evit", "tome"], 3)
    assert cell(frame, "fps", model="MultiViT", backbone="vit_base_patch16_224") == 1027.11
    assert cell(frame, "gflops", model="EViT", backbone="vit_small_patch16_224") == 1.5588
    assert cell(frame, "fps", model="PatchMerger", backbone="vit_tiny_patch16_224") == 4612.93
    vit = read_published("tram_throughput_vit")
    for size in SIZES:
        backbone = f"vit_{size}_patch16_224"
        same = [cell(table, "gflops", method="none", backbone=backbone) for table in (frame, vit)]
        assert same[0] == same[1]


def test_mutex_on_its_three_images_and_two_models() -> None:
    frame = read_published("mutex_auc")
    assert len(frame) == 6 and not frame.duplicated(["model", "image"]).any()
    assert frame["source"].str.contains("bcfff3b").all()
    areas = frame.pivot(index="image", columns="model", values=["insertion_auc", "deletion_auc"])
    assert areas["insertion_auc"].to_dict("list") == {"DeiT": [81.58, 87.03, 94.89], "ViT": [76.61, 84.02, 84.79]}
    assert areas["deletion_auc"].to_dict("list") == {"DeiT": [26.73, 22.26, 39.13], "ViT": [8.57, 8.53, 20.18]}
    settings = frame[["min_cut", "token_ratio", "starting_layer", "baseline"]].drop_duplicates().values.tolist()
    assert settings == [[0.01, 0.5, 0, "black"]]
    predicted = frame.groupby("image")["predicted"].agg(lambda names: set(names).pop())
    assert predicted.tolist() == ["ice cream", "Chihuahua", "mountain bike"]


def test_idling_thresholds_and_logs() -> None:
    frame = read_published("patch_idling")
    tables = frame.groupby("table").size().to_dict()
    assert tables == {"thresholds": 4, "logs": 13} and frame["source"].str.len().min() > 10
    printed = frame[(frame["table"] == "thresholds") & (frame["method"] == "idle_mlp")]
    columns = ["attention", "patches_idle", "tau", "mac_cut_percent", "accuracy"]
    assert printed[columns].values.tolist() == [
        ["standard", 40, 0.95, 20, 85.2],
        ["standard", 68, 0.90, 35, 77.0],
        ["modified", 40, 0.95, 16, 85.4],
    ]
    assert cell(frame, "accuracy", table="thresholds", method="none") == 89.8
    assert cell(frame, "accuracy", model="predictors only, frozen backbone") == 50.9
    oracle = frame[frame["method"] == "idle_oracle"]
    assert oracle["accuracy"].tolist() == [85.2, 88.1, 88.2, 88.9, 24.3, 80.0, 76.9, 79.9]
    assert oracle["idle_percent"].tolist() == [24.7, 21.8, 15.4, 13.8, 55.5, 48.5, 18.6, 15.5]


def test_patch_slimming_is_complete_and_its_differences_are_of_its_accuracies() -> None:
    frame = read_published("patch_slimming")
    assert frame.groupby("source").size().tolist() == [2, 22, 6, 2]
    assert cell(frame, "accuracy", model="DeiT-S", variant="DPS") == 79.5
    assert cell(frame, "cut", model="DeiT-Ti", variant="PS") == 46.2
    assert cell(frame, "drop", model="DeiT-III-S", variant="PS") == -15.4
    plain = frame[frame["variant"] == "baseline"].drop_duplicates("model").set_index("model")["accuracy"]
    assert ((frame["accuracy"] - frame["model"].map(plain)).round(1) == frame["drop"]).all()


def test_figures_of_patch_slimming() -> None:
    frame = read_published("patch_slimming_figures")
    assert frame.groupby("part", sort=False).size().to_dict() == {
        "tolerances": 6,
        "stages": 1,
        "sensitivity": 12,
        "single_block": 9,
    }
    assert frame["source"].str.endswith("read by eye").all()
    swept = frame[frame["part"] == "tolerances"]
    assert swept["cut"].tolist() == [21, 32, 43, 49, 53, 54] and swept["accuracy"].tolist()[2] == 79.4
    assert (swept["accuracy"] - 79.8).round(1).tolist() == swept["drop"].tolist()
    fragile = frame[frame["part"] == "sensitivity"].pivot(index="block", columns="kept_share", values="accuracy")
    assert fragile.to_dict("list") == {0.2: [35, 71, 79, 79], 0.5: [56, 75, 79, 79], 0.8: [74, 78, 79, 79]}
    assert fragile.index.tolist() == [0, 1, 9, 10]
    chosen = frame[frame["part"] == "single_block"].pivot(index="block", columns="score", values="accuracy")
    assert (chosen["significance"] > chosen["attention"]).all() and (chosen["attention"] > chosen["random"]).all()
    assert chosen.loc[2].to_dict() == {"attention": 71.6, "random": 71.1, "significance": 73.6}


def test_tokens_of_figure_5_cost_what_its_authors_say() -> None:
    (tokens,) = read_published("patch_slimming_figures")["tokens"].dropna()
    lengths, shape = list(map(int, tokens.split())), Shape.of(create_backbone("deit_small_patch16_224"))
    assert (len(lengths), lengths[0], lengths[-1]) == (12, 197, 1) and lengths == sorted(lengths, reverse=True)
    assert slim_macs(shape, lengths, "paper") / 1e9 == pytest.approx(2.66, abs=0.005)
    assert slim_macs(shape, lengths, "compact") / 1e9 == pytest.approx(2.33, abs=0.005)


def test_as_printed_keeps_trailing_zeros() -> None:
    frame = read_published("tram_throughput_simple_vit", as_printed=True)
    assert cell(frame, "gflops", model="ViT_net_Tiny") == "0.5490"


def test_unknown_table_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"unknown published table 'x'; allowed: mutex_auc, patch_idling, patch_slimming, "
    ):
        read_published("x")
