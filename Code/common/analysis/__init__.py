"""Comparing what methods decide: which patches they keep and merge, how alike their features and maps are.

Functions of records (:mod:`common.evaluation`) and of arrays, numpy or torch; numbers come back in float64. They are
the measures of Haurum et al., "Which Tokens to Use? Investigating Token Reduction in Vision Transformers", ICCVW 2023,
with what chance would give. The default is the correct number; ``parity=True`` is the one that the reference
implementation prints where the two differ.

``python -m common.analysis RECORDS --axis AXIS --out DIR`` compares all records in folders and leaves tables and
figures (:mod:`common.analysis.__main__`).
"""

from common.analysis.canonical import cca_by_chance
from common.analysis.clusters import agreement, labels
from common.analysis.compare import Decisions, compare, compare_all
from common.analysis.correlate import correlate
from common.analysis.depth import token_depth, token_statistics
from common.analysis.export import export_tables
from common.analysis.features import cka, feature_intervals, feature_measures, mean_cca, procrustes, pwcca
from common.analysis.intervals import Interval, bootstrap, independent_bootstrap, jackknife, paired_bootstrap
from common.analysis.maps import compare_halves, compare_maps, compare_mean_maps
from common.analysis.pairs import AXES, pairs
from common.analysis.sets import excess, ioa, ioa_by_chance, iou, iou_by_chance, iou_limit, kept_mask
