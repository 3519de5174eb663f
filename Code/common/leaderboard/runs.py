"""Runs of a folder to boards, and the speeds that were measured of the same models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from common.cost.throughput import promise_share
from common.errors import UsageError
from common.leaderboard.board import Board
from common.leaderboard.content import speed_key
from common.leaderboard.lines import contests
from common.report.sections import counted, is_reduced
from common.results import read_runs
from common.studies import all_studies

UNTRAINED = ("leaderboard", "off_the_shelf", "method_grid")  # studies, of which the first that has hits by image counts


def boards_of(results_dir: str | Path) -> list[Board]:
    """Boards of the runs of a folder, those among all classes of the head first.

    Raises:
        UsageError: there is no folder, no run with hits by image, or none of the unreduced model beside others.
    """
    studies = all_studies()
    runs = {name: _with_images(read_runs(results_dir, studies[name])) for name in UNTRAINED}
    untrained = next((rows for name in UNTRAINED if len(rows := _untrained(runs[name]))), None)
    if untrained is None:
        raise UsageError(
            f"{str(results_dir)!r} has no run with hits by image (runs/STUDY/*.csv with *.images.npz beside it) of "
            f"models without training; needed: a run of one of {', '.join(UNTRAINED)}"
        )
    grid = runs["method_grid"]
    trained = grid[grid["epochs"] > 0] if len(grid) else grid
    found = [Board.of(contest) for contest in contests(untrained, trained)]
    if not found:
        raise UsageError(f"the runs of {str(results_dir)!r} lack the unreduced model (method none), or reduced ones")
    return sorted(found, key=lambda board: board.contest.metric != "accuracy_full")


def _with_images(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["images"].notna()] if "images" in runs else runs.iloc[:0]


def _untrained(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["epochs"].fillna(0) == 0] if len(runs) else runs


def speeds_of(results_dir: str | Path) -> dict[tuple, Mapping[str, float | str]]:
    """Speed-up, share of the MAC promise and peak memory by :func:`common.leaderboard.content.speed_key`.

    Of eager models, at the largest batch that was measured; "where" says on which machine, which need not be the one
    that classified the images.
    """
    runs = read_runs(results_dir, all_studies()["throughput"])
    runs = runs[runs["runtime"] == "eager"].sort_values("batch", kind="stable")
    whole = runs[runs["method"] == "none"]
    found = {}
    for _, row in runs[is_reduced(runs)].iterrows() if len(runs) else ():
        beside = whole[(whole["backbone"] == row["backbone"]) & (whole["img_size"] == row["img_size"])]
        speed = {"speedup": row["speedup"], "memory": row["peak_memory_mb"]}
        if len(beside):
            speed["promise"] = promise_share(row["speedup"], row["gmac"], beside["gmac"].iloc[0])
        known = {name: round(float(value), 3) for name, value in speed.items() if pd.notna(value)}
        threads = "" if "cuda" in row["device"] else f", {counted(int(row['threads']), 'thread')}"
        where = f"{row['device']}{threads}, {row['dtype']}, batch {row['batch']:.0f}"
        found[speed_key(row["backbone"], row)] = {**known, "where": where}
    return found
