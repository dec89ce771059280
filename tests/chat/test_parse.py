"""`parse` undoes the rendering of an assistant turn."""

from __future__ import annotations

import random

import pytest

from qwen3.chat import Message, ToolCall, parse, render
from qwen3.chat.tool_calls import parse_tool_call
from qwen3.errors import UsageError
from qwen3.tokenizer import Detokenizer
from tests.chat.random_chat import text

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
F = ToolCall("f", '{"a": 1}')


@pytest.mark.parametrize(
    ("turn", "reasoning", "content", "calls"),
    [
        ("", "", "", ()),
        ("A", "", "A", ()),
        ("A<|im_end|>\n<|im_start|>user\nmore", "", "A", ()),
        ("<think>\nR\n</think>\n\nA", "R", "A", ()),
        ("<think>\n\n</think>\n\nA", "", "A", ()),
        ("R\n</think>\n\nA", "R", "A", ()),
        ("<think>\nR", "R", "", ()),
        ("<think>R</think>A<think>S</think>B", "R", "A<think>S</think>B", ()),
        ("A<think>S", "", "A<think>S", ()),
        ("<think>a</think>b</think>c", "a", "b</think>c", ()),
        ("<think>a</think>\n</think>\nb", "a", "b", ()),
        (f"<think>{CALL}</think>A", CALL, "A", ()),
        (f"A\n{CALL}", "", "A", (F,)),
        (f"A\n\n{CALL}\n{CALL}\n", "", "A\n", (F, F)),
        (f"<think>\nR\n</think>\n\n{CALL}", "R", "", (F,)),
        (f"A\n{CALL}\nB", "", "A\nB", (F,)),
        ("A\n<tool_call>\nbad\n</tool_call>", "", "A\n<tool_call>\nbad\n</tool_call>", ()),
        ("A\n<tool_call>\nopen", "", "A\n<tool_call>\nopen", ()),
        (f"<tool_call>{CALL}", "", "<tool_call>", (F,)),
    ],
)
def test_parse(tok, turn, reasoning, content, calls):
    for given in (turn, tok.encode(turn)):
        message = parse(given, tok)
        assert (message.reasoning_content, message.content, message.tool_calls) == (reasoning, content, calls)
        assert message.role == "assistant"
        assert len(message.warnings) == content.count("<tool_call>") + (turn == "<think>a</think>\n</think>\nb")


def test_text_is_taken_as_it_is():
    assert parse("e\u0301 <|box_start|>").content == "e\u0301 <|box_start|>"


def test_typed_tags_in_ids_are_text(tok):
    message = parse(tok.encode_plain("<think>R</think>A<|im_end|>"), tok)
    assert message == Message(content="<think>R</think>A<|im_end|>")


def test_inverse_of_render(tok):
    """Random turns, rendered as the last of a conversation and parsed back, as text and as ids."""
    rng = random.Random(12)
    for _ in range(1_000):
        calls = tuple(
            ToolCall(rng.choice("fgh"), rng.choice(["{}", '{"a": [1, "é"]}'])) for _ in range(rng.randrange(3))
        )
        # The template trims newlines around reasoning and before content: these cannot come back.
        reasoning, content = text(rng, False).strip("\n"), text(rng, False).lstrip("\n")
        message = Message("assistant", content, reasoning, calls)
        prompt = render([{"role": "user", "content": "Q"}])
        turn = render([{"role": "user", "content": "Q"}, message], add_generation_prompt=False).removeprefix(prompt)
        assert parse(turn) == message, turn
        by_ids = parse(tok.encode(turn), tok)
        assert tok.encode(by_ids.content) == tok.encode(content)
        assert (by_ids.tool_calls, by_ids.warnings) == (calls, ())


@pytest.mark.parametrize(
    ("body", "name", "arguments"),
    [
        ('{"name": "f", "arguments": {}}', "f", "{}"),
        ('\n{"name":"f","arguments":{"a":1,"b":[2.50, 1e3]}}\n', "f", '{"a":1,"b":[2.50, 1e3]}'),
        ('{"arguments": {"a": 1}, "name": "f"}', "f", '{"a": 1}'),
        ('{"name": "f"}', "f", "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', "f", '{"a": 1}'),
        ('{"name": "f\\u00e9", "arguments": {"x": "}"}, "id": 3}', "fé", '{"x": "}"}'),
    ],
)
def test_tool_call_forms(body, name, arguments):
    call = parse_tool_call(body)
    assert (call.name, call.arguments) == (name, arguments)
    assert call.id.startswith("call_")
    assert call.id != parse_tool_call(body).id


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "not JSON"),
        ("f(1)", "not JSON"),
        ("[]", "not a JSON object"),
        ('"f"', "not a JSON object"),
        ('{"name": "f", "arguments": {}} {}', "not JSON"),
        ('{"name": "f", "arguments": [1]}', "arguments is not an object"),
        ('{"name": "f", "arguments": "x"}', "not JSON"),
        ('{"name": "", "arguments": {}}', "no name"),
        ('{"name": 3, "arguments": {}}', "no name"),
        ('{"arguments": {}}', "no name"),
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN is not JSON"),
        ('{"name": "f", "arguments": ' + '{"a":' * 100_000, "nested too deeply"),
        ('{"name": "f", "arguments": {"a": ' + "9" * 5_000 + "}}", "."),
    ],
)
def test_bad_tool_calls(body, why):
    with pytest.raises(ValueError, match=why) as caught:
        parse_tool_call(body)
    assert "\n" not in str(caught.value)


def test_wrong_type():
    for bad in (5, b"x", {"role": "assistant"}, None):
        with pytest.raises(UsageError, match="parse: give text or token ids"):
            parse(bad)


def test_bytes_that_are_no_characters_read_as_in_a_stream(tok):
    """Whatever ids come: text up to the first end, special tokens left out, unfinished characters held back."""
    rng, specials = random.Random(), sorted(tok.special_ids.difference(tok.eos_ids))
    plain = [i for i in range(3000) if i not in tok.special_ids]
    for _ in range(300):
        ids = [rng.choice(specials) if rng.random() < 0.1 else rng.choice(plain) for _ in range(rng.randint(0, 30))]
        one_by_one = Detokenizer(tok)
        expected = "".join(one_by_one.push(id) for id in ids if id not in tok.special_ids)
        found = parse([*ids, rng.choice([*tok.eos_ids]), *plain[:3], *tok.eos_ids], tok)
        assert (found.content.rstrip("\n"), found.reasoning_content) == (expected.rstrip("\n"), "")
