"""The check of tool calls, by BFCL's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score import calls

WEATHER = {
    "name": "weather.get",
    "parameters": {
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "limit": {"type": "float"},
            "metric": {"type": "boolean"},
            "parts": {"type": "array", "items": {"type": "string"}},
            "numbers": {"type": "array", "items": {"type": "integer"}},
            "where": {"type": "dict"},
            "many": {"type": "array", "items": {"type": "dict"}},
        },
        "required": ["city"],
    },
}
VALUES = {
    "city": ["Boston, MA", "Boston"],
    "days": [3, ""],
    "limit": [2.0, ""],
    "metric": [True, ""],
    "parts": [["Rain", "wind"], ""],
    "numbers": [[1, 2], ""],
    "where": [{"lat": [1, 1.5], "name": ["Home", ""]}, ""],
    "many": [[{"a": [1]}, {"a": [2]}], ""],
}


def why(arguments: dict[str, Any], values: dict[str, Any] = VALUES, name: str = "weather_get") -> str:
    return calls.mismatch([WEATHER], [calls.Call(name, arguments)], [{"weather.get": values}])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"city": "boston MA"},
        {"city": "BOSTON"},
        {"days": 3},
        {"limit": 2},
        {"limit": 2.0},
        {"metric": True},
        {"parts": ["rain", "WIND"]},
        {"parts": []},  # "" among the right values is, letter by letter, an empty list: so is BFCL's own check
        {"numbers": [1, 2]},
        {"where": {"lat": 1.5, "name": "home"}},
        {"where": {"lat": 1}},
        {"many": [{"a": 1}, {"a": 2}]},
    ],
)
def test_right(more: dict[str, Any]) -> None:
    assert why({"city": "Boston"} | more) == ""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"city": "Austin"}, "city is 'Austin'"),
        ({"city": 5}, "city is 5"),
        ({"days": "3"}, "days"),
        ({"days": True}, "days"),
        ({"days": 3.0}, "days"),
        ({"limit": 2.5}, "limit"),
        ({"metric": 1}, "metric"),
        ({"parts": ["wind", "rain"]}, "parts"),
        ({"parts": "rain"}, "parts"),
        ({"parts": ["rain", 2]}, "parts"),
        ({"numbers": ["1", "2"]}, "numbers"),
        ({"where": {"name": "home"}}, "where"),
        ({"where": {"lat": 1, "other": 2}}, "where"),
        ({"where": [1]}, "where"),
        ({"many": [{"a": 1}]}, "many"),
        ({"many": [{"a": 2}, {"a": 1}]}, "many"),
        ({"many": [{"a": 1}, 2]}, "many"),
        ({"days": None}, "days is None"),
        ({"colour": "red"}, "colour is not expected"),
    ],
)
def test_wrong(more: dict[str, Any], said: str) -> None:
    assert said in why({"city": "Boston"} | more)


def test_missing_and_names() -> None:
    assert "city is missing" in why({})
    assert why({"city": "Boston"}, {"city": ["Boston"], "days": [3]}).endswith("days is missing")
    assert why({"city": "Boston"}, name="weather.get") == ""
    assert why({"city": "Boston"}, name="get") == "get is not weather.get"


def test_a_variable_where_another_type_is_documented() -> None:
    assert why({"city": "Boston", "days": "n_days"}, {"city": ["Boston"], "days": ["n_days"]}) == ""
    assert why({"city": "Boston", "days": "N_DAYS"}, {"city": ["Boston"], "days": ["n_days"]})  # names are exact


def test_parallel_calls_in_any_order() -> None:
    expected = [{"weather.get": {"city": [one]}} for one in ("Rome", "Oslo", "Rome")]
    made = [calls.Call("weather_get", {"city": one}) for one in ("Oslo", "Rome", "Rome")]
    assert calls.mismatch([WEATHER], made, expected) == ""
    assert "2 calls where 3" in calls.mismatch([WEATHER], made[:2], expected)
    made[2] = calls.Call("weather_get", {"city": "Oslo"})
    assert "no call is weather.get as expected" in calls.mismatch([WEATHER], made, expected)


def test_openai_calls() -> None:
    wire = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, {"b": null}]}'}}]
    assert calls.calls_of(wire) == [calls.Call("f", {"a": [1, {"b": None}]})]
    assert calls.calls_of([{"function": {"name": "f", "arguments": ""}}]) == [calls.Call("f", {})]
    for bad in ("{", "[1]", '"text"', "[" * 100_000):
        with pytest.raises(ValueError, match="the arguments of f"):
            calls.calls_of([{"function": {"name": "f", "arguments": bad}}])
    with pytest.raises(ValueError, match="without a function's name"):
        calls.calls_of([{"type": "function"}])


def test_what_the_data_must_not_be() -> None:
    with pytest.raises(UsageError, match="not among those given"):
        calls.mismatch([WEATHER], [calls.Call("f", {})], [{"other": {}}])
    strange = {"name": "f", "parameters": {"properties": {"a": {"type": "quaternion"}}, "required": []}}
    with pytest.raises(UsageError, match="unknown type 'quaternion'"):
        calls.mismatch([strange], [calls.Call("f", {"a": 1})], [{"f": {"a": [1]}}])


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ("5", "integer", None, 5),
        ("5L", "long", None, 5),
        ("5", "long", None, "5"),
        ("2.5f", "float", None, 2.5),
        ("2.5", "float", None, "2.5"),
        ("1e3", "double", None, 1000.0),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("name", "String", None, "name"),
        ('new ArrayList<>(Arrays.asList("a", "b"))', "ArrayList", "String", ["a", "b"]),
        ("new ArrayList<Long>() {{ add(1L); add(2L); }}", "ArrayList", "long", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "String", []),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ('new Object[]{1, "x", true, 2L, 1.5f, y}', "Array", None, [1, "x", True, 2, 1.5, "y"]),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "x"); }}', "HashMap", None, {"a": 1, "b": "x"}),
        ("new HashMap<>()", "HashMap", None, {}),
        ("other", "HashMap", None, "other"),
    ],
)
def test_java(text: str, kind: str, inner: str | None, value: Any) -> None:
    assert calls.literal(text, kind, inner, calls.JAVA) == value


@pytest.mark.parametrize(
    ("text", "kind", "inner", "value"),
    [
        ("5", "integer", None, 5),
        ("5n", "Bigint", None, 5),
        ("-2.5", "float", None, -2.5),
        ("false", "Boolean", None, False),
        ("'it'", "String", None, "it"),
        ("['a', \"b\"]", "array", "String", ["a", "b"]),
        ("[1, x, 'y', 2.5]", "array", None, [1, "x", "y", 2.5]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[]", "array", "String", []),
        ("[[1, 2], [3, 4]]", "array", "array", [[1, 2], [3, 4]]),
        ("{a: 1, 'b': [true, x], \"c\": 'd'}", "dict", None, {"a": 1, "b": [True, "x"], "c": "d"}),
        ("{}", "dict", None, {}),
        ("handler", "any", None, "handler"),
    ],
)
def test_javascript(text: str, kind: str, inner: str | None, value: Any) -> None:
    assert calls.literal(text, kind, inner, calls.JAVASCRIPT) == value


def test_source_text_is_read_where_java_is_asked() -> None:
    about = {"name": "f", "parameters": {"properties": {"n": {"type": "long"}}, "required": ["n"]}}
    for value, right in (("7L", True), ("7", False), (7, False)):
        made = calls.calls_of([{"function": {"name": "f", "arguments": json.dumps({"n": value})}}])
        assert (calls.mismatch([about], made, [{"f": {"n": [7]}}], calls.JAVA) == "") == right
