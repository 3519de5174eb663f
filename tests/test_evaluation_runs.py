"""Many runs: evaluated one after the other, and listed in a table."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from common.data import load_dataset
from common.errors import UsageError
from common.evaluation import Record
from common.evaluation.registry import COLUMNS, build_registry, registry_from_wandb
from common.evaluation.registry import main as registry_main
from common.evaluation.runner import DECISIONS, main
from common.evaluation.runs import Run, find_runs
from common.models.factory import create_model
from common.training import TrainConfig
from common.training.experiment import Experiment
from common.weights import save_state

VAL = 12
REFERENCE = ["Name", "max_accuracy", "epoch", "epochs", "keep_rate", "reduction_loc", "heuristic_pattern", "model"]
REFERENCE += ["output_dir", "Tags", "Created"]
JSON = "a_viz_results.json"


def train(folder, seed=3, **changes):
    config = TrainConfig(epochs=1, batch_size=4, seed=seed, device="cpu")
    given = {"backbone": "vit_digits", "dataset": "digits", "img_size": 32, "limit_train": 4, "limit_val": VAL}
    given |= {"reducer": "topk:head_fusion=mean", "keep_rate": 0.5, "output_dir": str(folder), "config": config}
    return list(Experiment(**{**given, **changes}).run())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of one epoch, and one that was stopped before it."""
    root = tmp_path_factory.mktemp("runs")
    train(root / "group" / "a")
    train(root / "b", seed=5, reducer="l2", keep_rate=(0.7, 0.4), reduction_loc=(1, 3))
    train(root / "c", reducer="none", keep_rate=1.0)
    return root


@pytest.fixture
def runs(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "runs")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def make_unfinished(folder):
    log = pd.read_csv(folder / "log.csv")
    log[:1].to_csv(folder / "log.csv", index=False)


def test_a_record_is_of_the_best_weights_on_the_validation_images(runs):
    assert main([str(runs / "group"), "--device", "cpu"]) == 0
    folder = runs / "group" / "a"
    record, best = Record.load(folder / DECISIONS), Run.read(folder).best
    assert record.accuracy["top1"] == pytest.approx(best.accuracy)
    assert record.setting.details == {"best": vars(best), "epochs": 1}
    assert record.setting.seed == 3 and record.setting.key == "digits/seed-3/" + record.setting.run_key
    assert (record.setting.name, record.setting.method) == ("a", "topk:head_fusion=mean")
    assert record.setting.reduction_loc == (1, 3, 4)
    data = load_dataset("digits", "val", img_size=32, limit=VAL, seed=0)  # whatever the seed of training
    weights = folder / "best.safetensors"
    model = create_model("vit_digits", reducer="topk", head_fusion="mean", keep_rate=0.5, img_size=32, weights=weights)
    _, trace = model.eval().trace(data[5][0][None])
    assert record.image_ids == tuple(data.image_ids)
    assert record.stages[4].kept[5].tolist() == trace.origin[4][0].tolist()


def test_a_run_is_evaluated_on_images_as_it_was_trained_on(tmp_path):
    """Also when the weights that it started from, which said so, are gone."""
    unusual, start = {"mean": (0.2, 0.3, 0.4), "std": (0.25, 0.5, 0.125)}, tmp_path / "start.safetensors"
    model = create_model("vit_digits")
    model.pretrained_cfg |= unusual
    save_state(model, start)
    train(tmp_path / "run", weights=str(start), reducer="none", keep_rate=1.0)
    start.unlink()
    data = Run.read(tmp_path / "run").trained.val_set()
    assert {"mean": data.mean, "std": data.std} == unusual
    assert main([str(tmp_path / "run"), "--device", "cpu"]) == 0


def test_what_exists_is_skipped(runs, capsys):
    folder = runs / "group" / "a"
    arguments = [str(folder), "--device", "cpu"]

    def done(*options):
        assert main([*arguments, *options]) == 0
        return capsys.readouterr().out.strip().rpartition(" ")[2]

    assert done() == "evaluated"
    assert done() == "skipped"
    assert done("--json") == "exported"
    assert done("--json") == "skipped"
    assert done("--cls", "1", "3") == "evaluated"
    assert done("--cls", "3") == "skipped"
    assert done("--cls", "1", "--json") == "exported"
    assert done("--cls", "1", "--json") == "skipped"
    assert np.load(folder / "a_cls_features_1.npy").shape == (64, VAL)
    assert len(json.loads((folder / JSON).read_text(encoding="utf-8"))) == 6 + VAL
    assert done("--cls", "1", "--overwrite") == "evaluated"
    assert not (folder / JSON).exists() and not list(folder.glob("*.npy"))  # they were of the old record
    assert list(Record.load(folder / DECISIONS, with_cls=True).cls) == [1]
    edit(folder / "best.json", epoch=7)  # as if training had gone on
    assert done("--cls", "1") == "evaluated"
    (folder / DECISIONS).write_bytes(b"cut off")
    assert done() == "evaluated"


def test_an_error_does_not_stop_the_others(runs, capsys):
    (runs / "b" / "best.safetensors").write_bytes(b"cut off")
    (runs / "c" / "best.json").unlink()
    assert main([str(runs), "--device", "cpu", "--batch-size", "5"]) == 1
    output = capsys.readouterr()
    assert [line.rpartition(" ")[2] for line in output.out.splitlines()] == ["failed", "failed", "evaluated"]
    errors = [line for line in output.err.splitlines() if line.startswith("error in ")]
    assert len(errors) == 2
    assert "b" in errors[0] and "damaged or truncated" in errors[0]
    assert "c" in errors[1] and "best.json' is missing" in errors[1]
    assert (runs / "group" / "a" / DECISIONS).is_file()


def test_whatever_goes_wrong_is_reported(runs, capsys, monkeypatch):
    monkeypatch.setattr("common.evaluation.runner.evaluate_model", lambda *a, **k: 1 / 0)
    assert main([str(runs / "b"), "--device", "cpu"]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err
    assert not (runs / "b" / DECISIONS).exists()


def test_arguments_are_refused_before_anything_is_evaluated(runs, capsys):
    empty = runs / "empty"
    empty.mkdir()
    for arguments in ([str(empty)], [str(runs / "nowhere")], [str(runs), "--device", "abacus"]):
        assert main([*arguments]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not list(runs.rglob(DECISIONS))


def test_runs_are_found_once_at_any_depth(runs):
    assert find_runs([runs / "group", runs, runs / "b"]) == [runs / "group" / "a", runs / "b", runs / "c"]


def test_registry(runs):
    for day, name in zip((3, 1, 2), ("group/a", "b", "c"), strict=True):
        edit(runs / name / "experiment.json", date=f"2025-01-0{day}")
    table = build_registry(runs)
    assert list(table.columns) == list(COLUMNS)
    accuracy = {name: Run.read(runs / name).best.accuracy for name in ("group/a", "b", "c")}
    assert table.to_dict("split")["data"] == [
        [
            *("b", accuracy["b"], 1, 1, "[0.7, 0.4]", "[1, 3]", "l2", "heuristic_vit_digits", ".", "[]", "2025-01-01"),
            *("digits", 5),
        ],
        ["c", accuracy["c"], 1, 1, "[]", "[]", "", "vit_digits", ".", "[]", "2025-01-02", "digits", 3],
        [
            *("a", accuracy["group/a"], 1, 1, "[0.5]", "[1, 3, 4]", "", "topk_vit_digits", "group"),
            *("['head_fusion=mean']", "2025-01-03", "digits", 3),
        ],
    ]
    assert list(table.columns[:11]) == REFERENCE  # its scripts read these


def test_registry_names_what_it_leaves_out(runs, tmp_path, capsys):
    (runs / "b" / "experiment.json").write_text("{", encoding="utf-8")
    make_unfinished(runs / "c")
    with pytest.warns(UserWarning, match="not in the registry") as caught:
        assert build_registry(runs)["Name"].tolist() == ["a"]
    assert len(caught) == 2
    out = tmp_path / "out.csv"
    assert registry_main([str(runs), str(out)]) == 1
    output = capsys.readouterr()
    assert "experiment.json' is damaged" in output.err
    assert "at epoch 0 of 1" in output.out and output.out.endswith("1 not finished, 1 damaged\n")
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and lines[0] == ",".join(f'"{name}"' for name in COLUMNS)
    shutil.rmtree(runs / "b")
    assert registry_main([str(runs), str(out)]) == 0
    assert registry_main([str(tmp_path / "nowhere"), str(out)]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("experiment.json", "[]", "no JSON object"),
        ("experiment.json", "{}", "it has no 'experiment'"),
        ("experiment.json", '{"experiment": {"config": {}, "colour": 1}}', "unknown key 'colour'"),
        ("best.json", '{"epoch": 1}', "no best epoch"),
        ("log.csv", "", "log.csv' is damaged"),
        ("log.csv", "step\n1\n", "it has no 'epoch'"),
    ],
)
def test_a_damaged_run_is_named(runs, name, content, message):
    (runs / "b" / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        Run.read(runs / "b")
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["experiment.json", "best.json", "log.csv", "best.safetensors"])
def test_a_missing_file_is_named(runs, name):
    (runs / "b" / name).unlink()
    with pytest.raises(UsageError, match=f"{name}' is missing"):
        Run.read(runs / "b")


def wandb_run(name, created, *, tags=(), state="finished", **summary):
    config = {"epochs": 30, "keep_rate": [0.7], "reduction_loc": [3, 6, 9], "heuristic_pattern": "l2"}
    config |= {"model": "topk_small_patch16_224", "output_dir": "./out", "batch_size": 256}
    config |= {"dataset": "imagenet", "seed": 1}
    return SimpleNamespace(name=name, created_at=created, tags=list(tags), state=state, config=config, summary=summary)


def test_registry_from_wandb(monkeypatch, tmp_path):
    runs = [
        wandb_run("late", "2023-05-02T00:00:00", max_accuracy=79.9, epoch=29, tags=["IM"]),
        wandb_run("early", "2023-05-01T00:00:00", max_accuracy=78.0, epoch=29),
        wandb_run("worse", "2023-05-01T00:00:00", max_accuracy=70.0, epoch=29, tags=["Not Best"]),
        wandb_run("hidden", "2023-05-01T00:00:00", max_accuracy=70.0, epoch=29, tags=["hidden"]),
        wandb_run("running", "2023-05-01T00:00:00", max_accuracy=70.0, epoch=2, state="running"),
        wandb_run("crashed", "2023-05-01T00:00:00", epoch=0, state="crashed"),
    ]
    asked = []
    api = SimpleNamespace(runs=lambda path: asked.append(path) or runs)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: api, __spec__="installed"))
    table = registry_from_wandb("someone", "tokens")
    assert asked == ["someone/tokens"] and table["Name"].tolist() == ["early", "late"]
    assert table.iloc[1].tolist() == [
        *("late", 79.9, 29, 30, "[0.7]", "[3, 6, 9]", "l2", "topk_small_patch16_224", "./out"),
        *("['IM']", "2023-05-02T00:00:00", "imagenet", 1),
    ]
    assert registry_main(["wandb:someone/tokens", str(tmp_path / "out.csv")]) == 0
    assert registry_main(["wandb:someone", str(tmp_path / "out.csv")]) == 2


def test_wandb_is_asked_for_only_where_it_is_needed(monkeypatch):
    monkeypatch.setattr("common.errors.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"Weights & Biases needs the package 'wandb', .*: pip install -e '.\[tracking\]'"
    ):
        registry_from_wandb("someone", "tokens")
