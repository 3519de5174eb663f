"""Models that answer requests of one image each: a queue that makes batches of them, and a test under load.

``python -m common.serving --backbone vit_small_patch16_224 --reducer tram --keep-rate 0.5`` prints latency percentiles.
"""

from common.serving.load import compare_load
from common.serving.queue import BatchQueue
