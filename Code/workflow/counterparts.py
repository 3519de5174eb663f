"""Which run of the shipped profiles measures again what the authors printed, row by row of results/published.

A row has a counterpart where a run agrees with it in all that the row states of KEYS, the columns by which results
stand beside it. A row that nothing runs has its reason in results/published/not_run.yaml.

python Code/workflow/counterparts.py prints every row with its counterpart or its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from common.explain.mutex import Mutex
from common.reducers import Method
from common.report.rows import architecture
from common.results import PUBLISHED, read_published
from common.studies.finetune import IDENTITY, STATED
from common.weights import weights_label
from common.yaml_files import read_yaml
from estimate import sizes_of
from notebooks import defaults_of
from passes import IMAGES
from plan import Run, load_plans
from profile_file import ROOT, list_profiles

NOT_RUN = ROOT / PUBLISHED / "not_run.yaml"
CUT = 3.0  # points by which a cut may differ from the printed one: counted in two ways, and met by whole tokens
Row = Mapping[str, Any]
Maker = Callable[[Run], Iterator[Row]]


def _model(text: str, keep_rate: float) -> Row:
    method = Method.parse(text)
    return {"method": method.name, "options": method.options_text, "keep_rate": 1.0 if text == "none" else keep_rate}


def _training(run: Run) -> Iterator[Row]:
    """What Pretrained/finetune and Scratch/train_test train."""
    given = run.options
    scratch = run.notebook == "Code/Scratch/train_test.py"
    known = {"head": "fresh", "weights": "random"} if scratch else {"head": given["head"]}
    yield {
        "weights": weights_label(given.get("weights", ""), given["backbone"]),
        **known,
        "protocol": "scratch" if scratch else "pretrained",
        "recipe": "scratch" if scratch else "pretrained",
        "backbone": architecture(given["backbone"]),
        **_model(given["reducer"], given["keep_rate"]),
        **{name: given[name] for name in ("dataset", "img_size", "epochs", "lr", "start")},
        "batch": given["batch_size"],
        "n_train": given["limit_train"] or IMAGES[given["dataset"]][0],
        "dtype": "float32" if given["mixed_precision"] == "no" else given["mixed_precision"],
    }


def _speed(run: Run) -> Iterator[Row]:
    """What Benchmark/throughput times."""
    given = run.options
    for backbone, batch, text in product(given["backbones"], given["batch_sizes"], ["none", *given["reducers"]]):
        for rate in given["keep_rates"]:
            yield {
                "backbone": architecture(backbone),
                **_model(text, rate),
                "img_size": given["img_size"],
                "batch": batch,
            }


def _plans(run: Run) -> Iterator[Row]:
    """What Pretrained/patch_slimming finds, under the names of the paper."""
    given = run.options
    same = {"backbone": architecture(given["backbone"]), "img_size": given["img_size"]}
    same |= {"dataset": Path(given["dataset"].removeprefix("folder:")).name}
    yield {**same, "method": "none", "variant": "baseline"}
    cut = {"cut": 100 * (1 - given["mac_budget"])}
    names = {"learned": "PS", "uniform": "uniform"}  # other lengths are nobody's
    kinds = [names[kind] for kind in given["lengths"] if kind in names]
    yield from ({**same, **cut, "method": "patch_slimming", "variant": kind} for kind in kinds)
    if given["gate_epochs"]:
        yield {**same, **cut, "method": "dynamic_slimming", "variant": "DPS"}


def _lengths(run: Run) -> Iterator[Row]:
    """How Pretrained/patch_slimming shares out tokens among the blocks."""
    same = _figure(run) | {"part": "stages"}
    yield from (same | {"lengths": each, "score": score} for each, score in _all(run, "lengths", "scores"))


def _single_blocks(run: Run) -> Iterator[Row]:
    """What Pretrained/patch_slimming_study searches by tolerance, and the single blocks that compute fewer patches."""
    same, published = _figure(run), {"score": "significance"}
    for (tolerance,) in _all(run, "tolerances"):
        yield {**same, **published, "part": "tolerances", "tolerance": tolerance}
    for (share,) in _all(run, "sensitivity_kept_shares"):
        blocks = range(sizes_of(run.options["backbone"], run.options["img_size"]).depth)
        yield from ({**same, **published, "part": "sensitivity", "block": each, "kept_share": share} for each in blocks)
    for block, share, score in _all(run, "blocks", "kept_shares", "scores"):
        alone = {**same, "part": "single_block", "block": block, "kept_share": share}
        yield from ({**alone, "score": name} for name in (score, "random"))


def _figure(run: Run) -> Row:
    given = run.options
    same = {"backbone": architecture(given["backbone"]), "method": "patch_slimming"}
    return same | {name: given[name] for name in ("dataset", "img_size")}


def _all(run: Run, *names: str) -> Iterator[tuple[Any, ...]]:
    """All combinations of the values of parameters."""
    return product(*(run.options[name] for name in names))


def _idling(run: Run) -> Iterator[Row]:
    """What Pretrained/idle_patches measures of the published labels: predictors with either attention; labels."""
    given = run.options
    same = {"backbone": architecture(given["backbone"]), **{name: given[name] for name in ("dataset", "img_size")}}
    yield {**same, "method": "none", "attention": "standard"}
    for tau in given["taus"]:
        yield {**same, "method": "idle_oracle", "tau": tau}
        learnt = {**same, "method": "idle_mlp", "tau": tau, "epochs": given["epochs"]}
        yield from ({**learnt, "attention": attention} for attention in ("standard", "modified"))


def _areas(run: Run) -> Iterator[Row]:
    """What Pretrained/explain measures as MUTEX's authors do; their black is 0 after normalisation."""
    given, images = run.options, run.options["images"]
    if (given["areas"], given["explainer"], given["baseline"]) != ("published", "mutex:parity=true", "zero"):
        return
    defaults = {name: parameter.default for name, parameter in signature(Mutex).parameters.items()}
    same = {name: defaults[name] for name in ("min_cut", "token_ratio", "starting_layer")}
    same |= {"method": "mutex", "baseline": "black", "img_size": given["img_size"]}
    numbers = read_yaml(ROOT / images) if isinstance(images, str) else []
    for backbone, number in product(given["backbones"], numbers):
        yield {**same, "backbone": architecture(backbone), "image": f"ILSVRC2012_val_{number:08d}"}


def _claimed(run: Run) -> Iterator[Row]:
    """The study that a claim is tested on; digits are too easy for any."""
    if "digits" not in run.values("dataset"):
        yield {"studies": run.study}


_MODEL = ("backbone", "method", "options", "keep_rate")
_SPEED = (*_MODEL, "img_size")  # as common.studies.throughput joins them
_TRAINED = ("backbone", *IDENTITY[1:], *STATED)
_LEFT_IN_NOTEBOOKS = ("protocol", *_TRAINED)
_FIGURES = ("backbone", "img_size", "dataset", "method", "part", "lengths", "score", "block", "kept_share", "tolerance")
_SLIM = ("backbone", "img_size", "dataset", "method", "variant", "cut")
# Table -> for each kind of its numbers the columns that tell what was measured, and the runs that measure it.
KEYS: Mapping[str, Sequence[tuple[Sequence[str], Mapping[str, Maker]]]] = {
    "tram_accuracy": [
        (_TRAINED, {"Pretrained/finetune": _training}),
        (_SPEED, {"Benchmark/throughput": _speed}),
    ],
    "tram_throughput_vit": [((*_SPEED, "batch"), {"Benchmark/throughput": _speed})],
    "tram_throughput_simple_vit": [((*_SPEED, "batch"), {"Benchmark/throughput": _speed})],
    "trewa_efficiency": [((*_SPEED, "batch"), {"Benchmark/throughput": _speed})],
    "tram_training": [(_LEFT_IN_NOTEBOOKS, {"Pretrained/finetune": _training, "Scratch/train_test": _training})],
    "patch_slimming": [(_SLIM, {"Pretrained/patch_slimming": _plans})],
    "patch_slimming_figures": [
        (_FIGURES, {"Pretrained/patch_slimming": _lengths, "Pretrained/patch_slimming_study": _single_blocks})
    ],
    "patch_idling": [
        (
            ("backbone", "dataset", "img_size", "method", "attention", "tau", "epochs"),
            {"Pretrained/idle_patches": _idling},
        )
    ],
    "mutex_auc": [
        (
            ("backbone", "method", "img_size", "min_cut", "token_ratio", "starting_layer", "baseline", "image"),
            {"Pretrained/explain": _areas},
        )
    ],
    "which_tokens_claims": [
        (
            ("studies",),
            dict.fromkeys(
                (f"Pretrained/{name}" for name in ("off_the_shelf", "method_grid", "reduction_patterns")), _claimed
            )
            | dict.fromkeys((f"Pretrained/{name}" for name in ("patterns_across_data", "pattern_proxies")), _claimed),
        )
    ],
}


def shipped_runs() -> list[Run]:
    """The runs of all profiles, named by profile, with the parameters of their notebooks."""
    plans = {plan.results: plan.named() for name in list_profiles() for plan in load_plans(name)}
    runs = [run for plan in plans.values() for run in plan.runs]
    return [replace(run, options={**defaults_of(run.notebook), **run.options}) for run in runs]


def counterparts(table: str, runs: Sequence[Run]) -> pd.DataFrame:
    """The rows of a published table, with ``runs`` (the names of a run for each kind of numbers) and ``why`` not.

    Where a reason is listed, no run is looked for.
    """
    found = read_published(table)
    rows = found.to_dict("records")
    why, names = [reason(table, row) for row in rows], [()] * len(rows)
    for keys, makers in KEYS[table]:
        makers = {f"Code/{notebook}.py": maker for notebook, maker in makers.items()}
        made = [(run.name, row) for run in runs if run.notebook in makers for row in makers[run.notebook](run)]
        for place, row in enumerate(rows):
            if not why[place]:
                names[place] += (next((name for name, each in made if _agree(row, each, keys)), None),)
    return found.assign(runs=names, why=why)


def reason(table: str, row: Row) -> str:
    """Why no run is a counterpart of a row; "" where none is listed."""
    return next((entry["why"] for entry in read_yaml(NOT_RUN) if "rows" in entry and is_meant(entry, table, row)), "")


def is_meant(entry: Mapping[str, Any], table: str, row: Row) -> bool:
    """Whether an entry of not_run.yaml is about a row: the table's name, and values of columns, one or several each."""
    meant = entry.get("rows", entry.get("not_printed"))
    return entry["table"] == table and all(
        row[column] in (values if isinstance(values, list) else [values]) for column, values in meant.items()
    )


def _agree(printed: Row, made: Row, keys: Sequence[str]) -> bool:
    """In all columns that the printed row states; of several studies one is enough."""
    stated = [key for key in keys if key in printed and not pd.isna(printed[key])]
    if "options" in keys and "options" not in stated and made.get("options"):
        return False  # a printed row without options is of the method as it is
    return all(_same(key, printed[key], made.get(key)) for key in stated)


def _same(key: str, printed: Any, made: Any) -> bool:
    if key == "cut":
        return made is None or abs(printed - made) <= CUT
    return made in printed.split() if key == "studies" else printed == made


def main() -> None:
    runs = shipped_runs()
    for table in KEYS:
        for _, row in counterparts(table, runs).iterrows():
            about = " ".join(
                str(row[name]) for name in ("model", "method", "variant", "keep_rate", "claim") if name in row
            )
            print(f"{table}: {about}: {row['why'] or ' + '.join(map(str, row['runs']))}")


if __name__ == "__main__":
    main()
