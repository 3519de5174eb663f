"""Records of one backbone under many methods, without a training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.analysis.pairs import pairs
from common.analysis.runs import shelf_runs
from common.data import load_dataset
from common.data.pictures import ImageFiles
from common.errors import UsageError
from common.evaluation import Record, evaluate_model, off_the_shelf
from common.evaluation.__main__ import main
from common.evaluation.registry import build_registry
from common.models.factory import create_model
from common.reducers.random_drop import drawn, largest_in_order
from common.setup import Setup
from common.weights import save_state

N = 20
RANDOM = ["ats:sampler=random", "sit"]


@pytest.fixture
def weights(tmp_path):
    """A small ViT of random weights, with the mean and deviation of its images."""
    return saved(tmp_path / "weights.safetensors")


def saved(path, **options):
    model = create_model("vit_digits", **options)
    model.pretrained_cfg |= {"mean": (0.3, 0.4, 0.5), "std": (0.5, 0.25, 0.2)}
    save_state(model, path)
    return path


def on_digits(weights, **changes):
    given = {"img_size": 32, "limit_val": N, "device": "cpu", "batch_size": 8, **changes}
    return Setup("vit_digits", str(weights), "digits", **given)


def record(folder, key, seed=0, **how):
    return Record.load(folder / "digits" / f"seed-{seed}" / key / "decisions.npz", **how)


def done(capsys):
    """What was done with each model, in their order."""
    return [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()]


def test_records_are_those_of_the_models_one_by_one(weights, tmp_path):
    setup = on_digits(weights)
    assert (
        off_the_shelf(tmp_path / "out", setup, ["topk:head_fusion=mean", "tome", "none"], [0.7, (0.5, 0.4, 0.1)]) == {}
    )
    data = load_dataset("digits", "val", img_size=32, limit=N, mean=(0.3, 0.4, 0.5), std=(0.5, 0.25, 0.2))
    found = sorted(path.parent.name for path in (tmp_path / "out" / "digits" / "seed-0").rglob("decisions.npz"))
    keys = {
        "tome_vit_digits-1_3_4-_0.7": ("tome", 0.7),
        "tome_vit_digits-1_3_4-_0.5_0.4_0.1": ("tome", (0.5, 0.4, 0.1)),
        "topk_vit_digits-head_fusion=mean-1_3_4-_0.7": ("topk:head_fusion=mean", 0.7),
        "topk_vit_digits-head_fusion=mean-1_3_4-_0.5_0.4_0.1": ("topk:head_fusion=mean", (0.5, 0.4, 0.1)),
        "vit_digits--_": ("none", 1.0),
    }
    assert found == sorted(keys)
    for key, (method, rate) in keys.items():
        options = {"head_fusion": "mean"} if ":" in method else {}
        model = create_model("vit_digits", reducer=method[:4], keep_rate=rate, weights=weights, **options)
        alone = evaluate_model(model, data, batch_size=8, method=method, backbone="vit_digits", device="cpu")
        ours = record(tmp_path / "out", key)
        assert ours.image_ids == tuple(data.image_ids) and ours.accuracy == alone.accuracy
        assert (ours.setting.name, ours.setting.run_key, ours.setting.key) == (key, key, f"digits/seed-0/{key}")
        np.testing.assert_allclose(ours.loss, alone.loss, rtol=1e-6)
        for block, stage in alone.stages.items():
            for name, part in stage.parts().items():
                np.testing.assert_array_equal(ours.stages[block].parts()[name], part)


@pytest.mark.parametrize(("memory", "read"), [(1.0, 4 + 1), (0.0, 3 * 4)])
def test_images_are_decoded_once_where_they_fit_into_memory(weights, tmp_path, monkeypatch, memory, read):
    """Four pictures for three models; one more time the first, to see how large they are."""
    for number in range(4):
        path = tmp_path / f"data/val/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 32), (60 * number, 0, 0)).save(path)
    seen, get = [], ImageFiles.__getitem__
    monkeypatch.setattr(ImageFiles, "__getitem__", lambda data, index: seen.append(index) or get(data, index))
    setup = replace(on_digits(weights), dataset=f"folder:{tmp_path / 'data'}", limit_val=None, memory_gb=memory)
    off_the_shelf(tmp_path / "out", setup, ["topk", "tome", "none"], [0.5], decisions_only=True)
    assert len(seen) == read


def test_what_is_there_is_skipped_and_a_stop_loses_one_model(weights, tmp_path, capsys, monkeypatch):
    def run(**options):
        off_the_shelf(tmp_path / "out", on_digits(weights), ["topk", "tome", "evit"], [0.5], **options)
        return done(capsys)

    def stopped(model, *args, **how):
        if how["method"] == "tome":
            raise KeyboardInterrupt
        return evaluate_model(model, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr("common.evaluation.shelf.evaluate_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert done(capsys) == ["evaluated"]
    assert run() == ["skipped", "evaluated", "evaluated"]
    place = tmp_path / "out" / "digits" / "seed-0" / "tome_vit_digits-1_3_4-_0.5"
    (place / "decisions.npz").write_bytes(b"cut off")
    assert run() == ["skipped", "evaluated", "skipped"]
    assert run(json=True, cls_at=(2,)) == ["evaluated"] * 3  # CLS tokens are not there
    assert run(cls_at=(2,)) == ["skipped"] * 3
    assert (place / f"{place.name}_viz_results.json").is_file()
    assert run(overwrite=True) == ["evaluated"] * 3
    assert not (place / f"{place.name}_viz_results.json").exists()
    assert run(scores=True) == ["evaluated"] * 3  # ToMe scores nothing: asked for is asked for
    assert run(scores=True) == ["skipped"] * 3


def test_a_record_under_other_conditions_is_refused(weights, tmp_path, monkeypatch):
    def run(weights=weights, **changes):
        given = {name: changes.pop(name) for name in ("overwrite", "mixed_precision") if name in changes}
        return off_the_shelf(tmp_path / "out", on_digits(weights, **changes), ["topk"], [0.5], **given)

    run()
    monkeypatch.setattr("common.evaluation.shelf.evaluate_model", lambda *args, **how: 1 / 0)
    for changes in ({"limit_val": 10}, {"mixed_precision": "bf16"}):
        name, value = next(iter(changes.items()))
        with pytest.raises(UsageError, match=f"decisions.npz' was made with {name.replace('_val', '')}=.* {value!r}"):
            run(**changes)
    assert run(batch_size=4, workers=1) == {}  # neither decides anything
    torch.manual_seed(1)
    with pytest.raises(UsageError, match=r"made with weights='weights.safetensors \w{12}'"):
        run(saved(weights))  # another one of the same name
    assert "division" in next(iter(run(overwrite=True).values()))


def test_seeds_are_of_random_models_only(weights, tmp_path):
    torch.manual_seed(5)
    off_the_shelf(tmp_path / "a", on_digits(weights), ["topk", *RANDOM], [0.5], seeds=(0, 1))
    torch.manual_seed(6)
    off_the_shelf(tmp_path / "b", on_digits(weights, seed=7), [RANDOM[1], RANDOM[0], "topk"], [0.5], seeds=(1, 0))
    names = {seed: {path.name for path in (tmp_path / "a" / "digits" / f"seed-{seed}").iterdir()} for seed in (0, 1)}
    keys = {"ats_vit_digits-sampler=random-1_3_4-_0.5": "kept", "sit_vit_digits-1_3_4-_0.5": "destination"}
    assert names == {0: {*keys, "topk_vit_digits-1_3_4-_0.5"}, 1: {*keys}}
    for key, part in keys.items():
        decided = {
            (folder, seed): record(tmp_path / folder, key, seed).stages[1].parts()[part]
            for folder in "ab"
            for seed in (0, 1)
        }
        np.testing.assert_array_equal(decided["a", 0], decided["b", 0])
        np.testing.assert_array_equal(decided["a", 1], decided["b", 1])
        assert not np.array_equal(decided["a", 0], decided["a", 1])
    details = [record(tmp_path / "a", key).setting.details for key in keys]
    assert [found["untrained"] for found in details] == [0, count_parameters()]
    assert [found.get("batch_size") for found in details] == [8, None]  # draws differ from batch to batch


def test_random_patches_follow_the_seed_of_the_record_and_pair_along_seeds(weights, tmp_path):
    """And so do patches that idle at random; a seed that the method says itself is one record."""
    methods = ["random", "random:seed=1", "idle_random", "topk"]
    off_the_shelf(tmp_path, on_digits(weights, batch_size=3), methods, [0.5], seeds=(0, 1))
    names = {seed: {path.name for path in (tmp_path / "digits" / f"seed-{seed}").iterdir()} for seed in (0, 1)}
    both = {"random_vit_digits-1_3_4-_0.5", "idle_random_vit_digits-1_2_3_4_5-_0.5"}
    assert names == {0: {*both, "random_vit_digits-seed=1-1_3_4-_0.5", "topk_vit_digits-1_3_4-_0.5"}, 1: both}
    first, second = (record(tmp_path, "random_vit_digits-1_3_4-_0.5", seed) for seed in (0, 1))
    for found, seed in ((first, 0), (second, 1), (record(tmp_path, "random_vit_digits-seed=1-1_3_4-_0.5"), 1)):
        expected = largest_in_order(drawn(64, seed), 32).expand(N, -1)
        np.testing.assert_array_equal(found.stages[1].kept, expected)
    assert pairs([first.setting, second.setting], "seeds") == [(0, 1)]
    again = off_the_shelf(tmp_path, on_digits(weights, batch_size=4), methods, [0.5], seeds=(0, 1))
    assert again == {}, "another batch is another record"


def count_parameters():
    model = create_model("vit_digits", reducer="sit", keep_rate=0.5)
    return sum(parameter.numel() for parameter in model.reducer.parameters())


def test_trained_parameters_of_a_method_come_from_the_file(tmp_path):
    trained = saved(tmp_path / "trained.safetensors", reducer="dynamicvit", keep_rate=0.5)
    off_the_shelf(tmp_path, on_digits(trained), ["dynamicvit"], [0.5], seeds=(0, 1))
    found = record(tmp_path, "dyvit_vit_digits-1_3_4-_0.5")
    model = create_model("vit_digits", reducer="dynamicvit", keep_rate=0.5, weights=trained).eval()
    data = on_digits(trained).val_set
    _, trace = model.trace(data.stack())
    np.testing.assert_array_equal(found.stages[4].kept, trace.origin[4])
    assert found.setting.details["untrained"] == 0 and not (tmp_path / "digits" / "seed-1").exists()
    with pytest.raises(UsageError, match="parameters of another method"):
        off_the_shelf(tmp_path, on_digits(trained), ["topk"], [0.5])


def test_an_error_does_not_stop_the_others(weights, tmp_path, monkeypatch, capsys):
    def failing(model, *args, **how):
        return 1 / 0 if how["method"] == "topk" else evaluate_model(model, *args, **how)

    monkeypatch.setattr("common.evaluation.shelf.evaluate_model", failing)
    errors = off_the_shelf(tmp_path / "out", on_digits(weights), ["topk", "tome"], [0.5])
    assert list(errors.values()) == ["ZeroDivisionError: division by zero"]
    assert done(capsys) == ["failed", "evaluated"]


@pytest.mark.parametrize(
    ("methods", "rates", "options", "message"),
    [
        (["topk", "astrology"], [0.5], {}, "unknown reducer 'astrology'"),
        (["topk"], [0.5, 1.5], {}, "keep_rate"),
        (["topk"], [(0.5, 0.4)], {}, "for 3 stages"),
        (["topk", "patch_slimming"], [0.5], {}, "needs the option 'plan'"),
        (["topk"], [0.5], {"reduction_loc": (1, 9)}, "does not fit a backbone of depth 6"),
        (["topk"], [0.5], {"seeds": (-1,)}, "seeds"),
        (["topk"], [0.5], {"cls_at": (6,)}, "allowed: blocks 0 to 5"),
        (["topk"], [0.5], {"mixed_precision": "int8"}, "mixed_precision"),
        (["topk"], [0.5], {"workers": 2}, "unknown option 'workers'"),
        (["topk"], [0.5], {"memory": -1.0}, "memory"),
        (["topk"], [0.5], {"soft_weights": -1}, "soft_weights"),
    ],
)
def test_bad_input_is_refused_before_anything_is_evaluated(weights, tmp_path, methods, rates, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        off_the_shelf(tmp_path / "out", on_digits(weights), methods, rates, **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.fixture
def pictures(tmp_path):
    """Two classes of noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("bird", "cat"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_decisions_on_images_of_classes_that_the_head_does_not_have(weights, pictures, tmp_path):
    """Predictions are classes of the head, there is no accuracy and no loss; the rest is as it always is."""
    setup = Setup("vit_digits", str(weights), f"folder:{pictures}", img_size=32, device="cpu")
    with pytest.raises(UsageError, match=r"the head has 10 outputs, dataset .* has 2 classes.* or --decisions-only"):
        off_the_shelf(tmp_path / "out", setup, ["topk"], [0.5])
    assert off_the_shelf(tmp_path / "out", setup, ["topk"], [0.5], decisions_only=True, json=True) == {}
    path = next((tmp_path / "out").rglob("decisions.npz"))
    found, (_, trace) = Record.load(path), create_on(weights, setup)
    assert found.accuracy == {} and np.isnan(found.loss).all() and found.targets.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(found.stages[4].kept, trace.origin[4])
    assert found.predictions.max() > 1 and found.setting.key.startswith(
        f"folder-{str(pictures).replace('/', '-')[1:]}/"
    )
    exported = json.loads(next((tmp_path / "out").rglob("*.json")).read_text(encoding="utf-8"))
    assert exported["Top1-Acc"] is None and exported[found.image_ids[0]]["Loss"] is None


def test_without_accuracy_only_where_the_classes_are_others(weights, pictures, tmp_path):
    """And the runs that were asked for are found among those of another data set, method and rate."""
    other = Setup("vit_digits", str(weights), f"folder:{pictures}", img_size=32, device="cpu")
    out, digits = tmp_path / "out", on_digits(weights)
    off_the_shelf(out, digits, ["tome", "topk", "none"], [0.9, 0.5])
    here = shelf_runs(out, digits, ["topk", "l2", "none"], [0.5], decisions_only=None)
    there = shelf_runs(out, other, ["topk", "l2"], [0.5], decisions_only=None)
    assert [run.setting.run_key for run in here] == [
        "heuristic_vit_digits-l2-1_3_4-_0.5", "topk_vit_digits-1_3_4-_0.5", "vit_digits--_",
    ]  # fmt: skip
    assert [run.setting.method for run in there] == ["l2", "topk"] and {run.images for run in there} == {4}
    assert [run.top1 is None for run in (*here, *there)] == [False] * 3 + [True] * 2
    with pytest.raises(UsageError, match=r"was made with limit=20, this run has 10; give the same, or another folder"):
        shelf_runs(out, on_digits(weights, limit_val=10), ["topk"], [0.5], decisions_only=None)


def test_models_that_fail_are_an_error_of_their_runs(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("common.evaluation.shelf.evaluate_model", lambda *args, **how: 1 / 0)
    with pytest.raises(UsageError, match=r"^topk_vit_digits-1_3_4-_0.5: ZeroDivisionError: division by zero$"):
        shelf_runs(tmp_path, on_digits(weights), ["topk"], [0.5])


def create_on(weights, setup):
    model = create_model("vit_digits", reducer="topk", keep_rate=0.5, weights=weights).eval()
    return model.trace(setup.val_set.stack())


def test_the_registry_lists_them(weights, tmp_path):
    off_the_shelf(tmp_path / "out", on_digits(weights), ["l2", "ats:sampler=random", "none"], [0.5], seeds=(0, 3))
    table = build_registry(tmp_path / "out").set_index("Name")
    assert sorted(table["seed"]) == [0, 0, 0, 3] and set(table["dataset"]) == {"digits"} and set(table["epochs"]) == {0}
    pattern, unreduced = table.loc["heuristic_vit_digits-l2-1_3_4-_0.5"], table.loc["vit_digits--_"]
    assert pattern["max_accuracy"] == record(tmp_path / "out", "heuristic_vit_digits-l2-1_3_4-_0.5").accuracy["top1"]
    assert (pattern["heuristic_pattern"], pattern["keep_rate"], pattern["reduction_loc"]) == (
        "l2",
        "[0.5]",
        "[1, 3, 4]",
    )
    assert (unreduced["model"], unreduced["keep_rate"], unreduced["output_dir"]) == (
        "vit_digits",
        "[]",
        "digits/seed-0",
    )
    (tmp_path / "out" / "digits" / "seed-0" / "vit_digits--_" / "decisions.npz").write_bytes(b"cut off")
    with pytest.warns(UserWarning, match="not in the registry: record .*vit_digits--_.* is damaged"):
        assert len(build_registry(tmp_path / "out")) == 3


def test_command_line(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["off_the_shelf", "out", "--backbone", "vit_digits", "--weights", weights.name, "--dataset", "digits"]
    command += ["--methods", "topk", "tome", "--keep-rates", "0.9", "0.7 0.5 0.3", "--limit", "10", "--device", "cpu"]
    threads = torch.get_num_threads()
    try:
        assert main([*command, "--threads", "1", "--seeds", "3", "--cls", "5"]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert done(capsys) == ["evaluated"] * 4
    found = record(tmp_path / "out", "topk_vit_digits-1_3_4-_0.7_0.5_0.3", 3, with_cls=True)
    assert found.stages[4].kept.shape == (10, 19) and found.cls[5].shape == (10, 64)
    assert (found.setting.weights, found.setting.seed) == ("weights.safetensors", 3)
    for wrong in (["--keep-rates", "much"], ["--limit", "0"], ["--weights", "none.safetensors"], ["--threads", "0"]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert main(["nowhere"]) == 2  # folders of runs, as ever
    assert "no run in 'nowhere'" in capsys.readouterr().err
