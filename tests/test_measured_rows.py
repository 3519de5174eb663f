"""What the studies of accuracy measure: one row is one condition, and its values by image are those of its mean."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from common.errors import UsageError
from common.models.factory import create_backbone
from common.results import read_run, write_run
from common.schema import accuracy_name
from common.setup import Setup
from common.studies import finetune, gallery, method_grid, off_the_shelf
from common.studies.finetune import Finetune
from common.studies.method_grid import MethodGrid
from common.training import protocol
from common.training.experiment import Experiment
from common.weights import save_state
from rehearsal_data import write_datasets

CONFIG = protocol("tram", epochs=1, lr=1e-3, batch_size=20, device="cpu")
SMALL = Experiment("vit_digits", "digits", CONFIG, img_size=32, limit_train=40, limit_val=20)


def trained_on(experiment: Experiment) -> list[dict[str, object]]:
    datasets = experiment.datasets()
    return finetune.measure(experiment, experiment.model(datasets[1]), datasets)


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("keep_rate", "written"), [([0.9, 0.7, 0.5], "0.9 0.7 0.5"), ((40, 20, 10), "40 20 10"), (0.5, "0.5")]
)
def test_a_schedule_is_one_value_of_every_row(tmp_path, epochs, keep_rate, written):
    """As many rates as rows, or fewer, or more."""
    experiment = replace(SMALL, reducer="topk", keep_rate=keep_rate, config=replace(CONFIG, epochs=epochs))
    path = write_run(trained_on(experiment), Finetune, tmp_path / "run.csv", profile="test", device="cpu")
    found = read_run(path, Finetune)
    assert found["keep_rate"].tolist() == [written] * (epochs + 1)
    assert found["epoch"].tolist() == list(range(epochs + 1)) and set(found["epochs"]) == {epochs}
    assert set(found["n_train"]) == {40 if epochs else 0} and set(found["n_val"]) == {20}
    assert found["lr"].tolist() == pytest.approx([1e-3 if epochs else np.nan] * (epochs + 1), nan_ok=True)
    assert found["epoch_lr"].tolist() == pytest.approx([np.nan] + [1e-3] * epochs, nan_ok=True)
    assert set(found["weights"]) == {"random"} and set(found["recipe"]) == {"pretrained"}


class Classes:
    name, num_classes = "pictures", 3

    def __init__(self, imagenet_indices):
        self.imagenet_indices = imagenet_indices


@pytest.mark.parametrize(("indices", "head"), [([7, 500, 2], "dataset"), (None, "fresh")])
def test_a_head_that_knows_the_classes_is_kept_else_a_new_one_is_drawn(tmp_path, indices, head):
    vit = create_backbone("vit_digits", num_classes=1000)
    save_state(vit, tmp_path / "vit.safetensors")
    experiment = replace(SMALL, weights=str(tmp_path / "vit.safetensors"), head="auto")
    model = experiment.model(Classes(indices))
    assert experiment.with_head(Classes(indices)).head == head and model.num_classes == 3
    assert torch.equal(model.head.weight, vit.head.weight[[7, 500, 2]]) is (head == "dataset")
    assert replace(experiment, head="fresh").with_head(Classes(indices)).head == "fresh"


def test_a_head_of_the_same_classes_is_kept_and_random_weights_know_none(tmp_path):
    vit = create_backbone("vit_digits")
    save_state(vit, tmp_path / "vit.safetensors")
    val_set, automatic = SMALL.val_set(), replace(SMALL, head="auto")
    digits = replace(automatic, weights=str(tmp_path / "vit.safetensors"))
    assert digits.with_head(val_set).head == "dataset"
    assert torch.equal(digits.model(val_set).head.weight, vit.head.weight)
    assert automatic.with_head(val_set).head == "fresh"


@pytest.mark.parametrize("reducer", ["topk", "ats:sampler=random"])
def test_values_by_image_of_the_grid_have_its_accuracies_as_their_means(tmp_path, reducer):
    """Also where chance decides which tokens stay."""
    experiment = replace(SMALL, reducer=reducer, keep_rate=0.5, head="dataset")
    rows = method_grid.run_cell(experiment)
    ids = experiment.val_set().image_ids
    found = read_run(write_run(rows, MethodGrid, tmp_path / "run.csv", image_ids=ids, profile="test"), MethodGrid)
    assert [(row["epochs"], row["n_train"], row["n_val"]) for row in rows] == [(0, 0, 20), (1, 40, 20)]
    assert found["lr"].tolist() == pytest.approx([np.nan, 1e-3], nan_ok=True)
    for values, accuracy in zip(found["accuracy_by_image"], found["accuracy"], strict=True):
        assert len(values) == 20 and 100 * np.mean(values) == pytest.approx(accuracy)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Generated pictures in the layouts of the paper's data sets other than ImageNet."""
    write_datasets(tmp_path / "data", ["nabirds", "coco", "nuswide"])
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))


@pytest.mark.usefixtures("pictures")
def test_a_fresh_head_has_no_row_before_it_is_trained(tmp_path):
    """Of images with several labels the row holds the mAP, and there are no values by image."""
    coco = replace(SMALL, dataset="coco", head="fresh", recipe="which_tokens")
    (row,) = method_grid.run_cell(coco, method_grid.Kept(checkpoints=str(tmp_path)))
    log = pd.read_csv(tmp_path / "coco" / "vit_digits-none-1-s42" / "log.csv")
    assert (row["epochs"], row["dataset"], row["accuracy"]) == (1, "coco", pytest.approx(log["val_accuracy"][1]))
    assert "accuracy_by_image" not in row and 0 < row["accuracy"] < 100
    with pytest.raises(UsageError, match=r"^epochs=0 with a fresh head measures chance; "):
        method_grid.run_cell(replace(coco, config=replace(CONFIG, epochs=0)))


@pytest.mark.usefixtures("pictures")
def test_the_measure_is_named_by_the_labels_of_the_images():
    for name in ("nabirds", "coco", "nuswide"):
        assert replace(SMALL, dataset=name).val_set().multi_label == (accuracy_name(name) == "mAP")


@pytest.mark.usefixtures("pictures")
def test_a_teacher_is_the_checkpoint_of_the_unreduced_model(tmp_path):
    """Of those methods only that learn from one; with its own weights it would know other classes."""
    file = str(tmp_path / "none.safetensors")
    start = replace(SMALL, dataset="coco", head="fresh", recipe="which_tokens")
    method_grid.measure(start, ["none"], [0.5], method_grid.Kept(checkpoint=file))
    taught = replace(start, teacher="vit_digits", teacher_weights=file)
    rows = method_grid.measure(taught, ["topk", "dynamicvit"], [0.5])
    assert [(row["method"], row["keep_rate"]) for row in rows] == [("topk", "0.5"), ("dynamicvit", "0.5")]
    found = [method_grid.with_teacher(replace(taught, reducer=name)) for name in ("topk", "dynamicvit")]
    assert [each.teacher_weights for each in found] == ["", file]
    with pytest.raises(UsageError, match=r"of 2 models; give one method and one keep rate$"):
        method_grid.measure(start, ["topk"], [0.5, 0.25], method_grid.Kept(checkpoint=file))


def test_off_the_shelf_measures_every_method_at_every_rate():
    setup = Setup("vit_digits", "", "digits", 32, batch_size=8, limit_val=20, device="cpu")
    rows = off_the_shelf.measure(setup, ["none", "l2", "topk:head_fusion=mean"], [1.0, [0.9, 0.7, 0.5]])
    names = [(row["method"], row["options"], row["keep_rate"]) for row in rows]
    assert names[:3] == [("none", "", 1.0), ("l2", "", 1.0), ("l2", "", [0.9, 0.7, 0.5])]
    assert names[4] == ("topk", "head_fusion=mean", [0.9, 0.7, 0.5])
    for row in rows:
        assert 100 * np.mean(row["accuracy_by_image"]) == pytest.approx(row["accuracy"])
        assert (row["n_train"], row["n_val"], row["epochs"]) == (0, 20, 0) and row["accuracy_full"] is None
    assert [row["loss"] for row in rows[1:4:2]] == pytest.approx([rows[0]["loss"]] * 2), "nothing to drop"
    assert rows[2]["gmac"] < rows[1]["gmac"] == pytest.approx(rows[0]["gmac"], rel=0.01)


def test_the_gallery_says_what_was_trained():
    start = replace(SMALL, keep_rate=0.5)
    methods = ["topk:head_fusion=mean", "patchmerger"]
    models = {method: gallery.trained_if_it_learns(replace(start, reducer=method)) for method in methods}
    panels, rows = gallery.measure(start, models, [0, 3], stage=2)
    first, second = rows[:2]
    assert [row["method"] for row in rows] == ["topk", "patchmerger"] * 2
    assert first["options"] == "head_fusion=mean" and first["image"] == start.val_set().image_ids[0]
    assert [(row["block"], row["num_tokens"]) for row in rows] == [(3, 16)] * 4, "stages are blocks 1, 3 and 4 of 6"
    assert (first["epochs"], first["lr"], first["n_train"]) == (0, None, 0)
    assert (second["epochs"], second["lr"], second["n_train"]) == (1, 1e-3, 40)
    assert panels[0].title == "Top-K: 16" and panels[0].kept.sum() == 16 and panels[0].groups is None
    assert [panel.correct for panel in panels] == [row["predicted"] == row["class_name"] for row in rows]
