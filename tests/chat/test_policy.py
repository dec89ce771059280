"""Which thinking mode a request gets."""

from __future__ import annotations

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


def test_wrong_policies():
    with pytest.raises(UsageError, match=r"thinking\.mode is 'off' but thinking\.budget is 64"):
        ThinkingPolicy("off", 64)
    with pytest.raises(UsageError, match=r"thinking\.mode must be 'on', 'off', 'auto' or null, not 'ON'"):
        ThinkingPolicy("ON")
    for bad in (-1, 1.5, True, "5"):
        with pytest.raises(UsageError, match=r"thinking\.budget must be a whole number of tokens"):
            ThinkingPolicy(budget=bad)
    with pytest.raises(UsageError, match="'auto' is not available in this release"):
        resolve_mode(PLAIN, ThinkingPolicy("auto"))
    with pytest.raises(UsageError, match="model_mode must be hybrid"):
        resolve_mode(PLAIN, None, "fast")


def test_stream_refuses_auto(tok):
    with pytest.raises(UsageError, match="'auto' is not available in this release"):
        TokenStream(tok, [1], ThinkingPolicy("auto"))
