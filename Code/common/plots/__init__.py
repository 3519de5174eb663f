"""Figures of the study. Every function takes tables or arrays and returns a figure; ``save`` writes it.

All raise :class:`UsageError` where there is nothing to draw, a column is missing, a name is unknown, two rows stand for
the same point, or shapes or values are not what the function asks for.

Nothing here touches pyplot's global state, so figures can be drawn in any process, thread or notebook.
"""

from common.plots.accuracy import accuracy_mac_pareto, accuracy_vs_keep_rate, learning_curves
from common.plots.cost import macs_per_layer, published_vs_counted, speedup_vs_keep_rate
from common.plots.elsewhere import agreement_by_block, map_similarity
from common.plots.explainer_gallery import explainer_gallery
from common.plots.explanations import agreement_matrix, insertion_deletion_plane, mean_curves
from common.plots.forest import correlation_forest
from common.plots.gallery import GalleryPanel, methods_gallery
from common.plots.heatmaps import HeatmapRow, heatmaps
from common.plots.idling import idle_patches, idle_profile, idle_tradeoff, patch_similarity
from common.plots.leaderboard import accuracy_at_budget
from common.plots.mutex_studies import mask_ablation, parameter_study
from common.plots.patches import Example, ExampleRow, kept_by_two, mask_patches, survival_map, united_grid
from common.plots.patterns import agreement_dendrogram, depth_maps
from common.plots.serving import serving_load
from common.plots.slimming import (
    block_sensitivity,
    one_block_gain,
    slimming_lengths,
    slimming_limits,
    slimming_masks,
    slimming_tolerances,
    slimming_tradeoff,
)
from common.plots.style import (
    EXPLAINERS,
    METHODS,
    MethodStyle,
    explainer_label,
    explainer_style,
    method_style,
    save,
    sentence,
)
