"""Results that somebody accepted as they are although code that they depend on has changed since.

RESULTS_DIR/accepted.csv has one row per run, written by ``./run_all.sh PROFILE --accept``:

    study, run_id    which run
    csv_sha256       of its CSV: a run that was made again since is not accepted any more
    code_sha256      of the fingerprints of the code for which it was accepted
    date, commit     when, and with which sources checked out
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from common.results import resolve

COLUMNS = ["study", "run_id", "csv_sha256", "code_sha256", "date", "commit"]


def accepted_runs(results_dir: str | Path) -> pd.DataFrame:
    """The rows of accepted.csv whose CSV is still the one that was accepted; none without the file."""
    folder = resolve(results_dir)
    if not (folder / "accepted.csv").is_file():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(folder / "accepted.csv", dtype=str, keep_default_na=False)
    paths = [folder / "runs" / row.study / f"{row.run_id}.csv" for row in rows.itertuples()]
    same = [path.is_file() and sha256(path) == given for path, given in zip(paths, rows["csv_sha256"], strict=True)]
    return rows[same]


def accepted_sentences(results_dir: str | Path) -> list[str]:
    """What the report says of them: one sentence for each date and commit, empty without any."""
    sentences = []
    for (date, commit), rows in accepted_runs(results_dir).groupby(["date", "commit"]):
        runs = ", ".join(f"{study} ({len(each)})" for study, each in rows.groupby("study"))
        when = f"{date}, commit {commit}" if commit else date
        sentences.append(f"Runs made by earlier code and accepted as they are ({when}): {runs}.")
    return sentences


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
