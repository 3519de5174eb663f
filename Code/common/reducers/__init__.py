"""Token-reduction methods, one file each; importing this package registers them all."""

import importlib
import pkgutil

from common.reducers.base import Reducer, Signals, list_reducers, reducer_class, reducer_options, register_reducer
from common.reducers.method import Method
from common.schedule import Schedule, default_reduction_loc

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
