"""The reference's files: names, columns and their order, numbers by its formulas, and which runs stand in them."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from decided import record_of_stages
from scipy.stats import kendalltau, spearmanr
from sklearn.metrics import homogeneity_completeness_v_measure

from common.analysis import export_tables, pwcca
from common.analysis.collation import collate, heatmap_table, rank_correlations
from common.analysis.export import capacity, dataset_tag
from common.analysis.reference import reference_pairs
from common.errors import UsageError
from common.evaluation import Record, Stage

IMAGES, PATCHES, BLOCKS = 30, 16, (3, 6, 9)
SMALL = {"backbone": "deit_small_patch16_224", "dataset": "imagenet", "depth": 12, "width": 384}
TINY = {**SMALL, "backbone": "deit_tiny_patch16_224", "width": 192}
ACCURACY = {0.9: 79.12345, 0.7: 78.5, 0.5: 75.25, 0.25: 60.0, 1.0: 79.9}
FEATURES = ("CKA", "PWCCA", "Procrustes", "mean_cca_corr", "mean_sq_cca_corr")


def rng(*what: object) -> np.random.Generator:
    return np.random.default_rng(list(repr(what).encode()))


def keeping(method="topk", rate=0.5, where=None, *, locs=BLOCKS, channels=0, **changes) -> Record:
    """A run that keeps random patches, with CLS tokens of so many channels."""
    where = {**(where or SMALL), "seed": 0, **changes}
    draw = rng(method, rate, where["backbone"], where["dataset"])
    order = draw.random((IMAGES, PATCHES)).argsort(1)
    counts = [max(int(PATCHES * rate**stage), 1) for stage in range(1, len(locs) + 1)]
    stages = {b: Stage(np.full(IMAGES, k), kept=order[:, :k]) for b, k in zip(locs, counts, strict=True)}
    return made(method, rate, stages, draw, channels, where)


def grouping(method="tome", rate=0.5, where=None, *, channels=0) -> Record:
    where = {**(where or SMALL), "seed": 0}
    draw = rng(method, rate, where["backbone"])
    counts = [max(int(PATCHES * rate**stage), 1) for stage in range(1, 4)]
    stages = {
        b: Stage(np.full(IMAGES, k), destination=draw.integers(0, k, (IMAGES, n)))
        for b, k, n in zip(BLOCKS, counts, [PATCHES, *counts[:-1]], strict=True)
    }
    return made(method, rate, stages, draw, channels, where)


def made(method, rate, stages, draw, channels, where) -> Record:
    cls = {b: draw.normal(size=(IMAGES, channels)).astype(np.float16) for b in (*BLOCKS, 11)} if channels else {}
    accuracy = {"top1": ACCURACY[rate] + {"evit": 0.3, "ats": -0.4}.get(method, 0), "top5": 90.0}
    return record_of_stages(stages, method, (4, 4), IMAGES, keep_rate=rate, cls=cls, accuracy=accuracy, **where)


def unreduced(channels=0, where=None) -> Record:
    return made("none", 1.0, {}, rng("none"), channels, {**(where or SMALL), "seed": 0})


def exported(runs, folder, axis) -> dict[str, object]:
    """What was written, by the name of the file."""
    found = {}
    for path in export_tables(runs, folder, axis):
        found[path.name] = json.loads(path.read_text()) if path.suffix == ".json" else pd.read_csv(path, sep=";")
    assert sorted(found) == sorted(path.name for path in folder.iterdir())
    return found


def literal_overlap(a: Record, b: Record, block: int) -> tuple[list[float], list[float]]:
    sets = [(set(x), set(y)) for x, y in zip(a.stages[block].kept.tolist(), b.stages[block].kept.tolist(), strict=True)]
    return [len(x & y) / len(y) for x, y in sets], [len(x & y) / len(x | y) for x, y in sets]


def composed(record: Record, block: int) -> np.ndarray:
    found = np.tile(np.arange(PATCHES), (IMAGES, 1))
    for at in (at for at in BLOCKS if at <= block):
        found = np.array([record.stages[at].destination[image][labels] for image, labels in enumerate(found)])
    return found


def literal_distances(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Section 4.3 with features (channels, images), centred and divided by their norm."""
    x, y = (each.astype(np.float64).T for each in (x, y))
    x, y = (each - each.mean(1, keepdims=True) for each in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)

    def root(each):
        values, vectors = np.linalg.eigh(each @ each.T)
        return vectors @ np.diag([value**-0.5 if value > 0 else 0 for value in values]) @ vectors.T

    left, rho, _ = np.linalg.svd(root(x) @ x @ y.T @ root(y))
    alpha = np.abs(left.T @ root(x) @ x @ x.T).sum(1)  # of all directions of x
    alpha = alpha / alpha.sum()
    return {
        "PWCCA": 1 - (alpha[: len(rho)] * rho).sum(),
        "mean_sq_cca_corr": (rho**2).mean(),
        "mean_cca_corr": rho.mean(),
        "CKA": 1 - np.linalg.norm(y @ x.T) ** 2 / (np.linalg.norm(x @ x.T) * np.linalg.norm(y @ y.T)),
        "Procrustes": 2 - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum(),
    }


def test_rates_have_one_row_per_pair_and_the_columns_of_the_reference(tmp_path):
    runs = {rate: keeping(rate=rate) for rate in (0.25, 0.9, 0.5, 0.7)}
    files = exported(runs.values(), tmp_path, "rates")
    assert list(files) == ["token_stats_IM.json", "pruning_comparison_rates_IM.csv"]
    table = files["pruning_comparison_rates_IM.csv"]
    assert list(table.columns) == [
        *("Model A", "Model B", "Ratio A", "Loc A", "Ratio B", "Loc B"),
        *("Stage-3-Mean-IoA", "Stage-3-std-IoA", "Stage-3-Mean-IoU", "Stage-3-std-IoU"),
        *("Stage-6-Mean-IoA", "Stage-6-std-IoA", "Stage-6-Mean-IoU", "Stage-6-std-IoU"),
        *("Stage-9-Mean-IoA", "Stage-9-std-IoA", "Stage-9-Mean-IoU", "Stage-9-std-IoU"),
    ]
    wanted = set(combinations((0.9, 0.7, 0.5, 0.25), 2))
    assert len(table) == 6 and set(zip(table["Ratio A"], table["Ratio B"], strict=True)) == wanted
    for row in table.to_dict("records"):
        assert row["Model A"] == f"topk_small_patch16_224-3_6_9-_{row['Ratio A']}" and row["Loc A"] == "3_6_9"
        for block in BLOCKS:
            ioa, iou = literal_overlap(runs[row["Ratio A"]], runs[row["Ratio B"]], block)
            found = [row[f"Stage-{block}-{name}"] for name in ("Mean-IoA", "std-IoA", "Mean-IoU", "std-IoU")]
            assert found == pytest.approx([np.mean(ioa), np.std(ioa), np.mean(iou), np.std(iou)], abs=1e-10)


@pytest.mark.parametrize("axis", ["rates", "capacity"])
def test_the_true_groups_are_those_of_the_lower_rate_and_of_the_larger_model(tmp_path, axis):
    a, b = (grouping(rate=0.9), grouping(rate=0.5)) if axis == "rates" else (grouping(), grouping(where=TINY))
    (table,) = (exported([b, a], tmp_path, axis)[f"cluster_comparison_{axis}_IM.csv"],)
    leading = ["Ratio A", "Loc A", "Ratio B", "Loc B"] if axis == "rates" else ["Ratio", "Loc"]
    names = [f"{name}-Stage-{b}-{of}" for b in BLOCKS for name in ("Homogeneity", "Completeness", "NMI")
             for of in ("Mean", "std")]  # fmt: skip
    assert list(table.columns) == ["Model A", "Model B", *leading, *names]
    (row,) = table.to_dict("records")
    assert (row["Model A"], row["Model B"]) == (a.setting.run_key, b.setting.run_key)
    for block in BLOCKS:
        true, other = (b, a) if axis == "rates" else (a, b)
        labels = zip(composed(true, block), composed(other, block), strict=True)
        values = np.array([homogeneity_completeness_v_measure(*pair) for pair in labels])
        for place, name in enumerate(("Homogeneity", "Completeness", "NMI")):
            found = row[f"{name}-Stage-{block}-Mean"], row[f"{name}-Stage-{block}-std"]
            assert found == pytest.approx((values[:, place].mean(), values[:, place].std()), abs=1e-10)


def test_cls_features_are_compared_by_the_formulas_with_truncated_weights(tmp_path):
    a, b = keeping(channels=6), keeping(where=TINY, channels=4)
    table = exported([b, a], tmp_path, "capacity")["cls_features_comparison_capacity_IM.csv"]
    names = ("PWCCA", "mean_sq_cca_corr", "mean_cca_corr", "CKA", "Procrustes")
    columns = [f"{block}-{name}" for block in (3, 6, 9, 11) for name in names]
    assert list(table.columns) == ["Model A", "Model B", "Ratio", "Loc", *columns]
    (row,) = table.to_dict("records")
    assert row["Model A"].startswith("topk_small") and row["Ratio"] == 0.5
    for block in (3, 6, 9, 11):
        wanted = literal_distances(a.cls[block], b.cls[block])
        for name in names[1:]:
            assert row[f"{block}-{name}"] == pytest.approx(wanted[name], abs=1e-10)
        # the two directions without a partner take weight: how much depends on the basis of a null space
        assert pwcca(a.cls[block], b.cls[block], few_images=True) + 0.02 < row[f"{block}-PWCCA"] < 1


def test_pwcca_of_as_many_channels_is_the_formula(tmp_path):
    a, b = keeping(rate=0.9, channels=5), keeping(rate=0.5, channels=5)
    (row,) = exported([a, b], tmp_path, "rates")["cls_features_comparison_rates_IM.csv"].to_dict("records")
    for block in (3, 11):
        wanted = literal_distances(a.cls[block], b.cls[block])
        assert {name: row[f"{block}-{name}"] for name in wanted} == pytest.approx(wanted, abs=1e-10)


def test_models_stand_in_both_orders_with_homogeneity_and_completeness_exchanged(tmp_path):
    runs = [keeping("topk", channels=5), keeping("evit", channels=5), grouping(channels=5), grouping("sit", channels=5)]
    files = exported([*runs, unreduced(5), keeping(where=TINY), keeping("evit", where=TINY)], tmp_path, "methods")
    assert {name.partition("_comparison_")[2] for name in files} == {"", "models_small_IM.csv", "models_tiny_IM.csv"}
    pruning = files["pruning_comparison_models_small_IM.csv"]
    assert list(pruning.columns) == [
        *("Model A", "Model B", "Ratio A", "Loc A", "Ratio B", "Loc B"),
        *(f"Stage-{block}-{of}" for block in BLOCKS for of in ("Mean", "std")),
    ]
    clusters, features = (files[f"{kind}_comparison_models_small_IM.csv"] for kind in ("cluster", "cls_features"))
    for table, pairs in ((pruning, 1), (clusters, 1), (features, 10)):
        models = list(zip(table["Model A"], table["Model B"], strict=True))
        assert len(set(models)) == len(models) == 2 * pairs
        assert set(models) == {(b, a) for a, b in models}
    one, other = clusters.to_dict("records")
    for block in BLOCKS:
        for of in ("Mean", "std"):
            assert one[f"Homogeneity-Stage-{block}-{of}"] == other[f"Completeness-Stage-{block}-{of}"]
            assert one[f"Completeness-Stage-{block}-{of}"] == other[f"Homogeneity-Stage-{block}-{of}"]
            assert one[f"NMI-Stage-{block}-{of}"] == other[f"NMI-Stage-{block}-{of}"]
    assert one["Homogeneity-Stage-3-Mean"] != one["Completeness-Stage-3-Mean"]
    first = features.iloc[0]
    back = features[(features["Model A"] == first["Model B"]) & (features["Model B"] == first["Model A"])].iloc[0]
    assert first["3-PWCCA"] == back["3-PWCCA"], "the reference copies one direction"
    plain = features[features["Model A"] == "deit_small_patch16_224_local--_"].iloc[0]
    assert plain["Ratio A"] == 1.0 and pd.isna(plain["Loc A"])


def test_only_ats_and_fixed_patterns_go_with_other_rates_and_blocks():
    runs = [keeping("topk", 0.9), keeping("evit", 0.5), keeping("ats", 0.7), keeping("l1", 0.25)]
    runs += [keeping("l2", 0.5, locs=(3,)), keeping("evit", 1.0), keeping("l1", 0.25, where=TINY)]
    settings = [run.setting for run in runs]
    found = {(a, b) for a, b in reference_pairs(settings, "methods")}
    assert found == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 5), (3, 5)}, "0.9 is not 1.0, and one block not three"
    assert reference_pairs([settings[3], keeping("l2", 0.25, where=TINY).setting], "capacity") == []


def test_token_statistics_by_hand(tmp_path):
    kept = {
        3: Stage(np.array([2, 2]), kept=np.array([[0, 3], [1, -1]])),
        6: Stage(np.array([1, 1]), kept=np.array([[3], [1]])),
    }
    where = {**SMALL, "keep_rate": 0.5, "accuracy": {"top1": 100 / 3, "top5": 200 / 3}}
    merged = {3: Stage(np.array([3, 3]), destination=np.array([[0, 0, 2, 2], [1, 1, 1, 1]]))}
    runs = [record_of_stages(kept, "evit", **where), record_of_stages(merged, "sinkhorn", **where)]
    runs.append(record_of_stages({}, "none", **where | {"accuracy": {}}))
    found = exported(runs, tmp_path, "rates")["token_stats_IM.json"]
    assert found["evit_small_patch16_224-3_6-_0.5"] == {
        "Model": "evit_small_patch16_224",
        "Acc-Top1": 33.3333,
        "Acc-Top5": 66.6667,
        "Ratio": 0.5,
        "Loc": "3_6",
        "Stages": [3, 6],
        "Mean-Reduction": [0.375, 0.25],
        "Std-Reduction": [0.125, 0.0],
        "Mean-Token-Depth-Spatial": [4.5, 7.5, 3.0, 7.5],
        "Std-Token-Depth-Spatial": [1.5, 4.5, 0.0, 4.5],
        "Mean-Token-Depth": 5.625,
        "Std-Token-Depth": pytest.approx(np.std([6, 3, 3, 12, 3, 12, 3, 3])),
    }
    soft = found["sinkhorn_small_patch16_224-3-_0.5"]
    assert soft["Mean-Reduction"] == [0.375] and "Mean-Token-Depth" not in soft, (
        "2 and 1 groups that are not empty, of 3"
    )
    plain = found["deit_small_patch16_224_local--_"]
    assert plain["Acc-Top1"] is None and plain["Stages"] == list(range(12))
    assert plain["Mean-Reduction"] == [1.0] * 12 and plain["Mean-Token-Depth-Spatial"] == [12.0] * 4


def test_everything_of_a_pair_in_one_row(tmp_path):
    runs = [keeping(rate=rate, channels=5) for rate in (0.9, 0.5)] + [
        grouping(rate=rate, channels=5) for rate in (0.9, 0.5)
    ]
    files = exported(runs, tmp_path, "rates")
    table = files["collated_comparison_rates_IM.csv"]
    assert list(table.columns) == [
        *("Model A", "Model B", "Ratio A", "Ratio B", "Acc A", "Acc B", "Acc Diff"),
        *(f"{block}-{name}" for block in (3, 6, 9, 11) for name in FEATURES),
        *(f"{name}-Stage-{block}-Mean" for block in BLOCKS for name in ("Completeness", "Homogeneity", "NMI")),
        *(f"Stage-{block}-Mean-{name}" for block in BLOCKS for name in ("IoA", "IoU")),
    ]
    assert table["Model A"].tolist() == ["tome_small_patch16_224-3_6_9-_0.9", "topk_small_patch16_224-3_6_9-_0.9"]
    merging, pruning = table.to_dict("records")
    assert (pruning["Acc A"], pruning["Acc B"]) == (79.1235, 75.25)
    assert pruning["Acc Diff"] == pytest.approx(79.1235 - 75.25)
    source = files["pruning_comparison_rates_IM.csv"].iloc[0]
    assert pruning["Stage-6-Mean-IoU"] == source["Stage-6-Mean-IoU"]
    assert np.isnan(pruning["NMI-Stage-3-Mean"]) and np.isnan(merging["Stage-3-Mean-IoU"])
    kinds = ("cls_features", "cluster", "pruning")
    again = collate(
        *(files[f"{kind}_comparison_rates_IM.csv"] for kind in kinds), files["token_stats_IM.json"], "rates"
    )
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(UsageError, match=r"^no token statistics of run 'tome_small.*_0.5', which has CLS features$"):
        collate(*(files[f"{kind}_comparison_rates_IM.csv"] for kind in kinds), {}, "rates")


def test_of_models_the_overlap_gets_its_name_and_of_capacities_there_is_one_rate(tmp_path):
    files = exported([keeping("topk", channels=5), keeping("evit", channels=5)], tmp_path, "methods")
    table = files["collated_comparison_models_small_IM.csv"]
    assert [name for name in table if "IoU" in name or "IoA" in name] == [f"Stage-{b}-Mean-IoU" for b in BLOCKS]
    folder = tmp_path / "capacity"
    folder.mkdir()
    runs = [keeping(channels=5), keeping(where=TINY, channels=5)]
    table = exported(runs, folder, "capacity")["collated_comparison_capacity_IM.csv"]
    assert list(table.columns)[:6] == ["Model A", "Model B", "Ratio", "Acc A", "Acc B", "Acc Diff"]


def test_rank_correlations_are_of_the_signed_difference_by_group(tmp_path):
    runs = [keeping(method, rate, channels=5) for method in ("topk", "evit") for rate in (0.9, 0.7, 0.5, 0.25)]
    files = exported(runs, tmp_path, "rates")
    table, collated = files["correlations_comparison_rates_IM.csv"], files["collated_comparison_rates_IM.csv"]
    similarities = list(collated.columns[7:])
    names = [f"{name}-{of}" for name in similarities for of in ("Spearman", "Kendall")]
    assert list(table.columns) == ["Model", *names]
    assert table["Model"].tolist() == ["evit_small_patch16_224-3_6_9", "topk_small_patch16_224-3_6_9"]
    group = collated[collated["Model A"].str.startswith("topk")]
    assert len(group) == 6
    (row,) = table[table["Model"].str.startswith("topk")].to_dict("records")
    for name in similarities:
        for of, oracle in (("Spearman", spearmanr), ("Kendall", kendalltau)):
            assert row[f"{name}-{of}"] == pytest.approx(oracle(group["Acc Diff"], group[name]).statistic, abs=1e-12)


def test_models_are_correlated_run_by_run_and_the_unreduced_one_rate_by_rate(tmp_path):
    rates = (0.9, 0.5)
    runs = [keeping(method, rate, channels=5) for method in ("topk", "evit", "ats") for rate in rates]
    files = exported([*runs, unreduced(5)], tmp_path, "methods")
    table = files["correlations_comparison_models_small_IM.csv"]
    keys = [run.setting.run_key for run in runs]
    plain = "deit_small_patch16_224_local--_"
    assert sorted(table["Model"]) == sorted([*keys, f"{plain}0.5", f"{plain}0.9"])
    collated = files["collated_comparison_models_small_IM.csv"]
    group = collated[(collated["Model A"] == plain) & (collated["Ratio B"] == 0.5)]
    assert len(group) == 3
    (row,) = table[table["Model"] == f"{plain}0.5"].to_dict("records")
    assert row["11-CKA-Kendall"] == pytest.approx(kendalltau(group["Acc Diff"], group["11-CKA"]).statistic)
    ats = collated[collated["Model A"] == "ats_small_patch16_224-3_6_9-_0.9"]
    assert len(ats) == 5, "also at the other rate, and with the unreduced model"
    same = ats[(ats["Ratio B"] == 0.9) & (ats["Model B"] != plain)]
    (row,) = table[table["Model"] == "ats_small_patch16_224-3_6_9-_0.9"].to_dict("records")
    wanted = spearmanr(same["Acc Diff"], same["3-CKA"]).statistic
    assert len(same) == 2 and row["3-CKA-Spearman"] == pytest.approx(wanted)


def test_capacities_are_correlated_by_method_with_patterns_apart():
    models = [f"{name}_patch16_224" for name in ("topk_small", "topk_tiny", "heuristic_small", "heuristic_tiny")]
    models = [*models[:2], *(f"{model}-{pattern}" for pattern in ("l1", "l2") for model in models[2:])]
    keys = [f"{model}-3_6_9-_0.5" for model in models]
    pairs = [(a, b) for a, b in combinations(keys, 2) if a.replace("small", "tiny") == b]
    columns = ["Model A", "Model B", "Ratio", "Acc A", "Acc B", "Acc Diff", "3-CKA"]
    collated = pd.DataFrame([(a, b, 0.5, 80, 70, 10, 0.5) for a, b in pairs], columns=columns)
    found = rank_correlations(collated, "capacity")
    assert found["Model"].tolist() == ["topk", "heuristic-l1", "heuristic-l2"]
    assert found["3-CKA-Spearman"].isna().all(), "one pair has no order"


def test_depth_maps_across_data_sets(tmp_path):
    runs = [keeping(method, dataset=dataset) for method in ("topk", "l2") for dataset in ("coco", "imagenet", "digits")]
    runs += [grouping(), unreduced(), unreduced(where={**SMALL, "dataset": "coco"})]
    files = exported(runs, tmp_path, "datasets")
    assert list(files) == [*(f"token_stats_{tag}.json" for tag in ("IM", "COCO", "digits")), "heatmap_comparison.csv"]
    table = files["heatmap_comparison.csv"]
    names = ["Dataset1", "Dataset2", "Model1", "Model2", "KLD12", "KLD21", "JSD", "PCC", "SCC", "EMD", "SIM"]
    assert list(table.columns) == names
    assert table[names[:2]].to_numpy().tolist() == [["IM", "COCO"], ["IM", "digits"], ["COCO", "digits"]]
    assert set(table["Model1"]) == set(table["Model2"]) == {"topk_small_patch16_224-3_6_9-_0.5"}, "no pattern, no DeiT"
    m1, m2 = (
        np.array(files[f"token_stats_{tag}.json"][table["Model1"][0]]["Mean-Token-Depth-Spatial"])
        for tag in ("IM", "COCO")
    )
    p, q = m1 / m1.sum(), m2 / m2.sum()
    avg, first = (p + q) / 2, table.iloc[0]
    assert first["KLD12"] == pytest.approx((q * np.log2(q / p)).sum(), abs=1e-12)
    assert first["KLD21"] == pytest.approx((p * np.log2(p / q)).sum(), abs=1e-12)
    assert first["JSD"] == pytest.approx(
        (avg * np.log2(avg / p)).sum() / 2 + (avg * np.log2(avg / q)).sum() / 2, abs=1e-12
    )
    assert first["PCC"] == pytest.approx(np.corrcoef(m1, m2)[0, 1]) and first["SCC"] == pytest.approx(
        spearmanr(m1, m2).statistic
    )


def test_a_grid_that_is_no_square_is_asked_for():
    runs = {tag: {"topk_x-3-_0.5": {"Mean-Token-Depth-Spatial": [1.0, 2, 3, 4, 5, 6]}} for tag in ("IM", "NAB")}
    with pytest.raises(UsageError, match=r"^the 6 patches of 'topk_x-3-_0.5' are no square; give the grid$"):
        heatmap_table(runs)
    (row,) = heatmap_table(runs, {"topk_x-3-_0.5": (2, 3)}).to_dict("records")
    assert row["PCC"] == pytest.approx(1) and row["EMD"] == pytest.approx(0, abs=1e-12)


def test_names_of_data_sets_and_capacities():
    assert [dataset_tag(name) for name in ("imagenet", "nabirds", "coco", "nuswide")] == ["IM", "NAB", "COCO", "NUS"]
    assert dataset_tag("folder:/data/birds") == "folder-data-birds" and dataset_tag("imagenette") == "imagenette"
    names = ("deit_base_patch16_224", "vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_digits")
    assert [capacity(name) for name in names] == ["base", "tiny", "small", "vit_digits"]


def test_records_are_read_from_files_and_tables_without_a_row_are_not_written(tmp_path):
    paths = [run.save(tmp_path / f"{place}.npz") for place, run in enumerate([keeping(rate=0.9), grouping(rate=0.5)])]
    assert [path.name for path in export_tables(paths, tmp_path / "out", "rates")] == ["token_stats_IM.json"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def broken(table, file, **_):
        file.write("Model A;")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    with pytest.raises(KeyboardInterrupt):
        export_tables([keeping(rate=0.9), keeping(rate=0.5)], tmp_path, "rates")
    assert [path.name for path in tmp_path.iterdir()] == ["token_stats_IM.json"]


@pytest.mark.parametrize(
    ("runs", "axis", "message"),
    [
        ([], "seeds", r"^the reference has no files of axis 'seeds'; allowed: rates, capacity, methods, datasets$"),
        ([], "models", r"axis 'models'; allowed: capacity, datasets, methods, rates, seeds; did you mean 'methods'\?$"),
        (
            [{}, {"seed": 1}],
            "rates",
            r"^the reference has one run topk_.*_0.5 on IM; given two: seeds 0 and 1, weights",
        ),
        ([{}, {"weights": "b"}], "rates", r"given two: seeds 0 and 0, weights '' and 'b'; give one of them$"),
        ([{"image_ids": tuple("a" * n for n in range(IMAGES))}, {"rate": 0.9}], "rates", r"not of the same images"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, runs, axis, message):
    with pytest.raises(UsageError, match=message):
        export_tables([keeping(**run) for run in runs], tmp_path, axis)
    assert not list(tmp_path.glob("*.csv"))
