"""From traces to rows and examples: the right block, the right image, the right numbers."""

import pytest
import torch

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation, denormalise
from common.errors import UsageError
from common.models.factory import create_backbone
from common.models.reduced import reduce_tokens
from common.setup import Setup
from common.studies.visualize import (
    Decision,
    TracedImages,
    examples,
    measure,
    rates_of_networks,
    trace_images,
    trace_networks,
)
from common.weights import save_state

NORM = Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


class Pictures(LabelledDataset):
    """Random images in [0, 1], normalised."""

    def __init__(self, labels, num_classes=10, side=32, **more):
        super().__init__("pictures", [f"class {i}" for i in range(num_classes)], torch.tensor(labels), NORM, **more)
        self.pixels = torch.rand(len(labels), 3, side, side, generator=torch.Generator().manual_seed(0))

    def __getitem__(self, index):
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.pixels[index] - mean) / std, int(self.labels[index])


def fake_trace(n, keep_rate="0.5"):
    """Four layers of four patches; image i keeps 4, 3, 2, 1 of them, and its probabilities tell which image it is."""
    alive = torch.tensor([4, 3, 2, 1])
    kept = torch.arange(4).expand(n, 4, 4) < alive[:, None]
    kept[1::2] = kept[1::2].flip(-1)  # odd images keep the last patches
    full = Decision([f"full {i}" for i in range(n)], torch.arange(n) / 1000)
    own = Decision([f"reduced {i}" for i in range(n)], torch.arange(n) / 2000)
    return TracedImages(keep_rate, kept, alive.expand(n, 4), full, own)


def test_denormalise_inverts_normalisation():
    data = Pictures([0, 1, 2])
    batch = torch.stack([image for image, _ in data])
    torch.testing.assert_close(denormalise(batch, data.mean, data.std), data.pixels, rtol=0, atol=1e-6)
    torch.testing.assert_close(denormalise(batch[1], data.mean, data.std), data.pixels[1], rtol=0, atol=1e-6)


def test_denormalised_values_are_colours():
    values = denormalise(torch.tensor([-9.0, 0.0, 9.0])[:, None, None], (0.5,) * 3, (0.5,) * 3).flatten()
    assert values.tolist() == [0.0, 0.5, 1.0]


def test_rows_count_blocks_from_zero():
    rows = measure(Pictures([2, 1], image_ids=["a", "b"]), [fake_trace(2)], "topk:head_fusion=mean", [0, 3])
    assert [(row["image"], row["block"], row["num_tokens"]) for row in rows] == [
        ("a", 0, 4),
        ("a", 3, 1),
        ("b", 0, 4),
        ("b", 3, 1),
    ]
    assert rows[3] == {
        "method": "topk",
        "options": "head_fusion=mean",
        "weights": "",
        "keep_rate": "0.5",
        "image": "b",
        "class_name": "class 1",
        "block": 3,
        "num_tokens": 1,
        "predicted": "reduced 1",
        "probability": pytest.approx(1 / 2000),
        "predicted_full_model": "full 1",
        "probability_full_model": pytest.approx(1 / 1000),
    }


# examples


def class_counts(labels, count, num_classes):
    data = Pictures(labels, num_classes, side=2)
    chosen = examples(data, [fake_trace(len(labels))], [1], count)
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
    traced = [fake_trace(6, rate) for rate in ("0.75", "0.9 0.7 0.5")]
    for example in examples(data, traced, [1, 3], 3):
        index = int(example.rows[0].predicted.split()[1])
        assert example.class_name == data.classes[data.labels[index]]
        torch.testing.assert_close(torch.as_tensor(example.image), data.pixels[index], rtol=0, atol=1e-6)
        assert [row.label for row in example.rows] == ["75 %", "90, 70, 50 %"]
        for row in example.rows:
            first, last = [True, True, True, False], [True, False, False, False]
            expected = [first[::-1], last[::-1]] if index % 2 else [first, last]
            assert row.kept.tolist() == expected
            assert (row.predicted, row.predicted_full_model) == (f"reduced {index}", f"full {index}")
            assert row.probability == pytest.approx(index / 2000)
            assert row.probability_full_model == pytest.approx(index / 1000)


# trace_images


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    vit = create_backbone("vit_digits").eval()
    torch.nn.init.normal_(vit.head.weight, std=0.5)
    models = [reduce_tokens(vit, "tram", keep_rate=rate) for rate in (0.75, (0.9, 0.5, 0.25))]
    data = Pictures([3, 1, 4, 1, 5])
    return vit, models, data, trace_images(Setup.around(vit, {"val_set": data}, batch_size=2), models, data)


@pytest.mark.parametrize("place", [0, 1])
def test_the_trace_of_each_model(traced, place):
    vit, models, data, results = traced
    images, result = data.stack(), results[place]
    logits, trace = models[place].eval().trace(images)
    assert result.keep_rate == ["0.75", "0.9 0.5 0.25"][place]
    assert result.kept.shape == (5, 6, 64) and result.num_tokens.shape == (5, 6)
    for block in range(6):
        assert torch.equal(result.kept[:, block], trace.kept(block))
        assert torch.equal(result.num_tokens[:, block], trace.num_tokens[block])
    # stages are blocks 1, 3 and 4 of 6
    counts = [[64, 48, 48, 36, 27, 27], [64, 57, 57, 32, 16, 16]][place]
    assert result.num_tokens.tolist() == [counts] * 5 == result.kept.sum(2).tolist()
    for decision, output in ((result.reduced, logits), (result.full, vit(images).detach())):
        probability, index = output.softmax(1).max(1)
        assert decision.names == [data.classes[i] for i in index.tolist()]
        torch.testing.assert_close(decision.probability, probability, rtol=0, atol=1e-5)


def test_rows_of_traced_images(traced):
    _, _, data, results = traced
    rows = measure(data, results, "tram", range(6))
    assert len(rows) == 2 * 5 * 6
    assert [row["num_tokens"] for row in rows[6:12]] == [64, 48, 48, 36, 27, 27]
    assert {(row["class_name"], row["keep_rate"]) for row in rows[6:12]} == {("class 1", "0.75")}


def test_a_network_for_all_keep_rates_or_one_for_each(tmp_path):
    assert rates_of_networks("digits", [0.75, 0.5]) == {"digits": [0.75, 0.5]}
    assert rates_of_networks(["a", "b", "a"], [0.75, 0.5, 0.25]) == {"a": [0.75, 0.25], "b": [0.5]}
    with pytest.raises(
        UsageError, match=r"weights=\['a'\] for keep_rates=\[0.75, 0.5\] is not allowed; give one for all"
    ):
        rates_of_networks(["a"], [0.75, 0.5])


def test_each_keep_rate_is_shown_of_its_own_network(tmp_path):
    """The same two images; each network is compared with itself unreduced."""
    setups, said = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        vit = create_backbone("vit_digits").eval()
        torch.nn.init.normal_(vit.head.weight, std=0.5)
        save_state(vit, tmp_path / f"{seed}.safetensors")
        setups.append(Setup("vit_digits", str(tmp_path / f"{seed}.safetensors"), "digits", 32, device="cpu"))
        said.append(vit(setups[-1].some(2).stack()).softmax(1).max(1).values.detach())
    traced = trace_networks(setups, [[0.75], [0.5]], "tram", 2)
    assert [(each.weights, each.keep_rate) for each in traced] == [("1.safetensors", "0.75"), ("2.safetensors", "0.5")]
    for each, probability in zip(traced, said, strict=True):
        torch.testing.assert_close(each.full.probability, probability, rtol=0, atol=1e-5)
    rows = measure(setups[0].some(2), traced, "tram", [4])
    assert [row["weights"] for row in rows] == ["1.safetensors"] * 2 + ["2.safetensors"] * 2


def test_decisions_inside_a_larger_head():
    """Outputs 7, 2 and 5 of 1000 are the dataset's classes; the others do not count."""
    data = Pictures([0, 1, 2], num_classes=3, imagenet_indices=[7, 2, 5])
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    probability, index = logits[:, [7, 2, 5]].softmax(1).max(1)
    decision = Decision.of(logits, data)
    assert decision.names == [data.classes[i] for i in index.tolist()]
    torch.testing.assert_close(decision.probability, probability)


def test_images_are_normalised_as_the_weights_expect(tmp_path):
    """Not as the recipe does where nothing is said: DeiT from the hub would see a mean of 0.5."""
    vit = create_backbone("vit_digits")
    vit.pretrained_cfg = {**vit.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    save_state(vit, tmp_path / "vit.safetensors")
    images = Setup("vit_digits", str(tmp_path / "vit.safetensors"), "digits", 32, limit_val=20).some(10)
    assert (images.mean, images.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert images[0][0].amin(dim=(1, 2)).tolist() == pytest.approx([-0.25, -0.4, -0.5]), "black"
