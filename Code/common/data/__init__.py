"""Datasets, their transforms and their loaders, the same for every notebook."""

from common.data.base import has_classes_of, head_classes
from common.data.catalog import dataset_classes, list_datasets, load_dataset
from common.data.check import check_dataset
from common.data.loading import make_loader, set_epoch, subset
