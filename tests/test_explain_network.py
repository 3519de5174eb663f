"""The multiplex network of attention maps against literal computations: degrees, the nine statistics, masks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from common.explain.mutex import MASKS
from common.explain.network import (
    AGGREGATIONS,
    DEGREES,
    STATISTICS,
    across_layers,
    masks_above,
    significant,
    weighted_degrees,
)
from common.models.observe import AttentionLayer

HEADS, PATCHES = 3, 5


def layer_of(attention, prefix=0, valid=None, assignment=None):
    """Maps (B, H, N, N) of a layer in which, unless ``assignment`` says otherwise, every patch token is a patch."""
    if assignment is None:
        assignment = torch.arange(attention.shape[-1] - prefix).expand(len(attention), -1)
    return AttentionLayer(attention, assignment, prefix, valid)


def literal_degrees(attention, min_cut):
    """(3, 2, n) of maps (H, n, n), arc by arc."""
    heads, n, _ = attention.shape
    found = np.zeros((3, 2, n))
    for a, aggregate in enumerate((min, max, sum)):
        weight = [[aggregate(float(attention[h, i, j]) for h in range(heads)) for j in range(n)] for i in range(n)]
        strongest = max(max(row) for row in weight)
        for i in range(n):
            for j in range(n):
                if weight[i][j] >= min_cut * strongest:
                    found[a, 0, j] += weight[i][j]  # query i pays key j: the arc comes in at j ...
                    found[a, 1, i] += weight[i][j]  # ... and goes out of i
    return torch.from_numpy(found).float()


def literal_statistics(degrees, parity):
    """(9, P) of degrees (L, P), node by node, with scipy where it has the measure."""
    columns = []
    for row in degrees.double().numpy().T:
        constant = bool((row == row[0]).all())
        moments = (math.nan, math.nan) if parity else (0.0, 0.0)
        std = row.std(ddof=1) if len(row) > 1 else 0.0
        columns.append(
            [
                stats.entropy(row) if row.sum() > 0 else 0.0,
                row.max(),
                row.min(),
                row.sum(),
                std,
                row.sum() / (std + 1e-8),
                sorted(row)[(len(row) - 1) // 2],
                *(moments if constant else (stats.skew(row), stats.kurtosis(row))),
            ]
        )
    return torch.tensor(columns).T


def test_the_54_masks_stand_in_the_published_order():
    assert list(AGGREGATIONS) == ["min", "max", "sum"] and list(DEGREES) == ["in", "out"]
    assert (*("coherence", "max", "min", "sum", "std", "sum_over_std", "median", "skewness", "kurtosis"),) == STATISTICS
    assert len(MASKS) == len(set(MASKS)) == 54
    assert MASKS[0] == ("min", "in", "coherence") and MASKS[8] == ("min", "in", "kurtosis")
    assert MASKS[9] == ("min", "out", "coherence") and MASKS[18] == ("max", "in", "coherence")
    assert MASKS[53] == ("sum", "out", "kurtosis")


@pytest.mark.parametrize("min_cut", [0.0, 0.01, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_degrees_equal_the_sum_over_arcs(min_cut, prefix):
    """Prefix tokens are no nodes: neither their arcs nor, for the cut, their weights count."""
    attention = torch.rand(2, HEADS, prefix + PATCHES, prefix + PATCHES)
    attention[:, :, :prefix] *= 10
    attention[:, :, :, :prefix] *= 10
    found = weighted_degrees(layer_of(attention, prefix), min_cut)
    assert found.shape == (2, 3, 2, PATCHES) and found.dtype == torch.float32
    for image, degrees in zip(attention, found, strict=True):
        torch.testing.assert_close(degrees, literal_degrees(image[:, prefix:, prefix:], min_cut), rtol=1e-6, atol=1e-6)


def test_in_degrees_add_up_what_a_patch_receives_and_out_degrees_what_it_pays():
    attention = torch.zeros(1, 1, 3, 3)
    attention[0, 0, 0, 2] = 1.0  # query 0 looks at key 2
    found = weighted_degrees(layer_of(attention), 0.01)
    for aggregation in range(3):
        assert found[0, aggregation, 0].tolist() == [0, 0, 1] and found[0, aggregation, 1].tolist() == [1, 0, 0]


def test_an_arc_exactly_at_the_cut_survives_and_each_layer_has_its_own_cut():
    attention = torch.tensor([[[[0.5, 0.25], [0.125, 0.0625]]]])
    in_degree = weighted_degrees(layer_of(attention), 0.5)[0, 2, 0]
    assert in_degree.tolist() == [0.5, 0.25]
    images = torch.cat([attention, attention / 8])  # each image by its own strongest arc
    assert weighted_degrees(layer_of(images), 0.5)[1, 2, 0].tolist() == [0.5 / 8, 0.25 / 8]


def test_half_precision_maps_are_added_up_in_float32():
    attention = torch.full((1, 1, 300, 300), 1 / 300).bfloat16()
    found = weighted_degrees(layer_of(attention), 0.0)
    torch.testing.assert_close(found, torch.full_like(found, 300 * attention[0, 0, 0, 0].item()))


def test_padding_has_no_arcs():
    attention = torch.rand(2, HEADS, 5, 5)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    attention[1, :, :, 3:] = 0  # no query attends to padding, but its own rows are there
    assignment = torch.tensor([[0, 1, 2, 3, 4], [0, 1, -1, 2, -1]])
    found = weighted_degrees(layer_of(attention, 0, valid, assignment), 0.01)
    torch.testing.assert_close(found[0], literal_degrees(attention[0], 0.01))
    expected = literal_degrees(attention[1, :, :3, :3], 0.01)
    torch.testing.assert_close(found[1][..., [0, 1, 3]], expected)
    assert found[1][..., [2, 4]].eq(0).all()


def test_patches_share_the_mass_of_their_token_evenly():
    layer = layer_of(torch.rand(1, 1, 4, 4), prefix=1, assignment=torch.tensor([[0, 1, 1, 2, 1, -1]]))
    spread = layer.to_patches(torch.tensor([[5.0, 6.0, 7.0]]))
    assert spread.tolist() == [[5, 2, 2, 7, 2, 0]]
    assert layer.from_patches(spread).tolist() == [[5, 6, 7]]
    assert layer.from_patches(torch.arange(6.0)[None]).tolist() == [[0, 1 + 2 + 4, 3]]  # the last was dropped


def test_the_way_to_the_patches_and_back_conserves_mass_where_nothing_was_dropped():
    assignment = torch.stack([torch.arange(7).remainder(4), torch.arange(7).flip(0).div(2).floor().long()])
    layer = layer_of(torch.rand(2, 1, 4, 4), assignment=assignment)
    for shape in ((2, 4), (2, 3, 4), (2, 3, 2, 4)):
        tokens = torch.rand(shape)
        patches = layer.to_patches(tokens)
        assert patches.shape == (*shape[:-1], 7)
        torch.testing.assert_close(patches.sum(-1), tokens.sum(-1))
        torch.testing.assert_close(layer.from_patches(patches), tokens)
    dropped = replace(layer, assignment=assignment.masked_fill(assignment == 3, -1))
    assert dropped.to_patches(torch.ones(2, 4)).sum(-1).tolist() == [3, 3]


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 5, 12])
def test_the_nine_statistics_equal_scipy_and_numpy(layers, parity):
    degrees = torch.rand(layers, 40) * torch.logspace(-3, 2, 40)
    degrees[:, 0] = 0.0
    degrees[:, 1] = 0.7
    degrees[: layers // 2, 2] = 0.0
    degrees = degrees.double() if parity else degrees  # under parity nothing is more exact than what is given
    found = across_layers(degrees, parity=parity)
    assert found.shape == (9, 40) and found.dtype == degrees.dtype
    expected = literal_statistics(degrees, parity).to(degrees.dtype)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6, equal_nan=True)


def test_statistics_take_leading_dimensions_one_by_one():
    degrees = torch.rand(2, 3, 2, 6, 10)
    found = across_layers(degrees)
    assert found.shape == (2, 3, 2, 9, 10)
    assert torch.equal(found[1, 2, 0], across_layers(degrees[1, 2, 0]))


def test_the_median_of_an_even_number_of_layers_is_the_lower_one():
    degrees = torch.tensor([[4.0], [1.0], [3.0], [2.0]])
    assert across_layers(degrees)[STATISTICS.index("median")].item() == 2.0


def test_coherence_is_the_entropy_of_the_shares():
    coherence = across_layers(torch.tensor([[1.0, 3.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]))[0]
    assert coherence.tolist() == pytest.approx([0.5 * math.log(2) + 2 * 0.25 * math.log(4), 0.0, 0.0])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1.0, 1e4])
@pytest.mark.parametrize("layers", [1, 2, 12])
def test_by_default_no_statistic_is_ever_nan(scale, layers):
    for degrees in (torch.full((layers, 8), scale), scale * torch.rand(layers, 8), scale * torch.eye(layers, 8)):
        assert across_layers(degrees).isfinite().all()


def test_only_skewness_and_kurtosis_of_constant_rows_are_nan_under_parity():
    degrees = torch.rand(6, 5)
    degrees[:, 3] = 0.25
    undefined = across_layers(degrees, parity=True).isnan()
    assert undefined.nonzero().tolist() == [[7, 3], [8, 3]]
    assert across_layers(degrees)[7:, 3].tolist() == [0, 0]


def test_rounding_is_no_difference_between_layers():
    """What should be the same degree in all layers differs in the last digit: still constant."""
    degrees = torch.full((12, 1), 0.3)
    degrees[::2] = torch.nextafter(degrees[0], torch.tensor(1.0))
    assert across_layers(degrees)[7:, 0].tolist() == [0, 0]
    assert across_layers(degrees, parity=True)[7:, 0].isnan().all()


def test_patches_that_are_alive_in_one_layer_only_tie():
    """Skewness and kurtosis do not depend on the scale, so ties must survive rounding and be shown together."""
    degrees = torch.zeros(12, 50)
    degrees[torch.arange(50) % 12, torch.arange(50)] = torch.rand(50) + 0.01
    found = across_layers(degrees)
    assert len(found[7].unique()) == len(found[8].unique()) == 1
    assert found[7, 0].item() == pytest.approx(10 / math.sqrt(11)) and found[0].eq(0).all()


@pytest.mark.parametrize("heads", [1, 2, 3, 12])
def test_sums_of_whole_softmax_rows_are_equal(heads):
    """What all patches pay to all patches is the number of heads, whatever float32 makes of it."""
    attention = (4 * torch.randn(3, heads, 196, 196)).softmax(3)
    paid = weighted_degrees(layer_of(attention), 0.0)[:, 2, 1]
    assert len(paid.unique()) > 1
    assert significant(paid).unique().tolist() == [heads]


def test_significant_bits_are_those_of_the_value_whatever_its_size():
    values = torch.tensor([1 / 3, 5.0, 0.0, 2 / 7])
    for scale in (2.0**-20, 1.0, 2.0**20):
        found = significant(scale * values, bits=3)  # 0.3333 = 0.0101|01, 0.2857 = 0.0100|10 in binary
        assert (found / scale).tolist() == [0.3125, 5.0, 0.0, 0.3125]
    values = torch.rand(1000)
    torch.testing.assert_close(significant(values), values, rtol=2.0**-18, atol=0)


@pytest.mark.parametrize(
    ("token_ratio", "shown"), [(0.0, 196), (0.25, 148), (0.5, 99), (0.75, 50), (0.9, 20), (0.999, 1), (1.0, 1)]
)
def test_published_numbers_of_patches_are_shown_of_196(token_ratio, shown):
    values = torch.randperm(196).float().expand(2, 54, -1)
    masks = masks_above(values, token_ratio)
    assert masks.shape == (2, 54, 196) and masks.dtype == torch.bool
    assert (masks.sum(-1) == shown).all()
    assert values[masks].min() == 196 - shown  # the highest ones


@pytest.mark.parametrize(("count", "token_ratio", "shown"), [(100, 0.07, 94), (100, 0.29, 72), (64, 0.5, 33)])
def test_a_position_that_is_whole_in_decimal_is_not_moved_by_binary_rounding(count, token_ratio, shown):
    assert masks_above(torch.arange(float(count)), token_ratio).sum().item() == shown


def test_all_patches_tied_at_the_threshold_are_shown():
    values = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 2.0, 2.0, 2.0, 3.0]])
    assert masks_above(values, 0.5).tolist() == [[True] * 6, [False] + [True] * 5]
    assert masks_above(values, 1.0).sum(1).tolist() == [1, 1]
    assert masks_above(torch.ones(6), 1.0).all()


def test_nan_stands_at_the_top_and_is_hidden():
    """The published rule: 3 of 10 NaN leave 3 patches where 6 were meant; more than half leave none."""
    nan, finite = torch.full((3,), math.nan), torch.arange(7.0)
    assert masks_above(torch.cat([nan, finite]), 0.5).nonzero()[:, 0].tolist() == [7, 8, 9]
    assert not masks_above(torch.cat([nan, nan, finite[:4]]), 0.5).any()


def test_patches_of_constant_degree_are_hidden_under_parity_and_ranked_by_default():
    degrees = torch.rand(12, 10) + 0.5 * torch.eye(12, 10)
    degrees[:, :3] = 0.25
    hidden = masks_above(across_layers(degrees, parity=True), 0.0)
    assert hidden[:7].all()
    for mask in hidden[7:]:
        assert mask.tolist() == [False] * 3 + [True] * 7
    assert masks_above(across_layers(degrees), 0.0).all()
    degrees[:, :6] = 0.25
    assert masks_above(across_layers(degrees, parity=True), 0.5).any(1).tolist() == [True] * 7 + [False] * 2
