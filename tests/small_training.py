"""Small pictures and models to train in a moment."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from common.data.base import LabelledDataset
from common.data.transforms import Normalisation
from common.training import TrainConfig
from common.training.updates import Updater

HALF = Normalisation((0.5,) * 3, (0.5,) * 3)


class Pictures(LabelledDataset):
    """Random images of 8 x 8 pixels in three classes; notes which were read, and what augmentation would draw."""

    def __init__(self, n, seed=0):
        generator = torch.Generator().manual_seed(seed)
        super().__init__("pictures", "abc", self.draw_labels(n, generator), HALF)
        self.images = torch.randn(n, 3, 8, 8, generator=generator)
        self.read = []

    def draw_labels(self, n, generator):
        return torch.randint(3, (n,), generator=generator)

    def __getitem__(self, index):
        self.read.append((index, torch.rand(()).item()))
        return self.images[index], self.labels[index]


class ManyLabels(Pictures):
    """The same with any number of the three labels on each image."""

    def draw_labels(self, n, generator):
        return (torch.rand(n, 3, generator=generator) < 0.5).float()


def small_vit(**options):
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**{**sizes, **options})


def lively():
    """A small model whose blocks change patches, each differently."""
    vit = small_vit()
    for parameter in (*vit.blocks.parameters(), *vit.head.parameters()):
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.15)
    return vit


def config(**changes):
    return TrainConfig(**{"epochs": 1, "lr": 1e-3, "batch_size": 4, "device": "cpu", **changes})


def same_weights(a, b):
    """Every number in the state dicts of two models is equal."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def killed_at(monkeypatch, epoch, step, training):
    """Run ``training`` until the update before ``step`` of ``epoch``, as if its process had been killed there."""
    update = Updater.update

    def killed(self, batches, at, number):
        if (at, number) == (epoch, step):
            raise KeyboardInterrupt
        return update(self, batches, at, number)

    with monkeypatch.context() as patched:
        patched.setattr(Updater, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            training()


def updates_of(monkeypatch, training):
    """What ``training`` returns, and the epoch of each of its updates."""
    update, epochs = Updater.update, []
    with monkeypatch.context() as patched:
        patched.setattr(Updater, "update", lambda self, *args: epochs.append(args[1]) or update(self, *args))
        return training(), epochs


def record_updates():
    """For a fixture: every step, (name of the optimizer, its largest learning rate, ids of its parameters)."""
    log = []

    def note(optimizer, args, kwargs):
        groups = optimizer.param_groups
        rates = [group["lr"] for group in groups]
        log.append((type(optimizer).__name__, max(rates), [id(p) for group in groups for p in group["params"]]))

    handle = register_optimizer_step_pre_hook(note)
    yield log
    handle.remove()
