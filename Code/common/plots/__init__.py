"""Figures of the study. Every function takes tables or arrays and returns a figure; ``save`` writes it.

Nothing here touches pyplot's global state, so figures can be drawn in any process, thread or notebook.
"""

from common.plots.accuracy import accuracy_mac_pareto, accuracy_vs_keep_rate, learning_curves
from common.plots.cost import macs_per_layer, published_vs_counted, speedup_vs_keep_rate
from common.plots.gallery import GalleryPanel, methods_gallery
from common.plots.patches import Example, ExampleRow, kept_patches, mask_patches, survival_map, united_grid
from common.plots.style import METHODS, MethodStyle, method_style, save

__all__ = [
    "METHODS",
    "Example",
    "ExampleRow",
    "GalleryPanel",
    "MethodStyle",
    "accuracy_mac_pareto",
    "accuracy_vs_keep_rate",
    "kept_patches",
    "learning_curves",
    "macs_per_layer",
    "mask_patches",
    "method_style",
    "methods_gallery",
    "published_vs_counted",
    "save",
    "speedup_vs_keep_rate",
    "survival_map",
    "united_grid",
]
