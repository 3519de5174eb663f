"""The schema of a run, its conditions, and that a run is written whole or not at all."""

from __future__ import annotations

import os
import random
import subprocess
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from fake_runs import BASE, training_run

from common import provenance, results
from common.errors import UsageError
from common.results import conditions, read_published, read_runs, write_run
from common.schema import CONDITIONS
from common.studies import find_study
from common.studies.finetune import Finetune
from common.studies.throughput import Throughput
from common.studies.visualize import Visualize

ROW = {"image": "001", "class_name": "church", "block": 3, "num_tokens": 98, "predicted": "church", "probability": 0.5}
ROW |= {"predicted_full_model": "church", "probability_full_model": 0.75}
RUN = {**BASE, "method": "tram", "backbone": "vit_tiny_patch16_224", "dataset": "digits"}
RUN |= {"img_size": 32, "keep_rate": 0.5, "seed": 0}


def test_conditions_come_in_order_and_fill_themselves() -> None:
    found = conditions(study="visualize", profile="smoke", device="cpu", keep_rate=0.5)
    assert list(found) == list(CONDITIONS)
    order = "study profile method options backbone weights dataset recipe img_size keep_rate seed epochs lr n_train"
    order += " dtype batch device threads"
    assert list(found)[:21] == [*order.split(), "torch", "timm", "commit"]
    assert (found["torch"], found["timm"]) == (torch.__version__.partition("+")[0], timm.__version__)
    assert found["threads"] == torch.get_num_threads()
    assert found["device"].startswith("cpu")
    assert found["options"] == ""
    assert found["seed"] is None


def test_conditions_accept_what_is_given() -> None:
    found = conditions(commit="1234567", threads=3, options={"b": 1, "a": True})
    assert (found["commit"], found["threads"], found["options"]) == ("1234567", 3, "a=true,b=1")


def test_conditions_refuse_unknown_names_and_devices() -> None:
    with pytest.raises(UsageError, match=r"^unknown condition 'keeprate'; allowed: .*keep_rate"):
        conditions(keeprate=0.5)
    with pytest.raises(UsageError, match=r"^unknown device 'tpv'; allowed: cpu, cuda"):
        conditions(device="tpv")


def test_round_trip_is_exact(tmp_path: Path) -> None:
    values = [random.random() * 10 ** random.randint(-12, 0) for _ in range(300)]
    rows = [{**ROW, "image": f"{number:03d}", "probability": value} for number, value in enumerate(values)]
    path = write_run(
        rows, Visualize, tmp_path / "runs/visualize/one.csv", **RUN | {"keep_rate": 0.1 + 0.2, "options": {"k": "a|b"}}
    )
    frame = read_runs(tmp_path, Visualize)
    assert frame["probability"].tolist() == values
    assert frame["keep_rate"].unique().tolist() == ["0.30000000000000004"]
    assert frame["image"].iloc[7] == "007"
    assert frame["options"].iloc[0] == "k=a|b"
    assert frame["num_tokens"].dtype == "Int64"
    assert frame["batch"].isna().all()
    assert frame["run_id"].unique().tolist() == ["one"]
    before = path.read_bytes()
    columns = [*Visualize.columns, *CONDITIONS]
    again = [{name: row[name] for name in columns if name != "device"} for row in frame.to_dict("records")]
    write_run(again, Visualize, path, device="cpu")
    assert path.read_bytes() == before


def test_columns_are_conditions_then_metrics(tmp_path: Path) -> None:
    path = write_run([ROW], Visualize, tmp_path / "a.csv", **RUN)
    assert path.read_text().splitlines()[0].split(",") == [*CONDITIONS, *Visualize.columns]


def test_a_row_may_carry_its_own_condition(tmp_path: Path) -> None:
    write_run([{**ROW, "keep_rate": rate} for rate in (0.75, 0.5)], Visualize, tmp_path / "runs/visualize/a.csv", **RUN)
    assert read_runs(tmp_path, Visualize)["keep_rate"].tolist() == ["0.75", "0.5"]


@pytest.mark.parametrize(
    ("rows", "run", "message"),
    [
        ([], {}, r"^no rows to write to .*a\.csv; a visualize run has at least one$"),
        ([{**ROW, "extra": 1}], {}, r"unknown columns \['extra'\]; metrics allowed: image, "),
        ([{k: v for k, v in ROW.items() if k != "block"}], {}, r"^row 0 .* missing columns \['block'\]"),
        ([ROW, {**ROW, "probability": float("nan")}], {}, r"^row 1 .* no value \(or NaN\) in 'probability'"),
        ([ROW], {"backbone": ""}, r"no value \(or NaN\) in 'backbone'"),
        ([{**ROW, "block": 1.5}], {}, r"^column 'block' of .* does not hold int64 values"),
        ([{**ROW, "probability": "high"}], {}, r"^column 'probability' of .* does not hold float64 values"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(tmp_path: Path, rows: list, run: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        write_run(rows, Visualize, tmp_path / "a.csv", **RUN | run)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_epoch_zero_has_no_training_loss(tmp_path: Path) -> None:
    training_run(tmp_path, [10.0, 90.0], method="none", keep_rate=1.0, seed=0)
    frame = read_runs(tmp_path, Finetune)
    assert frame["train_loss"].isna().tolist() == [True, False]
    assert frame["epoch"].tolist() == [0, 1]


def test_a_writer_killed_before_the_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: str, target: Path) -> None:
        assert Path(source).parent == Path(target).parent, "a rename is atomic within one folder only"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_run([ROW], Visualize, tmp_path / "runs/visualize/a.csv", **RUN)
    assert list((tmp_path / "runs/visualize").iterdir()) == []


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path: Path) -> None:
    def fails(file) -> None:
        file.write("half")
        raise RuntimeError

    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        results.write_atomically(target, fails)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_temporary_files_are_no_runs(tmp_path: Path) -> None:
    write_run([ROW], Visualize, tmp_path / "runs/visualize/a.csv", **RUN)
    (tmp_path / "runs/visualize/.b.csv.x.tmp").write_text("half")
    assert len(read_runs(tmp_path, Visualize)) == 1


def test_reading_refuses_files_of_another_shape(tmp_path: Path) -> None:
    path = write_run([ROW], Visualize, tmp_path / "runs/visualize/a.csv", **RUN)
    good = path.read_text()
    path.write_text(good.replace("num_tokens", "kept"))
    with pytest.raises(UsageError, match=r"a\.csv does not have the columns of a visualize run; delete it"):
        read_runs(tmp_path, Visualize)
    path.write_text(good.replace("visualize,", "scratch,"))
    with pytest.raises(UsageError, match=r"holds rows of study \['scratch'\]; allowed: visualize"):
        read_runs(tmp_path, Visualize)
    path.write_text("")
    with pytest.raises(UsageError, match=r"a\.csv is empty; delete it and run again"):
        read_runs(tmp_path, Visualize)


def test_reading_an_empty_folder_and_none(tmp_path: Path) -> None:
    frame = read_runs(tmp_path, Throughput)
    assert list(frame.columns) == [*CONDITIONS, *Throughput.columns, "run_id"]
    assert len(frame) == 0
    with pytest.raises(UsageError, match="no results folder"):
        read_runs(tmp_path / "absent", Throughput)
    with pytest.raises(UsageError, match=r"^unknown study 'speed'; allowed: explain, .*, finetune, gallery, "):
        find_study("speed")


def test_relative_paths_start_at_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    assert results.resolve("results/quick") == root / "results/quick"
    assert results.resolve(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setattr(results, "checkout", lambda: None)
    assert results.resolve("x") == tmp_path / "x"
    with pytest.raises(UsageError, match=r"no folder .* work in one"):
        read_published("tram_accuracy")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_says_when_sources_differ(tmp_path: Path) -> None:
    assert provenance.git_commit(tmp_path) == "", "not a repository"
    git(tmp_path, "init")
    assert provenance.git_commit(tmp_path) == "", "no commit yet"
    (tmp_path / "Code").mkdir()
    (tmp_path / "Code/a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.git_commit(tmp_path)
    assert len(clean) >= 7
    assert "dirty" not in clean
    (tmp_path / "results").mkdir()
    (tmp_path / "results/x.csv").write_text("a study writes this while it runs")
    assert provenance.git_commit(tmp_path) == clean
    for text in ("README.md", "Code/README.md", "Code/common/README.md"):
        (tmp_path / text).parent.mkdir(exist_ok=True)
        (tmp_path / text).write_text("no number depends on this")
        assert provenance.git_commit(tmp_path) == clean
    (tmp_path / "Code/a.py").write_text("2")
    assert provenance.git_commit(tmp_path) == f"{clean}+dirty"


@pytest.mark.parametrize(
    ("record", "commit"),
    [
        ('{"url": "file:///x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}', "0123456"),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', ""),
        (None, ""),  # from a package index
    ],
)
def test_commit_of_an_installed_package_is_the_one_that_pip_recorded(
    record: str | None, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = SimpleNamespace(read_text={"direct_url.json": record}.get)
    monkeypatch.setattr(provenance, "distribution", {"token-reduction": installed}.get)
    assert provenance.git_commit(None) == commit


def test_commit_without_git_or_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "distribution", lambda _: metadata.distribution("no such package"))
    assert provenance.git_commit(None) == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_commit(tmp_path) == ""


def test_other_trouble_with_git_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = subprocess.CompletedProcess([], 128, stdout="", stderr="fatal: detected dubious ownership")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
    with pytest.warns(UserWarning, match="no commit recorded: git rev-parse: fatal: detected dubious ownership"):
        assert provenance.git_commit(tmp_path) == ""
