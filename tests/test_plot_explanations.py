"""Figures of explanations: what is drawn are the numbers given, one image is enough, and bad input is refused."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image

from common import plots
from common.errors import UsageError
from common.explain import Mutex, list_explainers
from common.explain.mutex import MASKS
from common.plots.explainer_gallery import panel_side
from common.plots.heat import fitted_picture, overlay
from common.plots.mutex_studies import MASK_KINDS, PARAMETERS, masks_of_kind

SHARES = np.array([0, 0.1, 0.5, 1.0])
SETTING = {"options": "", "backbone": "vit_digits", "dataset": "digits", "img_size": 32, "keep_rate": 1.0, "seed": 0}
SETTING |= {"reducer": "none", "baseline": "black", "n_images": 60, "masks": ""}


def score(method: str, insertion: float, deletion: float, **given) -> dict:
    areas = {"insertion_auc": insertion, "insertion_auc_sem": 0.01, "deletion_auc": deletion, "deletion_auc_sem": 0.02}
    return {**SETTING, "part": "explainers", "method": method, **areas, **given}


def benchmark() -> pd.DataFrame:
    rows = [score("random", 0.4, 0.45), score("mutex", 0.6, 0.25), score("chefer", 0.55, 0.2)]
    rows.append(score("mutex", 0.5, 0.3, options="token_ratio=0.25"))
    values = {"min_cut": (0.1, 0.0, 0.01), "token_ratio": (0.9, 0.5), "starting_layer": (11, 0, 2)}
    rows += [
        score(
            "mutex", 0.6 + value / 100, 0.25, part="parameters", parameter=name, value=value, options=f"{name}={value}"
        )
        for name, chosen in values.items()
        for value in chosen
    ]
    parts = {"all": 0.6, "statistic=min": 0.5, "aggregation=min": 0.55, "degree=in": 0.52}
    rows += [score("mutex", area, 0.3, part="masks", masks=part) for part, area in parts.items()]
    return pd.DataFrame(rows)


def agreement() -> pd.DataFrame:
    numbers = {("mutex", "tram"): (0.5, 0.375), ("chefer", "tram"): (-0.25, 0.2), ("mutex", "l2"): (np.nan, 0.25)}
    rows = [
        {**SETTING, "method": explainer, "reducer": reducer, "block": 3, "rank_correlation": ranks}
        | {"above_chance": iou - 0.25}
        for (explainer, reducer), (ranks, iou) in numbers.items()
    ]
    return pd.DataFrame(rows).assign(rank_correlation_sem=0.02, above_chance_sem=0.034, keep_rate=0.5)


TABLES = {
    "insertion_deletion_plane": (plots.insertion_deletion_plane, benchmark, "deletion_auc_sem"),
    "parameter_study": (plots.parameter_study, benchmark, "insertion_auc"),
    "mask_ablation": (plots.mask_ablation, benchmark, "masks"),
    "agreement_matrix": (plots.agreement_matrix, agreement, "above_chance"),
}


def row(size: int = 32, **given) -> plots.HeatmapRow:
    waves = 0.5 + 0.5 * np.sin(np.arange(size) * 12 / size)
    image = np.stack([np.outer(waves, waves), np.outer(waves, 1 - waves), np.outer(1 - waves, waves)], axis=2)
    default = {"image": image, "class_name": "tench", "predicted": "tench", "probability": 0.981}
    default |= {"heatmap": np.arange(16.0).reshape(4, 4), "shares": SHARES}
    default |= {"insertion": [0, 0.5, 0.75, 1], "deletion": [1, 0.25, 0, 0], "insertion_auc": 0.7125}
    return plots.HeatmapRow(**{**default, "deletion_auc": 0.1125, **given})


def curves(insertion, deletion) -> SimpleNamespace:
    return SimpleNamespace(shares=SHARES, insertion=np.array(insertion), deletion=np.array(deletion))


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def picture(ax) -> np.ndarray:
    (drawn,) = ax.get_images()
    return np.asarray(drawn.get_array())


# --- one label and one look -----------------------------------------------------------------------------------------


def test_every_explainer_has_its_own_look():
    assert set(list_explainers()) <= set(plots.EXPLAINERS)
    looks = [plots.explainer_style(name) for name in plots.EXPLAINERS]
    for values in zip(*((look.label, look.color, look.marker) for look in looks), strict=True):
        assert len(set(values)) == len(looks)
    assert plots.explainer_style("tram").color == plots.method_style("tram").color
    assert plots.explainer_style("random").linestyle == "--"
    with pytest.raises(UsageError, match=r"unknown explainer.* 'lime'; allowed: chefer, "):
        plots.explainer_style("lime")


def test_labels_put_options_in_brackets():
    assert plots.explainer_label("mutex") == "MUTEX"
    assert plots.explainer_label("mutex", "min_cut=0.1,token_ratio=0.25") == "MUTEX (min_cut=0.1, token_ratio=0.25)"
    assert plots.explainer_label("lime") == "lime"


def test_studies_know_the_parameters_and_masks_of_mutex():
    signature = inspect.signature(Mutex).parameters
    assert {name: signature[name].default for name in PARAMETERS} == {name: PARAMETERS[name][0] for name in PARAMETERS}
    for place, (group, kinds) in enumerate(MASK_KINDS.items()):
        found = [mask[place] for mask in MASKS]
        assert set(found) == set(kinds)
        assert {found.count(kind) for kind in kinds} == {masks_of_kind(group)}
    assert [masks_of_kind(group) for group in MASK_KINDS] == [18, 27, 6]


# --- what all figures of tables refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_figures_refuse_what_they_cannot_draw(name):
    draw, table, column = TABLES[name]
    with pytest.raises(UsageError, match=f"{name} needs column '{column}'"):
        draw(table().drop(columns=column))
    with pytest.raises(UsageError, match="at least one row"):
        draw(table().head(0))
    with pytest.raises(UsageError, match=f"{name} has several rows"):
        draw(pd.concat([table(), table()]))
    given = table()
    draw(given)
    pd.testing.assert_frame_equal(given, table())


@pytest.mark.parametrize("name", ["insertion_deletion_plane", "agreement_matrix"])
def test_unknown_explainers_are_refused(name):
    draw, table, _ = TABLES[name]
    with pytest.raises(UsageError, match=r"unknown explainer.* 'lime'"):
        draw(table().replace({"method": {"chefer": "lime"}}))


@pytest.mark.parametrize("name", ["insertion_deletion_plane", "parameter_study", "mask_ablation"])
def test_figures_say_which_part_is_missing(name):
    draw, table, _ = TABLES[name]
    with pytest.raises(UsageError, match=rf"{name} needs rows of part .*; given: reduced$"):
        draw(table().assign(part="reduced"))


def test_heat_over_photographs_fits_into_a_file(tmp_path):
    heat = np.random.default_rng(1).uniform(size=(1, 14, 14))
    drawn = [plots.heatmaps([row(224, heatmap=heat[0])]), plots.explainer_gallery([row(224).image], {"mutex": heat})]
    for number, fig in enumerate(drawn):
        path = plots.save(fig, tmp_path / f"{number}.png")
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert image.width >= 900 * fig.get_figwidth() / 9


# --- heat -----------------------------------------------------------------------------------------------------------


def test_one_image_has_five_panels_and_shows_its_numbers():
    fig = plots.heatmaps([row(predicted="golf ball")])
    image, heat, patches, insertion, deletion = fig.axes
    assert (image.get_title(), heat.get_title(), patches.get_title()) == ("tench", "Heat", "Heat per patch")
    assert image.get_xlabel() == "predicted (98.1 %):\ngolf ball"
    assert picture(heat).shape == picture(image).shape
    assert np.array_equal(picture(patches), np.arange(16.0).reshape(4, 4))
    assert patches.get_images()[0].get_clim() == (0, 15)
    assert [text.get_text() for text in patches.child_axes[0].texts] == ["0", "15"]
    assert (insertion.get_title(), deletion.get_title()) == ("Insertion, AUC 0.713", "Deletion, AUC 0.113")
    assert insertion.lines[0].get_xydata().tolist() == [[0, 0], [10, 0.5], [50, 0.75], [100, 1]]
    assert deletion.lines[0].get_ydata().tolist() == [1, 0.25, 0, 0]
    assert insertion.get_ylabel() == "Probability of\ngolf ball"


def test_the_filled_area_is_the_auc():
    axes = plots.heatmaps([row()]).axes[3:]
    for ax, expected in zip(axes, (0.7125, 0.1125), strict=True):
        (filled,) = ax.collections
        x, y = filled.get_paths()[0].vertices[:-1].T
        assert abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2 == pytest.approx(100 * expected)


def test_rows_have_headings_once_and_their_own_names():
    rows = [row(label="ViT-Ti/16"), row(label="DeiT-S/16", predicted="church")]
    axes = np.array(plots.heatmaps(rows).axes).reshape(2, 5)
    assert [ax.get_title() for ax in axes[1, :3]] == ["tench", "", ""]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["ViT-Ti/16", "DeiT-S/16"]
    assert axes[1, 3].get_ylabel() == "Probability of\nchurch"
    right, wrong = (ax.xaxis.label.get_color() for ax in axes[:, 0])
    assert right != wrong, "a wrong prediction stands out"
    boxes = [ax.get_position() for ax in axes.ravel()]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    assert max(box.x1 for box in boxes) < 1 and min(box.y0 for box in boxes) > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": np.zeros((3, 32, 32))}, r"image has shape \(3, 32, 32\); allowed: \(height, width, 3\)"),
        ({"image": np.full((8, 8, 3), 2.0)}, "undo the normalisation"),
        ({"heatmap": np.zeros((1, 4, 4))}, r"heatmap has shape \(1, 4, 4\); allowed: \(h, w\)"),
        ({"heatmap": np.full((4, 4), np.nan)}, "NaN or infinite"),
        ({"insertion": [0, 1]}, r"insertion has shape \(2,\) for shares of shape \(4,\)"),
        ({"deletion": [84.0, 20, 10, 0]}, "deletion has shares or probabilities outside 0 to 1"),
    ],
)
def test_heatmaps_refuse(given, message):
    with pytest.raises(UsageError, match=message) as error:
        plots.heatmaps([row(**given)])
    assert "\n" not in str(error.value)


def test_no_row_is_refused():
    with pytest.raises(UsageError, match="at least one row; given: none"):
        plots.heatmaps([])


def test_heat_that_is_the_same_everywhere_is_coldest():
    white = np.ones((16, 16, 3))
    coldest = 0.85 + 0.15 * np.array(colormaps["inferno"].resampled(12)(0)[:3])
    assert overlay(white, np.full((4, 4), 7.0)) == pytest.approx(np.broadcast_to(coldest, white.shape))


def test_heat_runs_from_patch_to_patch_and_the_image_stays_below():
    image = np.zeros((8, 16, 3))
    image[:, :, 0] = 1.0
    heat = overlay(image, np.array([[0.0, 1.0]]))
    hottest = 0.25 * np.round(0.299 * 8) / 8 + 0.75 * np.array(colormaps["inferno"].resampled(12)(11)[:3])
    assert heat[0, -1] == pytest.approx(hottest)
    assert (np.diff(heat[0, :, 0]) >= 0).all(), "red of inferno grows"
    assert len(np.unique(heat[0, :, 0])) > 5, "interpolated"


def test_signed_heat_is_centred_on_zero():
    white = np.ones((9, 9, 3))
    heat = overlay(white, np.array([[-0.5, 0.0, 1.0]]))[4]
    (blue, middle, red) = heat[0], heat[4], heat[-1]
    assert blue[2] > blue[0] and red[0] > red[2]
    assert middle == pytest.approx(np.ones(3), abs=0.01)
    assert 1 - blue.min() < 1 - red.min(), "half as far from 0"
    *_, patches, _, _ = plots.heatmaps([row(heatmap=[[-0.5, 0.0], [0.0, 2.0]])]).axes
    assert patches.get_images()[0].get_clim() == (-2, 2)


def test_gallery_has_a_column_per_explainer_and_says_what_is_signed():
    images = [row().image, row(224).image]
    noise = np.random.default_rng(0).uniform(size=(2, 4, 4))
    heat = {"mutex:token_ratio=0.25": noise, "integrated_gradients": noise - [[[0.5]], [[0.0]]]}
    fig = plots.explainer_gallery(images, heat)
    axes, scales = np.array(fig.axes[:6]).reshape(2, 3), fig.axes[6:]
    assert [ax.get_title() for ax in axes[0]] == ["image", "MUTEX\n(token_ratio=0.25)", "integrated\ngradients"]
    assert [ax.get_title() for ax in axes[1]] == ["", "", ""]
    assert [ax.get_xlabel().partition("\n")[0] for ax in scales] == ["Heat", "Signed heat"]
    second = picture(axes[1, 2])
    assert second == pytest.approx(overlay(_shown(images[1], 6), noise[1], signed=True)), "signed as its column is"
    assert len(plots.explainer_gallery(images, {"mutex": noise}).axes) == 4 + 1


def _shown(image: np.ndarray, count: int) -> np.ndarray:
    return fitted_picture(image, count, panel_side(3))


def test_gallery_refuses():
    image, heat = row().image, np.zeros((1, 4, 4))
    for images, maps in (([], {"mutex": heat}), ([image], {})):
        with pytest.raises(UsageError, match="explainer_gallery needs images and explainers"):
            plots.explainer_gallery(images, maps)
    with pytest.raises(UsageError, match=r"heat of 'mutex' has shape \(1, 4, 4\); allowed: \(2, h, w\)"):
        plots.explainer_gallery([image] * 2, {"mutex": heat})


def test_small_images_keep_their_pixels_and_torch_is_taken():
    torch = pytest.importorskip("torch")
    image = torch.zeros(8, 8, 3)
    image[2, 3] = 1.0
    fig = plots.heatmaps([row(image=image, heatmap=torch.rand(4, 4))])
    shown = picture(fig.axes[0])
    factor = shown.shape[0] // 8
    assert factor > 10
    white = np.zeros(shown.shape[:2], bool)
    white[2 * factor : 3 * factor, 3 * factor : 4 * factor] = True
    assert np.array_equal(shown[..., 0] > 0.5, white)


# --- how good ---------------------------------------------------------------------------------------------------------


def test_mean_curves_and_their_standard_errors():
    found = curves([[0, 0.25, 0.5, 1], [0, 0.75, 1, 1]], [[1, 0, 0, 0]] * 2)
    left, right = (fig := plots.mean_curves({"random": found, "mutex:token_ratio=0.25": found, "mutex": found})).axes
    assert line(left, "random").get_xydata().tolist() == [[0, 0], [10, 0.5], [50, 0.75], [100, 1]]
    assert line(right, "MUTEX").get_ydata().tolist() == [1, 0, 0, 0]
    band = left.collections[0].get_paths()[0].vertices
    at_ten = band[np.isclose(band[:, 0], 10), 1]
    assert (at_ten.min(), at_ten.max()) == pytest.approx((0.25, 0.75)), "0.35 / sqrt(2) on both sides"
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.texts] == ["MUTEX", "MUTEX (token_ratio=0.25)", "random"]
    assert legend.get_title().get_text() == "mean ± standard error over 2 images"
    first, second = line(left, "MUTEX"), line(left, "MUTEX (token_ratio=0.25)")
    assert first.get_color() == second.get_color()
    assert (second.get_linestyle(), second.get_markerfacecolor()) == ("--", "white")
    assert plots.mean_curves({"mutex": curves([[0, 0, 0, 1]], [[1, 0, 0, 0]])}).legends[0].get_title().get_text() == ""


def test_mean_curves_refuse():
    with pytest.raises(UsageError, match="at least one explainer; given: none"):
        plots.mean_curves({})
    with pytest.raises(UsageError, match=r"unknown explainer.* 'lime'"):
        plots.mean_curves({"lime": curves([[0, 0, 0, 1]], [[1, 0, 0, 0]])})
    with pytest.raises(UsageError, match=r"insertion of mutex.* has shape \(1, 3\); allowed: \(images, 4\)"):
        plots.mean_curves({"mutex": curves([[0, 0, 1]], [[1, 0, 0]])})


def test_plane_shows_points_bars_and_what_beats_random():
    (ax,) = plots.insertion_deletion_plane(benchmark()).axes
    assert line(ax, "MUTEX").get_xydata().tolist() == [[0.25, 0.6]]
    (bars,) = [drawn for drawn in ax.lines if len(drawn.get_xdata()) == 5 and drawn.get_xdata()[2] == 0.25]
    assert np.ptp(bars.get_xdata()) == pytest.approx(0.04) and np.ptp(bars.get_ydata()) == pytest.approx(0.02)
    (shaded,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert (shaded.get_x() + shaded.get_width(), shaded.get_y()) == pytest.approx((0.45, 0.4))
    assert (shaded.get_x(), shaded.get_y() + shaded.get_height()) == (ax.get_xlim()[0], ax.get_ylim()[1])
    texts = {text.get_text() for text in ax.texts}
    assert texts == {"better than random in both", "MUTEX", "MUTEX (token_ratio=0.25)", "Chefer", "random"}
    assert "lower is better" in ax.get_xlabel() and "higher is better" in ax.get_ylabel()


def test_plane_without_random_and_with_two_settings():
    frame = benchmark().query("method != 'random'")
    larger = frame.assign(n_images=500, backbone="vit_tiny_patch16_224")
    axes = plots.insertion_deletion_plane(pd.concat([frame, larger])).axes
    assert [ax.get_title() for ax in axes] == ["digits · vit_digits · 60 images", "digits · ViT-Ti/16 · 500 images"]
    assert all(len(ax.patches) == 0 for ax in axes)
    assert axes[1].get_ylabel() == ""


def test_one_image_has_no_error_bars():
    frame = benchmark().assign(insertion_auc_sem=np.nan, deletion_auc_sem=np.nan)
    (ax,) = plots.insertion_deletion_plane(frame).axes
    (bars,) = [drawn for drawn in ax.lines if len(drawn.get_xdata()) == 5 and drawn.get_xdata()[2] == 0.25]
    assert np.ptp(bars.get_xydata(), axis=0).tolist() == [0, 0]


def test_parameters_stand_in_order_with_their_default_named():
    axes = np.array(plots.parameter_study(benchmark()).axes).reshape(2, 3)
    ticks = [[tick.get_text().strip() for tick in ax.get_xticklabels()] for ax in axes[1]]
    assert ticks == [["0", "0.01\ndefault", "0.1"], ["0.5\ndefault", "0.9"], ["0\ndefault", "2", "11"]]
    assert [ax.get_xlabel().partition(" ")[0] for ax in axes[1]] == list(PARAMETERS)
    insertion, _, errors = axes[0, 2].containers[0]
    assert insertion.get_ydata() == pytest.approx([0.6, 0.62, 0.71])
    assert np.ptp(errors[0].get_segments()[0][:, 1]) == pytest.approx(0.02)
    assert axes[1, 0].containers[0].lines[0].get_ydata().tolist() == [0.25] * 3
    only = benchmark().query("parameter == 'token_ratio'")
    assert len(plots.parameter_study(only).axes) == 2


def test_masks_are_grouped_and_a_name_of_two_groups_is_refused():
    insertion, deletion = plots.mask_ablation(benchmark()).axes
    labels = [tick.get_text() for tick in insertion.get_yticklabels()]
    assert labels == [
        "all 54 masks",
        "Heads aggregated by (18 masks each)",
        "minimum",
        "Centrality (27 masks each)",
        "in-degree",
        "Layers aggregated by (6 masks each)",
        "minimum",
    ]
    dots = [bars.lines[0].get_xydata()[0] for bars in insertion.containers]
    assert [x for x, _ in dots] == [0.6, 0.55, 0.52, 0.5]
    assert np.diff([y for _, y in dots]).min() > 0 > np.diff(insertion.get_ylim())[0], "from above"
    (band,) = insertion.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((0.59, 0.02))
    assert "lower is better" in deletion.get_xlabel()
    with pytest.raises(UsageError, match=r"unknown part of the masks 'min'; allowed: aggregation=max, "):
        plots.mask_ablation(benchmark().replace({"masks": {"statistic=min": "min"}}))


def test_agreement_is_written_into_its_cells():
    ranks, overlap = plots.agreement_matrix(agreement()).axes
    assert ranks.get_title() == "digits · vit_digits\nRank correlation"
    assert [tick.get_text() for tick in ranks.get_xticklabels()] == ["TRAM"], "the l2 pattern scores nothing"
    assert [tick.get_text() for tick in overlap.get_xticklabels()] == ["TRAM", "l2 pattern"]
    assert [tick.get_text() for tick in ranks.get_yticklabels()] == ["MUTEX", "Chefer"]
    assert [text.get_text() for text in ranks.texts] == ["+0.50", "\N{MINUS SIGN}0.25"]
    assert [text.get_text() for text in overlap.texts] == ["+0.12", "0.00", "\N{MINUS SIGN}0.05", ""]
    assert ranks.get_images()[0].get_clim() == (-0.5, 0.5)
    assert overlap.get_xlabel() == "standard errors up to 0.03"


def test_blocks_are_named_where_a_reducer_was_read_after_several():
    later = agreement().assign(block=9)
    _, overlap = plots.agreement_matrix(pd.concat([agreement(), later])).axes
    labels = [tick.get_text() for tick in overlap.get_xticklabels()]
    assert labels == ["TRAM, block 3", "TRAM, block 9", "l2 pattern, block 3", "l2 pattern, block 9"]


def test_a_reducer_from_outside_the_package_comes_last():
    _, overlap = plots.agreement_matrix(agreement().replace({"reducer": {"tram": "longest"}})).axes
    assert [tick.get_text() for tick in overlap.get_xticklabels()] == ["l2 pattern", "longest"]


def test_agreement_without_any_scores_has_no_panel_for_them():
    (ax,) = plots.agreement_matrix(agreement().assign(rank_correlation=np.nan)).axes
    assert ax.get_title().endswith("IoU minus chance")


def test_colours_of_explainers_are_hexadecimal():
    assert all(look.color == to_hex(look.color).upper() for look in plots.EXPLAINERS.values())
