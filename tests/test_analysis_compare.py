"""Runs compared block by block: the numbers of the measures, what stands beside them, and many runs in one pass."""

import numpy as np
import pytest
from decided import record_of_stages

from common.analysis import agreement, cka, compare, compare_all, ioa, iou, iou_by_chance, kept_mask, labels, mean_cca
from common.errors import UsageError
from common.evaluation import Record, Stage

IMAGES, PATCHES = 60, 49
ROWS = np.random.default_rng(0)


def keeping(method="topk", share=0.5, *, order=None, **changes) -> Record:
    """Keeps the first patches of ``order`` (n, P), by default at random, in blocks 1 and 3."""
    order = ROWS.random((IMAGES, PATCHES)).argsort(1) if order is None else order
    counts = {1: int(share * PATCHES), 3: int(share**2 * PATCHES)}
    stages = {b: Stage(np.full(IMAGES, count), kept=order[:, :count]) for b, count in counts.items()}
    return record_of_stages(stages, method, (7, 7), IMAGES, **changes)


def grouping(method="tome", groups=12, **changes) -> Record:
    stage = Stage(np.full(IMAGES, groups), destination=ROWS.integers(0, groups, (IMAGES, PATCHES)))
    return record_of_stages({1: stage}, method, (7, 7), IMAGES, **changes)


def row(table, block, metric):
    (found,) = table[(table["block"] == block) & (table["metric"] == metric)].to_dict("records")
    return found


def test_sets_stand_beside_their_chance():
    a, b = keeping(), keeping("evit")
    table = compare(a, b)
    for block in (1, 3):
        masks = kept_mask(a, block), kept_mask(b, block)
        found = row(table, block, "iou")
        assert found["mean"] == pytest.approx(iou(*masks).mean(), abs=1e-12)
        assert found["sd"] == pytest.approx(iou(*masks).std(), abs=1e-12)
        assert found["chance"] == pytest.approx(iou_by_chance(*masks).mean(), abs=1e-12)
        assert found["low"] < found["chance"] < found["high"], "the runs have nothing to do with each other"
        assert row(table, block, "ioa")["mean"] == pytest.approx(ioa(*masks).mean(), abs=1e-12)
    assert set(table["n"]) == {IMAGES}


def test_a_consistent_method_exceeds_chance_as_far_as_it_can():
    """Over rates the overlap is capped at the share of the numbers: .5 here, which reads as all there could be."""
    order = ROWS.random((IMAGES, PATCHES)).argsort(1)
    table = compare(keeping(share=0.9, order=order), keeping(share=0.45, order=order, keep_rate=0.45))
    found = row(table, 1, "iou")
    assert found["mean"] == pytest.approx(22 / 44) and found["sd"] == pytest.approx(0, abs=1e-12)
    excess = row(table, 1, "iou_excess")
    assert (excess["mean"], excess["low"], excess["high"], excess["chance"]) == pytest.approx((1, 1, 1, 0))


def test_groups_stand_beside_their_chance():
    a, b = grouping(), grouping("dpcknn")
    table, wanted = compare(a, b), agreement(labels(a, 1), labels(b, 1))
    for metric in ("homogeneity", "completeness", "nmi", "ami"):
        assert row(table, 1, metric)["mean"] == pytest.approx(wanted[metric].mean(), abs=1e-12)
    found = row(table, 1, "nmi")
    assert found["chance"] == pytest.approx(wanted["nmi_chance"].mean(), abs=1e-12) and found["chance"] > 0.3
    assert found["low"] < found["chance"] < found["high"]
    assert row(table, 1, "ami")["low"] < 0 < row(table, 1, "ami")["high"]


def test_features_are_one_number_with_an_interval():
    x = ROWS.normal(size=(IMAGES, 4))
    y = x @ ROWS.normal(size=(4, 3)) + 0.3 * ROWS.normal(size=(IMAGES, 3))
    a, b = keeping(cls={1: x, 5: x}), keeping("evit", cls={1: y})
    table, literal = compare(a, b), compare(a, b, parity=True)
    assert row(table, 1, "cka")["mean"] == pytest.approx(cka(x, y), abs=1e-12)
    assert row(literal, 1, "cka")["mean"] == pytest.approx(cka(x, y, debiased=False), abs=1e-12)
    found = row(table, 1, "mean_cca")
    assert found["mean"] == pytest.approx(mean_cca(x, y), abs=1e-12) and found["low"] < found["mean"] < found["high"]
    assert found["chance"] < 0.3 < found["mean"]
    assert 5 not in set(table["block"]), "only one of them has features there"
    assert row(table, 1, "pwcca")["chance"] == pytest.approx(1 - found["chance"])


def test_other_images_and_nothing_in_common_are_refused():
    a, b = keeping(), keeping("evit")
    other = keeping("evit", image_ids=tuple(map(str, range(IMAGES, 2 * IMAGES))))
    with pytest.raises(UsageError, match=r"topk.* and .*evit.* are not of the same images in the same order$"):
        compare(a, other)
    with pytest.raises(UsageError, match=r"share no block with anything to compare$"):
        compare(a, grouping())
    assert len(compare(a, b))


def test_all_runs_of_an_axis_are_compared_in_one_pass(tmp_path):
    order = ROWS.random((IMAGES, PATCHES)).argsort(1)
    runs = [keeping(share=rate, order=order, keep_rate=rate) for rate in (0.5, 0.9)] + [keeping("evit"), grouping()]
    paths = [run.save(tmp_path / f"{place}.npz") for place, run in enumerate(runs)]
    rates = compare_all(paths, "rates")
    assert list(rates.columns) == ["axis", "a", "b", "block", "metric", "mean", "sd", "low", "high", "n", "chance"]
    single = compare(runs[1], runs[0])
    assert rates["mean"].tolist() == single["mean"].tolist()
    assert set(rates["a"]) == {runs[1].setting.key} and set(rates["b"]) == {runs[0].setting.key}
    methods = compare_all(runs, "methods")
    assert set(zip(methods["a"], methods["b"], strict=True)) == {(runs[0].setting.key, runs[2].setting.key)}
    assert set(methods["axis"]) == {"methods"}


def test_data_sets_have_no_image_in_common():
    with pytest.raises(UsageError, match=r"no image in common; compare their maps: compare_maps$"):
        compare_all([keeping(), keeping(dataset="other")], "datasets")
    assert compare_all([keeping()], "rates").empty
