"""The gallery: borders and colours of groups by hand, and what its panels show."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from common import plots
from common.errors import UsageError
from common.plots import gallery
from common.plots.gallery import GalleryPanel, group_colors, methods_gallery, outlines


def segments(found: np.ndarray, digits: int = 6) -> set[frozenset[tuple[float, float]]]:
    """Segments without direction, and none of them twice."""
    as_set = {frozenset(tuple(np.round(end, digits).tolist()) for end in segment) for segment in found}
    assert len(as_set) == len(found)
    return as_set


def path(*corners: tuple[float, float]) -> set[frozenset[tuple[float, float]]]:
    """The sides of a closed line through ``corners``."""
    return {frozenset(pair) for pair in zip(corners, corners[1:] + corners[:1], strict=True)}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 1.0, (3, 32, 32))


def panel(image, **given) -> GalleryPanel:
    default = {"title": "ToMe, 3 tokens", "kept": np.ones(16, bool), "predicted": "tench", "probability": 0.981}
    return GalleryPanel(image=image, **{**default, "correct": True, **given})


# --- borders --------------------------------------------------------------------------------------------------------


def test_borders_are_the_sides_between_groups():
    found = outlines([0, 0, 1, 0, 2, 1], (2, 3))  # 0 0 1
    assert sorted(found) == [0, 1, 2]  #              0 2 1
    assert segments(found[0]) == path((0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (0, 1))
    assert segments(found[1]) == path((2, 0), (3, 0), (3, 1), (3, 2), (2, 2), (2, 1))
    assert segments(found[2]) == path((1, 1), (2, 1), (2, 2), (1, 2))


def test_an_inset_border_closes_at_convex_and_concave_corners():
    found = outlines([0, 0, 1, 0, 2, 1], (2, 3), inset=0.1)
    assert segments(found[0]) == path(
        (0.1, 0.1), (1, 0.1), (1.9, 0.1), (1.9, 0.9), (0.9, 0.9), (0.9, 1.9), (0.1, 1.9), (0.1, 1)
    )
    assert segments(found[2]) == path((1.1, 1.1), (1.9, 1.1), (1.9, 1.9), (1.1, 1.9))


def test_pieces_of_a_group_and_patches_without_one():
    found = outlines([3, -1, 3], (1, 3))
    assert list(found) == [3]
    assert segments(found[3]) == path((0, 0), (1, 0), (1, 1), (0, 1)) | path((2, 0), (3, 0), (3, 1), (2, 1))


@pytest.mark.parametrize("inset", [0.0, 0.07])
def test_borders_close_whatever_the_groups(inset):
    groups = np.random.default_rng(1).integers(0, 6, 49)
    for found in outlines(groups, (7, 7), inset=inset).values():
        ends = [end for segment in segments(found) for end in segment]
        assert all(ends.count(end) % 2 == 0 for end in ends)


# --- colours --------------------------------------------------------------------------------------------------------


def touching(groups: np.ndarray) -> set[frozenset[int]]:
    rows, columns = groups.shape
    shifts = ((0, 1), (1, 0), (1, 1), (1, -1))
    places = itertools.product(range(rows), range(columns), shifts)
    inside = (
        (groups[row, column], groups[row + down, column + right])
        for row, column, (down, right) in places
        if row + down < rows and 0 <= column + right < columns
    )
    return {frozenset((int(a), int(b))) for a, b in inside if a != b}


@pytest.mark.parametrize("count", [2, 24, 60, 100])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_never_share_a_colour(count, seed):
    """Seeds of cells, every patch in the nearest one's; a fifth of the patches strays."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.divmod(np.arange(196), 14), axis=1)
    nearest = np.linalg.norm(places[:, None] - rng.uniform(0, 14, (count, 2)), axis=-1).argmin(1)
    groups = np.where(rng.uniform(size=196) < 0.2, rng.integers(0, count, 196), nearest)
    colors = group_colors(groups, (14, 14))
    sizes = np.bincount(groups)
    assert set(colors) == set(np.flatnonzero(sizes > 1).tolist()), "a patch that is alone needs none"
    for one, other in map(tuple, touching(groups.reshape(14, 14))):
        assert one not in colors or other not in colors or colors[one] != colors[other]


def test_more_mutual_neighbours_than_colours():
    count = len(gallery._PALETTE) + 3
    pairs = [pair for both in itertools.combinations(range(count), 2) for pair in (*both, -1)]
    colors = group_colors(pairs, (1, len(pairs)))
    assert sorted(colors.values()) == list(range(count))
    looks = [gallery._line(color, 1.0) for color in colors.values()]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == count


def test_few_groups_have_a_colour_each():
    assert sorted(group_colors(np.repeat(np.arange(8), 2), (1, 16)).values()) == list(range(8))


# --- the figure -----------------------------------------------------------------------------------------------------


def test_panels_show_groups_centres_and_predictions(image):
    groups = np.repeat([0, 1, 2, 3], 4)
    groups[15] = 4
    centres = np.zeros(16, bool)
    centres[[1, 6]] = True
    panels = [
        panel(image, groups=groups, selected=centres),
        panel(image, title="Top-K, 4 tokens", kept=np.arange(16) < 4, correct=False, predicted="golf ball"),
        panel(image, title="none", groups=np.arange(16)),
    ]
    fig = methods_gallery(panels, patch_grid=(4, 4), columns=2)
    merged, pruned, alone = fig.axes
    assert [ax.get_title() for ax in fig.axes] == ["ToMe, 3 tokens", "Top-K, 4 tokens", "none"]
    colors = [to_hex(drawn.get_color()[0]) for drawn in merged.collections]
    assert len(colors) == len(set(colors)) == 5, "four groups and a patch alone, which lies below"
    assert colors[0] == gallery._ALONE.lower()
    assert merged.lines[0].get_xydata().tolist() == [[1.5, 0.5], [2.5, 1.5]]
    assert (merged.get_xlabel(), pruned.get_xlabel()) == ("tench 98.1 %", "golf ball 98.1 %")
    assert merged.xaxis.label.get_color() != pruned.xaxis.label.get_color() == "#D55E00"
    assert not any(isinstance(drawn, LineCollection) for ax in (pruned, alone) for drawn in ax.collections)


def test_kept_patches_are_clear_and_the_others_faded():
    image = np.random.default_rng(0).uniform(size=(3, 4, 4)).repeat(8, axis=1).repeat(8, axis=2)  # 16 colours
    kept = np.arange(16) % 2 == 0
    fig = methods_gallery([panel(image), panel(image, kept=kept)], patch_grid=(4, 4))
    whole, part = (np.asarray(ax.get_images()[0].get_array()) for ax in fig.axes)
    assert whole.shape == (32, 32, 3), "few panels keep their pixels"
    assert np.array_equal(part[:8, :8], whole[:8, :8])
    assert part[:8, 8:16] == pytest.approx(1 - 0.25 * (1 - whole[:8, 8:16]))
    assert whole == pytest.approx(image.transpose(1, 2, 0), abs=0.51 / 255)


def test_many_large_pictures_get_fewer_pixels_and_stay_small(tmp_path):
    noise = np.random.default_rng(0).uniform(size=(3, 224, 224))
    groups = np.random.default_rng(0).integers(0, 100, 196)
    fig = methods_gallery([panel(noise, kept=np.ones(196, bool), groups=groups)] * 6, patch_grid=(14, 14))
    assert fig.axes[0].get_images()[0].get_array().shape == (112, 112, 3)
    assert plots.save(fig, tmp_path / "gallery.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": np.zeros(9, int)}, r"groups has shape \(9,\); allowed for a 4 x 4 grid: \(16,\)"),
        ({"selected": np.zeros(9, bool)}, r"selected has shape \(9,\)"),
        ({"kept": np.ones(9, bool)}, r"kept has shape \(9,\)"),
        ({"image": np.zeros((3, 30, 32))}, "30 x 32 px does not divide into 4 x 4"),
        ({"image": np.full((3, 32, 32), 2.0)}, "undo the normalisation"),
        ({"image": np.zeros((32, 32))}, r"image has shape \(32, 32\)"),
    ],
)
def test_what_does_not_fit_is_refused(image, change, message):
    with pytest.raises(UsageError, match=message):
        methods_gallery([panel(**{"image": image, **change})], patch_grid=(4, 4))


def test_no_panel_and_no_column_are_refused(image):
    with pytest.raises(UsageError, match="given: none"):
        methods_gallery([], patch_grid=(4, 4))
    with pytest.raises(UsageError, match="columns=0"):
        methods_gallery([panel(image)], patch_grid=(4, 4), columns=0)
