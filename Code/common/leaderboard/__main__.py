"""The leaderboard of a folder of results as one page: RESULTS_DIR/leaderboard.html.

python -m common.leaderboard RESULTS_DIR [--title TITLE]

RESULTS_DIR has runs/leaderboard/*.csv, or runs of off_the_shelf or method_grid, each with its hits by image beside it;
trained models of method_grid stand beside the others, marked as trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.errors import command
from common.leaderboard.page import render, write_page
from common.leaderboard.runs import boards_of, speeds_of


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.leaderboard", description="The leaderboard as one page.")
    parser.add_argument("results_dir", help="folder with runs/, e.g. results/quick")
    parser.add_argument("--title", default="", help="heading of the page")
    given = parser.parse_args(arguments)
    boards = boards_of(given.results_dir)
    print(write_page(given.results_dir, render(boards, speeds_of(given.results_dir), title=given.title)))


if __name__ == "__main__":
    sys.exit(main())
