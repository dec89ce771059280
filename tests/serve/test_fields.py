"""Bodies of requests: bounds, strictness, and what is said about keys that do nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pydantic")

from pydantic import ValidationError

from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError
from qwen3.serve.fields import Body, SamplingBody, ThinkingBody, shown

BOUNDS: dict[str, tuple[Any, Any, list[Any]]] = {
    "temperature": (0, 100, [-0.001, 100.5]),
    "top_p": (1e-9, 1, [0, 1.01]),
    "top_k": (-1, 2**31 - 1, [-2, 2**31]),
    "min_p": (0, 1, [-0.1, 1.1]),
    "presence_penalty": (-2, 2, [-2.1, 2.1]),
    "frequency_penalty": (-2, 2, [-3, 3]),
    "repetition_penalty": (0.01, 10, [0, 11]),
    "seed": (-(2**63), 2**64 - 1, [-(2**63) - 1, 2**64, 10**400]),
    "max_tokens": (1, 2**31 - 1, [0, -1, 2**31]),
    "min_tokens": (0, 2**31 - 1, [-1, 2**31]),
    "n": (1, 128, [0, 129, 2**63]),
    "prompt_logprobs": (0, 20, [-1, 21]),
}
INTEGERS = {"top_k", "seed", "max_tokens", "min_tokens", "n", "prompt_logprobs"}


@pytest.mark.parametrize("name", BOUNDS)
def test_numbers_are_bounded_and_strict(name: str) -> None:
    low, high, outside = BOUNDS[name]
    for value in (low, high, None):
        assert getattr(SamplingBody.model_validate({name: value}), name) == value
    wrong = [*outside, str(low), True, False, [low], {}, float("nan"), float("inf"), float("-inf")]
    for value in wrong + ([1.5] if name in INTEGERS else []):
        with pytest.raises(ValidationError) as caught:
            SamplingBody.model_validate({name: value})
        assert {error["loc"][0] for error in caught.value.errors()} == {name}


@given(
    st.dictionaries(
        st.sampled_from(sorted(BOUNDS)),
        st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3)),
    )
)
def test_what_a_body_lets_through_the_sampler_takes(values: dict[str, Any]) -> None:
    try:
        body = SamplingBody.model_validate(values)
    except ValidationError:
        return
    if (body.min_tokens or 0) > (body.max_tokens or 2**31):
        with pytest.raises(UsageError, match="min_tokens"):
            SamplingParams(**body.sampling())
    else:
        SamplingParams(**body.sampling())


@pytest.mark.parametrize(
    ("given", "found"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([], []), (None, None)],
)
def test_stop_becomes_a_list(given: Any, found: Any) -> None:
    assert SamplingBody(stop=given).stop == found


@pytest.mark.parametrize("wrong", ["", [""], ["a", 1], 5, {"a": 1}, ["a"] * 65, "x" * 1025, "\ud800", ["\udc00"]])
def test_wrong_stops_name_the_field_alone(wrong: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        SamplingBody(stop=wrong)
    assert [error["loc"] for error in caught.value.errors()] == [("stop",)]


def test_logit_bias_has_keys_of_text() -> None:
    assert SamplingBody(logit_bias={"15": -100, "07": 2.5}).logit_bias == {15: -100.0, 7: 2.5}
    for wrong in ({"-1": 1}, {"x": 1}, {"٣": 1}, {"1": 101}, {"1": None}, {"1" * 11: 1}, {"1": float("nan")}):
        with pytest.raises(ValidationError):
            SamplingBody.model_validate({"logit_bias": wrong})
    with pytest.raises(ValidationError, match="at most 1024"):
        SamplingBody(logit_bias={str(i): 1.0 for i in range(1025)})


def test_sampling_leaves_out_null_and_takes_more() -> None:
    body = SamplingBody(temperature=1, stop="x", n=None, max_tokens=5)
    assert body.sampling(max_tokens=7, logprobs=0, seed=None) == {
        "temperature": 1.0, "stop": ["x"], "max_tokens": 7, "logprobs": 0,
    }  # fmt: skip


class Small(Body):
    INEFFECTIVE: ClassVar[dict[str, str]] = {"store": "nothing is kept"}
    temperature: float | None = None
    store: bool | None = None


def test_unknown_keys_are_reported_with_what_may_be_meant() -> None:
    assert Small.model_validate({"temprature": 1, "zzz": None}).ignored() == [
        "temprature is not a field of this request and was ignored (did you mean temperature?)",
        "zzz is not a field of this request and was ignored",
    ]
    assert Small(store=True).ignored() == ["store has no effect: nothing is kept"]
    assert Small(store=False, temperature=1).ignored() == []


def test_reports_are_bounded_and_encodable() -> None:
    many = Small.model_validate({f"k{i}": 1 for i in range(10_000)}).ignored()
    assert len(many) == 33
    assert many[-1].startswith("9968 more")
    (odd,) = Small.model_validate({"x" * 10_000: 1}).ignored()
    assert len(odd) < 150
    assert shown("a\ud800b") == "a?b"


def test_thinking_takes_what_it_checks_itself() -> None:
    for value in (True, {"mode": "on"}, "high", None):
        assert ThinkingBody(thinking=value).thinking == value
    for wrong in ({"thinking_budget": -1}, {"thinking_budget": "5"}, {"enable_thinking": 1}, {"reasoning": "low"}):
        with pytest.raises(ValidationError):
            ThinkingBody.model_validate(wrong)


def test_schemas_can_be_shown() -> None:
    properties = SamplingBody.model_json_schema()["properties"]
    assert {"minimum": -(2**63), "maximum": 2**64 - 1, "type": "integer"} in properties["seed"]["anyOf"]
    assert "maxProperties" in str(properties["logit_bias"])
