"""The figures: what they show is what they were given, they stay small, and they say what is missing."""

from __future__ import annotations

import importlib.util
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from common import plots
from common.errors import UsageError
from common.plots import frames, style
from common.plots.accuracy import pareto_optimal

RATES = {"none": (1.0,), "tram": (0.75, 0.5), "topk": (0.75, 0.5)}


def runs(seeds=(0, 1), epochs=2, **more) -> pd.DataFrame:
    rows = [
        {
            "method": method,
            "options": "",
            "backbone": "vit_tiny_patch16_224",
            "dataset": "imagenette",
            "keep_rate": rate,
            "seed": seed,
            "epoch": epoch,
            "train_loss": 2.0 - epoch / 4 if epoch else np.nan,
            "val_loss": 2.1 - epoch / 4,
            "val_accuracy": 80.0 + 5 * epoch + 2 * seed - 10 * (1 - rate),
            "gmac": rate,
            **more,
        }
        for method, rates in RATES.items()
        for rate in rates
        for seed in seeds
        for epoch in range(epochs + 1)
    ]
    return pd.DataFrame(rows)


def throughput() -> pd.DataFrame:
    rows = [
        {
            "method": method,
            "options": np.nan,  # what an empty cell of a CSV is read as
            "backbone": backbone,
            "dtype": dtype,
            "batch": 16,
            "keep_rate": rate,
            "speedup": 1 / rate**0.5,
            "speedup_q1": 0.9 / rate**0.5,
            "speedup_q3": 1.1 / rate**0.5,
            "gmac": 4.0 * rate,
        }
        for backbone in ("simple_vit_tiny_patch16_160", "vit_small_patch16_224", "vit_tiny_patch16_224")
        for dtype in ("bfloat16", "float32")
        for method, rates in RATES.items()
        for rate in rates
    ]
    return pd.DataFrame(rows)


def layers() -> pd.DataFrame:
    parts = {"qkv": 3e6, "attention": 1e6, "proj": 1e6, "mlp": 8e6}
    return pd.DataFrame(
        {"method": method, "layer": layer, "part": part, "macs": macs, "tokens": 17 if layer < 2 else 9}
        for method in ("none", "tram")
        for layer in range(4)
        for part, macs in parts.items()
    )


def sizing() -> pd.DataFrame:
    counted = [16.8808, 11.8498, 11.8510, 10.4]
    published = [16.8808, 11.8498, 11.8510, 10.0]
    columns = {"method": ["none", "tram", "topk", "ats"], "source": "7.1", "model": "ViT-B"}
    return pd.DataFrame({**columns, "published_gflops": published, "gmac_thop_compat": counted})


FIGURES = {
    "speedup_vs_keep_rate": (plots.speedup_vs_keep_rate, throughput, "speedup_q3"),
    "accuracy_vs_keep_rate": (plots.accuracy_vs_keep_rate, runs, "val_accuracy"),
    "accuracy_mac_pareto": (partial(plots.accuracy_mac_pareto, value="val_accuracy"), runs, "gmac"),
    "learning_curves": (plots.learning_curves, runs, "train_loss"),
    "macs_per_layer": (plots.macs_per_layer, layers, "tokens"),
    "published_vs_counted": (plots.published_vs_counted, sizing, "gmac_thop_compat"),
}
UNITS = ("(%)", "(nats)", "(×)", "GMAC", "MMAC", "Block", "Epoch", "Tokens", "GFlops")  # noqa: RUF001


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 1.0, (3, 32, 32)).astype(np.float32)


def shown(fig) -> list[np.ndarray]:
    return [np.asarray(picture.get_array()) for ax in fig.axes for picture in ax.get_images()]


def line(ax, label):
    return next(bars for bars in ax.containers if bars.get_label() == label).lines[0].get_xydata()


# --- every figure of a table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_axes_name_their_units(name):
    draw, table, _ = FIGURES[name]
    fig = draw(table())
    labels = [label for ax in fig.axes for label in (ax.get_xlabel(), ax.get_ylabel()) if label]
    assert labels
    assert [label for label in labels if not any(unit in label for unit in UNITS)] == []


@pytest.mark.parametrize("name", FIGURES)
def test_missing_column_is_named(name):
    draw, table, column = FIGURES[name]
    with pytest.raises(UsageError, match=f"'{column}'") as error:
        draw(table().drop(columns=column))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FIGURES)
def test_an_empty_table_is_refused(name):
    draw, table, _ = FIGURES[name]
    with pytest.raises(UsageError, match="at least one row"):
        draw(table().head(0))


@pytest.mark.parametrize("name", FIGURES)
def test_methods_from_outside_the_package_are_drawn_too(name):
    """In grey and under their own name, which no method of the package is."""
    draw, table, _ = FIGURES[name]
    figure = draw(table().replace({"method": {"tram": "longest"}}))
    texts = {text.get_text() for text in figure.findobj(Text)}
    assert any("longest" in text for text in texts) and not any("TRAM" in text for text in texts)
    assert plots.method_style("longest").color == style.OTHER_COLOR


def test_methods_from_outside_the_package_come_last():
    table = pd.DataFrame({"method": ["own b", "tome", "own a", "none"], "options": ""})
    assert [series.method for series in frames.split_series(table)] == ["none", "tome", "own a", "own b"]


@pytest.mark.parametrize("name", FIGURES)
def test_tables_are_not_changed(name):
    draw, table, _ = FIGURES[name]
    given = table()
    draw(given)
    pd.testing.assert_frame_equal(given, table())


@pytest.mark.parametrize(
    "name", ["speedup_vs_keep_rate", "accuracy_vs_keep_rate", "accuracy_mac_pareto", "learning_curves"]
)
def test_rows_that_would_be_averaged_unseen_are_refused(name):
    draw, table, _ = FIGURES[name]
    with pytest.raises(UsageError, match="several rows"):
        draw(pd.concat([table(), table()]))


# --- what the figures of tables show --------------------------------------------------------------------------------


def test_speedup_panels_and_ideal():
    fig = plots.speedup_vs_keep_rate(throughput())
    titles = [ax.get_title().split("\n") for ax in fig.axes]
    assert [first for first, _ in titles] == ["ViT-Ti/16", "ViT-S/16", "SimpleViT-Ti/16"] * 2
    assert [second for _, second in titles] == ["fp32 · batch 16"] * 3 + ["bf16 · batch 16"] * 3
    ax = fig.axes[0]
    assert ax.get_xlim()[0] > 100 > 50 > ax.get_xlim()[1], "all tokens stand on the left"
    assert line(ax, "TRAM")[:, 1] == pytest.approx([0.75**-0.5, 0.5**-0.5])
    dotted = [drawn for drawn in ax.lines if drawn.get_linestyle() == ":" and len(drawn.get_xdata())]
    assert dotted[0].get_ydata() == pytest.approx([1 / 0.75, 2.0])


def test_speedup_stands_between_its_promise_and_its_ceiling():
    """Ceilings of TRAM at both rates, of Top-K at one; none, and no word of it, where the column is empty."""
    table = throughput()
    table["ceiling"] = np.where(table["method"] == "tram", 1.5 / table["keep_rate"], np.nan)
    table.loc[(table["method"] == "topk") & (table["keep_rate"] == 0.5), "ceiling"] = 1.9
    ax = plots.speedup_vs_keep_rate(table).axes[0]
    strokes = [drawn.get_ydata().tolist() for drawn in ax.lines if drawn.get_markersize() == 13]
    assert [2.0, 3.0] in strokes and any(values[-1] == 1.9 for values in strokes)
    assert any("ceiling" in str(drawn.get_label()) for drawn in ax.lines)
    (ax, *_) = plots.speedup_vs_keep_rate(table.assign(ceiling=None)).axes
    assert not [drawn for drawn in ax.lines if drawn.get_markersize() == 13]


def test_runtimes_have_panels_of_their_own_eager_first():
    table = throughput()
    table = table[(table["dtype"] == "float32") & (table["backbone"] == "vit_tiny_patch16_224")]
    several = pd.concat([table.assign(runtime=name) for name in ("onnxruntime", "compiled", "eager")])
    titles = [ax.get_title().split("\n")[1] for ax in plots.speedup_vs_keep_rate(several).axes]
    assert titles == [f"fp32 · {name} · batch 16" for name in ("eager", "compiled", "onnxruntime")]


def test_what_is_no_ratio_has_no_place_among_keep_rates():
    """Two budgets and a rule are three models, which are no two of one keep rate, and no points of the line."""
    table = runs(epochs=0)
    others = [table[table["keep_rate"] == 0.5].assign(keep_rate=text) for text in ("mac_cut=0.4", "speedup=2", "r=8")]
    (ax,) = plots.accuracy_vs_keep_rate(pd.concat([table, *others])).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["100", "75", "50"]
    assert [len(bars.lines[0].get_xdata()) for bars in ax.containers] == [2, 2]
    with pytest.raises(UsageError, match=r"several rows for .*keep_rate=nan"):
        plots.accuracy_vs_keep_rate(pd.concat([table, others[0], others[0]]))


def test_a_keep_rate_that_is_no_ratio_has_no_place_among_ratios() -> None:
    """The points of the others are where they are without it."""
    table = throughput()
    rule = table[table["keep_rate"] == 0.5].assign(keep_rate="r=13", speedup=9.0)
    drawn = plots.speedup_vs_keep_rate(pd.concat([table.astype({"keep_rate": object}), rule]))
    wanted = plots.speedup_vs_keep_rate(table)
    for ax, other in zip(drawn.axes, wanted.axes, strict=True):
        points, expected = ([line.get_xydata() for line in each.lines] for each in (ax, other))
        assert len(points) == len(expected)
        for found, own in zip(points, expected, strict=True):
            np.testing.assert_array_equal(found, own)


def test_methods_of_one_keep_rate_stand_side_by_side():
    table = throughput()
    fig = plots.speedup_vs_keep_rate(table[table["keep_rate"].isin([1.0, 0.5])])
    ax = fig.axes[0]
    assert ax.get_title() == "ViT-Ti/16\nfp32 \N{MIDDLE DOT} batch 16\nkeep 50 %"
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names[0] == "TRAM" and len(names) == len(RATES) - 1
    places = [line(ax, name)[0] for name in names]
    assert places == [pytest.approx([place, 0.5**-0.5]) for place in range(len(names))]


def test_speedup_without_baseline_is_refused():
    table = throughput()
    with pytest.raises(UsageError, match="method 'none'"):
        plots.speedup_vs_keep_rate(table[table["method"] != "none"])


def test_accuracy_is_the_mean_of_the_last_epoch():
    ax = plots.accuracy_vs_keep_rate(runs()).axes[0]
    points = line(ax, "TRAM")
    assert points[:, 1] == pytest.approx([88.5, 86.0])
    assert points[:, 0] == pytest.approx([75, 50], abs=3)
    bars = ax.containers[0].lines[2][0].get_segments()
    assert bars[0][1, 1] - bars[0][0, 1] == pytest.approx(2 * 2**0.5), "two sample standard deviations"
    assert ax.lines[0].get_ydata() == pytest.approx([91, 91])


def test_off_the_shelf_has_a_panel_per_head():
    table = runs(seeds=(0,), epochs=0).rename(columns={"val_accuracy": "accuracy"}).drop(columns="epoch")
    both = ("accuracy", "accuracy_full")
    fig = plots.accuracy_vs_keep_rate(table.assign(accuracy_full=table["accuracy"] / 2), value=both)
    assert len(fig.axes) == 2
    assert len({ax.get_ylabel() for ax in fig.axes}) == 2
    assert line(fig.axes[1], "TRAM")[:, 1] == pytest.approx(line(fig.axes[0], "TRAM")[:, 1] / 2)
    assert len(plots.accuracy_vs_keep_rate(table.assign(accuracy_full=np.nan), value=both).axes) == 1


def test_options_of_one_method_are_told_apart():
    table = runs(seeds=(0,))
    other = table[table["method"] == "topk"].assign(options="head_fusion=mean", val_accuracy=50.0)
    ax = plots.accuracy_vs_keep_rate(pd.concat([table, other])).axes[0]
    first, second = (next(bars for bars in ax.containers if bars.get_label() == name).lines[0]
                     for name in ("Top-K", "Top-K (head_fusion=mean)"))  # fmt: skip
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def grid(accuracies: dict[tuple[str, float], float], **more) -> pd.DataFrame:
    """Rows of a method grid; GMAC is 10 times the keep rate, and the speed-up its inverse."""
    where = {"options": "", "backbone": "vit_tiny_patch16_224", "dataset": "imagenette", "img_size": 224, "seed": 0}
    where |= {"epochs": 0, "n_train": 0, **more}
    rows = [
        {"method": method, "keep_rate": rate, "accuracy": accuracy, "gmac": 10 * rate, "speedup": 1 / rate, **where}
        for (method, rate), accuracy in accuracies.items()
    ]
    return pd.DataFrame(rows)


def ringed(ax) -> list[tuple[float, float]]:
    (rings,) = (drawn for drawn in ax.lines if drawn.get_label() == "Pareto-optimal")
    return sorted(map(tuple, rings.get_xydata().tolist()))


def test_pareto_set_by_hand():
    cost, value = [1, 1, 2, 2, 3, 4, 0], [5, 6, 6, 7, 7, 9, 1]
    assert pareto_optimal(cost, value).tolist() == [False, True, False, True, False, True, True]
    assert pareto_optimal([1, 1, 2], [5, 5, 4]).tolist() == [True, True, False], "equal points stay both"


def test_pareto_points_are_ringed_and_labelled():
    accuracies = {("none", 1.0): 90, ("tram", 0.7): 88, ("topk", 0.7): 91, ("tram", 0.5): 80, ("topk", 0.5): 70}
    gmac, speed = plots.accuracy_mac_pareto(grid(accuracies)).axes
    assert ringed(gmac) == [(5, 80), (7, 91)], "the unreduced model is beaten by Top-K at 70 %"
    assert ringed(speed) == [(pytest.approx(1 / 0.7), 91), (2, 80)]
    assert sorted(text.get_text() for text in gmac.texts) == ["50 %", "50 %", "70 %", "70 %"]
    assert next(line for line in gmac.lines if line.get_label() == "TRAM").get_xydata().tolist() == [[7, 88], [5, 80]]


def test_with_many_points_only_the_best_of_each_rate_is_labelled():
    methods = [method for method in plots.METHODS if method != "none"]
    rows = {(method, rate): 90 - place - 10 / rate for place, method in enumerate(methods) for rate in (0.9, 0.5)}
    ax, _ = plots.accuracy_mac_pareto(grid({("none", 1.0): 95, **rows})).axes
    assert sorted(text.get_text() for text in ax.texts) == ["50 %", "90 %"]
    assert {text.get_color() for text in ax.texts} == {plots.method_style(methods[0]).color}


def test_a_method_that_keeps_everything_is_the_baseline():
    ax, _ = plots.accuracy_mac_pareto(grid({("none", 1.0): 90, ("tram", 1.0): 90, ("tram", 0.5): 80})).axes
    assert ringed(ax) == [(5, 80), (10, 90)]
    assert [text.get_text() for text in ax.texts] == ["50 %"]


def test_pareto_panels_by_training_and_cost():
    accuracies = {("none", 1.0): 90, ("tram", 0.5): 80}
    trained = grid(accuracies, epochs=1, n_train=2000).assign(speedup=np.nan)
    axes = plots.accuracy_mac_pareto(pd.concat([grid(accuracies), trained])).axes
    assert [ax.get_title().split("\n")[1] for ax in axes] == [
        "off the shelf",
        "off the shelf",
        "1 epoch · 2,000 training images",
    ], "no panel for a speed-up that was not measured"
    assert ["GMAC" in ax.get_xlabel() for ax in axes] == [True, False, True]
    some = grid(accuracies)
    some.loc[some["method"] == "tram", "speedup"] = np.nan
    assert ringed(plots.accuracy_mac_pareto(some).axes[1]) == [(1, 90)]


def test_learning_curves_start_before_training():
    loss, accuracy = plots.learning_curves(runs(seeds=(0,))).axes
    none = next(drawn for drawn in accuracy.lines if drawn.get_label() == "no reduction")
    assert none.get_xydata().tolist() == [[0, 80], [1, 85], [2, 90]]
    training = next(drawn for drawn in loss.lines if drawn.get_linewidth() < 1)
    assert np.isnan(training.get_ydata()[0])


def test_macs_stack_to_the_block():
    fig = plots.macs_per_layer(layers())
    bars = fig.axes[0].patches
    tops = [bar.get_y() + bar.get_height() for bar in bars if bar.get_x() + bar.get_width() / 2 == pytest.approx(0)]
    assert max(tops) == pytest.approx(13.0), "millions of MAC, all parts"
    with pytest.raises(UsageError, match="unknown part 'head'"):
        plots.macs_per_layer(layers().replace({"part": {"mlp": "head"}}))


def test_relative_error_in_percent():
    _, difference = plots.published_vs_counted(sizing()).axes
    errors = {drawn.get_label(): drawn.get_ydata() for drawn in difference.lines}
    assert errors["ATS"] == pytest.approx([4.0])
    assert errors["TRAM"] == pytest.approx([0.0])


# --- patches --------------------------------------------------------------------------------------------------------


def example(image, *kept, predicted="tench") -> plots.Example:
    """One row for each of ``kept``, bool (blocks, P)."""
    rows = tuple(
        plots.ExampleRow(f"{place} %", masks, "tench", 0.981, predicted, 0.5) for place, masks in enumerate(kept)
    )
    return plots.Example(image, "tench", rows)


def test_dropped_patches_are_black_and_kept_ones_untouched(image):
    kept = np.zeros((2, 16), bool)
    kept[0, [0, 5, 15]] = kept[1, 5] = True
    whole, first, second = shown(plots.united_grid([example(image, kept)], patch_grid=(4, 4), blocks=[3, 6]))
    pixels = image.transpose(1, 2, 0)
    assert np.array_equal(whole, pixels)
    for patch in range(16):
        area = np.s_[patch // 4 * 8 : patch // 4 * 8 + 8, patch % 4 * 8 : patch % 4 * 8 + 8]
        for picture, mask in ((first, kept[0]), (second, kept[1])):
            assert np.array_equal(picture[area], pixels[area] if mask[patch] else np.zeros((8, 8, 3)))


def test_dimmed_patches_stay_visible(image):
    kept = np.arange(16) % 2 == 0
    picture = plots.mask_patches(image, kept, (4, 4), dropped="dim")
    pixels = image.transpose(1, 2, 0)
    assert np.array_equal(picture[:8, :8], pixels[:8, :8])
    assert (picture[:8, 8:16] >= pixels[:8, 8:16]).all()
    assert picture[:8, 8:16].std() > 0


def test_torch_tensors_are_taken(image):
    torch = pytest.importorskip("torch")
    kept = torch.arange(16) < 4
    expected = plots.mask_patches(image, kept.numpy(), (4, 4))
    assert np.array_equal(plots.mask_patches(torch.tensor(image, requires_grad=True), kept, (4, 4)), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": lambda image: image * 4 - 2}, "undo the normalisation"),
        ({"image": lambda image: image[:1]}, r"image has shape \(1, 32, 32\)"),
        ({"patch_grid": (5, 4)}, r"kept has shape \(16,\)"),
        ({"image": lambda image: image[:, :30]}, "30 x 32 px does not divide"),
        ({"blocks": [3]}, r"kept has shape \(2, 16\)"),
        ({"dropped": "red"}, "black, dim"),
    ],
)
def test_united_grid_refuses(image, change, message):
    given = {"patch_grid": (4, 4), "blocks": [3, 6], **change}
    picture = given.pop("image", lambda image: image)(image)
    with pytest.raises(UsageError, match=message):
        plots.united_grid([example(picture, np.ones((2, 16), bool))], **given)


def test_united_grid(image):
    def row(rate, predicted):
        kept = np.arange(16)[None] < 16 * np.array([[rate], [rate**2], [rate**3]])
        return plots.ExampleRow(f"{100 * rate:g} %", kept, "tench", 0.981, predicted, 0.5)

    examples = [plots.Example(image, "tench", (row(0.75, "tench"), row(0.5, "golf ball")))] * 3
    fig = plots.united_grid(examples, patch_grid=(4, 4), blocks=[3, 6, 9])
    assert len(fig.axes) == 3 * 2 * 4
    assert [ax.get_title() for ax in fig.axes[:8]] == ["tench", "Block 3", "Block 6", "Block 9", "", "", "", ""]
    assert [fig.axes[0].get_ylabel(), fig.axes[4].get_ylabel()] == ["75 %", "50 %"]
    right, wrong = fig.texts[:2]
    assert right.get_text() == "tench 98.1 %  →  tench 50.0 %"
    assert wrong.get_text() == "tench 98.1 %  →  golf ball 50.0 %"
    assert right.get_color() != wrong.get_color()
    assert (shown(fig)[5] == 0).mean() == pytest.approx(0.5)
    boxes = [ax.get_position() for ax in fig.axes]
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])


def test_survival_map_by_hand():
    kept = np.zeros((2, 3, 4), bool)
    kept[:, :, 0] = True  # always there
    kept[0, :2, 1] = True  # two blocks in one image, none in the other
    kept[:, 0, 2] = True  # one block
    (values,) = shown(plots.survival_map({"": kept}, patch_grid=(2, 2)))[:1]
    assert values == pytest.approx(np.array([[3, 1], [1, 0]]))


def test_survival_maps_share_one_scale():
    groups = {"keep rate 75 %": np.ones((2, 12, 4), bool), "Top-K": np.zeros((2, 12, 4), bool)}
    fig = plots.survival_map(groups, patch_grid=(2, 2))
    maps = [ax for ax in fig.axes if ax.get_images()]
    assert [ax.get_title() for ax in maps] == ["keep rate 75 %", "Top-K"]
    assert {ax.get_images()[0].get_clim() for ax in maps} == {(0, 12)}
    assert "of 12" in fig.axes[-1].get_ylabel()
    with pytest.raises(UsageError, match=r"'keep rate 75 %' has shape \(4,\); allowed for a 3 x 3 grid: \(9,\)"):
        plots.survival_map(groups, patch_grid=(3, 3))


# --- look and files -------------------------------------------------------------------------------------------------


def test_methods_look_different():
    looks = [plots.method_style(method) for method in plots.METHODS]
    assert len({look.color for look in looks}) == len(looks)
    assert (looks[0].color, looks[0].linestyle) == ("#000000", "--")
    assert len(style._COLORS) == len(style._MARKERS) >= 25
    assert len(set(style._COLORS)) == len(style._COLORS)
    assert len(set(style._MARKERS[:14])) == 14


def test_any_number_of_methods_looks_different(monkeypatch):
    today = [plots.method_style(method) for method in plots.METHODS]
    more = {f"method {place}": f"Method {place}" for place in range(200)}
    monkeypatch.setattr(style, "METHODS", {**style.METHODS, **more})
    looks = [plots.method_style(method) for method in style.METHODS]
    assert looks[: len(today)] == today
    assert len({(look.color, look.marker) for look in looks}) == len(today) + 200
    count = len(style._COLORS)
    assert [look.color for look in looks[count : 2 * count]] == [look.color for look in looks[:count]]


def test_first_colours_differ_for_the_colour_blind():
    deuteranopia = np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]])
    protanopia = np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]])
    colours = [plots.method_style(method).color for method in list(plots.METHODS)[:5]]
    linear = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours]) ** 2.2
    for blindness in (deuteranopia, protanopia):
        seen = (linear @ blindness.T).clip(0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(5)
        assert distance.min() > 0.15


def test_every_registered_method_has_a_colour():
    if importlib.util.find_spec("common.reducers") is None:
        pytest.skip("the package has no reducers")
    from common import list_reducers

    assert set(list_reducers()) | {"none"} <= set(plots.METHODS)


def test_save_is_small_deterministic_and_makes_folders(tmp_path, image):
    noise = np.random.default_rng(1).uniform(size=(3, 224, 224))
    fig = plots.united_grid([example(noise, np.ones((3, 196), bool))], patch_grid=(14, 14), blocks=[3, 6, 9])
    path = plots.save(fig, tmp_path / "new" / "folder" / "kept.png")
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        assert picture.width >= 900
    first = path.read_bytes()
    assert plots.save(fig, path).read_bytes() == first
    assert fig._repr_png_() == first
    assert [file.name for file in path.parent.iterdir()] == ["kept.png"]


def test_a_figure_is_rendered_again_only_when_it_has_changed(tmp_path, monkeypatch):
    rendered, render = [], style._render
    monkeypatch.setattr(style, "_render", lambda fig, dpi: rendered.append(dpi) or render(fig, dpi))
    fig = style.new_figure(2.0)
    fig.subplots().plot([0, 1], [0, 1])
    shown = [plots.save(fig, tmp_path / "a.png").read_bytes(), fig._repr_png_()]
    assert shown[0] == shown[1] and rendered == [200]
    fig.axes[0].set_title("another title")
    assert fig._repr_png_() != shown[0] and rendered == [200, 200]
    fig.axes[0].lines[0].set_color("red")
    plots.save(fig, tmp_path / "a.png")
    assert rendered == [200, 200, 200] and fig._repr_png_() == (tmp_path / "a.png").read_bytes()


def test_a_figure_that_cannot_be_small_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "MAX_BYTES", 100)
    with pytest.raises(UsageError, match="allowed: 100"):
        plots.save(plots.published_vs_counted(sizing()), tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk is gone")

    monkeypatch.setattr(style.os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        plots.save(plots.published_vs_counted(sizing()), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_only_png(tmp_path):
    with pytest.raises(UsageError, match=r"saved as \.png"):
        plots.save(plots.published_vs_counted(sizing()), tmp_path / "figure.pdf")


def test_no_pyplot_state():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before, settings = pyplot.get_fignums(), dict(pyplot.rcParams)
    plots.accuracy_vs_keep_rate(runs())
    assert pyplot.get_fignums() == before
    assert dict(pyplot.rcParams) == settings


def test_many_keep_rates_have_ticks_at_round_numbers():
    fig = style.new_figure(2.0)
    few, many = fig.subplots(1, 2)
    frames.keep_rate_axis(few, [0.75, 0.5])
    frames.keep_rate_axis(many, [0.9 - 0.017 * step for step in range(20)])
    assert [tick.get_text() for tick in few.get_xticklabels()] == ["100", "75", "50"]
    assert len(many.get_xticks()) < 12 and all(tick % 5 == 0 for tick in many.get_xticks())
