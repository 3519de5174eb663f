"""The leaderboard of a folder of results as one page: RESULTS_DIR/leaderboard.html.

python -m common.leaderboard RESULTS_DIR [--speeds DIR] [--title TITLE] [--weights FILE] [--readme FILE] [--module NAME]

RESULTS_DIR has runs/leaderboard/*.csv, or runs of off_the_shelf or method_grid, each with its hits by image beside it;
trained models of method_grid stand beside the others, marked as trained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import command
from common.leaderboard.page import render, write_page
from common.leaderboard.photographs import traced
from common.leaderboard.readme import write_readme
from common.leaderboard.runs import boards_of, speeds_of
from common.registry import import_own_module
from common.results import from_cwd
from common.training.digits_backbone import from_here


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.leaderboard", description="The leaderboard as one page.")
    parser.add_argument("results_dir", help="folder with runs/, e.g. results/quick")
    parser.add_argument("--speeds", help="folder with runs/throughput of the same models; default: RESULTS_DIR")
    parser.add_argument("--title", default="", help="heading of the page")
    parser.add_argument("--weights", help="of the network, for what is kept of photographs; default: by its name")
    parser.add_argument("--module", help="Python module that registers methods of your own, which the runs name")
    parser.add_argument("--readme", help="file that also gets the sentences and the table of the first board")
    given = parser.parse_args(arguments)
    if given.module:
        import_own_module(given.module, "--module")
    folder = from_cwd(given.results_dir)
    boards = boards_of(folder)
    weights = from_here(given.weights) if given.weights else None
    speeds = speeds_of(from_cwd(given.speeds) if given.speeds else folder)
    html = render(boards, speeds, list(traced(boards, folder, weights)), title=given.title)
    print(write_page(folder, html))
    if given.readme:
        write_readme(Path(given.readme), boards[0])
        print(given.readme)


if __name__ == "__main__":
    sys.exit(main())
