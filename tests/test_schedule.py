"""How many tokens survive: the published lists, the contract of keep_rate, and what is refused."""

import pytest

from common.errors import UsageError
from common.reducers import Schedule, default_reduction_loc
from common.schedule import keep_rate_text, placed_text, read_keep_rate

LOC = (3, 6, 9)


@pytest.mark.parametrize(
    ("patches", "rate", "expected"),
    [
        # the lists of TRAM, 160 and 224 px
        (100, 0.75, (75, 56, 42)),
        (100, 0.5, (50, 25, 12)),
        (100, 0.25, (25, 6, 1)),
        (196, 0.75, (147, 110, 82)),
        (196, 0.5, (98, 49, 24)),
        (196, 0.25, (49, 12, 3)),
        # the table of "Which Tokens to Use?"
        (196, 0.9, (176, 158, 142)),
        (196, 0.7, (137, 96, 67)),
        # the other two readings of keep_rate
        (196, (0.7, 0.5, 0.3), (137, 98, 58)),
        (196, (137, 96, 67), (137, 96, 67)),
        (196, 1.0, (196, 196, 196)),
        (196, [0.5], (98, 49, 24)),
        # never nothing
        (16, 0.25, (4, 1, 1)),
        # so many in each stage, at most half of them; so large a part in each stage, rounded as PiToMe does
        (196, "r=50", (146, 96, 48)),
        (196, "r=50 decreasing", (98, 49, 49)),
        (100, "q=0.9", (90, 81, 73)),
        (196, "0.7@3 0.5@6 0.3@9", (137, 98, 58)),
        # whole in decimal, one less in binary without care: 100 * 0.29 = 28.999999999999996
        (100, (0.29, 0.29, 0.29), (29, 29, 29)),
    ],
)
def test_counts(patches, rate, expected):
    assert Schedule(rate, LOC).counts(patches) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("r=8", [188, 180, 172, 164, 156, 148, 140, 132, 124, 116, 108, 100]),
        ("r=13", [183, 170, 157, 144, 131, 118, 105, 92, 79, 66, 53, 40]),
        ("r=16", [180, 164, 148, 132, 116, 100, 84, 68, 52, 36, 20, 10]),
        ("q=0.9", [177, 160, 144, 130, 117, 106, 96, 87, 79, 72, 65, 59]),
        ("q=0.925", 81),
        ("q=0.95", 110),
        ("q=0.975", 150),
        ("r=13 decreasing", [170, 147, 126, 108, 92, 78, 67, 58, 51, 47, 45, 45]),
    ],
)
def test_rules_reduce_in_every_block_as_published(rule, expected):
    counts = Schedule(rule, default_reduction_loc(12, rule)).counts(196)
    assert list(counts) == expected if isinstance(expected, list) else counts[-1] == expected


@pytest.mark.parametrize("rule", ["r=0", "r=1.5", "q=1.0", "q=0", "r=13decreasing", "q=0.9 decreasing", "rate=2"])
def test_other_rules_are_refused_in_one_line(rule):
    with pytest.raises(UsageError, match="is not allowed; give a ratio in"):
        Schedule(rule, range(12))


def test_ratios_with_their_blocks_are_those_in_these_blocks():
    text = "0.7@2 0.5@5"
    assert default_reduction_loc(12, text) == (2, 5)
    assert Schedule(text, (2, 5)).drops(196) == Schedule((0.7, 0.5), (2, 5)).drops(196) == {2: 137, 5: 98}
    assert keep_rate_text(read_keep_rate(text)) == placed_text(Schedule((0.7, 0.5), (2, 5))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.7@5 0.5@2", r"blocks of keep_rate=\(5, 2\) is not allowed; give increasing 0-based block indices"),
        ("0.7@2 1.5@5", r"keep_rate=\(0\.7, 1\.5\) is not allowed"),
        ("0.7@2 0.5", "keep_rate='0.7@2 0.5' is not allowed; give a ratio in"),
        ("0.7@3 0.5@6", r"keep_rate='0.7@3 0.5@6' says its blocks; reduction_loc=\(3, 6, 9\) are others"),
        ("0.5@3 0.7@6 0.2@9", r"keeps \[98, 137, 39\] of 196 patches"),
        ("mac_cut=0.4", "keep_rate='mac_cut=0.4' is a budget, which is not solved here"),
    ],
)
def test_texts_that_are_no_schedule_for_these_blocks(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        Schedule(text, LOC).counts(196)
    assert "\n" not in str(caught.value)


def test_target_and_last_drop():
    schedule = Schedule((98, 98, 49), LOC)
    assert [schedule.target(layer, 196) for layer in range(12)] == [None] * 3 + [
        98,
        None,
        None,
        98,
        None,
        None,
        49,
        None,
        None,
    ]
    assert schedule.last_drop(196) == 9
    assert Schedule((98, 98, 98), LOC).last_drop(196) == 3
    assert Schedule(1.0, LOC).last_drop(196) == -1


@pytest.mark.parametrize(("depth", "expected"), [(12, (3, 6, 9)), (24, (6, 12, 18)), (4, (1, 2, 3)), (32, (8, 16, 24))])
def test_default_reduction_loc(depth, expected):
    assert default_reduction_loc(depth) == expected


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_default_reduction_loc_of_few_blocks(depth):
    assert default_reduction_loc(depth, 1.0) == tuple(range(depth))
    for keep_rate in (0.5, "mac_cut=0.2"):
        with pytest.raises(UsageError, match=f"depth {depth} has no default reduction_loc; give the 0-based blocks"):
            default_reduction_loc(depth, keep_rate)


@pytest.mark.parametrize(
    "rate", [0, 0.0, 1.2, -0.5, 2, "0.5", None, True, (0.5, 0.5), (0.5, 98, 49), (98, 49, 1.5), (0.5, 0, 0.5), ()]
)
def test_refused_keep_rate_names_value_and_alternatives(rate):
    with pytest.raises(UsageError, match="is not allowed; give a ratio in") as caught:
        Schedule(rate, LOC)
    assert "\n" not in str(caught.value)
    assert f"keep_rate={rate!r} " in str(caught.value)


@pytest.mark.parametrize("rate", [(197, 98, 49), (49, 98, 24), (0.3, 0.5, 0.2)])
def test_refused_counts(rate):
    with pytest.raises(UsageError, match="of 196 patches; allowed: counts from 196 down to 1"):
        Schedule(rate, LOC).counts(196)


@pytest.mark.parametrize("loc", [(), (3, 3, 6), (6, 3), (-1, 3), (1.5,)])
def test_refused_reduction_loc(loc):
    with pytest.raises(UsageError, match="increasing 0-based block indices"):
        Schedule(0.5, loc)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0.5, "0.5"),
        (1.0, "1"),
        (1, "1"),
        ([0.5], "0.5"),
        (2 / 3, "0.6666666666666666"),
        ((0.9, 0.7, 0.5), "0.9 0.7 0.5"),
        ((1.0, 1.0, 0.5), "1 1 0.5"),
        ((147, 98, 49), "147 98 49"),
        ((49,), "49"),
        ("r=13", "r=13"),
        ("q=0.95", "q=0.95"),
    ],
)
def test_a_keep_rate_is_text_in_tables_and_comes_back_from_it(rate, text):
    assert keep_rate_text(rate) == text
    back = read_keep_rate(text)
    stages = (3, 6, 9)[: len(back) if isinstance(back, tuple) else 3]
    assert Schedule(back, stages) == Schedule(rate, stages)
    assert keep_rate_text(back) == text


@pytest.mark.parametrize("text", ["", "half", "0", "1.5", "0.5 98", "0.9,0.7,0.5", "nan", "inf"])
def test_text_that_is_no_keep_rate_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="is not allowed; give a ratio in") as caught:
        read_keep_rate(text)
    assert "\n" not in str(caught.value)
