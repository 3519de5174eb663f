"""A profile without Snakemake: order, cores, the end of the time, and runs that fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

import direct
from plan import ProfileError, load_plans

NOTEBOOK = """\
# %% tags=["parameters"]
number = 0
fail = False
seconds = 0.0
log = ""
weights = ""
checkpoint = ""
csv = ""
figure = ""
profile = ""

# %%
import time
from pathlib import Path

def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {number}\\n")

note("start")
time.sleep(seconds)
assert not fail, "as asked"
assert not weights or Path(weights).is_file()
if checkpoint:
    Path(checkpoint).write_text("weights")
Path(csv).parent.mkdir(parents=True, exist_ok=True)
Path(csv).write_text(str(number))
note("end")
number
"""


@pytest.fixture
def profile(tmp_path: Path):
    """A function from lists of runs to their plans: (numbers, threads, other parameters) each."""
    (tmp_path / "note.py").write_text(NOTEBOOK)

    def planned(*entries):
        runs = []
        for numbers, threads, parameters in entries:
            given = {"log": str(tmp_path / "log"), **parameters}
            run = {"notebook": str(tmp_path / "note"), "study": "s", "parameters": given, "grid": {"number": numbers}}
            runs.append({**run, "name": f"n{numbers[0]}", **({"threads": threads} if threads else {})})
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump({"profile": "mine", "runs": runs}))
        return load_plans(str(file), str(tmp_path / "results"))

    return planned


def said(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_runs_share_the_cores_in_their_order_and_one_for_all_cores_is_alone(profile, tmp_path):
    plans = profile(([1, 2, 3], 1, {"seconds": 0.5}), ([4], None, {}), ([5], 1, {}))
    failed, left = direct.run_plans(plans, direct.Machine(2, narrow=False), minutes=1)
    assert not failed and not left
    lines = said(tmp_path)
    assert sorted(lines[:2]) == ["start 1", "start 2"]
    assert lines.index("start 3") > min(lines.index("end 1"), lines.index("end 2"))
    assert lines[-4:] == ["start 4", "end 4", "start 5", "end 5"]
    csvs = [Path(run.csv).read_text() for run in plans[0].runs]
    assert csvs == ["1", "2", "3", "4", "5"]


def test_what_is_done_is_skipped_and_what_fails_is_said_and_stops_no_other(profile, tmp_path, capsys):
    plans = profile(([1], 1, {}), ([2], 1, {"fail": True}), ([3], 1, {}))
    done = Path(plans[0].runs[0].csv)
    done.parent.mkdir(parents=True)
    done.write_text("before")
    failed, left = direct.run_plans(plans, direct.Machine(1, narrow=False), minutes=1)
    assert [run.run_id for run in failed] == ["n2-number2"] and not left
    assert "error: s--n2-number2: AssertionError: as asked (see" in capsys.readouterr().err
    assert said(tmp_path) == ["start 2", "start 3", "end 3"] and done.read_text() == "before"


def test_the_end_of_the_time_ends_what_runs_and_names_what_is_left(profile, tmp_path):
    plans = profile(([1, 2], 1, {"seconds": 60}), ([3], 1, {}))
    start = time.monotonic()
    failed, left = direct.run_plans(plans, direct.Machine(2, narrow=False), minutes=3 / 60)
    assert time.monotonic() - start < 20
    assert not failed and [run.run_id for run in left] == ["n1-number1", "n1-number2", "n3-number3"]
    assert not any("end" in line for line in said(tmp_path))


def test_an_unknown_parameter_is_refused_before_the_first_cell(profile, tmp_path):
    with pytest.raises(ValueError, match="number"):
        direct.execute(Path(profile(([1], 1, {}))[0].runs[0].notebook), {"numbr": 2})
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_waits_for_its_weights_and_is_left_where_they_are_not_made(profile, tmp_path, fails):
    file = str(tmp_path / "net.safetensors")
    plans = profile(([2], 1, {"weights": file}), ([1], 1, {"checkpoint": file, "seconds": 0.5, "fail": fails}))
    failed, left = direct.run_plans(plans, direct.Machine(2, narrow=False), minutes=1)
    assert [run.run_id for run in failed] == ["n1-number1"] * fails
    assert [run.run_id for run in left] == ["n2-number2"] * fails
    assert said(tmp_path) == (["start 1"] if fails else ["start 1", "end 1", "start 2", "end 2"])


def test_runs_are_chosen_by_name_or_by_a_part_of_it(profile):
    """A whole name means that run, although others begin with it."""
    plans = profile(([1, 10], 1, {}), ([2], 1, {}))

    def chosen(*texts):
        return [run.name for run in direct.only(plans, texts)[0].runs]

    assert chosen("s--") == ["s--n1-number1", "s--n1-number10", "s--n2-number2"]
    assert chosen("s--n1-number1") == ["s--n1-number1"]
    assert chosen("s--n1-number1", "n2") == ["s--n1-number1", "s--n2-number2"]
    assert chosen("number1") == ["s--n1-number1", "s--n1-number10"]
    with pytest.raises(ProfileError, match="--only n3: no run is called so; there are s--n1-number1, s--n1-number10"):
        chosen("n3", "n1")
