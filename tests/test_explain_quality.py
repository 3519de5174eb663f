"""Sparseness and max-sensitivity: closed forms, and the numbers of quantus where it is installed."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from common import create_model
from common.errors import UsageError
from common.explain.base import create_explainer
from common.explain.quality import max_sensitivity, sparseness


class Toy:
    """Heat = ``heat`` of the images; notes the labels that it was asked for."""

    def __init__(self, heat=lambda images: F.avg_pool2d(images.sum(1), 4)):
        self.heat, self.labels = heat, []

    def __call__(self, images, labels=None):
        self.labels.append(labels)
        predicted = torch.arange(len(images)) if labels is None else labels
        return SimpleNamespace(heatmaps=self.heat(images), labels=predicted)


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32)


def heatmap(values):
    return torch.as_tensor(values, dtype=torch.float32).view(1, 4, -1)


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([1, *[0] * 15], 1 - 1 / 16),
        ([1] * 16, 0),
        (range(1, 17), 15 / 48),  # (n - 1) / 3n
        ([3, 3, 3, 3, *[0] * 12], 12 / 16),
        ([0] * 16, 0),
    ],
)
def test_gini_index_by_hand(values, index):
    assert sparseness(heatmap(list(values))).item() == pytest.approx(index, abs=1e-7)


def test_gini_index_is_half_the_relative_mean_difference():
    heat = torch.rand(5, 7, 9)
    flat = heat.flatten(1)
    expected = (flat[:, :, None] - flat[:, None]).abs().mean((1, 2)) / (2 * flat.mean(1))
    torch.testing.assert_close(sparseness(heat), expected)


def test_gini_index_asks_for_neither_scale_sign_resolution_nor_the_other_images():
    heat = torch.rand(4, 8, 8)
    index = sparseness(heat)
    scales = torch.tensor([1e-20, 1, 1e6, -1e-9])[:, None, None]
    torch.testing.assert_close(sparseness(heat * scales), index)
    torch.testing.assert_close(sparseness(heat.repeat_interleave(4, 1).repeat_interleave(4, 2)), index)
    torch.testing.assert_close(sparseness(heat[2:3]), index[2:3])


def test_heat_that_does_not_look_at_the_image_is_not_sensitive(images):
    assert max_sensitivity(Toy(lambda images: torch.ones(len(images), 8, 8)), images).tolist() == [0] * 6


def test_sensitivity_of_linear_heat(images):
    """It grows with the radius, shrinks with the contrast of the image, and never exceeds radius x largest gain."""
    sensitivity = max_sensitivity(Toy(), images, radius=0.1)
    torch.testing.assert_close(max_sensitivity(Toy(), images, radius=0.3), 3 * sensitivity, rtol=1e-4, atol=0)
    torch.testing.assert_close(max_sensitivity(Toy(), 2 * images, radius=0.1), sensitivity / 2, rtol=1e-4, atol=0)
    largest = 0.1 * 3 * 8 / F.avg_pool2d(images.sum(1), 4).flatten(1).norm(dim=1)
    assert (sensitivity > 0).all() and (sensitivity < largest).all()


def test_the_scale_of_the_heat_has_no_say(images):
    hot = Toy(lambda images: 1e6 * F.avg_pool2d(images.sum(1), 4))
    torch.testing.assert_close(max_sensitivity(hot, images), max_sensitivity(Toy(), images))


def test_the_expected_move_of_uniform_noise():
    """Heat = the pixels: E ||noise||^2 = n radius^2 / 3, so the move is about radius sqrt(n / 3) over the norm."""
    images = torch.ones(1, 3, 64, 64)
    pixels = Toy(lambda images: images.flatten(1, 2))
    expected = 0.2 / 3**0.5  # sqrt(n) cancels
    assert max_sensitivity(pixels, images, samples=1).item() == pytest.approx(expected, rel=0.02)


def test_more_samples_never_find_less(images):
    found = [max_sensitivity(Toy(), images, samples=samples) for samples in (1, 3, 9)]
    assert (found[0] <= found[1]).all() and (found[1] <= found[2]).all() and (found[0] < found[2]).any()


def test_the_seed_decides_and_the_batch_does_not(images):
    state = torch.get_rng_state()
    sensitivity = max_sensitivity(Toy(), images, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(max_sensitivity(Toy(), images, seed=1), sensitivity)
    torch.testing.assert_close(max_sensitivity(Toy(), images[3:], seed=1), sensitivity[3:])
    assert not torch.equal(max_sensitivity(Toy(), images, seed=2), sensitivity)


def test_the_move_itself_where_there_is_no_heat(images):
    images[2] = 0
    sensitivity = max_sensitivity(Toy(), images, samples=1)
    noise = 0.2 * (2 * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) - 1)
    assert sensitivity[2].item() == pytest.approx(F.avg_pool2d(noise.sum(0)[None], 4).norm().item(), rel=1e-5)


@pytest.mark.parametrize("given", [None, torch.tensor([5, 4, 3, 2, 1, 0])])
def test_the_label_stays_that_of_the_image(images, given):
    toy = Toy()
    max_sensitivity(toy, images, given, samples=2)
    first, *later = toy.labels
    assert first is given and len(later) == 2
    assert all(torch.equal(labels, torch.arange(6) if given is None else given) for labels in later)


@pytest.mark.parametrize("explainer", ["raw_attention", "chefer", "random"])
def test_explainers_of_a_model_in_any_batch_size(explainer):
    model = create_model("vit_digits")
    images = torch.randn(3, 3, 32, 32)
    found = [
        max_sensitivity(create_explainer(explainer, model, batch_size=size), images, 3, samples=2, radius=0.01)
        for size in (1, 32)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)
    assert found[0].isfinite().all() and (found[0] > 0).all() and (found[0] < 1.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples=0 is not allowed; give a whole number >= 1"),
        ({"samples": 2.0}, "samples=2.0 is not allowed"),
        ({"radius": 0}, "radius=0 is not allowed; give a number > 0"),
        ({"radius": float("nan")}, "radius=nan is not allowed"),
    ],
)
def test_options_that_make_no_sense_are_refused(images, options, message):
    with pytest.raises(UsageError, match=message):
        max_sensitivity(Toy(), images, **options)


def test_heat_without_numbers_is_refused(images):
    for heat in (torch.full((1, 4, 4), float("nan")), torch.full((1, 4, 4), float("inf")), torch.ones(4, 4)):
        with pytest.raises(UsageError, match="of finite values"):
            sparseness(heat)
    with pytest.raises(UsageError, match="of finite values"):
        max_sensitivity(Toy(lambda images: torch.full((len(images), 4, 4), float("nan"))), images)
