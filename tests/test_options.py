"""What an option may be, how it is refused, and the dialect of YAML that options are written in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from common.errors import UsageError
from common.options import (
    Count,
    Many,
    NonNegative,
    Positive,
    Share,
    ShareBelow1,
    Whole,
    accepted_by,
    check,
    check_fields,
    checked,
)
from common.registry import Registry
from common.yaml_files import parse_yaml, read_yaml, to_yaml

NAN, INFINITY = float("nan"), float("inf")
HeadFusion = Literal["max", "mean"]


def refuse_odd(value: int) -> None:
    if value % 2:
        raise UsageError(f"{value} is odd; give an even number")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Whole, 0),
        (Count, 1),
        (NonNegative, 0.0),
        (Positive, 1e-12),
        (Share, 1.0),
        (ShareBelow1, 0.0),
        (bool, False),
        (str, ""),
        (int, -3),
        (float, -0.5),
        (HeadFusion, "max"),
        (Count | None, None),
        (Many[Count], (1, 2)),
        (Many[Count], ()),
        (Path | str, Path("plan.json")),
        (Annotated[int, accepted_by(refuse_odd)], 2),
    ],
)
def test_what_is_allowed_stays_as_it_is(kind, value):
    found = check("option", value, kind)
    assert found == value and type(found) is type(value)


def test_lists_become_tuples_and_whole_numbers_become_any_numbers():
    assert check("counts", [3, 1], Many[Count]) == (3, 1)
    assert type(check("lr", 1, Positive)) is float


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Whole, -1, "option=-1 is not allowed; give a whole number >= 0"),
        (Count, 0, "option=0 is not allowed; give a whole number >= 1"),
        (Count, True, "option=True is not allowed; give a whole number >= 1"),
        (Count, 2.0, "option=2.0 is not allowed; give a whole number >= 1"),
        (Count | None, "2", "option='2' is not allowed; give a whole number >= 1"),
        (NonNegative, -0.1, "option=-0.1 is not allowed; give a number >= 0"),
        (NonNegative, INFINITY, "option=inf is not allowed; give a number >= 0"),
        (Positive, 0, "option=0 is not allowed; give a number > 0"),
        (Positive, NAN, "option=nan is not allowed; give a number > 0"),
        (Positive, "1e-4", "option='1e-4' is not allowed; give a number > 0"),
        (Share, 1.01, "option=1.01 is not allowed; give a number from 0 to 1"),
        (Share, None, "option=None is not allowed; give a number from 0 to 1"),
        (ShareBelow1, 1.0, "option=1.0 is not allowed; give a number from 0 to below 1"),
        (float, True, "option=True is not allowed; give a number"),
        (int, 0.5, "option=0.5 is not allowed; give a whole number"),
        (bool, 1, "option=1 is not allowed; give true or false"),
        (bool, "no", "option='no' is not allowed; give true or false"),
        (str, 5, "option=5 is not allowed; give text"),
        (str | Path, 5, "option=5 is not allowed; give text or a path"),
        (HeadFusion, "min", "unknown option 'min'; allowed: max, mean"),
        (HeadFusion, ["max"], "unknown option ['max']; allowed: max, mean"),
        (HeadFusion | None, "min", "unknown option 'min'; allowed: max, mean"),
        (Many[Count], 3, "option=3 is not allowed; give a list, each a whole number >= 1"),
        (Many[Count], "12", "option='12' is not allowed; give a list, each a whole number >= 1"),
        (Many[Count], [1, 0], "option=[1, 0] is not allowed; give a list, each a whole number >= 1"),
        (Many[HeadFusion], ["max", "min"], "option=['max', 'min'] is not allowed; give a list of max, mean"),
        (Annotated[Count, "a number of steps"], 0, "option=0 is not allowed; give a number of steps"),
        (Annotated[int, accepted_by(refuse_odd)], 3, "3 is odd; give an even number"),
        (Many[Annotated[int, accepted_by(refuse_odd)]], [2, 3], "3 is odd; give an even number"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(kind, value, message):
    with pytest.raises(UsageError) as refused:
        check("option", value, kind)
    assert str(refused.value) == message


@dataclass(frozen=True)
class Settings:
    epochs: Whole
    counts: Many[Count] = ()

    def __post_init__(self) -> None:
        check_fields(self)


def test_fields_of_a_dataclass():
    assert Settings(3, [1, 2]) == Settings(3, (1, 2))
    with pytest.raises(UsageError, match=r"^epochs=-1 is not allowed; give a whole number >= 0$"):
        Settings(-1)


def test_keyword_only_arguments_of_a_function():
    @checked
    def mean(values: list[float], *, steps: Count = 1, weights: Many[Share] = ()) -> tuple[int, tuple[float, ...]]:
        return steps, weights

    assert mean([], steps=2, weights=[0.5]) == (2, (0.5,))
    with pytest.raises(UsageError, match=r"^steps=0 is not allowed; give a whole number >= 1$"):
        mean([], steps=0)
    with pytest.raises(UsageError) as refused:
        mean([], step=2)
    assert str(refused.value) == "mean takes no 'step'; allowed: values, steps, weights; did you mean 'steps'?"
    assert mean(values=[], steps=1) == (1, ())


def test_a_name_that_is_nearly_one_is_told():
    with pytest.raises(UsageError, match=r"^unknown option 'mxa'; allowed: max, mean; did you mean 'max'\?$"):
        check("option", "mxa", HeadFusion)
    with pytest.raises(UsageError, match=r"^toy 'fused' has no option 'batch'; .*plan; did you mean 'batch_size'\?$"):
        TOYS.check_options("fused", {"batch": 3})


# options of registered classes


class Base:
    def __init__(self, model: object, *, batch_size: Count = 32) -> None:
        self.batch_size = batch_size


TOYS: Registry[type[Base]] = Registry("toy")


@TOYS.register("fused")
class Fused(Base):
    def __init__(self, model: object, *, head_fusion: HeadFusion = "max", plan: str | Path, **shared) -> None:
        super().__init__(model, **shared)
        self.head_fusion = head_fusion


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": "a.json", "head_fusion": "min"}, "toy 'fused': unknown head_fusion 'min'; allowed: max, mean"),
        ({"plan": "a.json", "batch_size": 0}, "toy 'fused': batch_size=0 is not allowed; give a whole number >= 1"),
        ({"plan": "a.json", "size": 1}, "toy 'fused' has no option 'size'; allowed: batch_size, head_fusion, plan"),
    ],
)
def test_a_registered_class_refuses_options_however_it_is_made(options, message):
    for make in (lambda: Fused(None, **options), lambda: TOYS.check_options("fused", options)):
        with pytest.raises(UsageError) as refused:
            make()
        assert str(refused.value) == message
    written = ",".join(f"{key}={value}" for key, value in options.items())
    with pytest.raises(UsageError) as refused:
        TOYS.read(f"fused:{written}")
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fused:plan=", "toy 'fused': plan=None is not allowed; give text or a path"),
        ("fused:plan=[1", "'plan=[1' is not readable as YAML: line 1: expected ',' or ']', but got '<stream end>'"),
        ("fused:plan", "option 'plan' of 'fused:plan' has no value; write name:key=value,key=value"),
        ("fused:batch_size=1_0", "toy 'fused': batch_size='1_0' is not allowed; give a whole number >= 1"),
        ("fused:plan=a,plan=b", "option 'plan' stands twice in 'fused:plan=a,plan=b'"),
    ],
)
def test_options_are_written_as_yaml_has_them(text, message):
    with pytest.raises(UsageError) as refused:
        TOYS.read(text)
    assert str(refused.value) == message
    assert dict(TOYS.read("fused:plan=a,batch_size=3")[1]) == {"plan": "a", "batch_size": 3}


def test_an_option_without_a_default_must_be_given():
    with pytest.raises(UsageError, match=r"^toy 'fused' needs the option 'plan': fused:plan=VALUE$"):
        TOYS.check_options("fused", {})
    assert TOYS.read("fused:plan=a.json,batch_size=2") == ("fused", (("plan", "a.json"), ("batch_size", 2)))
    assert TOYS.options("fused") == ["batch_size", "head_fusion", "plan"]


# YAML


def test_words_are_words_and_numbers_are_numbers():
    text = "{lr: 1e-4, precision: no, on: true, off: False, date: 2024-01-01, seed: 3, none: null, empty: , id: 010}"
    assert parse_yaml(text, "text") == {
        "lr": 1e-4,
        "precision": "no",
        "on": True,
        "off": False,
        "date": "2024-01-01",
        "seed": 3,
        "none": None,
        "empty": None,
        "id": "010",
    }


def test_what_is_written_reads_back():
    value = {"no": "no", "number": "1e-4", "yes": True, "lr": 1e-5, "none": None, "list": [0.9, 1, "1"], "text": "a: b"}
    assert parse_yaml(to_yaml(value), "text") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: [1", "line 2: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "line 2: found character '\\t' that cannot start any token"),
        ("a: 1\nb: c: d", "line 2: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' stands twice"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("? [1]\n: 2", "line 1: found unhashable key"),
    ],
)
def test_broken_yaml_is_one_line_with_its_place(text, reason, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as refused:
        read_yaml(path)
    assert str(refused.value) == f"'{path}' is not readable as YAML: {reason}"


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path):
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff")
    for name, reason in {"none.yaml": "No such file", ".": "Is a directory", "image.yaml": "can't decode"}.items():
        with pytest.raises(UsageError, match=f"cannot be read: .*{reason}") as refused:
            read_yaml(tmp_path / name)
        assert "\n" not in str(refused.value)
