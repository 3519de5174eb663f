"""The studies: one file each. ``python -m common.studies RESULTS_DIR`` makes tables and the page of all their runs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from common.errors import require_choice
from common.studies.base import STUDIES, Study, register_study


def all_studies() -> Mapping[str, Study]:
    """Every study by its name, in the order of their chapters: those of the files beside this one, and any other that
    was registered."""
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"{__name__}.{module.name}")
    return dict(sorted(STUDIES.items(), key=lambda item: (item[1].place, item[0])))


def find_study(name: str) -> Study:
    """The study called ``name``; UsageError lists what there is."""
    studies = all_studies()
    return studies[require_choice(name, studies, "study")]
