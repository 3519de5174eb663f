"""Which of several models is best, by their differences on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from common.results import BY_IMAGE

PAIRED = (
    "Stressed: ahead of every other by the mean paired difference, on the same images or of trained models over the "
    "same seeds, the 95 % interval of which (Student's t) leaves out 0; not corrected for the number of models."
)
ONE_SEED = "Nothing is stressed: trained models are compared over seeds, and there is one."
NOT_PAIRED = "Nothing is stressed: these runs kept no values by image, so that no difference can be tested."


@dataclass(frozen=True)
class Lead:
    """The best of several models, beside the one that it is least certainly ahead of.

    Attributes:
        place, other: of the two in what was given.
        difference: mean over the images, positive = better.
        low, high: 95 % interval of that mean.
    """

    place: int
    other: int
    difference: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """It is ahead of every other model."""
        return self.low > 0


def paired_leader(values: Sequence[np.ndarray], *, highest: bool = True) -> Lead | None:
    """The best by its mean of several models, each measured on the same n images; None for a single model or image.

    Args:
        values: (n,) of each model.
        highest: whether high or low is good.

    Examples:
        >>> lead = paired_leader([np.array([0.5, 0.1, 0.9]), np.array([0.6, 0.3, 1.0])])
        >>> lead.place, round(lead.difference, 3), round(lead.low, 3), round(lead.high, 3), lead.certain
        (1, 0.133, -0.01, 0.277, False)
    """
    table = np.stack([np.asarray(each, float) for each in values]) * (1 if highest else -1)  # (models, n)
    models, count = table.shape
    if models < 2 or count < 2:
        return None
    best = int(table.mean(1).argmax())
    differences = table[best] - table
    means = differences.mean(1)
    half = t.ppf(0.975, count - 1) * differences.std(1, ddof=1) / count**0.5
    lows = np.where(np.arange(models) == best, np.inf, means - half)
    other = int(lows.argmin())
    found = means[other], lows[other], means[other] + half[other]
    return Lead(best, other, *map(float, found))


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean of ``first - second`` (n,) over the same images, or seeds, and the ends of its 95 % interval (Student's t).

    >>> [round(end, 3) for end in paired_difference(np.array([0.6, 0.3, 1.0]), np.array([0.5, 0.1, 0.9]))]
    [0.133, -0.01, 0.277]

    A single value has no interval: NaN ends.
    """
    return mean_interval(np.asarray(first, float) - np.asarray(second, float))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ``values`` (n,) and the ends of its 95 % interval (Student's t); NaN ends of a single one.

    >>> [round(end, 3) for end in mean_interval([1.0, 2.0, 3.0])]  # 4.303 standard errors of two degrees of freedom
    [2.0, -0.484, 4.484]
    """
    values = np.asarray(values, float)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return mean, np.nan, np.nan
    half = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / count**0.5)
    return mean, mean - half, mean + half


def leader_of(rows: pd.DataFrame, name: str, *, highest: bool = True) -> Lead | None:
    """:func:`paired_leader` of ``name`` among ``rows``; None where not all have it by the same images."""
    column = name + BY_IMAGE
    if column not in rows or rows[column].isna().any() or rows["images"].nunique() != 1:
        return None
    return paired_leader(list(rows[column]), highest=highest)


def lead_text(lead: Lead | None, names: Sequence[str], digits: int = 2) -> str:
    """How sure the best of several models, which are called ``names``, is."""
    if lead is None:
        return " (no paired test)"
    difference, low, high = (f"{value:+.{digits}f}" for value in (lead.difference, lead.low, lead.high))
    return f" (paired difference to {names[lead.other]} {difference}, 95 % interval {low} to {high})"
