"""The parameters of notebooks: one vocabulary, name -> what it may be (:mod:`common.options`), the same in all of them.

A study adds those that it alone has as ``parameters``, see :class:`common.studies.Study`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from common.devices import Dtype
from common.explain.base import ExplainerText
from common.explain.explanations import Areas
from common.explain.metrics import Baseline
from common.options import Count, Many, NonNegative, Positive, Share, ShareBelow1, Whole, accepted_by, field_kinds
from common.reducers import Method
from common.reducers.idle_mlp import Context
from common.training.config import TrainConfig
from common.training.experiment import Experiment

_label = Annotated[str, accepted_by(lambda text: Method.parse(f"idle_mlp:{text}"))]

PARAMETERS: dict[str, Any] = {
    **field_kinds(TrainConfig),
    **field_kinds(Experiment),
    "weights": str | Many[str],
    "img_size": Count | None,
    "images": Count | Many[Whole] | str | None,
    "areas": Areas,
    "dtype": Dtype,
    "dropped": Literal["black", "dim"],
    "explainer": ExplainerText,
    "reduced_explainer": ExplainerText,
    "others": Many[ExplainerText],
    "baseline": Baseline,
    "label": _label,
    "context": Context,
    **dict.fromkeys(("profile", "csv", "figure", "checkpoint", "checkpoints", "records", "trained"), str),
    "cls_at": Many[Whole],
    **dict.fromkeys(("num_images", "num_shown", "num_calibration", "gate_images", "rounds", "stage", "hidden"), Count),
    **dict.fromkeys(("tune_epochs", "distill_epochs", "gate_epochs", "tolerance_epochs"), Whole),
    **dict.fromkeys(("finetune_epochs", "random_masks"), Whole),
    **dict.fromkeys(("num_sensitive", "layer", "starting_layer", "random_seed"), Whole),
    "mac_cut": ShareBelow1,
    **dict.fromkeys(("budget", "cut", "idle_share", "min_cut", "token_ratio"), Share),
    **dict.fromkeys(("distill_lr", "finetune_lr", "tune_rate"), Positive),
    "cut_weight": NonNegative,
    "tau": float,
}


def kind_of(name: str, more: Mapping[str, Any] = {}) -> Any | None:
    """What the parameter ``name`` may be, by the vocabulary or by ``more`` of a study; None = it is in neither.

    A name in the plural takes a list of what the singular takes, and ``limit_...`` a number of images, None = all.
    """
    known = {**PARAMETERS, **more}
    if name in known:
        return known[name]
    if name.startswith("limit_"):
        return Count | None
    single = known.get(name[:-1]) if name.endswith("s") else None
    return None if single is None else Many[single]
