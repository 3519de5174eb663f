"""Settings: what is refused and how it is said, and what the protocols are."""

import math

import pytest
from small_training import config

from common.errors import UsageError
from common.training import TrainConfig, protocol


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixed_precision": "int8"}, "unknown mixed_precision 'int8'; allowed: bf16, fp16, no"),
        ({"schedule": "linear"}, "unknown schedule 'linear'; allowed: constant, cosine, step"),
        ({"epochs": -1}, "epochs=-1 is not allowed; give a whole number >= 0"),
        ({"epochs": 1.5}, "epochs=1.5 is not allowed; give a whole number >= 0"),
        ({"batch_size": 0}, "batch_size=0 is not allowed; give a whole number >= 1"),
        ({"workers": -1}, "workers=-1 is not allowed; give a whole number >= 0"),
        ({"lr": 0.0}, "lr=0.0 is not allowed; give a number > 0"),
        ({"lr": -1e-4}, "lr=-0.0001 is not allowed; give a number > 0"),
        ({"lr": math.nan}, "lr=nan is not allowed; give a number > 0"),
        ({"lr": math.inf}, "lr=inf is not allowed; give a number > 0"),
        ({"lr": "1e-4"}, "lr='1e-4' is not allowed; give a number > 0"),
        ({"epochs": True}, "epochs=True is not allowed; give a whole number >= 0"),
        ({"grad_accum_steps": 0}, "grad_accum_steps=0 is not allowed; give a whole number >= 1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 is not allowed; give a number >= 0"),
        ({"clip_grad": 0}, "clip_grad=0 is not allowed; give a number > 0"),
        ({"ema_decay": 1.5}, "ema_decay=1.5 is not allowed; give a number from 0 to 1"),
        ({"smoothing": None}, "smoothing=None is not allowed; give a number from 0 to 1"),
        ({"betas": (0.9,)}, "betas=(0.9,) is not allowed; give two numbers from 0 to 1"),
        ({"warmup_prefix": 1}, "warmup_prefix=1 is not allowed; give true or false"),
        ({"loss": "mse"}, "unknown loss 'mse'; allowed: asymmetric, auto, bce, cross_entropy"),
        ({"distillation": "on"}, "unknown distillation 'on'; allowed: hard, none, soft; did you mean 'none'?"),
        ({"trackers": ("mlflow",)}, "trackers=('mlflow',) is not allowed; give a list of tensorboard, wandb"),
        ({"epochs": 3, "warmup_epochs": 4}, "not possible: warmup_epochs=4 of epochs=3; give at most as many"),
        (
            {"cooldown_epochs": 2},
            "not possible: cooldown_epochs=2 with schedule 'constant'; only a cosine cools down",
        ),
        (
            {"mixup": 0.8, "batch_size": 5},
            "not possible: mixup of batch_size=5; it pairs images: give an even number",
        ),
        ({"mixed_precision": "fp16"}, "not possible: mixed_precision 'fp16' on the device 'cpu'; give 'bf16' or 'no'"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UsageError) as caught:
        config(**changes)
    assert str(caught.value) == message


def test_unknown_optimizer_lists_what_there_is():
    for name in ("sgdd", "adahessian"):  # the second needs second derivatives
        with pytest.raises(
            UsageError, match=rf"^unknown optimizer '{name}'; allowed: .*adamw, .*muon, .*sgd"
        ) as caught:
            config(optimizer=name)
        assert len(str(caught.value).splitlines()) == 1


def test_unknown_device_is_refused_in_one_line():
    with pytest.raises(UsageError) as caught:
        config(device="tpv")
    assert "'tpv'" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("common.training.config.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^tracker 'wandb' is not installed; install it: pip install wandb$"):
        config(trackers=("wandb",))


def test_tram_protocol():
    assert protocol("tram") == TrainConfig(epochs=5, lr=1e-4, batch_size=64, optimizer="adam", schedule="constant")


def test_which_tokens_protocol():
    """AdamW 0.05, 0.001 per 1024 images, 30 epochs of which 20 warm up, mixup, cutmix, smoothing, average."""
    found = protocol("which_tokens")
    assert (found.optimizer, found.weight_decay, found.eps, found.betas) == ("adamw", 0.05, 1e-8, (0.9, 0.999))
    assert (found.lr, found.lr_batch_normalizer, found.batch_size, found.grad_accum_steps) == (1e-3, 1024, 256, 2)
    assert (found.epochs, found.warmup_epochs, found.warmup_lr, found.min_lr) == (30, 20, 1e-6, 1e-5)
    assert (found.mixup, found.cutmix, found.smoothing, found.ema_decay) == (0.8, 1.0, 0.1, 0.99996)
    assert found.schedule == "cosine" and found.schedule_in_steps and found.warmup_prefix and found.seed == 0


def test_changes_of_a_protocol():
    assert protocol("which_tokens", mixup=0.0, cutmix=0.0).mixes is False
    with pytest.raises(UsageError, match=r"^unknown setting 'epoch'; allowed: .*epochs"):
        protocol("tram", epoch=3)
    with pytest.raises(UsageError, match=r"^unknown protocol 'deit'; allowed: tram, which_tokens$"):
        protocol("deit")
