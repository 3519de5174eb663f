"""Training and evaluation: what is refused, what an epoch reports, and that a run follows from its seed alone."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common.data import make_loader
from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.training import WARMUP, TrainConfig, accuracy, cross_entropy, evaluate, predict, train

HALF = Normalisation((0.5,) * 3, (0.5,) * 3)


class Pictures(LabelledDataset):
    """Random images of 8 x 8 pixels in three classes; notes which were read, and what augmentation would draw."""

    def __init__(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        super().__init__("pictures", "abc", torch.randint(3, (n,), generator=generator), HALF)
        self.images = torch.randn(n, 3, 8, 8, generator=generator)
        self.read = []

    def __getitem__(self, index):
        self.read.append((index, torch.rand(()).item()))
        return self.images[index], int(self.labels[index])


def small_vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**sizes, **options)


def config(**changes):
    return TrainConfig(**{"epochs": 1, "lr": 1e-3, "batch_size": 4, "device": "cpu", **changes})


@pytest.fixture
def updates():
    """Every optimizer step: (name of the optimizer, its learning rate, ids of its parameters)."""
    log = []

    def note(optimizer, args, kwargs):
        (group,) = optimizer.param_groups
        log.append((type(optimizer).__name__, group["lr"], [id(parameter) for parameter in group["params"]]))

    handle = register_optimizer_step_pre_hook(note)
    yield log
    handle.remove()


# configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; allowed: adam, muon"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; allowed: constant, cosine, step"),
        ({"epochs": -1}, "epochs=-1 is not allowed; give an integer >= 0"),
        ({"epochs": 1.5}, "epochs=1.5 is not allowed; give an integer >= 0"),
        ({"batch_size": 0}, "batch_size=0 is not allowed; give an integer >= 1"),
        ({"workers": -1}, "workers=-1 is not allowed; give an integer >= 0"),
        ({"lr": 0.0}, "lr=0.0 is not allowed; give a positive number"),
        ({"lr": -1e-4}, "lr=-0.0001 is not allowed; give a positive number"),
        ({"lr": math.nan}, "lr=nan is not allowed; give a positive number"),
        ({"lr": math.inf}, "lr=inf is not allowed; give a positive number"),
        ({"lr": "1e-4"}, "lr='1e-4' is not allowed; give a positive number"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UsageError) as caught:
        config(**changes)
    assert str(caught.value) == message


def test_unknown_device_is_refused_in_one_line():
    with pytest.raises(UsageError) as caught:
        list(train(small_vit(), Pictures(4), Pictures(4), config(device="tpv")))
    assert "'tpv'" in str(caught.value) and len(str(caught.value).splitlines()) == 1


# learning rates


def rates(updates, epochs, batches, schedule, lr=1e-3):
    list(train(small_vit(), Pictures(4 * batches), Pictures(2), config(epochs=epochs, schedule=schedule, lr=lr)))
    assert {name for name, *_ in updates} == {"Adam"} and len(updates) == epochs * batches
    return [rate / lr for _, rate, _ in updates]


def test_constant_rate(updates):
    assert rates(updates, 3, 2, "constant") == [1.0] * 6


def test_step_halves_after_every_ten_epochs(updates):
    assert rates(updates, 22, 2, "step") == pytest.approx([1.0] * 20 + [0.5] * 20 + [0.25] * 4)


def test_cosine_warms_up_and_ends_near_zero(updates):
    factors = rates(updates, 10, 4, "cosine")
    warmup = round(WARMUP * 40)
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert max(factors) == pytest.approx(1.0)
    after = factors[warmup:]
    assert all(a > b for a, b in zip(after, after[1:], strict=False))
    assert after[len(after) // 2] == pytest.approx(0.5) and 0 < after[-1] < 0.01


def test_cosine_of_a_single_step(updates):
    assert rates(updates, 1, 1, "cosine") == [1.0]


# epochs


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_no_epoch_is_an_evaluation(optimizer):
    model, val_set, train_set = small_vit(), Pictures(7), Pictures(5, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (epoch,) = train(model, train_set, val_set, config(epochs=0, optimizer=optimizer))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (epoch.epoch, epoch.train_loss, epoch.train_loss_last_batch) == (0, None, None)
    assert epoch.epoch_seconds > 0 and train_set.read == []
    logits = model.eval()(val_set.images)
    assert epoch.val_loss == pytest.approx(nn.functional.cross_entropy(logits, val_set.labels).item(), rel=1e-6)
    assert epoch.val_accuracy == pytest.approx(100 * (logits.argmax(1) == val_set.labels).sum().item() / 7)


def test_epochs_are_counted_from_before_training():
    epochs = list(train(small_vit(), Pictures(8), Pictures(4), config(epochs=3)))
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2, 3]
    assert all(epoch.train_loss > 0 and epoch.train_loss_last_batch > 0 for epoch in epochs[1:])


def test_train_loss_is_the_mean_over_images_and_the_last_batch_its_own():
    """With a learning rate that changes nothing both can be computed from the untrained model: batches of 4, 4, 2."""
    model, train_set = small_vit(), Pictures(10)
    losses = nn.functional.cross_entropy(model(train_set.images), train_set.labels, reduction="none").detach()
    *_, epoch = train(model, train_set, Pictures(2), config(lr=1e-12))
    order = [index for index, _ in train_set.read]
    assert epoch.train_loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert epoch.train_loss_last_batch == pytest.approx(losses[order[-2:]].mean().item(), rel=1e-5)
    mean_of_batches = torch.stack([losses[order[i : i + 4]].mean() for i in (0, 4, 8)]).mean().item()
    assert abs(mean_of_batches - epoch.train_loss) > 1e-3


def test_training_learns():
    train_set = Pictures(12)
    epochs = list(train(small_vit(), train_set, train_set, config(epochs=40, lr=3e-3)))
    assert epochs[-1].val_accuracy == 100.0 and epochs[-1].train_loss < 0.3 * epochs[1].train_loss


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_run_follows_from_its_seed(optimizer):
    def losses(seed):
        model = reduce_tokens(small_vit(drop_path_rate=0.2), "ats", keep_rate=0.5, sampler="random")
        epochs = list(train(model, Pictures(10), Pictures(6), config(epochs=2, optimizer=optimizer, seed=seed)))
        return [(e.train_loss, e.train_loss_last_batch, e.val_loss, e.val_accuracy) for e in epochs[1:]]

    first = losses(1)
    torch.rand(7)
    assert losses(1) == first
    assert losses(2) != first


def test_all_methods_see_the_same_images_in_the_same_order():
    seen = []
    for reducer, keep_rate in (("none", 1.0), ("tram", 0.5), ("topk", 0.5), ("ats", 0.5), ("patchmerger", 0.5)):
        options = {"sampler": "random"} if reducer == "ats" else {}
        train_set = Pictures(9)
        model = reduce_tokens(small_vit(), reducer, keep_rate=keep_rate, **options)
        list(train(model, train_set, Pictures(3), config(epochs=2)))
        seen.append(train_set.read)
    assert all(read == seen[0] for read in seen)
    first, second = seen[0][:9], seen[0][9:]
    assert sorted(i for i, _ in first) == sorted(i for i, _ in second) == list(range(9))
    assert [i for i, _ in first] != [i for i, _ in second] != list(range(9))


class BreaksAt(nn.Module):
    """A linear classifier whose n-th training pass gives ``value``."""

    def __init__(self, n, value):
        super().__init__()
        self.head, self.n, self.value, self.passes = nn.Linear(192, 3), n, value, 0

    def forward(self, images):
        self.passes += self.training
        logits = self.head(images.flatten(1))
        return logits * self.value if self.training and self.passes == self.n else logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(value, updates):
    model = BreaksAt(5, value)  # three batches an epoch: the second of epoch 2, step 1 counted from 0
    with pytest.raises(FloatingPointError, match="nan in epoch 2, step 1; try a smaller lr"):
        list(train(model, Pictures(12), Pictures(4), config(epochs=3)))
    assert len(updates) == 4 and all(parameter.isfinite().all() for parameter in model.parameters())


def test_each_epoch_trains_in_training_mode_and_evaluates_without():
    model = BreaksAt(0, 1.0)
    epochs = []
    for epoch in train(model, Pictures(12), Pictures(4), config(epochs=2)):
        assert not model.training  # evaluation came last
        epochs.append((epoch.epoch, model.passes))
    assert epochs == [(0, 0), (1, 3), (2, 6)]


def test_muon_trains_the_matrices_of_the_blocks_and_adam_the_rest(updates):
    model = reduce_tokens(small_vit(), "patchmerger", keep_rate=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    list(train(model, Pictures(4), Pictures(2), config(optimizer="muon", lr=1e-3)))
    assert [(name, rate) for name, rate, _ in updates] == [("Muon", pytest.approx(0.02)), ("Adam", 1e-3)]
    muon, adam = ([names[i] for i in ids] for *_, ids in updates)
    matrices = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    assert set(muon) == {f"blocks.{layer}.{matrix}" for layer in range(4) for matrix in matrices}
    assert Counter(muon + adam) == Counter(names.values())  # each once
    assert {"head.weight", "cls_token", "pos_embed", "reducer.mergers.1.queries"} <= set(adam)


# evaluation


LOGITS = torch.tensor([[9.0, 1, 2, 3], [9, 5, 1, 1], [0, 1, 2, 3], [1, 0, 7, 6]])


def test_accuracy_by_hand():
    assert accuracy(LOGITS, torch.tensor([0, 0, 0, 2])) == 75.0
    assert accuracy(LOGITS, torch.tensor([1, 2, 2, 0])) == 0.0


def test_accuracy_of_a_restricted_head_by_hand():
    """Labels are positions in ``classes``: outputs 3 and 1 stand for classes 0 and 1."""
    # restricted rows (3, 1), (1, 5), (3, 1), (6, 0): decisions 0, 1, 0, 0
    assert accuracy(LOGITS, torch.tensor([0, 1, 1, 0]), classes=[3, 1]) == 75.0
    assert accuracy(LOGITS, torch.tensor([0, 1, 0, 0]), classes=[3, 1]) == 100.0


def test_cross_entropy_of_a_restricted_head_by_hand():
    rows = [(3, 1), (1, 5), (3, 1), (6, 0)]
    expected = sum(math.log(math.exp(a) + math.exp(b)) - b for a, b in rows) / 4
    assert cross_entropy(LOGITS, torch.ones(4, dtype=torch.long), classes=[3, 1]) == pytest.approx(expected, rel=1e-6)


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


def test_speed_leaves_out_the_first_batch(monkeypatch):
    """Batches of 4, 4 and 2 images; a pass takes 100 s, then 2 s, then 1 s: six images in three seconds."""
    clock = iter([0.0, 100.0, 100.0, 102.0, 102.0, 103.0])
    monkeypatch.setattr("common.training.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    predictions, _ = predict({0: small_vit()}, make_loader(Pictures(10), 4, shuffle=False, seed=0))
    assert predictions[0].images_per_second == 2.0


def test_speed_of_a_single_batch(monkeypatch):
    clock = iter([0.0, 0.5])
    monkeypatch.setattr("common.training.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    predictions, _ = predict({0: small_vit()}, make_loader(Pictures(3), 4, shuffle=False, seed=0))
    assert predictions[0].images_per_second == 6.0


def test_predict_follows_the_dtype_of_the_model_and_answers_in_float32():
    predictions, _ = predict({0: small_vit().bfloat16()}, make_loader(Pictures(4), 4, shuffle=False, seed=0))
    assert predictions[0].logits.dtype == torch.float32
    assert torch.equal(predictions[0].logits, predictions[0].logits.bfloat16().float())
