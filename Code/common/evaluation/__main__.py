"""``python -m common.evaluation DIR [DIR ...]``: see :mod:`common.evaluation.runner`."""

import sys

from common.evaluation.runner import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
