"""Accuracy of reduced models that were trained from random weights."""

from __future__ import annotations

from common.studies.base import register_study
from common.studies.finetune import Finetune


@register_study
class Scratch(Finetune):
    """Whether a reduced model can be trained from random weights."""

    name, title = "scratch", "Accuracy when trained from scratch"
    question = "Can a reduced model be trained from random weights?"
    place = 60
    protocol = "scratch"
    captions = {
        "": "Accuracy after training from random weights. Points: mean over seeds; bars: one standard deviation.",
        "speed": "Accuracy when trained from scratch against measured speed-up. Labels: keep rate in percent.",
    }
