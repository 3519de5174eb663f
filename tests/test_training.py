"""The training loop: what an epoch reports, and that a run follows from its seed alone."""

import math
import time

import pytest
import torch
from small_training import ManyLabels, Pictures, config, record_updates, same_weights, small_vit
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from common.data import make_loader
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.training import train


@pytest.fixture
def updates():
    yield from record_updates()


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


def test_an_epoch_says_how_long_it_waited_for_images():
    class Slow(Pictures):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    before, slow = train(small_vit(), Slow(10), Pictures(4), config(epochs=1))
    assert before.loading_seconds is None and 10 * 0.02 <= slow.loading_seconds < slow.epoch_seconds
    fast = list(train(small_vit(), Pictures(10), Slow(4), config(epochs=1)))[1]
    assert fast.loading_seconds < 4 * 0.02 <= fast.epoch_seconds


def test_epochs_are_counted_from_before_training():
    epochs = list(train(small_vit(), Pictures(8), Pictures(4), config(epochs=3)))
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2, 3]
    assert all(epoch.train_loss > 0 and epoch.train_loss_last_batch > 0 for epoch in epochs[1:])
    assert [epoch.lr for epoch in epochs] == [None, 1e-3, 1e-3, 1e-3]


def test_the_loop_is_that_of_a_few_lines_by_hand():
    by_hand, trained, data = small_vit(), small_vit(), Pictures(10)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=1e-3)
    loader = make_loader(data, 4, shuffle=True, seed=42)
    for _ in range(2):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(images), labels).backward()
            optimizer.step()
    list(train(trained, data, data, config(epochs=2)))
    assert same_weights(by_hand, trained)


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
    epochs = list(train(small_vit(), train_set, train_set, config(epochs=60, lr=3e-3)))
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


# updates


def test_accumulation_equals_one_big_batch_also_when_the_last_is_shorter():
    """10 images: passes of 2, 2, 2, 2, 2 in updates of 3 and 2 against passes of 6 and 4."""
    whole, parts = small_vit(), small_vit()
    (_, one), (_, many) = (
        list(train(model, Pictures(10), Pictures(4), config(optimizer="momentum", momentum=0.0, lr=0.1, **changes)))
        for model, changes in ((whole, {"batch_size": 6}), (parts, {"batch_size": 2, "grad_accum_steps": 3}))
    )
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert many.train_loss == pytest.approx(one.train_loss, rel=1e-5)  # not divided by the number of passes


def test_a_pass_of_another_size_weighs_by_its_images():
    """7 images: an update of passes 4 and 3 is one of a batch of 7."""
    whole, parts = small_vit(), small_vit()
    for model, changes in ((whole, {"batch_size": 7}), (parts, {"batch_size": 4, "grad_accum_steps": 2})):
        list(train(model, Pictures(7), Pictures(4), config(optimizer="momentum", momentum=0.0, lr=0.1, **changes)))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_clipping_bounds_the_update_of_all_passes_together():
    """Plain gradient descent moves by lr times the clipped norm of the mean gradient."""
    model, before = small_vit(), small_vit()
    clipped = config(optimizer="momentum", momentum=0.0, lr=1.0, clip_grad=1e-3, batch_size=2, grad_accum_steps=4)
    list(train(model, Pictures(8), Pictures(4), clipped))
    moved = [a.detach() - b.detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_average_follows_every_update(monkeypatch):
    """ema <- d ema + (1 - d) weights, from the weights before training; evaluated beside the raw weights."""
    seen = []
    monkeypatch.setattr("common.training.engine.Trainer.close", lambda self: seen.append(self.updater.average.module))
    model, expected = small_vit(), small_vit()
    weights = []
    hook = register_optimizer_step_post_hook(
        lambda *_: weights.append([p.detach().clone() for p in model.parameters()])
    )
    epochs = list(train(model, Pictures(8), Pictures(6), config(epochs=2, ema_decay=0.9, lr=1e-2)))
    hook.remove()
    average = [p.detach() for p in expected.parameters()]
    for now in weights:
        average = [0.9 * a + 0.1 * w for a, w in zip(average, now, strict=True)]
    assert len(weights) == 4
    for a, b in zip(seen[0].parameters(), average, strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-5, atol=1e-7)
    logits, labels = seen[0](Pictures(6).images), Pictures(6).labels
    assert epochs[2].ema_val_loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert epochs[2].ema_val_loss != epochs[2].val_loss
    assert (epochs[0].ema_val_loss, epochs[0].ema_val_accuracy) == (None, None)  # nothing was averaged yet


def test_frozen_epochs_change_only_what_is_new():
    model, before = small_vit(), small_vit()
    moved = []
    for epoch in train(model, Pictures(8), Pictures(4), config(epochs=2, backbone_freeze_epochs=1)):
        pairs = zip(model.named_parameters(), before.parameters(), strict=True)
        moved.append({name for (name, a), b in pairs if not torch.equal(a, b)})
        assert epoch.lr in (None, 1e-3)
    new = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "head.weight", "head.bias"}
    assert moved[:2] == [set(), new]
    assert moved[2] == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("changes", "constant"),
    [
        ({"constant_cls": True}, {"cls_token"}),
        ({"constant_pos": True}, {"pos_embed"}),
    ],
)
def test_constant_parameters(changes, constant):
    model, before = small_vit(), small_vit()
    list(train(model, Pictures(8), Pictures(4), config(optimizer="adamw", weight_decay=0.1, **changes)))
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    assert {name for (name, a), b in pairs if torch.equal(a, b)} == constant
    assert all(parameter.requires_grad for parameter in model.parameters())  # given back as it was


def test_attention_only():
    model, before = small_vit(), small_vit()
    list(train(model, Pictures(8), Pictures(4), config(attention_only=True)))
    pairs = zip(model.named_parameters(), before.parameters(), strict=True)
    moved = {name for (name, a), b in pairs if not torch.equal(a, b)}
    attention = {f"blocks.{i}.attn.{p}.{w}" for i in range(4) for p in ("qkv", "proj") for w in ("weight", "bias")}
    assert moved == attention | {"head.weight", "head.bias", "pos_embed"}


def test_several_labels_per_image():
    """Loss and quality are binary cross-entropy and mean average precision."""
    data = ManyLabels(12)
    epochs = list(train(small_vit(), data, data, config(epochs=60, lr=3e-3)))
    assert epochs[-1].val_accuracy > 95 and epochs[-1].val_loss < epochs[0].val_loss
    with pytest.raises(UsageError, match=r"mixup and cutmix need one label per image; .* mixup=0 and cutmix=0"):
        list(train(small_vit(), data, data, config(mixup=0.8)))


def test_mixed_precision_trains_in_bfloat16_and_gives_the_model_back_in_float32():
    class Watches(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.seen = nn.Linear(192, 3), []

        def forward(self, images):
            logits = self.head(images.flatten(1))
            self.seen.append(logits.dtype)
            return logits

    model = Watches()
    list(train(model, Pictures(8), Pictures(4), config(mixed_precision="bf16")))
    assert set(model.seen) == {torch.bfloat16} and model.head.weight.dtype == torch.float32
    model.seen.clear()
    list(train(model, Pictures(8), Pictures(4), config()))  # in the same process, with another precision
    assert set(model.seen) == {torch.float32} and "forward" not in vars(model)


def test_mixup_leaves_out_an_incomplete_batch_and_softens_labels():
    model = BreaksAt(0, 1.0)
    list(train(model, Pictures(11), Pictures(4), config(mixup=0.8, cutmix=1.0, smoothing=0.1)))
    assert model.passes == 2
