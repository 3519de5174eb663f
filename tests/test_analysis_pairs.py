"""Runs are paired by the fields of their settings: what differs along an axis, what agrees, and which comes first."""

import pytest

from common.analysis import AXES, pairs
from common.errors import UsageError
from common.evaluation import Setting


def run(method="topk", keep_rate=0.5, **changes) -> Setting:
    given = {"backbone": "deit_small_patch16_224", "weights": "timm", "dataset": "imagenet", "seed": 0, "width": 384}
    given |= {"reduction_loc": (3, 6, 9), "img_size": (224, 224), "grid_size": (14, 14)} | changes
    return Setting(name="", method=method, keep_rate=keep_rate, **given)


def paired(runs: dict[str, Setting], axis: str) -> set[str]:
    names = list(runs)
    return {f"{names[a]} {names[b]}" for a, b in pairs(list(runs.values()), axis)}


UNREDUCED = run("none", 1.0, reduction_loc=())


def test_four_rates_are_six_pairs_of_a_method_and_the_first_keeps_more():
    runs = {str(rate): run(keep_rate=rate) for rate in (0.25, 0.9, 0.5, 0.7)} | {"other": run("tome", 0.9)}
    wanted = {"0.9 0.7", "0.9 0.5", "0.9 0.25", "0.7 0.5", "0.7 0.25", "0.5 0.25"}
    assert paired(runs, "rates") == wanted


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ((98, 49, 24), (147, 110, 82)),
        ((147, 110, 24), (98, 90, 82)),  # at the end
        ((98, 49, 24), (147, 49, 24)),  # else before
        ((147, 98, 49), (0.9, 0.7, 0.6)),
        ("r=13", "r=8"),
        ("q=0.9", "q=0.95"),
        ("0.7@3 0.5@6 0.3@9", "0.9@3 0.8@6 0.7@9"),
        (0.5, (0.9, 0.7, 0.5)),
    ],
)
def test_whatever_a_rate_is_the_first_keeps_more(less, more):
    """Or what both keep would be a share of the larger set, and IoA is one of the smaller."""
    loc = tuple(range(12)) if isinstance(less, str) and "=" in less else (3, 6, 9)
    runs = {"less": run(keep_rate=less, reduction_loc=loc), "more": run(keep_rate=more, reduction_loc=loc)}
    assert paired(runs, "rates") == {"more less"}
    assert paired(dict(reversed(runs.items())), "rates") == {"more less"}


def test_of_methods_without_stages_the_first_keeps_more():
    runs = {str(rate): run("downsample", rate, reduction_loc=()) for rate in (0.5, 0.9)}
    assert paired(runs, "rates") == {"0.9 0.5"}


def test_the_wider_backbone_comes_first_and_patterns_are_not_mixed():
    runs = {
        "small": run("l1"),
        "tiny": run("l1", backbone="deit_tiny_patch16_224", width=192, weights="timm fb"),
        "base": run("l1", backbone="deit_base_patch16_224", width=768),
        "another pattern": run("l2", backbone="deit_tiny_patch16_224", width=192),
        "another rate": run("l1", 0.25, backbone="deit_tiny_patch16_224", width=192),
    }
    assert paired(runs, "capacity") == {"base small", "base tiny", "small tiny"}


def test_methods_share_rate_and_blocks_and_what_is_unreduced_goes_with_all():
    runs = {"topk": run(), "tome": run("tome"), "later": run("tome", reduction_loc=(6, 9)), "1.0": run("evit", 1.0)}
    runs |= {"0.9": run("evit", 0.9), "none": UNREDUCED, "elsewhere": run("ats", weights="other.safetensors")}
    wanted = {"topk tome", *(f"{name} none" for name in ("topk", "tome", "later", "1.0", "0.9"))}
    assert paired(runs, "methods") == wanted


def test_options_are_part_of_a_method():
    runs = {"random": run("ats:sampler=random"), "grid": run("ats"), "again": run("ats:sampler=random", seed=1)}
    assert paired(runs, "methods") == {"random grid"}
    assert paired(runs, "seeds") == {"random again"}


def test_data_sets_and_seeds():
    runs = {
        "here": run(),
        "there": run(dataset="coco"),
        "again": run(seed=1),
        "there again": run(dataset="coco", seed=1),
    }
    assert paired(runs, "datasets") == {"here there", "again there again"}
    assert paired(runs, "seeds") == {"here again", "there there again"}


@pytest.mark.parametrize("axis", AXES)
def test_the_same_run_twice_is_refused(axis):
    with pytest.raises(UsageError, match=r"^runs 0 and 2 are the same, .*topk_small_patch16_224-3_6_9-_0.5; give each"):
        pairs([run(), run(keep_rate=0.7), run()], axis)


def test_an_unknown_axis_is_refused():
    with pytest.raises(UsageError, match=r"axis 'depth'; allowed: capacity, datasets, methods, rates, seeds$"):
        pairs([run()], "depth")
