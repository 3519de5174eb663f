"""How deep patches come and how many tokens are left: by hand, and where the reference counts something else."""

import numpy as np
import pytest
from decided import record_of_stages

from common import create_model
from common.analysis import token_depth, token_statistics
from common.analysis.runs import RunData
from common.errors import UsageError
from common.evaluation import Stage

PRUNED = {
    1: Stage(np.array([3, 2]), kept=np.array([[0, 2, 3], [1, 3, -1]])),
    3: Stage(np.array([1, 2]), kept=np.array([[3, -1], [1, 3]])),
    4: Stage(np.array([1, 1]), kept=np.array([[3], [1]])),
}


def test_a_patch_is_as_deep_as_the_block_that_drops_it():
    assert token_depth(record_of_stages(PRUNED)).tolist() == [[3, 1, 3, 6], [1, 6, 1, 4]]
    assert token_depth(record_of_stages(PRUNED), depth=12).tolist() == [[3, 1, 3, 12], [1, 12, 1, 4]]
    assert token_depth(record_of_stages({1: PRUNED[1]})).tolist() == [[6, 1, 6, 6], [1, 6, 1, 6]]


def test_depth_is_the_definition_taken_literally():
    rng = np.random.default_rng(0)
    order = rng.random((50, 49)).argsort(1)
    stages = {block: Stage(np.full(50, k), kept=order[:, :k]) for block, k in ((0, 40), (3, 30), (6, 11))}
    record = record_of_stages(stages, grid=(7, 7), images=50)
    expected = np.full((50, 49), 12.0)
    for image in range(50):
        for patch in range(49):
            dropped = [block for block, stage in stages.items() if patch not in stage.kept[image]]
            expected[image, patch] = min(dropped, default=12)
    np.testing.assert_array_equal(token_depth(record, depth=12), expected, strict=True)
    assert token_depth(record, depth=12).sum() == 50 * (9 * 0 + 10 * 3 + 19 * 6 + 11 * 12)


def test_without_reduction_every_patch_comes_through_all_blocks():
    found = token_depth(record_of_stages({}, "none"))
    assert found.shape == (2, 4) and (found == len(create_model("vit_digits").blocks)).all()


def test_a_patch_that_idles_comes_back():
    computed = [[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 0, 1, 1], [1, 1, 0, 0]], [[0, 0, 1, 1], [1, 1, 0, 0]]]
    stages = {
        block: Stage(np.array([4, 4]), computed=np.array(c, bool)) for block, c in zip((3, 4, 5), computed, strict=True)
    }
    assert token_depth(record_of_stages(stages, "idle_topk")).tolist() == [[5, 4, 6, 5], [6, 5, 3, 3]]


def test_what_has_no_depth_is_refused():
    merged = record_of_stages({1: Stage(np.array([2, 2]), destination=np.zeros((2, 4), int))}, "sit")
    with pytest.raises(UsageError, match="the tokens of 'sit' are no patches"):
        token_depth(merged)
    with pytest.raises(UsageError, match=r"depth=4 is not allowed with stages \[1, 3, 4\]; give the number of blocks"):
        token_depth(record_of_stages(PRUNED), depth=4)
    with pytest.raises(UsageError, match="depth=0 is not allowed; give a whole number >= 1"):
        token_depth(record_of_stages(PRUNED), depth=0)


def test_kept_fractions_by_hand():
    table = token_statistics(record_of_stages(PRUNED))
    assert list(table.columns) == ["block", "metric", "mean", "sd", "low", "high", "n"]
    assert table["block"].tolist() == [1, 3, 4] and set(table["metric"]) == {"kept_fraction"} and set(table["n"]) == {2}
    assert table["mean"].tolist() == [0.625, 0.375, 0.25] and table["sd"].tolist() == [0.125, 0.125, 0]
    assert table["low"].tolist() == [0.5, 0.25, 0.25] and table["high"].tolist() == [0.75, 0.5, 0.25]
    assert token_statistics(record_of_stages({}, "none")).empty


def soft_record():
    """Ten images whose 196 patches fill 140 or 141 of 176 clusters; the network computes all 176."""
    used = np.where(np.arange(10) < 7, 140, 141)
    destination = np.arange(196) % used[:, None]
    return record_of_stages({3: Stage(np.full(10, 176), destination=destination)}, "sinkhorn", (14, 14), images=10)


def test_clusters_that_are_no_patch_s_favourite_are_tokens_too():
    """Trap 6: 0.898 of the tokens are computed; the reference counts 0.716."""
    record = soft_record()
    assert token_statistics(record)["mean"].item() == pytest.approx(176 / 196) == pytest.approx(0.898, abs=5e-4)
    published = token_statistics(record, parity=True)
    assert published["mean"].item() == pytest.approx(140.3 / 196) == pytest.approx(0.716, abs=5e-4)
    assert published["sd"].item() == pytest.approx(0.21**0.5 / 196)


def test_the_fused_token_of_evit_is_a_token():
    stages = {2: Stage(np.array([3, 3]), kept=np.array([[0, 1, -1], [2, 3, -1]]))}
    record = record_of_stages(stages, "evit")
    assert token_statistics(record)["mean"].item() == 0.75
    assert token_statistics(record, parity=True)["mean"].item() == 0.5


def test_both_ways_to_count_agree_where_tokens_are_patches():
    centres = Stage(
        np.array([2, 2]), kept=np.array([[0, 3], [1, 2]]), destination=np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    )
    for record in (record_of_stages(PRUNED), record_of_stages({1: centres}, "kmedoids")):
        assert token_statistics(record).equals(token_statistics(record, parity=True))


def test_the_interval_is_that_of_the_mean_and_not_of_the_images():
    """Trap 10: ATS keeps 20 to 40 of 49 patches; over 400 images the mean is known twenty times as well."""
    counts = np.random.default_rng(0).integers(20, 41, 400)
    record = record_of_stages({3: Stage(counts)}, "ats", (7, 7), images=400)
    (row,) = token_statistics(record).to_dict("records")
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * row["sd"] / 20, rel=0.1)
    narrow = token_statistics(record, confidence=0.5).iloc[0]
    assert narrow["high"] - narrow["low"] == pytest.approx(2 * 0.674 * row["sd"] / 20, rel=0.15)


@pytest.mark.parametrize("method", ["topk", "idle_topk"])
def test_a_run_makes_the_depths_of_its_images_anew_from_its_bits(method):
    """Also of patches that idle and come back."""
    draw = np.random.default_rng(0).random((5, 9)).argsort(1)
    first, then = (np.sort(draw[:, :count], axis=1) for count in (6, 3))
    masks = [np.zeros((5, 9), dtype=bool) for _ in range(2)]
    for mask, kept in zip(masks, (first, then), strict=True):
        np.put_along_axis(mask, kept, True, axis=1)
    parts = [{"kept": kept} if method == "topk" else {"computed": mask}
             for mask, kept in zip(masks, (first, then), strict=True)]  # fmt: skip
    stages = {block: Stage(np.full(5, 6), **part) for block, part in zip((1, 3), parts, strict=True)}
    record = record_of_stages(stages, method, (3, 3), 5)
    maps = RunData.of(record).depth_maps()
    np.testing.assert_array_equal(maps, token_depth(record).reshape(5, 3, 3))
    assert set(maps.ravel()) == ({1, 3, 6} if method == "topk" else {4, 5, 6})
