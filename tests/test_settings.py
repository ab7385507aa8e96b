from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from rebalance.errors import ConfigError, RebalanceError, nearest
from rebalance.recipe import OWNERS
from rebalance.settings import (
    BenchFlags,
    SeafloorFlags,
    SparsifyFlags,
    StepsFlags,
    SweepFlags,
    as_dict,
    convert,
    described,
    parse,
    require,
    setting,
    settings_of,
)

# The commands', and the classes that flags of a training belong to
ALL = (SparsifyFlags, SeafloorFlags, SweepFlags, BenchFlags, StepsFlags, *OWNERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    whole: int = setting(3, "a count", low=1, high=9, unit="epochs")
    share: float = setting(0.5, "a share", low=0, high=1)
    on: bool = setting(False, "a switch")
    kind: str = setting("one", "a kind", choices=("one", "other"))
    free: str = setting("", "a text")


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("whole", "4", 4),
        ("whole", " 4 ", 4),
        ("whole", 4.0, 4),
        ("whole", "1e0", 1),
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("on", "true", True),
        ("on", "True", True),
        ("on", "1", True),
        ("on", False, False),
        ("on", "0", False),
        ("kind", "other", "other"),
        ("free", "a b", "a b"),
        ("free", 7, "7"),
        ("free", None, ""),
    ],
)
def test_text_and_values_become_the_flag_s_type(name: str, given: Any, value: Any) -> None:
    result = convert(Example, name, given)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("whole", "2.5", "whole=2.5 is not a whole number"),
        ("whole", "many", "whole=many is not a whole number"),
        ("whole", "inf", "whole=inf is not a whole number"),
        ("whole", True, "whole=True is not a whole number"),
        ("whole", None, "whole=None is not a whole number"),
        ("whole", "0", "whole=0 is out of range: 1 to 9"),
        ("whole", 10, "whole=10 is out of range: 1 to 9"),
        ("share", "half", "share=half is not a number"),
        ("share", "75", "share=75 is out of range: 0 to 1"),
        ("share", "-0.1", "share=-0.1 is out of range: 0 to 1"),
        ("share", "nan", "share=nan is out of range: 0 to 1"),
        ("on", "maybe", "on=maybe is not True or False"),
        ("on", "2", "on=2 is not True or False"),
        ("kind", "othr", "kind=othr is not one of one, other (did you mean other?)"),
        ("kind", "xyz", "kind=xyz is not one of one, other"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(Example, name, given)
    assert str(caught.value) == message


def test_parse_fills_in_defaults() -> None:
    assert parse(Example, {"share": "0.75"}) == Example(share=0.75)


def test_an_unknown_flag_names_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Example, {"shar": "0.75"})
    expected = "unknown flag shar=0.75 (did you mean share?); flags: whole, share, on, kind, free"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "choices", "hint"),
    [
        ("obj_dorp", ["obj_drop", "box_drop"], " (did you mean obj_drop?)"),
        ("match", ["background", "matched"], " (did you mean matched?)"),
        ("dorp", ["bce", "drop"], " (did you mean drop?)"),
        ("nope", ["opset", "epochs"], ""),
        ("nofile.pt", ["mobile_sam.pt", "yolov8n.pt"], ""),
        ("", ["a"], ""),
    ],
)
def test_a_name_is_suggested_only_where_it_is_near(name: str, choices: list[str], hint: str) -> None:
    assert nearest(name, choices) == hint


def test_a_config_error_is_also_a_value_error() -> None:
    assert issubclass(ConfigError, RebalanceError)
    assert issubclass(ConfigError, ValueError)


def test_flags_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example().share = 0.25  # type: ignore[misc]


@pytest.mark.parametrize("cls", ALL)
def test_every_default_is_a_value_its_flag_allows(cls: type[Any]) -> None:
    for name, item in settings_of(cls).items():
        assert convert(cls, name, item.default) == item.default


@pytest.mark.parametrize("cls", ALL)
def test_values_survive_a_round_trip_through_a_dict_and_through_text(cls: type[Any]) -> None:
    values = cls()
    assert parse(cls, as_dict(values)) == values
    assert parse(cls, {name: str(value) for name, value in as_dict(values).items()}) == values


@pytest.mark.parametrize("cls", ALL)
def test_every_flag_is_described(cls: type[Any]) -> None:
    for name, default, values, text in described(settings_of(cls)):
        item = settings_of(cls)[name]
        assert default == str(item.default)
        assert values
        assert len(text) > 5
        assert text.rstrip(".") == text, f"{name}: help is a phrase, without a full stop"
        assert not math.isnan(item.metadata["low"])


def test_a_description_gives_range_unit_and_choices() -> None:
    assert described(settings_of(Example)) == [
        ("whole", "3", "1 to 9 epochs", "a count"),
        ("share", "0.5", "0 to 1", "a share"),
        ("on", "False", "True or False", "a switch"),
        ("kind", "one", "one, other", "a kind"),
        ("free", "", "a text", "a text"),
    ]


def test_require_names_what_is_missing() -> None:
    require(SparsifyFlags(data="a.yaml", out="b"), "data", "out")
    with pytest.raises(ConfigError, match="out= is missing: folder to make"):
        require(SparsifyFlags(data="a.yaml"), "data", "out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Left:
    count: int | str = setting("auto", "left to the run", low=0, unit="epochs", number=int)
    share: float | str = setting("auto", "left to the site", number=float)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [("count", "auto", "auto"), ("count", "3", 3), ("count", 3.0, 3), ("share", "auto", "auto"), ("share", "3", 3.0)],
)
def test_a_number_may_be_left_to_the_run(name: str, given: Any, value: Any) -> None:
    result = convert(Left, name, given)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("count", "2.5", "count=2.5 is not auto or a whole number"),
        ("count", "", "count= is not auto or a whole number"),
        ("count", "-1", "count=-1 is out of range: at least 0"),
        ("share", "Auto", "share=Auto is not auto or a number"),
    ],
)
def test_what_is_neither_is_refused(name: str, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(Left, name, given)
    assert str(caught.value) == message
    assert [row[:3] for row in described(settings_of(Left))] == [
        ("count", "auto", "auto, at least 0 epochs"), ("share", "auto", "auto, a number")
    ]  # fmt: skip
