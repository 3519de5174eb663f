"""Tables and page of all runs of a results folder.

python -m common.studies tables RESULTS_DIR
python -m common.studies report RESULTS_DIR [--title TITLE] [--about TEXT]
python -m common.studies both RESULTS_DIR [--title TITLE] [--about TEXT]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from common.errors import command
from common.report.page import write_report
from common.report.tables import write_tables
from common.results import from_cwd
from common.studies import all_studies


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m common.studies", description="Tables and page of all runs.")
    parser.add_argument("what", choices=("tables", "report", "both"))
    parser.add_argument("results_dir", help="folder with runs/ and figures/, e.g. results/quick")
    parser.add_argument("--title", default="", help="heading of the page")
    parser.add_argument("--about", default="", help="one paragraph below the heading")
    given = parser.parse_args(arguments)
    folder = from_cwd(given.results_dir)
    if given.what != "report":
        written = write_tables(folder, all_studies().values())
        print(f"{len(written)} files in {written[0].parent}")
    if given.what != "tables":
        print(write_report(folder, all_studies(), title=given.title, about=given.about))


if __name__ == "__main__":
    sys.exit(main())
