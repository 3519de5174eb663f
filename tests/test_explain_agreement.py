"""Agreement of heatmaps with what a reducer keeps: closed forms, chance by enumeration, every selecting reducer."""

from itertools import combinations, permutations

import pytest
import torch
from scipy.stats import spearmanr
from torch.utils.data import TensorDataset

from common import create_model, list_reducers
from common.data import make_loader
from common.errors import UsageError
from common.explain.agreement import Decisions, agreement, iou, iou_by_chance, rank_correlation
from common.explain.agreement import decisions_of as decisions_on
from common.explain.base import Explanation
from common.explain.explanations import Explanations
from common.reducers import reducer_class
from common.results import read_run, write_run
from common.setup import Setup
from common.studies.explain_agreement import ExplainAgreement, agreement_row, agreement_rows

PLANNED = {"patch_slimming"}  # the same patches in every image, by a plan and without a score
SELECTING = sorted({name for name in list_reducers() if reducer_class(name).selects} - PLANNED)
PATTERNS = ["l1", "l2", "linf"]
KEYS = ["method", "options", "reducer"]


def patches(*positions, count=6):
    """Bool (1, count)."""
    return torch.zeros(1, count).index_fill_(1, torch.tensor(positions), 1).bool()


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


def reduced(reducer, keep_rate=0.5, **options):
    torch.manual_seed(0)
    return create_model("vit_digits", reducer=reducer, keep_rate=keep_rate, **options)


@pytest.fixture(scope="module")
def dataset():
    return TensorDataset(torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(5))


def decisions_of(model, dataset, block=None, batch_size=32):
    return decisions_on(model, make_loader(dataset, batch_size, shuffle=False, seed=0), block)


def on_grid(values):
    return values.float().unflatten(1, (8, 8))


def test_rank_correlation_is_that_of_scipy_with_ties_too():
    generator = torch.Generator().manual_seed(0)
    heat = torch.randint(0, 12, (7, 64), generator=generator).float()
    scores = torch.rand(7, 64, generator=generator)
    expected = [spearmanr(a, b).statistic for a, b in zip(heat, scores, strict=True)]
    torch.testing.assert_close(rank_correlation(heat, scores), torch.tensor(expected).float())


def test_rank_correlation_by_hand():
    """1 - 6 sum d^2 / (P (P^2 - 1)) without ties: here sum d^2 = 2 of P = 4."""
    heat = row(0.1, 0.2, 0.4, 0.3)
    assert rank_correlation(heat, row(1, 2, 3, 4)).item() == pytest.approx(0.8)
    assert rank_correlation(heat, heat.exp() * 100).item() == pytest.approx(1)
    assert rank_correlation(heat, -heat).item() == pytest.approx(-1)


def test_values_that_rank_nothing_correlate_with_nothing():
    constant, ranked = torch.full((2, 6), 0.3), torch.arange(12.0).view(2, 6)
    for heat, scores in ((constant, ranked), (ranked, constant), (constant, constant)):
        assert rank_correlation(heat, scores).tolist() == [0, 0]


def test_iou_by_hand():
    heat = row(6, 5, 4, 3, 2, 1)
    assert iou(heat, patches(0, 1, 2)).item() == pytest.approx(1)
    assert iou(heat, patches(3, 4, 5)).item() == pytest.approx(0)
    assert iou(heat, patches(0, 1, 5)).item() == pytest.approx(2 / 4)
    assert iou(heat, patches(0, 4, 5)).item() == pytest.approx(1 / 5)
    assert iou(heat, patches(*range(6))).item() == pytest.approx(1)


def test_images_may_keep_different_numbers():
    heat, kept = row(6, 5, 4, 3, 2, 1).repeat(2, 1), torch.cat([patches(1), patches(0, 1, 2, 5)])
    torch.testing.assert_close(iou(heat, kept), torch.tensor([0, 3 / 5]))


@pytest.mark.parametrize("values", [(2, 2, 2, 1, 1, 0), (3, 1, 1, 1, 1, 1), (0, 0, 0, 0, 1, 1), (1,) * 6])
@pytest.mark.parametrize("positions", [(0,), (0, 5), (1, 2, 4), (0, 1, 2, 3, 4)])
def test_ties_count_as_the_mean_over_every_order_of_the_tied(values, positions):
    """All 720 orders of six patches, each sorted by heat alone."""
    kept, k = set(positions), len(positions)
    found = []
    for order in permutations(range(6)):
        hottest = set(sorted(order, key=lambda patch: -values[patch])[:k])
        found.append(len(hottest & kept) / len(hottest | kept))
    expected = sum(found) / len(found)
    assert iou(row(*values), patches(*positions)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("count", "k"), [(6, 1), (6, 3), (8, 5), (8, 8)])
def test_chance_is_the_mean_over_all_choices(count, k):
    kept = patches(*range(k), count=count)
    shared = [len(set(choice) & set(range(k))) for choice in combinations(range(count), k)]
    expected = sum(s / (2 * k - s) for s in shared) / len(shared)
    assert iou_by_chance(kept).item() == pytest.approx(expected, abs=1e-6)


def test_chance_is_what_random_heat_reaches():
    """A single patch of P is hit once in P times; 98 of 196 by 4000 random heatmaps."""
    torch.testing.assert_close(iou_by_chance(patches(3, count=196)), torch.tensor([1 / 196]))
    kept = patches(*range(98), count=196)
    drawn = iou(torch.rand(4000, 196, generator=torch.Generator().manual_seed(0)), kept.expand(4000, -1))
    assert iou_by_chance(kept).item() == pytest.approx(drawn.mean().item(), abs=3 * drawn.std().item() / 4000**0.5)


@pytest.mark.parametrize(
    ("measure", "other", "message"),
    [
        (rank_correlation, row(1, 2, 3), r"shapes \(1, 6\) and \(1, 3\) cannot be compared"),
        (iou, patches(1)[0], r"shapes \(1, 6\) and \(6,\) cannot be compared"),
        (rank_correlation, row(1, 2, 3, 4, 5, float("nan")), "NaN cannot be ranked"),
        (iou, torch.zeros(1, 6).bool(), "of which no patch is kept"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(measure, other, message):
    with pytest.raises(UsageError, match=message) as error:
        measure(row(1, 2, 3, 4, 5, 6), other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("measure", [rank_correlation, iou])
def test_heat_with_nan_is_refused(measure):
    with pytest.raises(UsageError, match="NaN cannot be ranked"):
        measure(row(1, 2, float("nan"), 4, 5, 6), patches(1, 2))


@pytest.mark.parametrize("reducer", SELECTING)
def test_every_selecting_reducer_agrees_wholly_with_itself(reducer, dataset):
    """Its own scores as heat correlate by 1, and what it keeps as heat overlaps wholly."""
    decisions = decisions_of(reduced(reducer), dataset, batch_size=3)
    assert decisions.block == 4 and decisions.kept.shape == (5, 64)
    with_itself = agreement(on_grid(decisions.kept), decisions)
    torch.testing.assert_close(with_itself["iou"], torch.ones(5))
    assert (with_itself["iou_chance"] < 0.5).all()
    if reducer in PATTERNS:
        assert decisions.scores is None and with_itself["rank_correlation"].isnan().all()
    else:
        found = agreement(on_grid(decisions.scores), decisions)
        torch.testing.assert_close(found["rank_correlation"], torch.ones(5))


@pytest.mark.parametrize("reducer", ["topk", "tram", "evit"])
def test_the_first_stage_keeps_the_patches_of_the_highest_scores(reducer, dataset):
    """32 of 64 after block 1: scores as heat overlap wholly with them, and turned round not at all."""
    decisions = decisions_of(reduced(reducer), dataset, block=1)
    assert decisions.kept.sum(1).tolist() == [32] * 5
    same, opposite = (agreement(on_grid(sign * decisions.scores), decisions) for sign in (1, -1))
    torch.testing.assert_close(same["iou"], torch.ones(5))
    assert opposite["iou"].max() < 1e-6 and opposite["rank_correlation"].max() < -0.999


def test_the_first_stage_is_the_first_that_drops(dataset):
    model = reduced("topk", keep_rate=(1.0, 0.5, 0.25))
    decisions = decisions_of(model, dataset)
    _, trace = model.eval().trace(dataset.tensors[0])
    assert torch.equal(decisions.scores, trace.scores[3]) and torch.equal(decisions.kept, trace.selected(4))
    assert decisions.kept.sum(1).tolist() == [16] * 5


def test_a_variant_without_scores_has_no_rank_correlation(dataset):
    decisions = decisions_of(reduced("kmedoids", equal_weight=True), dataset)
    assert decisions.scores is None and agreement(torch.rand(5, 8, 8), decisions)["rank_correlation"].isnan().all()


def test_the_batch_size_changes_nothing_and_the_model_stays_as_it_was(dataset):
    model = reduced("dynamicvit").train()
    single, whole = (decisions_of(model, dataset, batch_size=size) for size in (1, 5))
    assert model.training and model.reducer.training and all(p.requires_grad for p in model.parameters())
    assert torch.equal(single.kept, whole.kept)
    torch.testing.assert_close(single.scores, whole.scores)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (("tome",), {}, "reducer ToMe does not select patches; allowed: ats, dpcknn,"),
        (("none", 1.0), {}, "reducer NoReduction does not select patches"),
        (("topk", 1.0), {}, "no patch is dropped up to block 4"),
        (("topk",), {"block": 0}, "no patch is dropped up to block 0"),
        (("topk",), {"block": 6}, "block=6 is not allowed; allowed: blocks 0 to 5"),
        (("topk",), {"block": -1}, "block=-1 is not allowed"),
    ],
)
def test_models_without_a_decision_to_compare_are_refused_in_one_line(model, options, message, dataset):
    with pytest.raises(UsageError, match=message) as error:
        decisions_of(reduced(*model), dataset, **options)
    assert "\n" not in str(error.value)


def test_a_timm_model_that_is_not_reduced_is_refused(dataset):
    import timm

    with pytest.raises(UsageError, match="NoReduction does not select patches"):
        decisions_of(timm.create_model("vit_digits"), dataset)


def test_heatmaps_of_another_grid_or_number_of_images_are_refused(dataset):
    decisions = decisions_of(reduced("l2"), dataset)
    for shape in ((5, 7, 7), (4, 8, 8)):
        with pytest.raises(UsageError, match=r"cannot be compared; give one per patch, \(B, P\), to both"):
            agreement(torch.rand(shape), decisions)


def test_a_row_has_means_and_errors_of_what_is_compared():
    """Two images of four patches: the first agrees wholly, of the second nothing is shared; 2 of 4 by chance: 4/9."""
    kept = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    heat = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4]]).view(2, 2, 2)
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1]])
    found = agreement_row(Explanation(heat, torch.zeros(2)), Decisions(9, kept, scores))
    assert (found["block"], found["n_images"]) == (9, 2)
    assert (found["iou"], found["iou_sem"]) == pytest.approx((0.5, 0.5))
    # shared 0, 1, 2 of 2 with chances 1/6, 4/6, 1/6: IoU 0, 1/3, 1
    assert (found["iou_chance"], found["iou_chance_sem"]) == pytest.approx((4 / 18 + 1 / 6, 0), abs=1e-6)
    assert found["above_chance"] == pytest.approx(0.5 - 7 / 18)
    assert found["above_chance_by_image"].tolist() == pytest.approx([11 / 18, -7 / 18])
    assert (found["rank_correlation"], found["rank_correlation_sem"]) == pytest.approx((0, 1))
    assert found["rank_correlation_by_image"].tolist() == pytest.approx([1, -1])


def explained(number):
    torch.manual_seed(0)
    return Explanations(Setup("vit_digits", "", "digits", img_size=32, device="cpu"), number)


def test_rows_of_every_explainer_with_every_reducer():
    found, reducers = explained(5), ["topk:head_fusion=mean", "linf"]
    rows = list(agreement_rows(found, ["mutex:parity=true", "rollout"], reducers, 0.5, block=3))
    explainers = [("mutex", "parity=true"), ("rollout", "")]
    assert [tuple(r[key] for key in KEYS) for r in rows] == [(*e, model) for model in reducers for e in explainers]
    assert {(r["n_images"], r["block"], r["keep_rate"]) for r in rows} == {(5, 3, 0.5)}
    model = found.setup.reduced("linf", keep_rate=0.5)
    single = agreement(found.explain("rollout").heatmaps, decisions_on(model, found.setup.loader(found.dataset), 3))
    assert rows[3]["iou"] == pytest.approx(single["iou"].mean().item())
    assert rows[1]["iou_chance"] == pytest.approx(iou_by_chance(patches(*range(16), count=64)).item())


def test_rows_are_rows_of_the_table(tmp_path):
    """Written and read back; what a pattern has no scores for stays empty, as does the error of a single image."""
    found = explained(1)
    rows = list(agreement_rows(found, ["rollout"], ["topk", "linf"], 0.5))
    given = {"profile": "test", "image_ids": found.dataset.image_ids, **found.setup.conditions}
    frame = read_run(write_run(rows, ExplainAgreement, tmp_path / "run.csv", **given), ExplainAgreement)
    assert frame["reducer"].tolist() == ["topk", "linf"] and frame["rank_correlation"].isna().tolist() == [False, True]
    assert frame["iou_sem"].isna().all() and frame["iou"].tolist() == pytest.approx([row["iou"] for row in rows])
    assert frame["block"].tolist() == [4, 4] and frame["weights"].tolist() == ["random", "random"]


def test_an_unknown_explainer_is_refused():
    with pytest.raises(UsageError, match="unknown explainer 'guess'"):
        list(agreement_rows(explained(1), ["guess"], ["topk"], 0.5))
