"""``python -m common.evaluation DIR [DIR ...]``: see :mod:`common.evaluation.runner`.

``python -m common.evaluation off_the_shelf OUT ...``: see :mod:`common.evaluation.shelf_command`. A folder of
runs that is called so is ``./off_the_shelf``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from common.evaluation import runner, shelf_command


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments[:1]) == [shelf_command.NAME]:
        return shelf_command.main(arguments[1:])
    return runner.main(arguments)


if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
