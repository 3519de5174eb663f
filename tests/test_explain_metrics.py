"""Insertion and deletion: closed forms, the published points and areas, baselines, and what is refused."""

from typing import get_args

import pytest
import torch
from backbones import images as random_images
from sklearn.metrics import auc
from torchvision.transforms.functional import gaussian_blur

from common import create_model
from common.errors import UsageError
from common.explain.metrics import STEPS, Baseline, insertion_deletion, without_content

PUBLISHED = STEPS[1:]
PIXELS = [501, 2508, 5017, 10035, 15052, 20070, 25088, 30105, 35123, 40140, 45158, 50176]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Linear:
    """Probability of class 1: ``low`` plus the sum of the shown pixels' ``weights`` (H, W), on images of ones."""

    def __init__(self, weights, low=0.0):
        self.weights, self.low, self.batches = weights, low, []

    def __call__(self, images):
        self.batches.append(len(images))
        probability = self.low + (images[:, 0] * self.weights).sum((1, 2), dtype=torch.float64)
        return torch.stack([1 - probability, probability], dim=1).clamp(min=1e-30).log()


def even(side, total=1.0):
    return torch.full((side, side), total / side**2, dtype=torch.float64)


def toy_curves(model, heatmaps, side=32, **options):
    """Curves on images of ones in place of which zeros stand."""
    ones = torch.ones(len(heatmaps), 3, side, side)
    labels = torch.ones(len(heatmaps), dtype=torch.long)
    return insertion_deletion(model, ones, heatmaps, labels, torch.zeros_like(ones), **options)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return create_model("vit_digits").eval()


@pytest.fixture(scope="module")
def case(vit):
    """Images, heatmaps, labels and baseline of five images."""
    images = random_images(vit, batch=5)
    labels = torch.tensor([0, 3, 9, 1, 1])
    return images, torch.rand(5, 8, 8), labels, without_content(images, "blur", mean=MEAN, std=STD)


@pytest.mark.parametrize("ranking", ["patch", "pixel"])
@pytest.mark.parametrize("parity", [False, True])
def test_the_ends_of_the_curves_are_the_image_and_the_baseline(vit, case, ranking, parity):
    images, _, labels, baseline = case
    curves = insertion_deletion(vit, *case, ranking=ranking, parity=parity)
    with torch.inference_mode():
        clean, empty = (vit(x).softmax(1).gather(1, labels[:, None])[:, 0] for x in (images, baseline))
    assert curves.insertion.shape == curves.deletion.shape == (5, 13) and curves.shares[[0, -1]].tolist() == [0, 1]
    for curve, first, last in ((curves.insertion, empty, clean), (curves.deletion, clean, empty)):
        torch.testing.assert_close(curve[:, 0], first, rtol=0, atol=1e-6)
        torch.testing.assert_close(curve[:, -1], last, rtol=0, atol=1e-6)
    assert (clean - empty).abs().min() > 1e-4


def test_insertion_by_hand(vit, case):
    """20 % of 64 patches are 13: the hottest are the image's, the others the baseline's."""
    images, heatmaps, labels, baseline = case
    curves = insertion_deletion(vit, *case)
    hottest = heatmaps.flatten(1).topk(13).indices
    mask = torch.zeros(5, 64).scatter_(1, hottest, 1).view(5, 1, 8, 8)
    mask = mask.repeat_interleave(4, 2).repeat_interleave(4, 3)
    for curve, shown in ((curves.insertion, mask), (curves.deletion, 1 - mask)):
        with torch.inference_mode():
            logits = vit(images * shown + baseline * (1 - shown))
        torch.testing.assert_close(curve[:, 4], logits.softmax(1).gather(1, labels[:, None])[:, 0], rtol=0, atol=1e-6)
    assert curves.shares[4].item() == 13 / 64


@pytest.mark.parametrize("ranking", ["patch", "pixel"])
def test_area_of_a_linear_model(ranking):
    """p rises from 0.1 to 0.7 in a straight line whatever is shown first: both areas are 0.4."""
    curves = toy_curves(Linear(even(32, 0.6), low=0.1), torch.rand(3, 8, 8), ranking=ranking)
    torch.testing.assert_close(curves.insertion, (0.1 + 0.6 * curves.shares).float().expand(3, -1))
    torch.testing.assert_close(curves.deletion, (0.7 - 0.6 * curves.shares).float().expand(3, -1))
    for area in (curves.insertion_auc, curves.deletion_auc):
        torch.testing.assert_close(area, torch.full((3,), 0.4))


@pytest.mark.parametrize("ranking", ["patch", "pixel"])
def test_a_perfect_heatmap_beats_an_even_one_and_that_a_reversed_one(ranking):
    """Half of the patches carry all the weight: the line reaches the top at 50 %, or only leaves the bottom there."""
    important = torch.zeros(8, 8)
    important[:, :4] = 1
    weights = important.repeat_interleave(4, 0).repeat_interleave(4, 1).double() / 512
    even_heat = torch.zeros(8, 8)  # ties go row by row: whole rows have the same share of both halves
    curves = toy_curves(
        Linear(weights), torch.stack([important, -important, even_heat]), ranking=ranking, steps=(0, 25, 50, 75, 100)
    )
    torch.testing.assert_close(curves.insertion_auc, torch.tensor([0.75, 0.25, 0.5]))
    torch.testing.assert_close(curves.deletion_auc, torch.tensor([0.25, 0.75, 0.5]))
    torch.testing.assert_close(curves.insertion[0], torch.tensor([0, 0.5, 1, 1, 1]))


def test_published_pixel_counts():
    """Specification, section 4: int(q / 100 x 224 x 224) pixels; deletion takes as many as insertion shows."""
    curves = toy_curves(Linear(even(224)), torch.rand(1, 14, 14), side=224, ranking="pixel", batch_size=8)
    assert (curves.insertion[0].double() * 224**2).round().tolist() == [0, *PIXELS]
    assert ((1 - curves.deletion[0].double()) * 224**2).round().tolist() == [0, *PIXELS]
    assert (curves.shares.double() * 224**2).round().tolist() == [0, *PIXELS]


def test_pixels_of_the_last_patch_are_taken_row_by_row():
    """501 pixels: patch 40 wholly (256), of patch 7 the first 15 of its 16 rows (240) and 5 pixels of the last."""
    heat = torch.zeros(1, 14, 14)
    heat[0, 2, 12], heat[0, 0, 7] = 2, 1
    expected = torch.zeros(224, 224)
    expected[32:48, 192:208] = 1
    expected[:15, 112:128], expected[15, 112:117] = 1, 1
    inside = toy_curves(Linear(expected.double() / 501), heat, side=224, ranking="pixel", steps=(0, 1, 100))
    torch.testing.assert_close(inside.insertion, torch.tensor([[0.0, 1, 1]]))


@pytest.mark.parametrize(("side", "grid"), [(224, (14, 14)), (32, (8, 8)), (224, (7, 14))])
def test_patch_ranking_shows_whole_patches_as_many_as_come_closest(side, grid):
    patches = grid[0] * grid[1]
    counts = [round(step * patches / 100) for step in STEPS]
    shown = []

    def model(images):
        cells = images[:, 0].unflatten(1, (grid[0], -1)).unflatten(3, (grid[1], -1))
        assert torch.equal(cells.amin((2, 4)), cells.amax((2, 4)))
        shown.extend(cells.amax((2, 4)).sum((1, 2)).int().tolist())
        return torch.zeros(len(images), 2)

    curves = toy_curves(model, torch.rand(1, *grid), side=side, batch_size=8)
    inner = counts[1:-1]
    assert shown == [patches, 0, *inner, *[patches - count for count in inner]]
    torch.testing.assert_close(curves.shares, torch.tensor(counts) / patches)


def test_a_heatmap_of_the_image_size_ranks_single_pixels():
    heat = torch.rand(2, 32, 32)
    patch, pixel = (toy_curves(Linear(heat[0].double() / 2000), heat, ranking=name) for name in ("patch", "pixel"))
    torch.testing.assert_close(patch.insertion, pixel.insertion, rtol=0, atol=2e-3)  # rounded, not cut off
    assert patch.insertion_auc[0] > patch.insertion_auc[1]


@pytest.mark.parametrize("ranking", ["patch", "pixel"])
def test_parity_areas_are_those_of_scikit_learn_over_the_published_points(vit, case, ranking):
    curves = insertion_deletion(vit, *case, ranking=ranking, parity=True)
    for image in range(5):
        insertion = auc(PUBLISHED, curves.insertion[image, 1:])
        deletion = auc([0, *PUBLISHED], [0, *curves.deletion[image, 1:]])
        assert curves.insertion_auc[image].item() == pytest.approx(insertion, rel=1e-5)
        assert curves.deletion_auc[image].item() == pytest.approx(deletion, rel=1e-5)
    assert curves.shares.tolist() == pytest.approx([step / 100 for step in STEPS])


def test_parity_area_of_a_constant_probability():
    """99 p without the first percent, and 99.5 p where deletion starts from 0; by default it is p."""
    model = Linear(even(32, 0.0), low=0.3)
    published, correct = (toy_curves(model, torch.rand(2, 8, 8), parity=parity) for parity in (True, False))
    torch.testing.assert_close(published.insertion_auc, torch.full((2,), 99 * 0.3))
    torch.testing.assert_close(published.deletion_auc, torch.full((2,), 99.5 * 0.3))
    for area in (correct.insertion_auc, correct.deletion_auc):
        torch.testing.assert_close(area, torch.full((2,), 0.3))


@pytest.mark.parametrize("ranking", ["patch", "pixel"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_batch_size_bounds_every_forward_pass_and_changes_nothing(vit, case, ranking, batch_size):
    batches = []

    def watched(images):
        batches.append(len(images))
        return vit(images)

    steps = (0, 30, 100)
    found = insertion_deletion(watched, *case, steps=steps, ranking=ranking, batch_size=batch_size)
    expected = insertion_deletion(vit, *case, steps=steps, ranking=ranking)
    assert max(batches) == min(batch_size, 5 * 4) and sum(batches) == 5 * 4
    for name in ("insertion", "deletion", "insertion_auc", "deletion_auc"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-6)


def test_black_is_pixel_value_zero():
    images = torch.randn(2, 3, 8, 8)
    black = without_content(images, "black", mean=MEAN, std=STD)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(black * std + mean, torch.zeros(2, 3, 8, 8), rtol=0, atol=1e-7)
    assert without_content(images, "zero", mean=MEAN, std=STD).abs().max() == 0


def test_mean_is_the_colour_of_each_image():
    images = torch.randn(2, 3, 8, 8)
    mean = without_content(images, "mean", mean=MEAN, std=STD)
    torch.testing.assert_close(mean[1, 2], images[1, 2].mean().expand(8, 8))


@pytest.mark.parametrize(("side", "kernel", "sigma"), [(224, 15, 7.0), (32, 3, 1.0), (112, 7, 3.5)])
def test_blur_is_the_published_one_in_proportion_to_the_image(side, kernel, sigma):
    images = torch.randn(1, 3, side, side)
    blurred = without_content(images, "blur", mean=MEAN, std=STD)
    torch.testing.assert_close(blurred, gaussian_blur(images, [kernel] * 2, [sigma] * 2), rtol=0, atol=1e-6)


def test_noise_follows_its_seed_alone():
    images = torch.zeros(3, 3, 64, 64)
    options = {"mean": MEAN, "std": STD}
    state = torch.get_rng_state()
    noise = without_content(images, "noise", **options, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise, without_content(images, "noise", **options, seed=1))
    assert torch.equal(noise[2:], without_content(images[2:], "noise", **options, seed=1))  # whatever the batch
    assert not torch.equal(noise, without_content(images, "noise", **options, seed=2))
    assert abs(noise[0].mean()) < 0.05 and abs(noise[0].std() - 1) < 0.05


@pytest.mark.parametrize("baseline", get_args(Baseline))
def test_every_baseline_is_as_large_as_the_images(baseline):
    images = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    empty = without_content(images, baseline, mean=MEAN, std=STD)
    assert empty.shape == images.shape and empty.dtype == images.dtype and empty.isfinite().all()


NAN = torch.full((5, 8, 8), float("nan"))
ONES = torch.ones(5, 3, 32, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": NAN}, "heatmaps with NaN or infinite values cannot be ranked"),
        ({"heatmaps": -1 / torch.zeros(5, 8, 8)}, "heatmaps with NaN or infinite values cannot be ranked"),
        ({"heatmaps": torch.rand(4, 8, 8)}, "heatmaps (4, 8, 8) and labels (5,) do not fit 5 images"),
        ({"heatmaps": torch.rand(5, 64)}, "heatmaps (5, 64) and labels (5,) do not fit 5 images"),
        ({"heatmaps": torch.rand(5, 64, 8)}, "heatmaps (5, 64, 8) are finer than images (5, 3, 32, 32)"),
        ({"labels": torch.tensor([1, 2])}, "labels (2,) do not fit 5 images"),
        ({"baseline": ONES[:, :, :16]}, "baseline (5, 3, 16, 32) does not fit images (5, 3, 32, 32)"),
        ({"ranking": "superpixel"}, "unknown ranking 'superpixel'; allowed: patch, pixel"),
        ({"steps": (1, 5, 100)}, "steps=[1.0, 5.0, 100.0] are not allowed"),
        ({"steps": (0, 50, 50, 100)}, "increasing from 0 to 100"),
        ({"steps": (0, 100)}, "at least three percentages"),
        ({"batch_size": 0}, "batch_size=0 is not allowed; give a whole number >= 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(vit, case, change, message):
    given = dict(zip(("images", "heatmaps", "labels", "baseline"), case, strict=True)) | change
    with pytest.raises(UsageError) as error:
        insertion_deletion(vit, **given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_unknown_baseline_is_refused():
    with pytest.raises(UsageError, match="unknown baseline 'white'; allowed: black, blur, mean, noise, zero"):
        without_content(ONES, "white", mean=MEAN, std=STD)
