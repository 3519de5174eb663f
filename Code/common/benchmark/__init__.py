"""Throughput against the honest baseline: the same backbone with fused attention, measured in turn.

``python -m common.benchmark --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5`` prints the same numbers
as the throughput notebook. ``--mac-cut 0.4`` or ``--speedup 1.5`` in place of the keep rates solves for them.
"""

from common.benchmark.identity import SelectAll, assert_identity
from common.benchmark.measured import compare, compare_all
