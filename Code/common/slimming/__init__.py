"""Patch slimming: which patches a trained transformer can do without, block by block, and its tuning to do without."""

from common.reducers.slimming_plan import SlimmingPlan
from common.slimming.gates import calibrate_thresholds, fit_gates
from common.slimming.scores import significance
from common.slimming.top_down import search
