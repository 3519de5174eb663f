"""A run from a YAML file: what it means, what is refused, and the command line, alone and with two processes."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from common import create_model, load_dataset
from common.budget import keep_rate_for
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from common.errors import UsageError
from common.models.factory import create_backbone, expected_norm
from common.training import TrainConfig, digits_backbone, experiment, protocol
from common.training.__main__ import main
from common.training.engine import Trainer
from common.training.experiment import Experiment, restrict_head
from common.weights import save_state

SMALL = """
backbone: vit_digits
dataset: digits
img_size: 32
limit_train: 40
limit_val: 21
reducer: topk
keep_rate: 0.5
epochs: 2
batch_size: 8
lr: 1e-3
device: cpu
mixed_precision: no
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"{SMALL}output_dir: {tmp_path / 'run'}\n")
    return path


# reading


def test_keys_of_the_file_and_overrides(file):
    found = Experiment.from_yaml(file, ["lr=2e-4", "keep_rate=[0.9, 0.8, 0.7]", "reducer=topk:head_fusion=mean"])
    assert (found.backbone, found.limit_train, found.keep_rate) == ("vit_digits", 40, (0.9, 0.8, 0.7))
    assert (found.config.epochs, found.config.lr, found.config.mixed_precision) == (2, 2e-4, "no")
    assert found.reducer == "topk:head_fusion=mean" and found.config.optimizer == "adam"


def test_patches_kept_at_random_follow_the_seed_of_the_training(file):
    seeds = {"reducer=random": 3, "reducer=random:seed=1": 1}
    for text, seed in seeds.items():
        assert Experiment.from_yaml(file, [text, "seed=3"]).model().reducer.seed == seed


def test_paths_of_a_file_start_where_the_command_is_given(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Experiment.from_yaml(file, ["output_dir=runs/a", "weights=best.safetensors"])
    assert (found.output_dir, found.weights) == (str(tmp_path / "runs/a"), str(tmp_path / "best.safetensors"))
    assert [Experiment.from_yaml(file, [f"weights={name}"]).weights for name in ("timm", "digits")] == [
        "timm",
        "digits",
    ]


def test_a_protocol_with_changes(file):
    found = Experiment.from_yaml(file, ["protocol=which_tokens", "warmup_epochs=1", "cutmix_minmax=[0.2, 0.8]"])
    changes = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "device": "cpu", "warmup_epochs": 1}
    assert found.config == protocol("which_tokens", **changes, cutmix_minmax=(0.2, 0.8))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keeprate=0.5", "unknown key 'keeprate'; allowed: .*keep_rate.*mixup"),
        ("lr", "override 'lr' is not allowed; write key=value"),
        ("lr=fast", "lr='fast' is not allowed; give a number > 0"),
        ("reducer=topp", "unknown reducer 'topp'"),
        ("head=old", "unknown head 'old'; allowed: auto, dataset, fresh"),
        ("protocol=deit", "unknown protocol 'deit'; allowed: tram, which_tokens"),
        ("teacher=vit_digits", "teacher='vit_digits' with teacher_weights='' is not possible; give both"),
        ("mean=[1", "is not readable as YAML"),
        ("weights=5", "weights=5 is not allowed; give text"),
        ("reducer=null", "reducer=None is not allowed; give text"),
        ("trackers=tensorboard", "trackers='tensorboard' is not allowed; give a list of tensorboard, wandb"),
    ],
)
def test_refusals(file, override, message):
    with pytest.raises(UsageError, match=message) as caught:
        Experiment.from_yaml(file, [override])
    assert len(str(caught.value).splitlines()) == 1


def test_files_that_say_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"none.yaml' cannot be read: No such file or directory$"):
        Experiment.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match="holds no mapping"):
        Experiment.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "short.yaml").write_text("dataset: digits\n")
    with pytest.raises(UsageError, match="a training needs backbone; allowed: backbone, dataset"):
        Experiment.from_yaml(tmp_path / "short.yaml")


def test_conditions(file):
    assert Experiment.from_yaml(file, ["reducer=topk:head_fusion=mean", "mixed_precision=bf16"]).conditions() == {
        "method": "topk",
        "options": "head_fusion=mean",
        "backbone": "vit_digits",
        "weights": "random",
        "dataset": "digits",
        "recipe": "pretrained",
        "img_size": 32,
        "keep_rate": "0.5",
        "seed": 42,
        "epochs": 2,
        "lr": 1e-3,
        "dtype": "bfloat16",
        "batch": 8,
    }


# models


def test_a_head_of_imagenet_keeps_the_rows_of_the_dataset():
    class Imagenette:
        name, num_classes, imagenet_indices = "imagenette", 3, [7, 500, 2]

    model = create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=1000).eval()
    for head in (model.head, model.head_dist):
        torch.nn.init.normal_(head.weight)
        torch.nn.init.normal_(head.bias)
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    restrict_head(model, Imagenette)
    torch.testing.assert_close(model(images), before[:, [7, 500, 2]])
    assert model.num_classes == 3 and model.head.out_features == 3
    restrict_head(model, Imagenette)  # fits already
    assert model.num_classes == 3


def test_weights_teacher_and_drop_path_arrive(file, tmp_path):
    torch.manual_seed(5)
    vit = create_backbone("vit_digits")
    save_state(vit, tmp_path / "vit.safetensors")
    given = [f"weights={tmp_path}/vit.safetensors", "drop_path=0.2", "head=dataset", "reducer=dynamicvit"]
    given += ["teacher=vit_digits", f"teacher_weights={tmp_path}/vit.safetensors"]
    experiment = Experiment.from_yaml(file, given)
    model, teacher = experiment.model(), experiment.teacher_model(experiment.datasets()[1])
    for found in (model, teacher):
        assert torch.equal(found.head.weight, vit.head.weight)
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    epochs = list(experiment.run())
    assert [epoch.epoch for epoch in epochs] == [0, 1, 2]


UNUSUAL = {"mean": (0.2, 0.3, 0.4), "std": (0.25, 0.5, 0.125)}


def norm_of_data(*experiments):
    return [{"mean": data.mean, "std": data.std} for each in experiments for data in each.datasets()]


def test_images_are_normalised_as_the_weights_expect(file, tmp_path):
    """What was trained on unusual images is opened with the same, unless the experiment says otherwise."""
    first = Experiment.from_yaml(file, [f"{key}={list(value)}" for key, value in UNUSUAL.items()] + ["ema_decay=0.9"])
    list(first.run())
    for name in ("best", "last"):
        weights = f"weights={tmp_path}/run/{name}.safetensors"
        second = Experiment.from_yaml(file, [weights, "output_dir=''"])
        other = Experiment.from_yaml(file, [weights, "output_dir=''", "mean=[0, 0, 0]"])
        assert norm_of_data(first, second) == [UNUSUAL] * 4
        assert norm_of_data(other) == [{"mean": (0, 0, 0), "std": UNUSUAL["std"]}] * 2
        assert torch.equal(first.val_set()[3][0], second.val_set()[3][0])
        assert second.model().pretrained_cfg["mean"] == UNUSUAL["mean"]


def test_deit_from_the_hub_sees_imagenet_s_mean_and_a_random_network_the_recipe_s(file):
    deit = ["backbone=deit_tiny_patch16_224", "weights=timm"]
    imagenet = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    taught = ["teacher=deit_tiny_patch16_224", "teacher_weights=timm"]
    assert norm_of_data(*(Experiment.from_yaml(file, given) for given in (deit, taught))) == [imagenet] * 4
    assert norm_of_data(Experiment.from_yaml(file)) == [{"mean": (0.5,) * 3, "std": (0.5,) * 3}] * 2


def test_the_digits_backbone_says_what_it_was_trained_on(tmp_path, monkeypatch):
    """Whatever timm's registry says of it."""
    monkeypatch.setattr(digits_backbone, "FOLDER", tmp_path)
    monkeypatch.setattr(digits_backbone, "CONFIG", TrainConfig(epochs=0, device="cpu"))
    monkeypatch.setattr(digits_backbone, "load_dataset", partial(load_dataset, limit=20, **UNUSUAL))
    assert expected_norm("vit_digits", digits_backbone.resolve_weights("digits")) == UNUSUAL


# the command line


def test_a_run_leaves_its_folder(file, tmp_path, capsys):
    assert main([str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1", "epoch 2"]
    folder = tmp_path / "run"
    log = pd.read_csv(folder / "log.csv")
    assert log["epoch"].tolist() == [0, 1, 2] and f"top-1 {log['val_accuracy'][2]:.2f} %" in lines[2]
    record = json.loads((folder / "experiment.json").read_text())
    assert record["experiment"]["reducer"] == "topk" and record["experiment"]["config"]["lr"] == 1e-3
    assert {"torch", "timm", "commit", "device", "date"} <= record.keys()
    options = {"reducer": "topk", "keep_rate": 0.5, "img_size": 32}
    model = create_model("vit_digits", weights=folder / "last.safetensors", **options)
    assert model.num_classes == 10
    assert main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == ["was trained already: epoch 2 of 2", lines[2]]


def test_a_killed_run_says_once_where_it_goes_on_and_then_only_what_is_new(file, capsys, monkeypatch):
    train_epoch = Trainer._train_epoch

    def killed(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return train_epoch(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_train_epoch", killed)
        assert main([str(file)]) == 130
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["epoch 0", "epoch 1"]
    assert main([str(file)]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "goes on after epoch 1 of 2" and [line.split(":")[0] for line in others] == ["epoch 2"]


def test_a_folder_of_another_experiment_is_refused(file, capsys):
    assert main([str(file), "epochs=0"]) == 0
    capsys.readouterr()
    assert main([str(file), "epochs=0", "keep_rate=0.7"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: experiment ") and "made with keep_rate=0.5, this run has 0.7" in message


def test_a_run_keeps_the_keep_rate_that_its_budget_meant(file, monkeypatch, capsys):
    """Its record has both: whoever evaluates it, or goes on with it, solves nothing."""
    budget = ["epochs=1", "keep_rate=mac_cut=0.3"]
    assert main([str(file), *budget]) == 0
    record = json.loads((file.parent / "run/experiment.json").read_text())
    rate = record["experiment"]["keep_rate"]
    vit = create_model("vit_digits")
    assert rate == keep_rate_for(create_backbone("vit_digits"), "topk", mac_cut=0.3).keep_rate
    assert record["budget"] == "mac_cut=0.3" and vit.reducer.schedule.keep_rate == 1.0
    monkeypatch.setattr(experiment, "solved", lambda *_, **__: pytest.fail("solved again"))
    assert main([str(file), *budget]) == 0
    assert main([str(file), "epochs=1", f"keep_rate={rate}"]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keep_rate=mac_cut=1.3", "mac_cut=1.3 is not allowed; give a number from 0 to below 1"),
        ("keep_rate=speedup=", "speedup='' is not allowed; give a number >= 1"),
        ("keep_rate=macs=0.3", "keep_rate='macs=0.3' is not allowed; give a ratio in (0, 1]"),
    ],
)
def test_a_budget_that_is_none_is_refused_before_anything_is_opened(file, override, message, monkeypatch, capsys):
    monkeypatch.setattr(experiment, "load_dataset", lambda *_, **__: pytest.fail("data opened"))
    assert main([str(file), override]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert main([str(file), "reducer=idle_mlp", "keep_rate=mac_cut=0.3"]) == 2
    assert "'idle_mlp' has no keep rate to solve for" in capsys.readouterr().err


def test_each_process_alone_would_measure_another_speed(file, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"keep_rate='speedup=1\.5' is measured by one process alone"):
        Experiment.from_yaml(file, ["keep_rate=speedup=1.5"]).model()


def test_a_folder_of_a_refused_experiment_is_free(file, capsys):
    """The data refuse the loss only when the model is there: nothing was trained, another try may have the folder."""
    assert main([str(file), "loss=asymmetric"]) == 2
    assert "needs several labels per image" in capsys.readouterr().err
    assert main([str(file), "epochs=0"]) == 0


def test_errors_are_one_line_and_exit_code_2(file, capsys):
    assert main([str(file), "dataset=digitz"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown dataset 'digitz'")


@pytest.mark.slow
def test_two_processes_train_as_one_with_accumulation(file, tmp_path):
    """torchrun with 2 processes on the CPU against this one with two passes per update, on everything random."""
    noisy = ["reducer=dynamicvit", "drop_path=0.2", "mixup=0.8", "smoothing=0.1", "ema_decay=0.9", "clip_grad=1.0"]
    noisy += ["limit_train=32"]  # four passes of an epoch, which two processes share evenly
    code = Path(__file__).parents[1] / "Code"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, "-m", "common.training", str(file), *noisy, f"output_dir={tmp_path / 'two'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3  # one process speaks
    assert main([str(file), *noisy, f"output_dir={tmp_path / 'one'}", "grad_accum_steps=2"]) == 0
    two, one = (pd.read_csv(tmp_path / name / "log.csv") for name in ("two", "one"))
    for column in ("train_loss", "train_loss_last_batch", "val_loss", "ema_val_loss"):
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-4, nan_ok=True)
    assert two["val_accuracy"].tolist() == one["val_accuracy"].tolist()
