"""Token-reduction methods, one file each; importing this package registers them all."""

from common.reducers import (
    ats,
    dpcknn,
    dynamicvit,
    evit,
    idle_bounds,
    idle_mlp,
    idle_topk,
    kmedoids,
    none,
    patchmerger,
    patterns,
    sinkhorn,
    sit,
    tome,
    topk,
    tram,
)
from common.reducers.base import Reducer, Signals, list_reducers, reducer_class, reducer_options, register_reducer
from common.reducers.method import Method
from common.reducers.schedule import Schedule, default_reduction_loc

__all__ = [
    "Method",
    "Reducer",
    "Schedule",
    "Signals",
    "ats",
    "default_reduction_loc",
    "dpcknn",
    "dynamicvit",
    "evit",
    "idle_bounds",
    "idle_mlp",
    "idle_topk",
    "kmedoids",
    "list_reducers",
    "none",
    "patchmerger",
    "patterns",
    "reducer_class",
    "reducer_options",
    "register_reducer",
    "sinkhorn",
    "sit",
    "tome",
    "topk",
    "tram",
]
