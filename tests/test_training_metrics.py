"""Evaluation: metrics by hand, and that every image is read once and weighs the same."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from small_training import ManyLabels, Pictures, small_vit
from torch import nn

from common.data import make_loader
from common.models.reduced import reduce_tokens
from common.training import (
    accuracies,
    accuracy,
    cross_entropy,
    evaluate,
    inference_pass,
    mean_average_precision,
    predict,
)

LOGITS = torch.tensor([[9.0, 1, 2, 3], [9, 5, 1, 1], [0, 1, 2, 3], [1, 0, 7, 6]])


def test_accuracy_by_hand():
    assert accuracy(LOGITS, torch.tensor([0, 0, 0, 2])) == 75.0
    assert accuracy(LOGITS, torch.tensor([1, 2, 2, 0])) == 0.0


def test_accuracy_of_a_restricted_head_by_hand():
    """Labels are positions in ``classes``: outputs 3 and 1 stand for classes 0 and 1."""
    # restricted rows (3, 1), (1, 5), (3, 1), (6, 0): decisions 0, 1, 0, 0
    assert accuracy(LOGITS, torch.tensor([0, 1, 1, 0]), classes=[3, 1]) == 75.0
    assert accuracy(LOGITS, torch.tensor([0, 1, 0, 0]), classes=[3, 1]) == 100.0


def test_accuracies_among_the_datasets_classes_and_among_all():
    pictures, labels = Pictures(4), torch.tensor([0, 1, 1, 0])
    assert accuracies(LOGITS[:, :3], labels, pictures) == {"accuracy": 25.0, "accuracy_full": None}
    pictures.imagenet_indices = [3, 1, 4]  # decisions among these: 0, 1, 0, 0; among all: 0, 0, 3, 2
    wide = torch.cat([LOGITS, torch.full((4, 996), -1.0)], 1)
    assert accuracies(wide, labels, pictures) == {"accuracy": 75.0, "accuracy_full": 0.0}
    assert accuracies(wide, torch.tensor([0, 1, 0, 0]), pictures) == {"accuracy": 100.0, "accuracy_full": 25.0}


def test_cross_entropy_of_a_restricted_head_by_hand():
    rows = [(3, 1), (1, 5), (3, 1), (6, 0)]
    expected = sum(math.log(math.exp(a) + math.exp(b)) - b for a, b in rows) / 4
    assert cross_entropy(LOGITS, torch.ones(4, dtype=torch.long), classes=[3, 1]) == pytest.approx(expected, rel=1e-6)


SCORES = torch.tensor([[0.9, 0.1, 0.3], [0.8, 0.7, 0.2], [0.3, 0.6, 0.9], [0.1, 0.5, 0.4]])
TRUTH = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])


def test_mean_average_precision_by_hand():
    """Ranks of the positives: 1 and 3 of class 0; 2 and 3 of class 1; class 2 has none and counts 0."""
    expected = 100 * ((1 / 1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2 + 0) / 3
    assert mean_average_precision(SCORES, TRUTH) == pytest.approx(expected)


def test_mean_average_precision_of_the_reference_formula():
    """AP = sum over positives of (positives so far) / rank, by (number of positives + 1e-8)."""
    scores, truth = torch.randn(200, 7), (torch.rand(200, 7) < 0.2).float()
    truth[:, 4] = 0
    ranked = truth.gather(0, scores.argsort(0, descending=True)).double()
    rank = torch.arange(1, 201)[:, None]
    precision = (ranked * ranked.cumsum(0) / rank).sum(0) / (ranked.sum(0) + 1e-8)
    assert mean_average_precision(scores, truth) == pytest.approx(100 * precision.mean().item(), rel=1e-6)


def test_evaluation_of_several_labels_per_image():
    model, data = small_vit().eval(), ManyLabels(10)
    logits = model(data.images).detach()
    loss, percent = evaluate(model, make_loader(data, 4, shuffle=False, seed=0))
    expected = nn.functional.binary_cross_entropy_with_logits(logits, data.labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert percent == pytest.approx(mean_average_precision(logits, data.labels))


def test_evaluate_weighs_images_not_batches():
    model, data = small_vit().eval(), Pictures(10)
    losses = nn.functional.cross_entropy(model(data.images), data.labels).item()
    loss, percent = evaluate(model.train(), make_loader(data, 4, shuffle=False, seed=0))
    assert loss == pytest.approx(losses, rel=1e-5)
    assert percent == pytest.approx(100 * (model(data.images).argmax(1) == data.labels).float().mean().item())


def test_predict_reads_each_image_once_for_all_models():
    vit, data = small_vit(), Pictures(10)
    models = {rate: reduce_tokens(vit, "tram", keep_rate=rate) for rate in (1.0, 0.75, 0.5)}
    predictions, labels = predict(models, make_loader(data, 4, shuffle=False, seed=0))
    assert [index for index, _ in data.read] == list(range(10))
    assert torch.equal(labels, data.labels) and list(predictions) == [1.0, 0.75, 0.5]
    for rate, model in models.items():
        torch.testing.assert_close(predictions[rate].logits, model.eval()(data.images).detach(), rtol=0, atol=1e-5)
    assert not torch.equal(predictions[1.0].logits, predictions[0.5].logits)


@pytest.mark.parametrize("fails", [False, True])
def test_an_inference_pass_leaves_all_as_it_was(fails):
    """Two models that share their blocks, one of which is trained in part; also when the pass ends in an error."""
    vit, data = small_vit().bfloat16(), Pictures(10)
    models = [vit.train(), reduce_tokens(vit, "topk", keep_rate=0.5).train()]
    models[0].blocks[1].eval()
    models[0].blocks[2].requires_grad_(False)
    before = [[m.training for model in models for m in model.modules()], [p.requires_grad for p in vit.parameters()]]
    sizes = []
    loader = make_loader(data, 4, shuffle=False, seed=0)
    with pytest.raises(KeyError) if fails else nullcontext(), inference_pass(models, loader, "pass") as batches:
        for images, labels in batches:
            assert not any(m.training for model in models for m in model.modules())
            assert torch.is_inference_mode_enabled() and images.dtype == torch.bfloat16
            sizes.append((len(images), len(labels)))
            if fails and len(sizes) == 2:
                raise KeyError
    assert sizes == ([(4, 4)] * 2 if fails else [(4, 4), (4, 4), (2, 2)])
    after = [[m.training for model in models for m in model.modules()], [p.requires_grad for p in vit.parameters()]]
    assert after == before and not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_speed_leaves_out_the_first_batch(monkeypatch):
    """Batches of 4, 4 and 2 images; a pass takes 100 s, then 2 s, then 1 s: six images in three seconds."""
    clock = iter([0.0, 100.0, 100.0, 102.0, 102.0, 103.0])
    monkeypatch.setattr("common.training.prediction.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    predictions, _ = predict({0: small_vit()}, make_loader(Pictures(10), 4, shuffle=False, seed=0))
    assert predictions[0].images_per_second == 2.0


def test_speed_of_a_single_batch(monkeypatch):
    clock = iter([0.0, 0.5])
    monkeypatch.setattr("common.training.prediction.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    predictions, _ = predict({0: small_vit()}, make_loader(Pictures(3), 4, shuffle=False, seed=0))
    assert predictions[0].images_per_second == 6.0


def test_predict_follows_the_dtype_of_the_model_and_answers_in_float32():
    predictions, _ = predict({0: small_vit().bfloat16()}, make_loader(Pictures(4), 4, shuffle=False, seed=0))
    assert predictions[0].logits.dtype == torch.float32
    assert torch.equal(predictions[0].logits, predictions[0].logits.bfloat16().float())
