"""The folder of a run: going on after a stop, what is refused, and what lies there for others."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small_training import Pictures, config, same_weights, small_vit

from common.data import make_loader
from common.errors import UsageError
from common.models.reduced import reduce_tokens
from common.training import evaluate, train
from common.training.checkpoint import pack, unpack
from common.weights import read_norm

EVERYTHING = {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "ema_decay": 0.9, "optimizer": "adamw", "epochs": 4}
EVERYTHING |= {"weight_decay": 0.05, "schedule": "cosine", "warmup_epochs": 1, "grad_accum_steps": 2, "clip_grad": 1.0}


def noisy_model(seed=0):
    """Random in training: stochastic depth and DynamicViT's Gumbel decisions."""
    model = reduce_tokens(small_vit(drop_path_rate=0.3), "dynamicvit", keep_rate=0.5)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


TIMES = ["epoch_seconds", "loading_seconds"]


def numbers(epochs):
    return [replace(epoch, **dict.fromkeys(TIMES, 0.0)) for epoch in epochs]


def run(model, folder, stop_after=None, **changes):
    epochs = []
    steps = train(model, Pictures(14), Pictures(6), config(**{**EVERYTHING, **changes}), output_dir=folder)
    for epoch in steps:
        epochs.append(epoch)
        if epoch.epoch == stop_after:
            steps.close()
            break
    return numbers(epochs)


def test_the_epochs_of_before_a_stop_may_be_told_apart(tmp_path):
    expected, told = run(noisy_model(), tmp_path / "whole"), []
    run(noisy_model(), tmp_path / "parts", stop_after=1)
    how = {"config": config(**EVERYTHING), "output_dir": tmp_path / "parts", "on_resume": told.append}
    new = list(train(noisy_model(), Pictures(14), Pictures(6), **how))
    assert [numbers(epochs) for epochs in (*told, new)] == [expected[:2], expected[2:]]
    assert list(train(noisy_model(), Pictures(14), Pictures(6), **how)) == [] and numbers(told[1]) == expected
    told.clear()
    assert len(list(train(noisy_model(), Pictures(14), Pictures(6), config(epochs=1), on_resume=told.append))) == 2
    assert told == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, optimizer):
    whole, stopped, resumed = noisy_model(), noisy_model(), noisy_model(seed=1)
    expected = run(whole, tmp_path / "whole", optimizer=optimizer)
    assert len(expected) == 5
    assert run(stopped, tmp_path / "parts", stop_after=2, optimizer=optimizer) == expected[:3]
    torch.rand(5)
    assert run(resumed, tmp_path / "parts", optimizer=optimizer) == expected
    assert same_weights(whole, resumed)
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        one, other = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert (tmp_path / "whole/best.json").read_text() == (tmp_path / "parts/best.json").read_text()
    logs = [
        pd.read_csv(tmp_path / folder / "log.csv").drop(columns=["epoch_seconds", "loading_seconds"])
        for folder in ("whole", "parts")
    ]
    pd.testing.assert_frame_equal(*logs)


def test_a_finished_run_is_only_read(tmp_path):
    done = run(noisy_model(), tmp_path)
    before = (tmp_path / "state.safetensors").stat().st_mtime_ns
    model = noisy_model(seed=1)
    assert run(model, tmp_path) == done
    assert (tmp_path / "state.safetensors").stat().st_mtime_ns == before
    last = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(last[name], value) for name, value in model.state_dict().items())


def test_what_is_for_reading_follows_from_the_state(tmp_path):
    """Killed after the state and before the rest: the files are made again."""
    run(noisy_model(), tmp_path, stop_after=2)
    log, last = ((tmp_path / name).read_bytes() for name in ("log.csv", "last.safetensors"))
    (tmp_path / "log.csv").unlink()
    (tmp_path / "last.safetensors").write_bytes(b"old")
    run(noisy_model(), tmp_path, stop_after=2)
    assert (tmp_path / "log.csv").read_bytes() == log and (tmp_path / "last.safetensors").read_bytes() == last


@pytest.mark.parametrize(
    ("changes", "difference"),
    [({"lr": 2e-3}, "lr=0.001, this run has 0.002"), ({"betas": (0.8, 0.9)}, r"betas=None, this run has \[0.8, 0.9\]")],
)
def test_other_settings_are_refused_by_name(tmp_path, changes, difference):
    run(noisy_model(), tmp_path, stop_after=1)
    with pytest.raises(UsageError, match=f"was made with {difference}; give the same, or another output_dir"):
        run(noisy_model(), tmp_path, **changes)


def test_other_data_and_methods_are_refused(tmp_path):
    run(noisy_model(), tmp_path, stop_after=1)
    with pytest.raises(UsageError, match=r"train_set='pictures \(14\)', this run has 'pictures \(12\)'"):
        list(train(noisy_model(), Pictures(12), Pictures(6), config(**EVERYTHING), output_dir=tmp_path))
    with pytest.raises(UsageError, match="was made with parameters="):
        run(reduce_tokens(small_vit(), "topk", keep_rate=0.5), tmp_path)


def test_where_it_runs_may_change(tmp_path):
    expected = run(noisy_model(), tmp_path, stop_after=1)
    assert (
        run(noisy_model(), tmp_path, stop_after=1, device=None if not torch.cuda.is_available() else "cpu") == expected
    )


@pytest.mark.parametrize("keep", [0, 7, 400, -100])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, keep):
    run(noisy_model(), tmp_path, stop_after=1)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError) as caught:
        run(noisy_model(), tmp_path)
    assert str(path) in str(caught.value) and "damaged or truncated" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_pickled_and_nothing_partial_is_left(tmp_path):
    run(noisy_model(), tmp_path, stop_after=1)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"best.json", "best.safetensors", "last.safetensors", "log.csv", "state.safetensors"}


def test_best_is_the_better_of_weights_and_average(tmp_path, monkeypatch):
    """Accuracies of epochs 0 to 3, raw and averaged: 99 | 50, 40 | 60, 70 | 65, 65."""
    found = iter([99.0, 50.0, 40.0, 60.0, 70.0, 65.0, 65.0])
    monkeypatch.setattr("common.training.engine.evaluate", lambda *_: (1.0, next(found)))
    best = []
    for _ in train(small_vit(), Pictures(8), Pictures(4), config(epochs=3, ema_decay=0.9), output_dir=tmp_path):
        best.append(json.loads((tmp_path / "best.json").read_text()))
    assert best == [
        {"epoch": 0, "accuracy": 99.0, "ema": False},  # off the shelf, until something was trained
        {"epoch": 1, "accuracy": 50.0, "ema": False},
        {"epoch": 2, "accuracy": 70.0, "ema": True},
        {"epoch": 2, "accuracy": 70.0, "ema": True},
    ]
    state = load_file(tmp_path / "state.safetensors")
    weights, last = load_file(tmp_path / "best.safetensors"), load_file(tmp_path / "last.safetensors")
    assert not torch.equal(weights["head.weight"], last["head.weight"])
    assert torch.equal(last["head.weight"], state["/model/head.weight"])


def test_weights_say_what_their_images_were_normalised_with(tmp_path):
    """Best, last and averaged ones, of a model of which timm knows nothing."""
    data = Pictures(12)
    data.mean, data.std = (0.2, 0.3, 0.4), (0.25, 0.5, 0.125)
    for decay in (None, 0.5):
        folder = tmp_path / str(decay)
        list(train(small_vit(), data, data, config(epochs=2, ema_decay=decay), output_dir=folder))
        for name in ("best", "last"):
            assert read_norm(folder / f"{name}.safetensors") == {"mean": data.mean, "std": data.std}


def test_best_weights_have_the_accuracy_that_is_recorded(tmp_path):
    *_, epoch = train(small_vit(), Pictures(12), Pictures(12), config(epochs=3, lr=3e-3), output_dir=tmp_path)
    best, model = json.loads((tmp_path / "best.json").read_text()), small_vit()
    model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    assert evaluate(model, make_loader(Pictures(12), 4, shuffle=False, seed=0))[1] == best["accuracy"]
    model.load_state_dict(load_file(tmp_path / "last.safetensors"))
    loss, accuracy = evaluate(model, make_loader(Pictures(12), 4, shuffle=False, seed=0))
    assert (loss, accuracy) == (epoch.val_loss, epoch.val_accuracy)


def test_a_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path):
    data = Pictures(12)
    model = small_vit()
    steps = train(model, data, Pictures(4), config(epochs=3), output_dir=tmp_path)
    next(steps), next(steps)
    good = load_file(tmp_path / "last.safetensors")
    data.images[:] = float("inf")
    with pytest.raises(
        FloatingPointError, match=r"nan in epoch 2, step 0; try a smaller lr; the last good .* epoch 1, is in"
    ):
        next(steps)
    kept = load_file(tmp_path / "last.safetensors")
    assert all(torch.equal(kept[name], good[name]) for name in good)


def test_nested_state_survives():
    state = {"state": {0: {"step": torch.tensor(3.0), "none": None}}, "groups": [{"lr": 0.1, "betas": (0.9, 1e-17)}]}
    tensors = {}
    packed = json.loads(json.dumps(pack(state, "", tensors)))
    found = unpack(packed, tensors)
    assert found["state"][0]["step"] == 3.0 and found["state"][0]["none"] is None
    assert found["groups"] == [{"lr": 0.1, "betas": [0.9, 1e-17]}]


def test_a_tracker_needs_a_folder_and_writes_to_it(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(UsageError, match="trackers tensorboard need an output_dir to write to"):
        list(train(small_vit(), Pictures(4), Pictures(4), config(trackers=("tensorboard",))))
    list(train(small_vit(), Pictures(4), Pictures(4), config(trackers=("tensorboard",)), output_dir=tmp_path))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (path for path in tmp_path.rglob("events.out.tfevents.*") if path.parent.name == "token_reduction")
    log = EventAccumulator(str(events)).Reload()
    assert [event.step for event in log.Scalars("val_accuracy")] == [0, 1]
    table = pd.read_csv(tmp_path / "log.csv")
    assert [event.value for event in log.Scalars("val_loss")] == pytest.approx(table["val_loss"].tolist())
