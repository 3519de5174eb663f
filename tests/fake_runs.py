"""Runs that nobody ran: small CSVs with known numbers, for the tests of tables and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.report.sections import Answer
from common.report.tables import Findings, findings
from common.results import read_published, read_runs, write_run
from common.schedule import keep_rate_text
from common.studies import find_study

BASE = {"profile": "quick", "dtype": "float32", "device": "cpu", "commit": "abc1234", "date": "2025-11-20"}


def found_in(root: Path, name: str) -> Findings:
    """The study called ``name`` as its runs under ``root`` have it."""
    return findings(root, find_study(name))


def summarised(root: Path, name: str) -> pd.DataFrame:
    """The numbers of the study called ``name``."""
    return find_study(name).summarise(read_runs(root, find_study(name)))


def answered(name: str, table: pd.DataFrame) -> list[Answer]:
    """What the study called ``name`` says of its numbers."""
    return list(find_study(name).answers(table))


def training_run(
    root: Path,
    accuracies: list[float],
    *,
    method: str,
    keep_rate: float,
    seed: int,
    table: str = "finetune",
    head: str = "fresh",
    start: str = "timm",
    **given: Any,
) -> Path:
    """One run whose accuracy goes through ``accuracies``, the first of them before training."""
    rows = [
        {
            "head": head,
            "start": start,
            "epoch": epoch,
            "train_loss": 2.0 / epoch if epoch else None,
            "train_loss_last_batch": 1.9 / epoch if epoch else None,
            "val_loss": 2.3 - 0.1 * epoch,
            "val_accuracy": accuracy,
            "epoch_seconds": 1.5 + epoch if epoch else None,
            "n_val": 397,
        }
        for epoch, accuracy in enumerate(accuracies)
    ]
    given = {"backbone": "vit_small_patch16_224", "dataset": "digits", "img_size": 32, "batch": 64, **given}
    given = {"n_train": 1400, **given, "epochs": len(accuracies) - 1}
    parts = [given["dataset"], given["backbone"], method, keep_rate_text(keep_rate), given["epochs"], seed]
    run_id = "_".join(map(str, parts)) + ("_published" if start == "published" else "")
    run = {**BASE, **given, "method": method, "keep_rate": keep_rate, "seed": seed}
    return write_run(rows, find_study(table), root / f"runs/{table}/{run_id}.csv", **run)


def throughput_run(root: Path, speedups: dict[tuple[str, float], float], *, name: str = "a", **given: Any) -> Path:
    """One run with these median speed-ups per (method, keep rate); "none" runs at 20 images per second."""
    rows = [
        {
            "method": method,
            "keep_rate": keep_rate,
            "fps": 20 * value,
            "fps_q1": 19.5 * value,
            "fps_q3": 20.5 * value,
            "speedup": value,
            "speedup_q1": 0.97 * value,
            "speedup_q3": 1.02 * value,
            "rounds": 7,
            "params": 21_579_658,
            "gmac": 4.6 / value,
            "gmac_thop_compat": 4.2577 / value,
            "runtime": "eager",
        }
        for (method, keep_rate), value in speedups.items()
    ]
    given = {"backbone": "vit_small_patch16_224", "img_size": 224, "batch": 16, "threads": 2, **given}
    return write_run(rows, find_study("throughput"), root / f"runs/throughput/{name}.csv", **{**BASE, **given})


def serving_run(root: Path, speedups: dict[str, float], *, name: str = "a", **given: Any) -> Path:
    """One run with these speed-ups at keep rate 50 %, whose MAC ratio is 2, in batches of up to 4; image by image
    nothing is gained. A request of four clients waits four times as long as that of one."""
    rows = [
        {
            "runtime": "eager",
            "clients": clients,
            "requests": 8,
            "max_batch": most,
            "max_wait_ms": 0.0 if most == 1 else 2.0,
            "method": method,
            "keep_rate": 1.0 if method == "none" else 0.5,
            "gmac": 4.6 if method == "none" else 2.3,
            **{f"p{end}_ms": (end + 5) * clients / gain for end in (50, 95, 99)},
            "mean_batch": float(min(most, clients)),
            **{f"fps{end}": 10 * gain + more for end, more in (("", 0), ("_q1", -1), ("_q3", 1))},
            **{f"speedup{end}": gain + more for end, more in (("", 0), ("_q1", -0.1), ("_q3", 0.1))},
            "rounds": 3,
        }
        for most in (1, 4)
        for clients in (1, 4)
        for method, batched in speedups.items()
        for gain in [batched if most > 1 else 1.0]
    ]
    given = {"backbone": "vit_small_patch16_224", "img_size": 224, "threads": 2, **given}
    return write_run(rows, find_study("serving"), root / f"runs/serving/{name}.csv", **{**BASE, **given})


def off_the_shelf_run(
    root: Path, accuracies: dict[tuple[str, float], tuple[float, float | None]], right: dict | None = None
) -> Path:
    """One run with these (restricted, full) accuracies per (method, keep rate), and who was right if that is known."""
    rows = [
        {
            "method": method,
            "keep_rate": keep_rate,
            "accuracy": restricted,
            "accuracy_full": full,
            "loss": 1.0,
            "n_val": 3925,
            "gmac": 1.26 * keep_rate,
            **({} if right is None else {"accuracy_by_image": right[method, keep_rate]}),
        }
        for (method, keep_rate), (restricted, full) in accuracies.items()
    ]
    where = {
        "backbone": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "dataset": "imagenette",
        "img_size": 224,
        "seed": 0,
    }
    return write_run(rows, find_study("off_the_shelf"), root / "runs/off_the_shelf/a.csv", batch=16, **where, **BASE)


def method_grid_run(
    root: Path, accuracies: dict[tuple[str, float], float], *, seed: int = 0, epochs: int = 0, **given: Any
) -> Path:
    """One run with these accuracies per (method, keep rate); trained models saw 2,000 images."""
    rows = [
        {
            "method": method,
            "keep_rate": keep_rate,
            "accuracy": accuracy,
            "accuracy_best": accuracy + 0.5,
            "ema_accuracy": accuracy - 1.0 if epochs else None,
            "loss": 1.0,
            "tokens": "196" if method == "none" else f"{int(196 * keep_rate)} {int(196 * keep_rate**2) + seed}",
            "gmac": 1.26 * keep_rate,
            "params": 5_717_416,
            "n_train": 2000 if epochs else 0,
            "n_val": 3925,
        }
        for (method, keep_rate), accuracy in accuracies.items()
    ]
    where = {"backbone": "vit_tiny_patch16_224", "dataset": "imagenette", "img_size": 224, "batch": 16, **given}
    path = root / f"runs/method_grid/{epochs}_{seed}.csv"
    return write_run(rows, find_study("method_grid"), path, seed=seed, epochs=epochs, **where, **BASE)


def sizing_run(root: Path) -> Path:
    """The README's vanilla and TRAM counted to within 0.01 %, its ATS 3 % off."""
    published = read_published("tram_accuracy").drop_duplicates(["backbone", "method", "keep_rate"])
    factors = {"none": 1.0, "tram": 1.0001, "ats": 1.03}
    rows = [
        {
            **row[["backbone", "method", "keep_rate", "img_size", "model"]].to_dict(),
            "source": "README",
            "params": 100,
            "published_params": None,
            "gmac_linear": row["gflops"],
            "gmac_attention": 0.5,
            "gmac": row["gflops"] + 0.5,
            "gmac_closed_form": None if row["method"] == "ats" else row["gflops"] + 0.5,
            "gmac_thop_compat": row["gflops"] * factors[row["method"]],
            "gmac_thop": row["gflops"],
            "published_gflops": row["gflops"],
        }
        for _, row in published[published["method"].isin(factors)].iterrows()
    ]
    return write_run(rows, find_study("sizing"), root / "runs/sizing/a.csv", **BASE)


def gallery_run(root: Path) -> Path:
    """One digit 1 under two methods, one of which is wrong."""
    shown = {"image": "val-7", "class_name": "1", "block": 3}
    rows = [
        {"method": "tome", "num_tokens": 16, "predicted": "1", "probability": 0.9, "epochs": 0, **shown},
        {"method": "sinkhorn", "num_tokens": 18, "predicted": "5", "probability": 0.3, "epochs": 1, **shown},
    ]
    where = {"backbone": "vit_digits", "dataset": "digits", "img_size": 32, "keep_rate": 0.5, "seed": 0}
    return write_run(rows, find_study("gallery"), root / "runs/gallery/a.csv", **{**BASE, **where})


def visualize_run(root: Path) -> Path:
    """Four images, blocks 3, 6 and 9 of TRAM at 50 %; one prediction changes."""
    rows = [
        {
            "image": f"{image:03d}",
            "class_name": "church",
            "block": block,
            "num_tokens": tokens,
            "predicted": "church" if image else "tench",
            "probability": 0.8,
            "predicted_full_model": "church",
            "probability_full_model": 0.9,
        }
        for image in range(4)
        for block, tokens in ((3, 98), (6, 49), (9, 24))
    ]
    where = {"backbone": "vit_tiny_patch16_224", "dataset": "imagenette", "img_size": 224, "seed": 0, "batch": 1}
    where.update(method="tram", keep_rate=0.5)
    return write_run(rows, find_study("visualize"), root / "runs/visualize/a.csv", **where, **BASE)


EXPLAINED = {"backbone": "vit_digits", "dataset": "digits", "img_size": 32, "keep_rate": 1.0, "seed": 0, "batch": 32}


def explain_run(root: Path, explainers: tuple[str, ...] = ("mutex",)) -> Path:
    """Two digits under these explainers, the second taken for another one."""
    rows = [
        {
            "method": explainer,
            "reducer": "none",
            "baseline": "black",
            "areas": "unit",
            "image": f"val-{digit}",
            "class_name": str(digit),
            "predicted": "3",
            "probability": 0.9 - digit / 10,
            "insertion_auc": 0.8 - place / 10,
            "deletion_auc": 0.2 + place / 10,
            "seconds": 0.0125,
        }
        for digit in (3, 5)
        for place, explainer in enumerate(explainers)
    ]
    return write_run(rows, find_study("explain"), root / "runs/explain/a.csv", **EXPLAINED, **BASE)


def quality_row(method: str, insertion: float, deletion: float, **given: Any) -> dict[str, Any]:
    """One row of the benchmark of explanations, without what only some of its rows have."""
    row = {"method": method, "part": "explainers", "reducer": "none", "baseline": "black", "n_images": 60}
    areas = {"insertion_auc": insertion, "insertion_auc_sem": 0.01, "deletion_auc": deletion, "deletion_auc_sem": 0.02}
    return {**row, **areas, "seconds": 0.05, **given}


def areas_by_image(row: dict[str, Any], insertion: list[float], deletion: list[float]) -> dict[str, Any]:
    """``row`` with areas that differ from its means by these amounts on single images."""
    moved = {"insertion_auc": insertion, "deletion_auc": deletion}
    return row | {f"{name}_by_image": row[name] + np.array(values) for name, values in moved.items()}


def explain_benchmark_run(root: Path, *rows: dict[str, Any], name: str = "a", **given: Any) -> Path:
    """One run of these rows, see :func:`quality_row`."""
    run = {"threads": 2, **EXPLAINED, **BASE, **given}
    return write_run(rows, find_study("explain_benchmark"), root / f"runs/explain_benchmark/{name}.csv", **run)


def mutex_row(parameter: str, value: float, insertion: float, deletion: float, **given: Any) -> dict[str, Any]:
    """One row of MUTEX with another value of a parameter."""
    changed = {"part": "parameters", "parameter": parameter, "value": value, "options": f"{parameter}={value}"}
    return quality_row("mutex", insertion, deletion, **{**changed, **given})


def whole_benchmark(root: Path) -> Path:
    """Three explainers, and two values of each parameter of MUTEX."""
    gain = {"insertion_gain": 0.2, "insertion_p": 0.0001, "deletion_gain": 0.15, "deletion_p": 0.02}
    none = {"insertion_gain": 0.01, "insertion_p": 0.4, "deletion_gain": -0.03, "deletion_p": 0.3}
    box = {"pointing": 0.75, "pointing_sem": 0.05, "mass": 0.4, "mass_sem": 0.02}
    rows = [
        quality_row("random", 0.4, 0.4),
        quality_row("rollout", 0.41, 0.43, **none, **box, sparseness=0.3, max_sensitivity=0.1),
        quality_row("mutex", 0.6, 0.25, **gain, **box, sparseness=0.2, max_sensitivity=0.05),
    ]
    studied = {"min_cut": (0.1, 0.01), "token_ratio": (0.9, 0.5), "starting_layer": (11, 2)}
    rows += [
        mutex_row(name, value, 0.6, 0.25 + value / 100, **gain) for name, values in studied.items() for value in values
    ]
    parts = ("statistic=min", "degree=in", "all")
    rows += [quality_row("mutex", 0.5, 0.3, part="masks", masks=part, seconds=None) for part in parts]
    models = (("topk:head_fusion=mean", 0.5), ("tram", 0.5), ("tram", 0.7))
    rows += [quality_row("mutex", 0.5, 0.3, part="reduced", reducer=name, keep_rate=rate) for name, rate in models]
    return explain_benchmark_run(root, *rows)


def explain_agreement_run(root: Path) -> Path:
    """Two explainers beside two reducers, one of which scores no patches."""
    rows = [
        {
            "method": explainer,
            "reducer": reducer,
            "block": block,
            "n_images": 60,
            "rank_correlation": None if reducer == "l2" else correlation,
            "rank_correlation_sem": None if reducer == "l2" else 0.02,
            "iou": overlap,
            "iou_sem": 0.01,
            "iou_chance": 0.25,
            "above_chance": overlap - 0.25,
        }
        for explainer, correlation, overlap in (("random", 0.0, 0.25), ("mutex", 0.5, 0.375))
        for reducer, block in (("l2", 3), ("topk:head_fusion=mean", 4))
    ]
    run = {**EXPLAINED, **BASE, "keep_rate": 0.5}
    return write_run(rows, find_study("explain_agreement"), root / "runs/explain_agreement/a.csv", **run)


def whole_study(root: Path) -> Path:
    """A few runs of every table; returns ``root``."""
    for table in ("finetune", "scratch"):
        for method, top in (("none", 97.0), ("tram", 95.0), ("topk", 93.0)):
            for keep_rate in (1.0,) if method == "none" else (0.75, 0.5):
                for seed in (0, 1, 2):
                    accuracies = [10.0, 80.0, top - 4 * (1 - keep_rate) + 0.1 * seed]
                    training_run(root, accuracies, method=method, keep_rate=keep_rate, seed=seed, table=table)
    throughput_run(root, {("none", 1.0): 1.0, ("tram", 0.75): 1.4, ("tram", 0.5): 1.9, ("topk", 0.5): 2.0})
    serving_run(root, {"none": 1.0, "tram": 1.8, "topk": 1.6})
    off_the_shelf_run(root, {("none", 1.0): (99.0, 74.2), ("tram", 0.5): (90.0, 60.0), ("topk", 0.5): (95.0, 61.0)})
    grid = {("none", 1.0): 98.0, ("tram", 0.9): 97.0, ("topk", 0.9): 97.0, ("tram", 0.5): 90.0, ("topk", 0.5): 95.0}
    method_grid_run(root, grid)
    for seed in (0, 1):
        method_grid_run(root, {key: value + 1 + 0.1 * seed for key, value in grid.items()}, seed=seed, epochs=5)
    sizing_run(root)
    visualize_run(root)
    gallery_run(root)
    explain_run(root)
    whole_benchmark(root)
    explain_agreement_run(root)
    return root
