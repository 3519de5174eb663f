"""Kernels that are forks of one process: what they have, how they end, and that the process can be forked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from test_workflow import launch

import warm_kernels
from plan import load_plans
from profile_file import ROOT

WORKFLOW = ROOT / "Code" / "workflow"
NOTEBOOK = """\
# %% tags=["parameters"]
csv = figure = fail = found = ""
dataset, reducer, keep_rate, profile = "digits", "none", 1.0, "notebook"
seed = 0

# %%
import json, os, sys
from pathlib import Path

there = sorted({"torch", "timm", "common.studies.slimming"}.intersection(sys.modules))

# %%
import torch
from threadpoolctl import threadpool_info

threads = [torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info())]
torch.rand(1000, 1000) @ torch.rand(1000, 1000)  # hangs where threads of before the fork are waited for
facts = {"there": there, "parent": os.getppid(), "own": os.getpid(), "threads": threads, "folder": os.getcwd()}
facts |= {"word": os.environ.get("WORD"), "first": sys.path[0]}
for path in filter(None, (csv, figure, found)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(facts))
exec(fail)
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    path = tmp_path / "facts.py"
    path.write_text(NOTEBOOK)
    return path


class Parent:
    """A process that has called :func:`warm_kernels.serve`, as Snakemake does."""

    def __init__(self) -> None:
        code = "import os, sys, warm_kernels as w; w.serve(); print(os.environ[w.SOCKET], flush=True); sys.stdin.read()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=WORKFLOW, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.socket = self.process.stdout.readline().strip()

    def run(self, notebook: Path, threads: int = 1, **parameters: object) -> subprocess.Popen[str]:
        """Start a run whose kernel is a fork."""
        file = notebook.with_name("parameters.yaml")
        file.write_text(yaml.safe_dump({"found": str(notebook.with_name("facts.json")), **parameters}))
        own = {
            warm_kernels.SOCKET: self.socket,
            "WORD": f"of {threads}",
            **dict.fromkeys(warm_kernels.THREADS, str(threads)),
        }
        command = [sys.executable, WORKFLOW / "run_notebook.py", notebook, notebook.with_suffix(".ipynb")]
        command += ["--parameters", file]
        return subprocess.Popen(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True)

    def facts(self, notebook: Path, threads: int = 1) -> dict[str, object]:
        """Of a run that ended well."""
        done = self.run(notebook, threads)
        _, said = done.communicate()
        assert done.returncode == 0, said
        return json.loads(notebook.with_name("facts.json").read_text())


@pytest.fixture(scope="module")
def parent() -> Iterator[Parent]:
    parent = Parent()
    yield parent
    parent.process.kill()
    parent.process.wait()


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    """Ended; what nobody waits for any more is a zombie until then."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
def test_kernels_are_forks_that_have_the_libraries_and_live_as_any_other(parent, notebook):
    one, two = parent.facts(notebook, 1), parent.facts(notebook, 2)
    assert one["there"] == ["common.studies.slimming", "timm", "torch"]
    assert one["parent"] == two["parent"] and one["own"] != two["own"]
    assert set(one["threads"]) == {1} and set(two["threads"]) == {2}
    assert (one["word"], two["word"], one["folder"]) == ("of 1", "of 2", str(ROOT))
    assert one["first"] != str(WORKFLOW)

    failed = parent.run(notebook, fail="raise ValueError('wrong')")
    assert failed.communicate()[1].splitlines()[-1].split("error: ")[1].startswith(f"{notebook.parent.name}--facts: ")
    assert failed.returncode == 1
    (cell,) = [cell for cell in nbformat.read(notebook.with_suffix(".partial.ipynb"), 4).cells if "exec" in cell.source]
    assert cell.outputs[-1].evalue == "wrong"

    killed = parent.run(notebook, fail="os.kill(os.getpid(), 9)")
    assert "the notebook's process died" in killed.communicate()[1].splitlines()[-1]
    assert parent.facts(notebook)["parent"] == one["parent"], "another run is not affected"


@pytest.mark.slow
def test_the_process_and_its_kernels_end_with_whoever_started_it(notebook):
    parent = Parent()
    facts = notebook.with_name("facts.json")
    run = parent.run(notebook, fail="import time; time.sleep(600)")
    wait_until(lambda: facts.is_file() and facts.stat().st_size)
    found = json.loads(facts.read_text())
    folder = Path(parent.socket).parent
    assert folder.is_dir()
    os.kill(parent.process.pid, signal.SIGKILL)
    parent.process.wait()
    wait_until(lambda: is_gone(found["parent"]) and is_gone(found["own"]))
    assert not folder.exists()
    assert "the notebook's process died" in run.communicate()[1].splitlines()[-1]


@pytest.mark.slow
def test_a_kernel_ends_with_its_run(parent, notebook):
    facts = notebook.with_name("facts.json")
    run = parent.run(notebook, fail="import time; time.sleep(600)")
    wait_until(lambda: facts.is_file() and facts.stat().st_size)
    found = json.loads(facts.read_text())
    run.kill()
    run.communicate()
    wait_until(lambda: is_gone(found["own"]))
    assert not is_gone(found["parent"])


@pytest.mark.slow
def test_what_is_forked_has_one_thread_and_has_not_looked_for_a_gpu():
    """Or the forks of it could not use one: CUDA does not survive a fork, and torch refuses it from then on."""
    code = """
import os, torch, warm_kernels
def looked(*_):
    raise AssertionError("an import looked for a GPU")
torch._C._cuda_getDeviceCount = torch._C._cuda_init = looked
warm_kernels._import_all()
print(len(os.listdir("/proc/self/task")))
"""
    command, threads = [sys.executable, "-c", code], dict.fromkeys(warm_kernels.THREADS, "1")
    done = subprocess.run(command, cwd=WORKFLOW, env={**os.environ, **threads}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "forked"), [(warm_kernels.MANY, True), (1, False)])
def test_a_profile_of_many_runs_has_its_kernels_forked(notebook, results, runs, forked):
    grid = {"notebook": str(notebook.with_suffix("")), "study": "scratch", "grid": {"seed": list(range(runs))}}
    notebook.with_name("p.yaml").write_text(yaml.safe_dump({"profile": "p", "runs": [grid]}))
    (plan,) = load_plans(str(notebook.with_name("p.yaml")), str(results))
    done = launch(str(notebook.with_name("p.yaml")), results, *(run.csv for run in plan.runs))
    assert done.returncode == 0, done.stderr
    facts = [json.loads(Path(run.csv).read_text()) for run in plan.runs]
    assert ["timm" in each["there"] for each in facts] == [forked] * runs
    assert len({each["parent"] for each in facts}) == 1, "the process, or the one run's own"
