"""Token reduction in Vision Transformers: methods, models, data and measurements behind a few calls."""

from common.data import load_dataset
from common.macs import count_macs
from common.models.factory import create_model
from common.models.reduced import reduce_tokens
from common.reducers import list_reducers

__all__ = ["count_macs", "create_model", "list_reducers", "load_dataset", "reduce_tokens"]
