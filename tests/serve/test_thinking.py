"""All spellings of thinking come to one policy; those that contradict each other are named."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pydantic")

from qwen3.chat import ThinkingPolicy
from qwen3.serve.calls import ModelInfo
from qwen3.serve.errors import ApiError
from qwen3.serve.fields import ThinkingBody
from qwen3.serve.thinking import spellings, thinking_of

INFO = {mode: ModelInfo("m", 40_960, 151_936, mode) for mode in ("hybrid", "thinking", "instruct", "base")}


def policy(given: dict[str, Any], mode: str = "hybrid", max_tokens: int | None = None) -> dict[str, Any]:
    found, _ = thinking_of(given, info=INFO[mode], max_tokens=max_tokens)
    ThinkingPolicy(**found)
    return found


def refused(given: dict[str, Any], mode: str = "hybrid") -> ApiError:
    with pytest.raises(ApiError) as caught:
        thinking_of(given, info=INFO[mode], max_tokens=None)
    assert caught.value.status == 400
    return caught.value


ON, OFF = {"mode": "on"}, {"mode": "off"}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {}),
        ({"enable_thinking": None, "think": None}, {}),
        ({"enable_thinking": True}, ON),
        ({"chat_template_kwargs.enable_thinking": False}, OFF),
        ({"reasoning.enabled": True}, ON),
        ({"think": False}, OFF),
        ({"think": "high"}, {"mode": "on", "budget": 16_384}),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"mode": "on", "budget": 2048}),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "adaptive"}}, {"mode": "auto"}),
        ({"thinking.budget_tokens": 2048}, {"mode": "on", "budget": 2048}),
        ({"thinking": True}, ON),
        ({"thinking": {"mode": "auto", "threshold": 0.4}}, {"mode": "auto", "threshold": 0.4}),
        ({"thinking": {"answer_reserve": 50, "loop_guard": False}}, {"answer_reserve": 50, "loop_guard": False}),
        ({"thinking_budget": 64}, {"mode": "on", "budget": 64}),
        ({"thinking_token_budget": 64, "thinking_budget_tokens": 64}, {"mode": "on", "budget": 64}),
        ({"custom_params.thinking_budget": 0}, {"budget": 0}),
        ({"thinking_budget": 0, "enable_thinking": False}, {"mode": "off", "budget": 0}),
        ({"thinking_budget": 0, "enable_thinking": True}, {"mode": "on", "budget": 0}),
        ({"reasoning.max_tokens": 9}, {"mode": "on", "budget": 9}),
        ({"reasoning_effort": "none"}, {"budget": 0}),
        ({"reasoning_effort": "minimal"}, {"mode": "on", "budget": 512}),
        ({"reasoning_effort": "LOW"}, {"mode": "on", "budget": 1024}),
        ({"reasoning_effort": "medium"}, {"mode": "on", "budget": 4096}),
        ({"reasoning_effort": "xhigh"}, ON),
        ({"reasoning_effort": "max"}, ON),
        ({"reasoning_effort": "low", "enable_thinking": True}, {"mode": "on", "budget": 1024}),
        ({"reasoning_effort": "none", "enable_thinking": False}, OFF),
    ],
)
def test_spellings(given: dict[str, Any], found: dict[str, Any]) -> None:
    assert thinking_of(given, info=INFO["hybrid"], max_tokens=None) == (found, [])


def test_on_and_off_beat_an_effort_and_a_number_beats_both() -> None:
    found, warnings = thinking_of(
        {"enable_thinking": False, "reasoning_effort": "high"}, info=INFO["hybrid"], max_tokens=None
    )
    assert found == OFF
    assert warnings == ["reasoning_effort has no effect: enable_thinking is off"]
    found, warnings = thinking_of(
        {"thinking_budget": 7, "reasoning_effort": "high"}, info=INFO["hybrid"], max_tokens=None
    )
    assert found == {"mode": "on", "budget": 7}
    assert warnings == ["reasoning_effort has no effect: thinking_budget is 7"]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"enable_thinking": False, "thinking_budget": 64}, "enable_thinking, thinking_budget"),
        ({"thinking_budget": 1, "thinking_token_budget": 2}, "thinking_budget, thinking_token_budget"),
        (
            {"enable_thinking": True, "chat_template_kwargs.enable_thinking": False},
            "enable_thinking, chat_template_kwargs.enable_thinking",
        ),
        ({"reasoning_effort": "low", "reasoning.effort": "high"}, "reasoning_effort, reasoning.effort"),
        ({"think": True, "thinking": {"mode": "off"}}, "think, thinking.mode"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking.type, thinking.budget_tokens"),
    ],
)
def test_contradictions_name_both(given: dict[str, Any], param: str) -> None:
    error = refused(given)
    assert (error.param, error.code) == (param, "contradiction")
    assert all(name in error.message for name in param.split(", "))


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"thinking_budget": -1}, "thinking_budget"),
        ({"thinking_budget": True}, "thinking_budget"),
        ({"thinking_budget": 1.5}, "thinking_budget"),
        ({"thinking_budget": 2**31}, "thinking_budget"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"reasoning_effort": "lots"}, "reasoning_effort"),
        ({"reasoning.enabled": 1}, "reasoning.enabled"),
        ({"think": 3}, "think"),
        ({"thinking": [1]}, "thinking"),
        ({"thinking": {"mode": "sometimes"}}, "thinking.mode"),
        ({"thinking": {"max_steps": 99}}, "thinking.max_steps"),
        ({"thinking": {"threshold": 0.5}}, "thinking.threshold"),
        ({"thinking": {"mode": "off", "max_steps": 3}}, "thinking.mode"),
    ],
)
def test_wrong_values_name_their_field(given: dict[str, Any], param: str) -> None:
    assert refused(given).param == param


def test_models_of_one_mode_refuse_the_impossible() -> None:
    for given in ({"enable_thinking": False}, {"reasoning_effort": "none"}, {"thinking_budget": 0}, {"think": False}):
        assert "always thinks" in refused(given, "thinking").message
    assert "never thinks" in refused({"enable_thinking": True}, "instruct").message
    assert policy({"enable_thinking": False}, "instruct") == OFF
    assert policy({"reasoning_effort": "low"}, "instruct") == {"budget": 1024}  # which the engine reports as idle
    assert policy({"thinking_budget": 5}, "thinking") == {"budget": 5}
    assert policy({"thinking": {"type": "adaptive"}}, "thinking") == {}
    assert policy({"enable_thinking": True}, "thinking") == ON
    assert "always thinks" in refused({"thinking": {"mode": "auto"}}, "thinking").message


@pytest.mark.parametrize(("max_tokens", "budget"), [(4000, 3000), (5000, 3750), (6000, 4096), (1, 1), (2, 1)])
def test_an_effort_leaves_room_for_an_answer(max_tokens: int, budget: int) -> None:
    found, warnings = thinking_of({"reasoning_effort": "medium"}, info=INFO["hybrid"], max_tokens=max_tokens)
    assert found == {"mode": "on", "budget": budget}
    assert len(warnings) == (budget < 4096)


def test_an_effort_is_cut_to_the_context_and_a_number_is_not() -> None:
    small = ModelInfo("m", 1000, 151_936, "hybrid")
    found, (warning,) = thinking_of({"reasoning_effort": "high"}, info=small, max_tokens=None)
    assert found["budget"] == 750
    assert "context of 1,000" in warning
    assert thinking_of({"thinking_budget": 5000}, info=small, max_tokens=10) == ({"mode": "on", "budget": 5000}, [])
    assert thinking_of({"reasoning_effort": "high"}, info=None, max_tokens=None)[0]["budget"] == 16_384


def test_keys_without_meaning_are_reported() -> None:
    _, warnings = thinking_of({"thinking": {"mode": "on", "budgt": 3}, "reasoning.foo": 1}, info=None, max_tokens=None)
    assert warnings == [
        "thinking.budgt has no meaning here and was ignored (did you mean budget?)",
        "reasoning.foo has no meaning here and was ignored",
    ]


def test_bodies_of_openai_shape() -> None:
    body = ThinkingBody(
        enable_thinking=True,
        chat_template_kwargs={"thinking_budget": 5},
        custom_params={"thinking_budget": 5, "x": 1},
        reasoning={"effort": "low"},
    )
    given, warnings = spellings(body)
    assert warnings == ["custom_params.x has no meaning here and was ignored"]
    assert policy(given) == {"mode": "on", "budget": 5}
    with pytest.raises(ApiError, match="tokenize is not a template variable") as caught:
        spellings(ThinkingBody(chat_template_kwargs={"tokenize": False}))
    assert caught.value.param == "chat_template_kwargs.tokenize"
