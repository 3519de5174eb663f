"""The best of several models by paired differences: numbers by hand and by scipy, and what cannot be told."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from common.report.paired import leader_of, paired_leader

DRAWN = np.random.default_rng(0).normal(size=(3, 40)) * 0.05 + np.linspace(0.2, 0.9, 40)
VALUES = list(DRAWN + np.array([[0.0], [0.03], [0.1]]))


def test_the_interval_is_that_of_the_paired_t_test():
    lead = paired_leader(VALUES)
    intervals = [ttest_rel(VALUES[2], each).confidence_interval(0.95) for each in VALUES[:2]]
    other = int(np.argmin([interval.low for interval in intervals]))
    assert (lead.place, lead.other) == (2, other)
    assert (lead.low, lead.high) == pytest.approx(tuple(intervals[other]))
    assert lead.difference == pytest.approx(np.mean(VALUES[2] - VALUES[other]))
    assert lead.certain, "the images differ by 0.7, the models on one image by 0.07"


def test_low_can_be_good():
    lead = paired_leader(VALUES, highest=False)
    assert (lead.place, lead.other) == (0, 1)
    assert lead.difference == pytest.approx(np.mean(VALUES[1] - VALUES[0]))


def test_by_hand():
    """Differences 0.1, 0.2, 0.1: mean 0.1333, standard error 0.0333, t of 2 degrees of freedom 4.3027."""
    lead = paired_leader([np.array([0.5, 0.1, 0.9]), np.array([0.6, 0.3, 1.0])])
    assert (lead.difference, lead.low, lead.high) == pytest.approx((0.13333, -0.01009, 0.27676), abs=1e-5)
    assert not lead.certain


def test_a_leader_is_ahead_of_every_other_not_only_of_the_second():
    """The second by its mean is 0.1 behind on every image, the third 0.2 on average and by chance."""
    best, rng = np.linspace(0.3, 0.8, 10), np.random.default_rng(1)
    noise = rng.normal(size=10)
    third = best - 0.2 + (noise - noise.mean())
    lead = paired_leader([best, best - 0.1 + np.tile([1e-3, -1e-3], 5), third])
    assert (lead.place, lead.other, lead.certain) == (0, 2, False)
    assert lead.difference == pytest.approx(0.2)


def test_models_that_never_differ_have_no_leader():
    assert not paired_leader([np.ones(5), np.ones(5)]).certain


@pytest.mark.parametrize("values", [VALUES[:1], [each[:1] for each in VALUES]])
def test_one_model_or_one_image_tells_nothing(values):
    assert paired_leader(values) is None


def test_right_and_wrong_answers_are_taken():
    first, second = np.array([True] * 90 + [False] * 10), np.array([True] * 80 + [False] * 20)
    lead = paired_leader([second, first])
    assert (lead.place, lead.difference, lead.certain) == (1, pytest.approx(0.1), True)


def test_rows_need_values_of_the_same_images():
    rows = pd.DataFrame({"accuracy_by_image": VALUES, "images": ["a"] * 3})
    assert leader_of(rows, "accuracy") == paired_leader(VALUES)
    assert leader_of(rows.drop(columns="accuracy_by_image"), "accuracy") is None
    assert leader_of(rows.assign(images=["a", "a", "b"]), "accuracy") is None
    rows.loc[1, "accuracy_by_image"] = None
    assert leader_of(rows, "accuracy") is None
