"""Learning rates, parameter groups and optimizers."""

import math
from collections import Counter

import pytest
import torch
from small_training import Pictures, config, record_updates, small_vit
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common import create_model
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.training import learning_rate, parameter_groups, protocol, train
from common.training.optim import Muon, base_rate, is_new, make_optimizers, orthogonal


@pytest.fixture
def updates():
    yield from record_updates()


# rates of a whole training


def rates(updates, epochs, batches, schedule, lr=1e-3, **changes):
    settings = config(epochs=epochs, schedule=schedule, lr=lr, **changes)
    list(train(small_vit(), Pictures(4 * batches), Pictures(2), settings))
    assert {name for name, *_ in updates} == {"Adam"} and len(updates) == epochs * batches
    return [rate / lr for _, rate, _ in updates]


def test_constant_rate(updates):
    assert rates(updates, 3, 2, "constant") == [1.0] * 6


def test_step_halves_after_every_ten_epochs(updates):
    assert rates(updates, 22, 2, "step") == pytest.approx([1.0] * 20 + [0.5] * 20 + [0.25] * 4)


def test_cosine_warms_up_and_ends_near_zero(updates):
    factors = rates(updates, 10, 4, "cosine", warmup_epochs=1.0)
    warmup = 4
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert max(factors) == pytest.approx(1.0)
    after = factors[warmup:]
    assert all(a > b for a, b in zip(after, after[1:], strict=False))
    assert after[len(after) // 2] == pytest.approx(0.5) and 0 < after[-1] < 0.01


def test_cosine_of_a_single_step(updates):
    assert rates(updates, 1, 1, "cosine", warmup_epochs=0.1) == [1.0]


# the schedule as a function


HARD = {"epochs": 30, "warmup_epochs": 20, "warmup_lr": 1e-6, "min_lr": 1e-5, "schedule": "cosine"}


def rate(epoch, updates_per_epoch=2502, base=5e-4, **changes):
    settings = config(**{**HARD, **changes})
    update = int(epoch * updates_per_epoch)
    return learning_rate(update, base=base, updates_per_epoch=updates_per_epoch, config=settings)


@pytest.mark.parametrize(
    ("epoch", "printed"),
    [
        (0, "1.000e-06"),
        (5, "1.257e-04"),
        (10, "2.505e-04"),
        (19.99, "4.997e-04"),
        (20, "1.325e-04"),
        (22, "9.11e-05"),
        (25, "4.28e-05"),
        (28, "1.54e-05"),
        (30, "1.0e-05"),
    ],
)
def test_published_rates_jump_after_the_warm_up(epoch, printed):
    digits = len(printed.split("e")[0]) - 2
    assert f"{rate(epoch, warmup_prefix=False):.{digits}e}" == printed


def test_cosine_after_the_warm_up():
    """Without the jump: the same warm-up, then half a cosine over the ten epochs that are left."""
    for epoch in (0, 5, 10, 19.99):
        assert rate(epoch) == rate(epoch, warmup_prefix=False)
    assert rate(20) == 5e-4
    assert rate(25) == pytest.approx((5e-4 + 1e-5) / 2)
    assert rate(22.5) == pytest.approx(1e-5 + 4.9e-4 * (1 + math.cos(math.pi / 4)) / 2)
    assert rate(30) == rate(34) == 1e-5


def test_rates_by_epoch_are_steps():
    for epoch, same in ((0, 0.9), (7, 7.9), (22, 22.5)):
        assert rate(epoch, schedule_in_steps=False) == rate(same, schedule_in_steps=False)
        assert rate(epoch, schedule_in_steps=False) == pytest.approx(rate(epoch))


def test_step_schedule_of_other_steps():
    settings = {"schedule": "step", "decay_epochs": 3, "decay_rate": 0.1, "warmup_epochs": 0}
    assert [rate(e, base=1.0, **settings) for e in (0, 2.9, 3, 6)] == pytest.approx([1, 1, 0.1, 0.01])


def test_rate_scales_with_images_per_update():
    """The published command: 0.001 for 1024 images is 5e-4 for its 256 x 2, on one GPU."""
    settings = protocol("which_tokens")
    assert base_rate(settings) == pytest.approx(5e-4) and base_rate(settings, processes=4) == pytest.approx(2e-3)
    assert base_rate(config(lr=0.1), processes=4) == 0.1


# groups


@pytest.fixture(scope="module")
def topk_tiny():
    with torch.device("meta"):
        return create_model("vit_tiny_patch16_224", reducer="topk", keep_rate=0.5)


def test_groups_of_a_tiny_vit(topk_tiny):
    settings = config(weight_decay=0.05, backbone_lr_scale=0.01, backbone_freeze_epochs=5)
    groups = parameter_groups(topk_tiny, settings)
    assert [(group["name"], len(group["params"])) for group in groups] == [
        ("no_decay", 99),
        ("new_param_no_decay", 3),
        ("new_param", 2),
        ("decay", 48),
    ]
    assert [group["weight_decay"] for group in groups] == [0, 0, 0.05, 0.05]
    assert [group["lr_scale"] for group in groups] == [0.01, 1, 1, 0.01]
    assert [group["freeze_epochs"] for group in groups] == [5, 0, 0, 5]


def test_new_is_a_matter_of_whole_names():
    new = ("head.weight", "head_dist.bias", "pos_embed", "patch_embed.proj.bias", "reducer.predictors.3.embed.0.weight")
    assert all(map(is_new, new))
    old = ("blocks.0.attn.proj.weight", "header.weight", "norm.weight", "cls_token", "blocks.0.head.weight")
    assert not any(map(is_new, old))


def test_scaled_backbone_and_warm_up_of_every_group():
    """Rates in the optimizer: warm-up and end are the same for all groups, what lies between is scaled."""
    seen = []

    def note(optimizer, args, kwargs):
        seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})

    handle = register_optimizer_step_pre_hook(note)
    settings = {"schedule": "cosine", "warmup_epochs": 1, "warmup_lr": 1e-6, "cooldown_epochs": 1, "min_lr": 1e-7}
    settings |= {"epochs": 2, "backbone_lr_scale": 0.01, "optimizer": "adamw"}
    list(train(small_vit(), Pictures(8), Pictures(4), config(**settings)))
    handle.remove()
    new, old = ([rates[name] for rates in seen] for name in ("new_param", "decay"))
    assert new == pytest.approx([1e-6, 5.005e-4, 1e-3, 5.0005e-4, 1e-7, 1e-7])
    assert old == pytest.approx([1e-6, 5.5e-6, 1e-5, 5.05e-6, 1e-7, 1e-7])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "nadamw", "rmsprop"])
def test_optimizers_of_timm(name):
    model, before = small_vit(), small_vit()
    (_, epoch) = train(model, Pictures(8), Pictures(4), config(optimizer=name))
    assert math.isfinite(epoch.train_loss) and not torch.equal(model.head.weight, before.head.weight)


def test_an_optimizer_that_is_not_installed_is_refused_in_one_line():
    with pytest.raises(UsageError) as caught:
        make_optimizers(small_vit(), config(optimizer="bnbadamw8bit"))
    assert "'bnbadamw8bit' cannot be made here" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_betas_and_eps_arrive():
    (optimizer,) = make_optimizers(small_vit(), config(optimizer="adamw", betas=(0.8, 0.9), eps=1e-3))
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-3 for group in optimizer.param_groups)


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


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(48, 16), (16, 16), (16, 64)])
def test_muon_takes_the_steps_of_torch_s_up_to_its_precision(shape, nesterov):
    start, options = torch.randn(shape), {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimizers = [make([weight], **options) for make, weight in ((Muon, ours), (torch.optim.Muon, theirs))]
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved  # bfloat16 has two or three decimal digits
    assert optimizers[0].state_dict()["state"].keys() == optimizers[1].state_dict()["state"].keys()


def test_muon_s_update_has_singular_values_near_one_and_keeps_the_singular_vectors():
    (group,) = Muon([torch.nn.Parameter(torch.zeros(16, 48))]).param_groups
    u, s, v = torch.linalg.svd(torch.randn(16, 48), full_matrices=False)
    found = u.T @ orthogonal(u * s @ v, group) @ v.T
    assert found.diagonal().min() > 0.6 and found.diagonal().max() < 1.3
    torch.testing.assert_close(found, found.diagonal().diag(), rtol=0, atol=1e-4)
