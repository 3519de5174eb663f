"""The committed notebooks are the reviewed sources, executed without an error; nbval runs them again."""

import ast
import runpy
from pathlib import Path

import jupytext
import nbformat
import pytest

from common.options import check
from common.parameters import kind_of
from common.studies import all_studies
from notebooks import declared_parameters, defaults_of

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for section in ("Benchmark", "Pretrained", "Scratch") for path in (ROOT / "Code" / section).glob("*.py")
)


@pytest.fixture(params=SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def pair(request):
    notebook = ROOT / "notebooks" / request.param.parent.name / f"{request.param.stem}.ipynb"
    return jupytext.read(request.param), nbformat.read(notebook, as_version=4)


def test_all_eight_are_there():
    names = {f"{path.parent.name}/{path.stem}" for path in SOURCES}
    expected = {"Benchmark/throughput", "Benchmark/sizing", "Pretrained/finetune", "Pretrained/off_the_shelf"}
    expected |= {"Pretrained/visualize", "Pretrained/method_grid", "Pretrained/methods_gallery", "Scratch/train_test"}
    assert names >= expected
    assert {f"{path.parent.name}/{path.stem}" for path in (ROOT / "notebooks").glob("*/*.ipynb")} == names


def test_pair_has_the_same_cells(pair):
    source, notebook = pair
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in source.cells]


def test_executed_without_errors_and_light(pair):
    _, notebook = pair
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert len(nbformat.writes(notebook)) < 1_000_000


def test_opens_with_what_it_reproduces_and_has_one_parameters_cell(pair):
    source, _ = pair
    assert source.cells[0].cell_type == "markdown" and source.cells[0].source.startswith("# ")
    assert "Expected" in source.cells[0].source and "Time" in source.cells[0].source
    tagged = [cell for cell in source.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = {target.id for node in ast.parse(tagged[0].source).body for target in node.targets}
    assert {"profile", "csv", "figure"} <= names


def test_holds_no_long_function(pair):
    source, _ = pair
    for cell in source.cells:
        if cell.cell_type == "code":
            functions = [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef)]
            assert all(node.end_lineno - node.lineno < 5 for node in functions)


def test_what_is_smaller_for_nbval_are_parameters_of_the_notebooks_of_other_values():
    of_studies = {name: kind for study in all_studies().values() for name, kind in study.parameters.items()}
    for notebook, smaller in runpy.run_path(str(ROOT / "notebooks" / "conftest.py"))["SMALLER"].items():
        source = ROOT / "Code" / f"{notebook}.py"
        assert smaller.keys() <= set(declared_parameters(source)), notebook
        for name, value in smaller.items():
            check(name, value, kind_of(name, of_studies))
            assert value != defaults_of(f"Code/{notebook}.py")[name], (notebook, name)
