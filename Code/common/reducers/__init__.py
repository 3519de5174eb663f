"""Token-reduction methods, one file each; importing this package registers them all."""

from common.reducers import (
    ats,
    dpcknn,
    dynamic_slimming,
    dynamicvit,
    evit,
    idle_bounds,
    idle_mlp,
    idle_topk,
    kmedoids,
    none,
    patch_slimming,
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
from common.schedule import Schedule, default_reduction_loc
