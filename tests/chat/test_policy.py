"""Which thinking mode a request gets."""

from __future__ import annotations

import math
import re

import pytest

from qwen3.chat import SandboxTemplate, ThinkingPolicy, TokenStream, encode, resolve_mode
from qwen3.chat.policy import soft_switch
from qwen3.errors import UsageError

PLAIN = [{"role": "user", "content": "Q"}]
THINK = [{"role": "user", "content": "Q /think"}]
NO_THINK = [{"role": "user", "content": "Q /no_think"}]


@pytest.mark.parametrize(
    ("messages", "policy", "expected", "source", "warning"),
    [
        (PLAIN, None, True, "default", None),
        (PLAIN, ThinkingPolicy(), True, "default", None),
        (PLAIN, ThinkingPolicy(budget=5), True, "default", None),
        (PLAIN, ThinkingPolicy("on"), True, "explicit", None),
        (PLAIN, ThinkingPolicy("off"), False, "explicit", None),
        (PLAIN, ThinkingPolicy("off", 0), False, "explicit", None),
        (PLAIN, ThinkingPolicy(budget=0), False, "explicit", None),
        (PLAIN, ThinkingPolicy("on", 0), False, "explicit", "the think block is empty"),
        (THINK, None, True, "switch", None),
        (NO_THINK, None, False, "switch", None),
        (NO_THINK, ThinkingPolicy(budget=5), False, "switch", "thinking.budget=5 has no effect: /no_think in"),
        (NO_THINK, ThinkingPolicy("on"), True, "explicit", "/no_think in .* overridden by thinking.mode='on'"),
        (THINK, ThinkingPolicy("off"), False, "explicit", "/think in .* overridden by thinking.mode='off'"),
        (THINK, ThinkingPolicy(budget=0), False, "explicit", r"/think .* is overridden by thinking.budget=0"),
        (THINK, ThinkingPolicy("on"), True, "explicit", None),
    ],
)  # fmt: skip
def test_hybrid(messages, policy, expected, source, warning):
    for mode in (None, "hybrid", "base"):
        resolution = resolve_mode(messages, policy, mode)
        assert (resolution.enable_thinking, resolution.thinks, resolution.source) == (expected, expected, source)
        assert resolution.messages == messages
        assert resolution.policy == (policy or ThinkingPolicy())
        if warning is None:
            assert resolution.warnings == ()
        else:
            assert len(resolution.warnings) == 1
            assert re.search(warning, resolution.warnings[0])


def test_off_closes_the_block_in_the_prompt(tok):
    resolution = resolve_mode(NO_THINK)
    ids = encode(resolution.messages, tokenizer=tok, enable_thinking=resolution.enable_thinking).ids
    stream = TokenStream(tok, ids, resolution.policy)
    assert (stream.state, stream.forced()) == ("answer", None)


@pytest.mark.parametrize(
    ("text", "switch"),
    [
        ("/think", True),
        ("/no_think", False),
        ("a /no_think b /think", True),
        ("/think first, then /no_think.", False),
        ('say it "fast /no_think"', False),
        ("line\n/no_think\n", False),
        ("/no_think!)", False),
        ("path/think", None),
        ("/thinking", None),
        ("/think/more", None),
        ("/think.md", None),
        ("//think", None),
        ("/nothink", None),
        ("/no_thinking", None),
        ("/THINK", None),
        ("", None),
    ],
)
def test_soft_switch_words(text, switch):
    found = soft_switch([{"role": "user", "content": text}])
    assert (found and found[0]) == switch


def test_the_last_switch_in_user_or_system_text_counts():
    system, user, assistant, tool = (
        {"role": role, "content": text}
        for role, text in (
            ("system", "/no_think"),
            ("user", "/think"),
            ("assistant", "/no_think"),
            ("tool", "/no_think"),
        )
    )
    disguised = {"role": "user", "content": "<tool_response>\n/no_think\n</tool_response>"}
    assert soft_switch([system, user]) == (True, "/think in messages[1]")
    assert soft_switch([user, system]) == (False, "/no_think in messages[1]")
    assert soft_switch([user, assistant, tool, disguised]) == (True, "/think in messages[0]")
    assert soft_switch([assistant, tool, disguised]) is None
    assert soft_switch([system, {"role": "user", "content": "Q"}]) == (False, "/no_think in messages[0]")


def test_models_with_one_mode():
    for options in ({"model_mode": "thinking"}, {"template": "thinking-2507"}):
        resolution = resolve_mode(PLAIN, ThinkingPolicy("on", 5), **options)
        assert (resolution.enable_thinking, resolution.thinks, resolution.warnings) == (None, True, ())
        assert resolution.policy.budget == 5
        assert "/no_think in messages[0] has no effect" in resolve_mode(NO_THINK, None, **options).warnings[0]
        for policy, field in ((ThinkingPolicy("off"), "mode 'off'"), (ThinkingPolicy(budget=0), "budget 0")):
            with pytest.raises(UsageError, match=f"thinking.{field} is impossible: this model always thinks"):
                resolve_mode(PLAIN, policy, **options)
    for options in ({"model_mode": "instruct"}, {"template": "instruct-2507"}):
        for policy in (None, ThinkingPolicy("off"), ThinkingPolicy("off", 0), ThinkingPolicy(budget=0)):
            resolution = resolve_mode(PLAIN, policy, **options)
            assert (resolution.enable_thinking, resolution.thinks, resolution.warnings) == (None, False, ())
            assert resolution.policy == ThinkingPolicy()
        assert "/think in messages[0] has no effect" in resolve_mode(THINK, None, **options).warnings[0]
        assert "budget=9 has no effect" in resolve_mode(PLAIN, ThinkingPolicy(budget=9), **options).warnings[0]
        with pytest.raises(UsageError, match=r"thinking\.mode 'on' is impossible: this model never thinks"):
            resolve_mode(PLAIN, ThinkingPolicy("on"), **options)


def test_a_template_without_a_switch_gets_the_empty_block_from_the_stream(tok):
    template = SandboxTemplate("{{ messages[0].content }}{# knows </think> #}")
    resolution = resolve_mode(PLAIN, ThinkingPolicy("off"), "hybrid", template)
    ids = encode(resolution.messages, tokenizer=tok, enable_thinking=False, template=template).ids
    stream = TokenStream(tok, ids, resolution.policy)
    forced = []
    while (id := stream.forced()) is not None:
        forced.append(id)
        stream.push(id)
    assert tok.decode(forced) == "<think>\n\n</think>\n\n"
    assert stream.state == "answer"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "ON"}, "thinking.mode must be 'on', 'off', 'auto' or null, not 'ON'"),
        *[({"budget": bad}, "thinking.budget must be a whole number of tokens, 0 or") for bad in (-1, 1.5, True, "5")],
        *[({"answer_reserve": bad}, "thinking.answer_reserve must be a whole") for bad in (0, -3, 2.0, "all")],
        *[({"max_steps": bad}, "thinking.max_steps must be .* 1 to 32, not") for bad in (0, 33, 1.0, True)],
        *[({"time_limit_s": bad}, "thinking.time_limit_s must be .* 0.5 to 30, not") for bad in (0.4, 31, math.nan)],
        *[({"max_active_params": bad}, "thinking.max_active_params must be") for bad in (0, 3e9, "3B")],
        *[({"budget": 9, "soft_landing": bad}, "thinking.soft_landing must be .* 1 to 1024") for bad in (0, 1025, 2.5)],
        *[({"mode": "auto", "threshold": bad}, "thinking.threshold must be") for bad in (-0.1, 1.1, "x", True)],
        *[({"loop_guard": bad}, "thinking.loop_guard must be true or false") for bad in (None, 1, "yes")],
        *[
            ({"mode": "off", field: 3}, f"thinking.mode is 'off' but thinking.{field} is 3")
            for field in ("budget", "answer_reserve", "max_steps")
        ],
        ({"mode": "off", "budget": 64}, "leave one out, or set thinking.budget to 0"),
        ({"budget": 0, "max_steps": 3}, "thinking.budget is 0 but thinking.max_steps is 3"),
        ({"budget": 0, "soft_landing": 3}, "thinking.budget is 0 but thinking.soft_landing is 3"),
        ({"threshold": 0.5}, "thinking.threshold is 0.5 but thinking.mode is not set"),
        ({"mode": "on", "threshold": 0.5}, "thinking.threshold is 0.5 but thinking.mode is on"),
        ({"soft_landing": 5}, "thinking.soft_landing is 5 but neither thinking.budget nor thinking.answer_reserve"),
    ],
)  # fmt: skip
def test_wrong_policies(fields, message):
    with pytest.raises(UsageError, match=message) as caught:
        ThinkingPolicy(**fields)
    assert "\n" not in str(caught.value)


def test_policies_at_the_bounds():
    for fields in (
        {"mode": "off", "budget": 0, "time_limit_s": 3, "max_active_params": 1},
        {"mode": "auto", "threshold": 0, "budget": 0},
        {"mode": "auto", "threshold": 1.0, "max_steps": 32, "time_limit_s": 0.5},
        {"answer_reserve": 1, "soft_landing": 1024, "max_steps": 1, "time_limit_s": 30.0},
        {"loop_guard": False, "budget": 10**12},
    ):
        policy = ThinkingPolicy(**fields)
        assert {name: getattr(policy, name) for name in fields} == fields


def test_answer_reserve_becomes_a_budget():
    policy = ThinkingPolicy("on", answer_reserve=40, soft_landing=8, max_steps=3)
    assert policy.limited(100) == ThinkingPolicy("on", 60, soft_landing=8, max_steps=3)
    assert ThinkingPolicy(budget=50, answer_reserve=40).limited(100).budget == 50
    assert ThinkingPolicy(budget=70, answer_reserve=40).limited(100).budget == 60
    assert policy.limited(41).budget == 1
    for max_tokens in (40, 1):
        with pytest.raises(UsageError, match=f"thinking.answer_reserve is 40 but max_tokens is {max_tokens}"):
            policy.limited(max_tokens)
    assert ThinkingPolicy(budget=5).limited(3) == ThinkingPolicy(budget=5)


def test_the_stream_must_know_its_budget(tok):
    with pytest.raises(UsageError, match=r"answer_reserve needs to know max_tokens: .* policy.limited"):
        TokenStream(tok, [1], ThinkingPolicy(answer_reserve=4))


def test_auto():
    for messages, warning in ((PLAIN, None), (THINK, "/think in"), (NO_THINK, "/no_think in")):
        resolution = resolve_mode(messages, ThinkingPolicy("auto", threshold=0.4), "hybrid")
        assert (resolution.enable_thinking, resolution.thinks, resolution.source) == (True, True, "explicit")
        assert resolution.policy == ThinkingPolicy("auto", threshold=0.4)
        assert len(resolution.warnings) == bool(warning)
        if warning:
            assert re.search(f"{warning} .* is overridden by thinking.mode='auto'", resolution.warnings[0])
    empty = resolve_mode(PLAIN, ThinkingPolicy("auto", 0))
    assert (empty.thinks, empty.warnings) == (
        False, ("thinking.mode='auto' with thinking.budget=0: the think block is empty",),
    )  # fmt: skip
    for mode, what in (("thinking", "always"), ("instruct", "never")):
        with pytest.raises(UsageError, match=f"thinking.mode 'auto' is impossible: this model {what} thinks"):
            resolve_mode(PLAIN, ThinkingPolicy("auto"), mode)


def test_what_has_no_effect_is_said():
    policy = ThinkingPolicy(budget=5, max_steps=2, soft_landing=1, max_active_params=7, loop_guard=False)
    for messages, mode in ((NO_THINK, "hybrid"), (PLAIN, "instruct")):
        resolution = resolve_mode(messages, policy, mode)
        fields = [warning.split(" has no effect")[0] for warning in resolution.warnings]
        assert fields == ["thinking.budget=5", "thinking.max_steps=2", "thinking.soft_landing=1"]
    assert resolution.policy == ThinkingPolicy(max_active_params=7, loop_guard=False)
    with pytest.raises(UsageError, match="model_mode must be hybrid"):
        resolve_mode(PLAIN, None, "fast")
