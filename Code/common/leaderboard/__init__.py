"""The answer to "which one?": methods at equal cost, as a page, a table and three sentences.

``python -m common.leaderboard RESULTS_DIR`` writes RESULTS_DIR/leaderboard.html.
"""

from __future__ import annotations
