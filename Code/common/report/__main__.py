"""``python -m common.report RESULTS_DIR``: see :mod:`common.report.page`."""

import sys

from common.report.page import main

sys.exit(main())
