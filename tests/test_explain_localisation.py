"""Does the heat lie on the object: closed forms, and the digits, whose places are known."""

import pytest
import torch

from common import load_dataset
from common.errors import UsageError
from common.explain.quality import mass_inside, pointing_game

SIZE = (32, 32)


def box(*corners):
    return torch.tensor([corners])


def spot(*cells, grid=(8, 8)):
    heat = torch.zeros(1, *grid)
    for row, column in cells:
        heat[0, row, column] = 1
    return heat


@pytest.mark.parametrize(
    ("corners", "share"),
    [((0, 0, 32, 32), 1), ((0, 0, 16, 32), 1 / 2), ((4, 8, 12, 20), 96 / 1024), ((5, 7, 6, 8), 1 / 1024)],
)
def test_even_heat_gets_the_share_of_the_box(corners, share):
    """Also where the box cuts through cells."""
    for grid in ((8, 8), (4, 16), (32, 32), (1, 1)):
        torch.testing.assert_close(mass_inside(torch.ones(1, *grid), box(*corners), SIZE), torch.tensor([share * 1.0]))


def test_heat_on_the_object_is_all_inside_and_heat_beside_it_all_outside():
    corners = box(8, 4, 16, 12)  # columns 2 and 3, rows 1 and 2
    assert mass_inside(spot((1, 2), (2, 3)), corners, SIZE).item() == 1
    assert mass_inside(spot((2, 1), (3, 2)), corners, SIZE).item() == 0
    assert mass_inside(spot((1, 2), (2, 1)), corners, SIZE).item() == 0.5


def test_only_positive_heat_has_mass():
    heat = spot((1, 2)) - 5 * spot((7, 7))
    assert mass_inside(heat, box(8, 4, 16, 12), SIZE).item() == 1
    assert mass_inside(-spot((1, 2)), box(8, 4, 16, 12), SIZE).item() == 0


def test_a_cell_on_the_border_counts_by_its_area():
    """The box covers 3 of 4 columns and 1 of 4 rows of the cell."""
    assert mass_inside(spot((1, 2)), box(8, 7, 11, 30), SIZE).item() == pytest.approx(3 / 16)


def test_pointing_asks_where_the_centre_of_the_hottest_cell_lies():
    corners = box(8, 4, 16, 12)
    assert pointing_game(spot((1, 2)), corners, SIZE).item() == 1
    assert pointing_game(spot((2, 1)), corners, SIZE).item() == 0
    assert pointing_game(spot((1, 2)), box(10, 6, 11, 7), SIZE).item() == 1  # the centre is pixel (10, 6)
    assert pointing_game(spot((1, 2)), box(8, 4, 10, 8), SIZE).item() == 0  # its end is exclusive


def test_ties_share_the_point():
    """Two of three hottest cells are inside; where all cells are, it is the share of the centres."""
    corners = box(8, 4, 16, 12)
    heat = spot((1, 2), (2, 3), (5, 5))
    assert pointing_game(heat, corners, SIZE).item() == pytest.approx(2 / 3)
    assert pointing_game(torch.zeros(1, 8, 8), corners, SIZE).item() == 4 / 64


def test_rows_and_columns_of_a_rectangle_are_not_mixed_up():
    heat = spot((0, 5), grid=(2, 6))  # 32 x 96 pixels in cells of 16 x 16
    assert pointing_game(heat, box(80, 0, 96, 16), (32, 96)).item() == 1
    assert mass_inside(heat, box(80, 0, 96, 8), (32, 96)).item() == 0.5
    assert pointing_game(heat, box(0, 0, 16, 16), (32, 96)).item() == 0


def test_images_of_a_batch_are_measured_one_by_one():
    heat = torch.cat([spot((1, 2)), spot((1, 2)), spot((7, 7))])
    boxes = torch.cat([box(8, 4, 12, 8), box(0, 0, 8, 8), box(24, 24, 32, 32)])
    assert pointing_game(heat, boxes, SIZE).tolist() == mass_inside(heat, boxes, SIZE).tolist() == [1, 0, 1]


def test_the_ink_of_every_digit_lies_in_its_box():
    """Ink as heat is all inside, at the size of pixels and of patches; its hottest pixel too; paper is outside."""
    dataset = load_dataset("digits", "val", img_size=32).select(torch.arange(0, 360, 6))
    boxes = torch.tensor([dataset.box(i) for i in range(len(dataset))])
    ink = torch.stack([dataset[i][0][0] * dataset.std[0] + dataset.mean[0] for i in range(len(dataset))])
    assert (pointing_game(ink, boxes, SIZE) == 1).all()
    torch.testing.assert_close(mass_inside(ink, boxes, SIZE), torch.ones(60))
    x0, y0, x1, y1 = boxes.T
    torch.testing.assert_close(mass_inside(torch.ones(60, 8, 8), boxes, SIZE), (x1 - x0) * (y1 - y0) / 1024)
    assert (pointing_game(1 - ink, boxes, SIZE) < 0.25).all() and (boxes >= 4).all() and (boxes <= 28).all()


@pytest.mark.parametrize("measure", [pointing_game, mass_inside])
@pytest.mark.parametrize(
    ("heatmaps", "boxes", "message"),
    [
        (torch.full((1, 8, 8), float("nan")), box(0, 0, 4, 4), "NaN or infinite"),
        (torch.ones(1, 64), box(0, 0, 4, 4), r"heatmaps \(1, 64\) and boxes \(1, 4\) do not fit"),
        (torch.ones(2, 8, 8), box(0, 0, 4, 4), r"heatmaps \(2, 8, 8\) and boxes \(1, 4\) do not fit"),
        (torch.ones(1, 8, 8), torch.ones(4), r"boxes \(4,\) do not fit"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(measure, heatmaps, boxes, message):
    with pytest.raises(UsageError, match=message) as error:
        measure(heatmaps, boxes, SIZE)
    assert "\n" not in str(error.value)
