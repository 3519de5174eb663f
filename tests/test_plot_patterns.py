"""Figures of what runs decide: the cells are the numbers, the tree is that of average linkage, bad input is refused."""

from __future__ import annotations

import io
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from common import plots
from common.errors import UsageError
from common.plots.style import to_png

# Two close pairs, far from each other.
SIMILAR = {"ab": 0.9, "ac": 0.3, "ad": 0.2, "bc": 0.4, "bd": 0.1, "cd": 0.8}


def agreement(values=SIMILAR, chance=None, **more) -> pd.DataFrame:
    rows = [
        {"a": pair[0], "b": pair[1], "mean": value, "chance": 0.05 + value / 10 if chance is None else chance}
        for pair, value in values.items()
    ]
    table = pd.DataFrame(rows).assign(**{"metric": "iou", "block": 9, **more})
    return table.assign(label_a=table["a"].str.upper(), label_b=table["b"].str.upper())


def shown(ax) -> dict[tuple[str, str], float]:
    """The number of each cell by the labels of its row and column."""
    rows, columns = ([tick.get_text() for tick in ticks] for ticks in (ax.get_yticklabels(), ax.get_xticklabels()))
    values = ax.images[0].get_array()
    assert [text.get_position() for text in ax.texts] == [
        (column, row) for row, column in np.ndindex(values.shape) if not np.ma.is_masked(values[row, column])
    ]
    for text in ax.texts:
        column, row = text.get_position()
        assert float(text.get_text().replace("\N{MINUS SIGN}", "-")) == pytest.approx(values[row, column], abs=0.0051)
    return {
        (rows[row], columns[column]): float(values[row, column])
        for row, column in np.ndindex(values.shape)
        if not np.ma.is_masked(values[row, column])
    }


def of(table, column) -> dict[tuple[str, str], float]:
    """The numbers of a table by both labels, in both orders."""
    rows = zip(table["label_a"], table["label_b"], table[column], strict=True)
    return {pair: value for a, b, value in rows for pair in ((a, b), (b, a))}


def merges(ax) -> list[float]:
    """Where the branches of the tree beside a matrix end."""
    (tree,) = ax.child_axes
    return sorted(max(line.get_xdata()) for line in tree.lines)


def test_measured_stands_above_the_diagonal_and_chance_below():
    table = agreement()
    fig = plots.agreement_dendrogram(table, "iou", 9)
    ax, _ = fig.axes
    order = [tick.get_text() for tick in ax.get_yticklabels()]
    assert order == [tick.get_text() for tick in ax.get_xticklabels()] and sorted(order) == list("ABCD")
    cells, measured, chance = shown(ax), of(table, "mean"), of(table, "chance")
    assert len(cells) == 12, "the diagonal is empty"
    for (row, column), value in cells.items():
        wanted = measured if order.index(row) < order.index(column) else chance
        assert value == pytest.approx(wanted[row, column])
    assert fig.get_supxlabel().replace("\n", " ") == (
        "IoU of kept patches, after block 9. Above the diagonal what was measured, below it what chance would give."
    )


def test_the_tree_is_average_linkage_and_close_runs_stand_side_by_side():
    ax = plots.agreement_dendrogram(agreement(), "iou", 9).axes[0]
    between = 1 - np.mean([SIMILAR[pair] for pair in ("ac", "ad", "bc", "bd")])
    assert merges(ax) == pytest.approx([1 - 0.9, 1 - 0.8, between])
    order = "".join(tick.get_text() for tick in ax.get_yticklabels())
    assert order in ("ABCD", "BACD", "DCAB", "DCBA", "ABDC", "CDAB", "CDBA", "BADC")
    assert order in ("ABCD", "DCBA") or {order[1], order[2]} == {"B", "C"}, "of B and C, which are most similar"
    (tree,) = ax.child_axes
    assert tree.get_ylim() == ax.get_ylim(), "leaves are at the rows"
    assert tree.get_xlabel() == "1 \N{MINUS SIGN} IoU"


def test_of_distances_the_small_ones_are_joined_and_dark():
    values = {pair: 1 - value for pair, value in SIMILAR.items()}
    fig = plots.agreement_dendrogram(agreement(values, chance=np.nan, metric="procrustes"), "procrustes", 9)
    ax = fig.axes[0]
    assert merges(ax)[:2] == pytest.approx([0.1, 0.2])
    assert shown(ax) == pytest.approx(of(agreement(values), "mean")), "both sides, as no chance is known"
    assert (
        fig.get_supxlabel().replace("\n", " ")
        == "Procrustes distance, after block 9. What chance would give is not known."
    )
    cells = ax.images[0]
    near, far = (sum(cells.cmap(cells.norm(value))[:3]) for value in (0.1, 0.9))
    assert near < far


def test_one_chance_for_all_is_said_in_words():
    table = agreement(SIMILAR | {"ab": -0.004}, chance=0.0, metric="ami")
    fig = plots.agreement_dendrogram(table, "ami", 9)
    assert shown(fig.axes[0]) == pytest.approx(of(table, "mean"))
    assert fig.get_supxlabel().replace("\n", " ") == "AMI of groups, after block 9. Chance would give 0."
    assert "\N{MINUS SIGN}0.00" not in [text.get_text() for text in fig.axes[0].texts]


def test_panels_have_trees_of_their_own_and_one_scale():
    other = {pair: value for pair, value in SIMILAR.items() if "d" not in pair}
    table = pd.concat([agreement(panel="keep rate 0.9"), agreement(other, panel="keep rate 0.5")])
    first, second, scale = plots.agreement_dendrogram(table, "iou", 9).axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["keep rate 0.9", "keep rate 0.5"]
    assert len(first.get_yticks()) == 4 and len(second.get_yticks()) == 3 and len(merges(second)) == 2
    assert first.images[0].norm is second.images[0].norm
    assert scale.get_ylim() == pytest.approx((0.05 + 0.1 / 10, 0.9))


def test_long_names_stand_at_the_rows_and_their_numbers_at_the_columns():
    table = agreement().assign(label_a=lambda rows: "method " + rows["a"], label_b=lambda rows: "method " + rows["b"])
    ax = plots.agreement_dendrogram(table, "iou", 9).axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == list("1234")
    assert [tick.get_text()[-3:] for tick in ax.get_yticklabels()] == ["  1", "  2", "  3", "  4"]


def test_rows_of_other_metrics_and_blocks_are_not_drawn():
    table = pd.concat([agreement(), agreement({"ab": 0.5}, block=6), agreement({"ab": 0.5}, metric="nmi")])
    assert shown(plots.agreement_dendrogram(table, "iou", 9).axes[0]) == shown(
        plots.agreement_dendrogram(agreement(), "iou", 9).axes[0]
    )
    maps = agreement(metric="SCC", block=np.nan, chance=np.nan)
    fig = plots.agreement_dendrogram(maps, "SCC")
    assert fig.get_supxlabel().replace("\n", " ").startswith("Rank correlation of depth maps. ")


def test_many_runs_fit_into_a_file(tmp_path):
    values = {
        first + second: 0.5 + (ord(first) - ord(second)) / 50 for first, second in combinations("abcdefghijklmn", 2)
    }
    table = pd.concat([agreement(values, panel=f"keep rate {rate}") for rate in (0.9, 0.7, 0.5)])
    path = plots.save(plots.agreement_dendrogram(table, "iou", 9), tmp_path / "x.png")
    assert path.stat().st_size < 150_000 and Image.open(path).width >= 900


@pytest.mark.parametrize(
    ("table", "metric", "message"),
    [
        (agreement(), "ioa", "unknown metric that is the same in both orders 'ioa'; allowed: EMD, .*iou"),
        (agreement().drop(columns="label_a"), "iou", "agreement_dendrogram needs column 'label_a'"),
        (agreement(block=3), "iou", "^agreement_dendrogram has no row of 'iou' after block 9$"),
        (agreement()[:-1], "iou", "^agreement_dendrogram needs one number for each pair of the 4 runs$"),
        (agreement(panel="x")[1:], "iou", "each pair of the 4 runs of panel 'x'$"),
        (agreement(SIMILAR | {"ab": np.nan}), "iou", "each pair of the 4 runs$"),
        (agreement({"ab": 0.1, "ac": 0.2, "ca": 0.2}), "iou", "each pair of the 3 runs$"),
    ],
)
def test_what_is_no_agreement_is_refused(table, metric, message):
    with pytest.raises(UsageError, match=message):
        plots.agreement_dendrogram(table, metric, 9)


def drawn_maps(fig) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in fig.axes[:-1] if ax.images]


def test_depth_maps_are_the_numbers_on_one_scale():
    maps = {f"method {number}": np.full((2, 3), number) + np.eye(2, 3) for number in range(9)}
    fig = plots.depth_maps(maps, 12)
    for found, wanted in zip(drawn_maps(fig), maps.values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
    *panels, scale = fig.axes
    assert [ax.get_title() for ax in panels if ax.images] == list(maps)
    assert {ax.images[0].norm.vmin for ax in panels if ax.images} == {0}
    assert {ax.images[0].norm.vmax for ax in panels if ax.images} == {12}
    assert scale.get_ylabel() == "Blocks passed, mean (of 12)"
    floors = sorted({round(ax.get_position().y0, 6) for ax in panels if ax.images}, reverse=True)
    assert [sum(round(ax.get_position().y0, 6) == floor for ax in panels if ax.images) for floor in floors] == [7, 2]


def test_maps_of_one_title_stand_below_each_other():
    maps = {"Top-K": {"0.9": np.full((2, 2), 5.0), "0.5": np.full((2, 2), 3.0)}, "ATS": {"0.5": np.full((2, 2), 1.0)}}
    first, second, empty, third, _ = plots.depth_maps(maps, 6).axes
    assert (first.get_title(), second.get_title(), third.get_title()) == ("0.9", "0.5", "")
    assert (first.get_ylabel(), empty.get_ylabel()) == ("Top-K", "ATS") and not empty.images
    assert third.get_position().x0 == second.get_position().x0 and third.get_position().y1 < second.get_position().y0
    assert to_hex(third.images[0].cmap(third.images[0].norm(1.0))) != to_hex(
        second.images[0].cmap(second.images[0].norm(3.0))
    )


@pytest.mark.parametrize(
    ("maps", "depth", "message"),
    [
        ({}, 12, "depth_maps needs at least one map; given: none"),
        ({"a": {}}, 12, "needs at least one map"),
        ({"a": np.ones(4)}, 12, r"map 'a' has shape \(4,\); allowed: \(h, w\)"),
        ({"a": np.full((2, 2), 13.0)}, 12, "map 'a' goes from 13 to 13; allowed: 0 to 12 blocks"),
        ({"a": np.full((2, 2), -1.0)}, 12, "map 'a' goes from -1"),
        ({"a": np.full((2, 2), np.nan)}, 12, "map 'a' has NaN"),
        ({"a": np.ones((2, 2))}, 0, "depth=0 is not allowed; give a whole number >= 1"),
    ],
)
def test_what_are_no_depths_is_refused(maps, depth, message):
    with pytest.raises(UsageError, match=message):
        plots.depth_maps(maps, depth)


def test_patches_of_two_methods_have_three_colours_and_the_rest_is_pale():
    masks = {"one": np.array([1, 1, 0, 0], bool), "other": np.array([1, 0, 1, 0], bool)}
    fig = plots.kept_by_two(np.zeros((3, 4, 4)), masks, patch_grid=(2, 2))
    drawn = fig.axes[1].images[0].get_array()  # (4, 4, 3), patches of 2 x 2 pixels
    colours = [np.array(to_rgb(colour)) for colour in ("#009E73", "#0072B2", "#D55E00")]
    for place, colour in zip(((0, 0), (0, 2), (2, 0)), colours, strict=True):
        np.testing.assert_allclose(drawn[place], 0.45 * colour)
    np.testing.assert_allclose(drawn[2:, 2:], 0.75)
    assert fig.axes[1].get_title() == "1 of 3 patches by both"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["one and other", "one only", "other only"]
    with pytest.raises(UsageError, match=r"compares two methods; given: one$"):
        plots.kept_by_two(np.zeros((3, 4, 4)), {"one": masks["one"]}, patch_grid=(2, 2))


def test_a_legend_beside_a_photograph_keeps_its_colours():
    """All colours of a picture are different here, and want a place among the 256 of the file."""
    masks = {"one": np.arange(16) < 8, "other": np.arange(16) % 2 == 0}
    image = np.random.default_rng(0).random((3, 64, 64))
    data = to_png(plots.kept_by_two(image, masks, patch_grid=(4, 4)))
    saved = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for colour in ("#009E73", "#0072B2", "#D55E00", "#FFFFFF"):
        exact = np.round(255 * np.array(to_rgb(colour))).astype(int)
        assert (saved == exact).all(-1).sum() > 100, colour


def test_correlations_stand_by_strength_and_certain_ones_are_filled():
    names = ["pairs", "label", "correlation", "correlation_low", "correlation_high", "p"]
    rows = [
        ("x", "weak", 0.1, -0.3, 0.5, 0.6),
        ("x", "strong", -0.9, -1.0, -0.7, 0.001),
        ("y", "weak", 0.4, 0.2, 0.6, 0.04),
    ]
    rows.append(("y", "none", np.nan, np.nan, np.nan, np.nan))
    fig = plots.correlation_forest(pd.DataFrame(rows, columns=names))
    (ax,) = fig.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["weak", "strong"], "from below"
    points = {}
    for line in ax.lines:
        for x, y in zip(*line.get_data(), strict=True):
            if line.get_marker() != "None":
                points[float(x)] = round(float(y)), line.get_markerfacecolor() != "white"
    assert points == {0.1: (0, False), -0.9: (1, True), 0.4: (0, True)}
    with pytest.raises(UsageError, match=r"several rows for pairs=x, label=weak"):
        plots.correlation_forest(pd.DataFrame([rows[0], rows[0]], columns=names))


def by_block(**more) -> pd.DataFrame:
    rows = [
        {"method": method, "options": "", "keep_rate": rate, "block": block, "mean": mean + block / 10}
        for method, mean in (("topk", 0.1), ("tome", 0.3))
        for rate in (0.5, 0.9)
        for block in (3, 1)
    ]
    table = pd.DataFrame(rows).assign(pair="S and Ti", chance=0.0, **more)
    return table.assign(low=table["mean"] - 0.05, high=table["mean"] + 0.05)


def test_agreement_by_block_is_a_line_per_method_and_a_panel_per_rate():
    fig = plots.agreement_by_block(by_block(), "iou_excess")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["S and Ti\nkeep rate 90 %", "keep rate 50 %"]
    for ax in fig.axes:
        lines = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
        assert list(lines) == ["Top-K", "ToMe"] and ax.get_xticks().tolist() == [1, 3]
        assert lines["Top-K"].get_ydata().tolist() == pytest.approx([0.2, 0.4])
        assert lines["Top-K"].get_xdata() == pytest.approx([1, 3], abs=0.1)
        (chance,) = (line for line in ax.lines if line.get_linestyle() == ":")
        assert set(chance.get_ydata()) == {0}
    two = pd.concat([by_block(), by_block().assign(pair="B and S", mean=np.nan)])
    assert len(plots.agreement_by_block(two, "iou_excess").axes) == 2, "rows without a number are left out"


def similar() -> pd.DataFrame:
    values = {name: [0.2, 0.9, 1.0] for name in ("PCC", "SCC", "SIM")}
    values |= {name: [0.4, 0.05, 0.0] for name in ("JSD", "KLD12", "KLD21", "EMD")}
    return pd.DataFrame({"label": ["Top-K", "ATS", "two halves"], "panel": "50 %", "pair": "a and b", **values})


def test_alike_maps_are_dark_by_every_measure():
    (ax,) = plots.map_similarity(similar()).axes
    shades = ax.images[0].get_array()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["PCC", "SCC", "SIM", "JSD", "KLD12", "KLD21", "EMD"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["Top-K", "ATS", "two halves"]
    assert shades[:, 0].tolist() == pytest.approx([0] * 7) and shades[:, 2].tolist() == pytest.approx([1] * 7)
    assert (shades[:, 1] > 0.8).all()
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert (texts[0, 0], texts[1, 3], texts[1, 6]) == ("0.20", "0.0500", "0.05")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.agreement_by_block(by_block(), "ioa"), "unknown metric that is the same in both orders"),
        (lambda: plots.agreement_by_block(by_block(block=3), "ami"), "agreement_by_block has several rows"),
        (lambda: plots.agreement_by_block(by_block(mean=np.nan), "ami"), "needs at least one row"),
        (lambda: plots.map_similarity(similar().drop(columns="SIM")), "map_similarity needs column 'SIM'"),
        (lambda: plots.map_similarity(pd.concat([similar(), similar()])), "map_similarity has several rows"),
    ],
)
def test_what_is_not_elsewhere_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_titles_of_maps_may_have_two_lines():
    maps = {"Top-K": {"digits\n90 %": np.full((4, 4), 3.0), "tiles\n90 %": np.full((4, 4), 2.0)}}
    fig = plots.depth_maps(maps, 6)
    assert fig.axes[0].get_title() == "digits\n90 %" and fig.axes[0].title.get_fontsize() > 8
