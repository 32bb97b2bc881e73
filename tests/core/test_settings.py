from __future__ import annotations

import dataclasses
import datetime
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krepes_ooc.core.settings import read_settings, setting, to_mapping, unknown_key
from krepes_ooc.errors import RecipeError
from krepes_ooc.network.spec import NetworkSpec


@dataclass(frozen=True)
class Noise:
    scale: float = setting(0.5, about="standard deviation", minimum=0, maximum=1)


@dataclass(frozen=True)
class Example:
    path: str = setting(about="the file to read")
    rows: int = setting(256, about="rows of a block", minimum=1, maximum=4096)
    rate: float = setting(0.1, about="learning rate", above=0, below=1)
    count: int | Literal["auto"] = setting("auto", about="landmarks", minimum=2)
    kind: Literal["left", "right"] = setting("left", about="side")
    limit: int | None = setting(None, about="first rows only")
    names: tuple[str, ...] = setting((), about="columns")
    nested: Noise = setting(Noise(), about="noise")
    many: tuple[Noise, ...] = setting((), about="several noises")
    sizes: dict[str, int] = setting({}, about="sizes by name", minimum=0)
    anything: Any = setting(None, about="free form")
    fast: bool = setting(False, about="skip checks")


def read(**values: Any) -> Example:
    return read_settings(Example, {"path": "x", **values}, "a.yaml: stage")


def message(**values: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        read(**values)
    return str(caught.value)


def test_defaults_stand_for_missing_keys():
    assert read() == Example(path="x")
    assert read_settings(Noise, None, "f") == read_settings(Noise, {}, "f") == Noise(0.5)


def test_every_kind_of_value_is_read():
    values = {
        "rows": 512,
        "rate": 0.25,
        "count": 7,
        "kind": "right",
        "limit": 3,
        "names": ["a", "b"],
        "nested": {"scale": 1},
        "many": [{}, {"scale": 0.25}],
        "sizes": {"a": 1},
        "anything": {"deep": [1]},
        "fast": True,
    }
    assert read(**values) == Example(
        "x",
        512,
        0.25,
        7,
        "right",
        3,
        ("a", "b"),
        Noise(1.0),
        (Noise(0.5), Noise(0.25)),
        {"a": 1},
        {"deep": [1]},
        True,
    )


def test_a_default_mapping_is_not_shared():
    assert read().sizes is not read().sizes


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1E-3"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text: str):
    assert read(rate=text).rate == 0.001


def test_whole_numbers_become_floats_where_floats_are_meant():
    scale = read(nested={"scale": 1}).nested.scale
    assert isinstance(scale, float)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rows": "many"}, "rows: 'many' is not allowed; expected a value of type int"),
        ({"rows": 1.0}, "rows: 1.0 is not allowed; expected a value of type int"),
        ({"rows": True}, "rows: True is not allowed; expected a value of type int"),
        ({"rows": None}, "rows: None is not allowed; expected a value of type int"),
        ({"rows": 0}, "rows: 0 is not allowed; expected at least 1"),
        ({"rows": 4097}, "rows: 4097 is not allowed; expected at most 4096"),
        ({"rate": 0}, "rate: 0.0 is not allowed; expected more than 0"),
        ({"rate": 1}, "rate: 1.0 is not allowed; expected less than 1"),
        ({"rate": "fast"}, "rate: 'fast' is not allowed; expected a value of type float"),
        ({"rate": False}, "rate: False is not allowed; expected a value of type float"),
        ({"count": 1}, "count: 1 is not allowed; expected at least 2 or one of auto"),
        (
            {"count": "all"},
            "count: 'all' is not allowed; expected a value of type int or one of auto",
        ),
        ({"kind": "up"}, "kind: 'up' is not allowed; expected one of left, right"),
        ({"kind": True}, "kind: True is not allowed; expected one of left, right"),
        ({"kind": ["left"]}, "kind: ['left'] is not allowed; expected one of left, right"),
        ({"names": "abc"}, "names: 'abc' is not allowed; expected a list"),
        ({"names": ["a", 2]}, "names[1]: 2 is not allowed; expected a value of type str"),
        ({"sizes": [1]}, "sizes: [1] is not allowed; expected a mapping"),
        ({"sizes": {"a": -1}}, "sizes.a: -1 is not allowed; expected at least 0"),
        ({"nested": {"scale": 2}}, "nested.scale: 2.0 is not allowed; expected at most 1"),
        ({"nested": 3}, "nested: 3 is no mapping; expected keys with values"),
        ({"many": [{}, {"scale": -1}]}, "many[1].scale: -1.0 is not allowed; expected at least 0"),
        ({"fast": 1}, "fast: 1 is not allowed; expected a value of type bool"),
        ({"fast": "yes"}, "fast: 'yes' is not allowed; expected a value of type bool"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_right(values: dict[str, Any], said: str):
    assert message(**values) == f"a.yaml: stage.{said}"


def test_an_unknown_key_is_named_with_the_nearest():
    assert message(row=3) == (
        "a.yaml: stage: unknown key 'row'; expected one of anything, count, fast, kind, limit, "
        "many, names, nested, path, rate, rows, sizes; did you mean 'rows'?"
    )


def test_an_unknown_key_far_from_all_gets_no_guess():
    assert "did you mean" not in message(zzzzzz=3)


@pytest.mark.parametrize("key", [3, None, True, ("a",)])
def test_a_key_that_is_no_text_is_unknown(key: object):
    with pytest.raises(RecipeError, match="unknown key"):
        read_settings(Noise, {key: 1}, "f")  # type: ignore[dict-item]


def test_a_missing_key_is_named_with_its_meaning():
    with pytest.raises(RecipeError) as caught:
        read_settings(Example, {}, "a.yaml: stage")
    assert str(caught.value) == "a.yaml: stage: key 'path' is missing; expected the file to read"


@pytest.mark.parametrize("values", [[1], "text", 3])
def test_values_that_are_no_mapping_are_refused(values: Any):
    with pytest.raises(RecipeError) as caught:
        read_settings(Noise, values, "f")
    assert str(caught.value) == f"f: {values!r} is no mapping; expected keys with values"


@given(st.integers(-10, 5000))
def test_limits_hold_for_whatever_is_accepted(rows: int):
    if 1 <= rows <= 4096:
        assert read(rows=rows).rows == rows
    else:
        assert "expected at" in message(rows=rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(Example)]), JSON))
def test_any_json_is_read_or_refused_in_one_line(values: dict[str, Any]):
    try:
        result = read_settings(Example, values, "f")
    except RecipeError as error:
        result = str(error)
    assert isinstance(result, Example) or (result.startswith("f") and "\n" not in result)


@given(st.integers(1, 4096), st.floats(0.001, 0.999), st.lists(st.text(max_size=4), max_size=3))
def test_settings_survive_json(rows: int, rate: float, names: list[str]):
    settings = read(rows=rows, rate=rate, names=names, many=[{"scale": 1}], sizes={"a": 3})
    mapping = json.loads(json.dumps(to_mapping(settings)))
    assert read_settings(Example, mapping, "f") == settings


def test_unknown_key_is_an_error_to_raise():
    error = unknown_key("objectve", ["objective", "damping"], "f")
    assert str(error) == (
        "f: unknown key 'objectve'; expected one of damping, objective; did you mean 'objective'?"
    )


@dataclass(frozen=True)
class Optional:
    nested: Noise | None = setting(None, about="noise")
    rate: float = setting(1.0, about="rate", above=0)
    free: float = setting(1.0, about="no limits")


def test_an_optional_mapping_keeps_the_inner_message():
    with pytest.raises(RecipeError, match=r"unknown key 'scal'; .*did you mean 'scale'"):
        read_settings(Optional, {"nested": {"scal": 1}}, "f")


@pytest.mark.parametrize("values", [{"free": "nan"}, {"free": float("inf")}, {"rate": "inf"}])
def test_numbers_are_finite(values: dict[str, Any]):
    with pytest.raises(RecipeError, match="finite"):
        read_settings(Optional, values, "f")


def test_a_huge_integer_is_refused():
    with pytest.raises(RecipeError):
        read_settings(Optional, {"rate": 10**400}, "f")


def test_what_json_cannot_hold_is_refused_in_free_arguments() -> None:
    day = datetime.date(2026, 1, 2)
    with pytest.raises(RecipeError, match="2026-01-02 is a date") as caught:
        read_settings(NetworkSpec, {"factory": "a:b", "arguments": {"since": [day]}}, "net")
    assert caught.value.where == "net.arguments.since[0]"
    assert "2026-01-02" in caught.value.advice
    with pytest.raises(RecipeError, match="is a bytes"):
        read_settings(NetworkSpec, {"factory": "a:b", "arguments": {"raw": b"x"}}, "net")
    plain = {"a": [1, 2.5, "x", None, True], "b": {"c": ()}}
    found = read_settings(NetworkSpec, {"factory": "a:b", "arguments": plain}, "net").arguments
    assert found == {"a": [1, 2.5, "x", None, True], "b": {"c": []}}
