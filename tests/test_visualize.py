"""From traces to rows and examples: the right layer, the right image, the right numbers."""

import pytest
import torch
from torch.utils.data import DataLoader

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.visualize import Decision, TracedImages, denormalise, examples, trace_all

NORM = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Pictures(LabelledDataset):
    """Random images in [0, 1], normalised."""

    def __init__(self, labels, num_classes=10, side=32):
        super().__init__("pictures", [f"class {i}" for i in range(num_classes)], torch.tensor(labels), NORM)
        self.pixels = torch.rand(len(labels), 3, side, side, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, index):
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.pixels[index] - mean) / std, int(self.labels[index])


def fake_trace(n, keep_rate=0.5):
    """Four layers of four patches; image i keeps 4, 3, 2, 1 of them, and its probabilities tell which image it is."""
    alive = torch.tensor([4, 3, 2, 1])
    kept = torch.arange(4).expand(n, 4, 4) < alive[:, None]
    kept[1::2] = kept[1::2].flip(-1)  # odd images keep the last patches
    full = Decision([f"full {i}" for i in range(n)], torch.arange(n) / 1000)
    own = Decision([f"reduced {i}" for i in range(n)], torch.arange(n) / 2000)
    return TracedImages(keep_rate, kept, alive.expand(n, 4), full, own, [f"true {i}" for i in range(n)])


def test_denormalise_inverts_normalisation():
    data = Pictures([0, 1, 2])
    batch = torch.stack([image for image, _ in data])
    torch.testing.assert_close(denormalise(batch, data.mean, data.std), data.pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(denormalise(batch[1], data.mean, data.std), data.pixels[1], rtol=0, atol=1e-6)


def test_denormalised_values_are_colours():
    values = denormalise(torch.tensor([-9.0, 0.0, 9.0])[:, None, None], (0.5,) * 3, (0.5,) * 3).flatten()
    assert values.tolist() == [0.0, 0.5, 1.0]


def test_rows_count_layers_from_one():
    rows = fake_trace(2).rows([0, 3])
    assert [(row["image"], row["layer"], row["num_kept"]) for row in rows] == [
        ("0", 1, 4),
        ("0", 4, 1),
        ("1", 1, 4),
        ("1", 4, 1),
    ]
    assert rows[3] == {
        "keep_rate": 0.5,
        "image": "1",
        "class_name": "true 1",
        "layer": 4,
        "num_kept": 1,
        "predicted": "reduced 1",
        "probability": pytest.approx(1 / 2000),
        "predicted_full_model": "full 1",
        "probability_full_model": pytest.approx(1 / 1000),
    }


# examples


def class_counts(labels, count, num_classes):
    data = Pictures(labels, num_classes, side=2)
    chosen = examples(data, {0.5: fake_trace(len(labels))}, [1], count)
    assert len(chosen) == count
    assert len({example.rows[0].predicted for example in chosen}) == count  # no image twice
    return [sum(example.class_name == name for example in chosen) for name in data.classes]


@pytest.mark.parametrize("count", [5, 10, 20, 25])
def test_examples_are_spread_evenly_over_classes(count):
    labels = (torch.arange(100) % 10)[torch.randperm(100)].tolist()
    counts = class_counts(labels, count, 10)
    assert max(counts) - min(counts) <= 1


def test_examples_are_spread_evenly_over_classes_of_different_size():
    assert class_counts([0] * 30 + [1] * 3 + [2] * 3, 3, 3) == [1, 1, 1]
    assert class_counts([0] * 30 + [1] * 3 + [2] * 3, 6, 3) == [2, 2, 2]


def test_an_example_belongs_to_its_image():
    data = Pictures([1, 0, 2, 1, 0, 2], num_classes=3)
    traced = {rate: fake_trace(6, rate) for rate in (0.75, 0.5)}
    for example in examples(data, traced, [1, 3], 3):
        index = int(example.rows[0].predicted.split()[1])
        assert example.class_name == data.classes[data.labels[index]]
        torch.testing.assert_close(torch.as_tensor(example.image), data.pixels[index], rtol=0, atol=1e-6)
        assert [row.keep_rate for row in example.rows] == [0.75, 0.5]
        for row in example.rows:
            first, last = [True, True, True, False], [True, False, False, False]
            expected = [first[::-1], last[::-1]] if index % 2 else [first, last]
            assert row.kept.tolist() == expected
            assert (row.predicted, row.predicted_full_model) == (f"reduced {index}", f"full {index}")
            assert row.probability == pytest.approx(index / 2000)
            assert row.probability_full_model == pytest.approx(index / 1000)


# trace_all


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    vit = create_backbone("vit_digits").eval()
    torch.nn.init.normal_(vit.head.weight, std=0.5)
    models = {rate: reduce_tokens(vit, "tram", keep_rate=rate) for rate in (0.75, 0.5)}
    data = Pictures([3, 1, 4, 1, 5])
    images = torch.stack([image for image, _ in data])
    return vit, models, data, images, trace_all(vit, models, DataLoader(data, 2), data.classes)


@pytest.mark.parametrize("rate", [0.75, 0.5])
def test_trace_all_is_the_trace_of_each_model(traced, rate):
    vit, models, data, images, result = traced
    logits, trace = models[rate].eval().trace(images)
    assert result[rate].keep_rate == rate
    assert result[rate].kept.shape == (5, 6, 64) and result[rate].num_kept.shape == (5, 6)
    for layer in range(6):
        assert torch.equal(result[rate].kept[:, layer], trace.kept(layer))
        assert torch.equal(result[rate].num_kept[:, layer], trace.num_tokens[layer])
    # stages are blocks 1, 3 and 4 of 6
    counts = {0.75: [64, 48, 48, 36, 27, 27], 0.5: [64, 32, 32, 16, 8, 8]}[rate]
    assert result[rate].num_kept.tolist() == [counts] * 5 == result[rate].kept.sum(2).tolist()
    for decision, output in ((result[rate].reduced, logits), (result[rate].full, vit(images).detach())):
        probability, index = output.softmax(1).max(1)
        assert decision.names == [data.classes[i] for i in index.tolist()]
        torch.testing.assert_close(decision.probability, probability, rtol=0, atol=1e-5)


def test_trace_all_names_the_true_classes(traced):
    result = traced[-1]
    assert list(result) == [0.75, 0.5]
    assert result[0.5].class_names == ["class 3", "class 1", "class 4", "class 1", "class 5"]
    rows = result[0.5].rows(range(6))
    assert [row["num_kept"] for row in rows[6:12]] == [64, 32, 32, 16, 8, 8]
    assert {row["class_name"] for row in rows[6:12]} == {"class 1"} and len(rows) == 5 * 6


def test_trace_all_inside_a_larger_head(traced):
    """Outputs 7, 2 and 5 are the dataset's classes a, b and c; the others do not count."""
    vit, models, _, images, _ = traced
    loader = DataLoader(list(zip(images, [0, 1, 2, 0, 1], strict=True)), 3)
    result = trace_all(vit, {0.5: models[0.5]}, loader, ["a", "b", "c"], inside=[7, 2, 5])[0.5]
    probability, index = vit(images).detach()[:, [7, 2, 5]].softmax(1).max(1)
    assert result.full.names == ["abc"[i] for i in index.tolist()]
    torch.testing.assert_close(result.full.probability, probability, rtol=0, atol=1e-5)
    assert result.class_names == ["a", "b", "c", "a", "b"]
