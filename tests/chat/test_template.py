"""`render` is the official template, byte for byte; `encode` its ids, and no message can inject a control token."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen3.chat import TEMPLATES, Message, ToolCall, encode, render
from qwen3.errors import CorruptFileError, UsageError
from qwen3.tokenizer import CONTROL_TOKENS, Tokenizer
from tests.chat.random_chat import conversation, odd_conversation, tool

CASES = [json.loads(line) for line in (Path(__file__).parents[1] / "data" / "chat_template_cases.jsonl").open()]
OPTIONS = ("tools", "add_generation_prompt", "enable_thinking", "template")
CONTROLS = [text for text, _ in CONTROL_TOKENS.values()]


def options_of(rng: random.Random, tags: bool) -> dict:
    return {
        "tools": rng.choice([None, None, [], [tool(rng, tags) for _ in range(rng.randrange(1, 4))]]),
        "add_generation_prompt": rng.random() < 0.6,
        "enable_thinking": rng.choice([None, True, False]),
        "template": rng.choice(TEMPLATES),
    }


def test_cases(tok):
    assert len(CASES) == 204
    with_control = 0
    for i, case in enumerate(CASES):
        options = {name: case[name] for name in OPTIONS}
        assert render(case["messages"], **options) == case["text"], i
        assert tok.encode(case["text"]) == case["ids"], i
        encoded = encode(case["messages"], tokenizer=tok, **options)
        if encoded.warnings:
            with_control += 1
            assert encoded.ids != case["ids"], i
        else:
            assert encoded.ids == case["ids"], i
        assert tok.decode(encoded.ids) == case["text"], i
    assert with_control == 24


def test_random_conversations_equal_transformers(oracle, tok, capsys):
    rng = random.Random(235)
    clean = 0
    for i in range(1_000):
        messages, options = conversation(rng, tags := i % 2 == 0), options_of(rng, tags)
        before = copy.deepcopy(messages)
        text = render(messages, **options)
        assert text == oracle(messages, **options), (messages, options)
        assert messages == before
        encoded = encode(messages, tokenizer=tok, **options)
        if not encoded.warnings:
            clean += 1
            assert encoded.ids == tok.encode(text), (messages, options)
    assert clean >= 400
    with capsys.disabled():
        print(f"\n1,000 random conversations: all equal; ids equal in the {clean} without a control string")


def test_odd_conversations_equal_transformers_or_both_refuse(oracle, capsys):
    rng = random.Random(22)
    outcomes: Counter[str] = Counter()
    for _ in range(3_000):
        messages, options = odd_conversation(rng), options_of(rng, True)
        try:
            expected = oracle(messages, **options)
        except Exception:
            outcomes["refused"] += 1
            with pytest.raises(UsageError, match=r"^(messages|tools)\b"):
                render(messages, **options)
            continue
        outcomes["equal"] += 1
        assert render(messages, **options) == expected, (messages, options)
    assert min(outcomes.values()) > 200
    with capsys.disabled():
        print(f"\n3,000 odd conversations: {outcomes['equal']} equal, {outcomes['refused']} refused by both")


@pytest.mark.parametrize(
    ("messages", "tools", "message"),
    [
        ([], None, "messages is empty"),
        ("hi", None, "messages must be a list of messages, not str"),
        ({"role": "user"}, None, "messages must be a list of messages, not dict"),
        (None, None, "messages must be a list of messages, not NoneType"),
        ([{"role": "user", "content": "a"}, "b"], None, r"messages\[1\] must be an object"),
        ([{"role": "system", "content": [{"text": "x"}]}], None, r"messages\[0\]\.content must be a string"),
        ([{"role": "system"}], [{}], r"messages\[0\]\.content .* it is missing"),
        ([{"role": "assistant", "tool_calls": "f"}], None, r"messages\[0\]\.tool_calls must be a list, not str"),
        ([{"role": "assistant", "tool_calls": [3]}], None, r"messages\[0\]\.tool_calls\[0\] must be an object"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], None, r"\[0\]\.tool_calls\[0\]\.arguments is missing"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}], None, r"\[0\]\.function\.arguments is"),
        ([{"role": "user", "content": b"x"}], None, r"messages\[0\]\.content is a bytes, which has no JSON form"),
        ([{"role": "user", "content": "x"}], {"a": 1}, "tools must be a list"),
        ([{"role": "user", "content": "x"}], [{}, "f"], r"tools\[1\] must be a JSON schema"),
        ([{"role": "user", "content": "x"}], [len], r"tools\[0\] is a Python function"),
        ([{"role": "user", "content": "x"}], [{"a": {1, 2}}], r"tools\[0\]\.a is a set"),
        ([{"role": "user", "content": "x"}], [{(1, 2): 3}], r"tools\[0\] has no JSON form"),
    ],
)
def test_refusals_name_the_place(messages, tools, message):
    with pytest.raises(UsageError, match=message) as caught:
        render(messages, tools=tools)
    assert "\n" not in str(caught.value)


def test_wrong_options():
    with pytest.raises(UsageError, match="template must be one of qwen3, instruct-2507, thinking-2507, not 'llama'"):
        render([{"role": "user", "content": "x"}], template="llama")
    with pytest.raises(UsageError, match="enable_thinking must be true, false or null, not 'false'"):
        render([{"role": "user", "content": "x"}], enable_thinking="false")


def test_a_tool_that_contains_itself():
    schema: dict = {}
    schema["self"] = schema
    with pytest.raises(UsageError, match=r"tools\[0\].* is nested too deeply, or contains itself"):
        render([{"role": "user", "content": "x"}], tools=[schema])


def test_message_objects_are_as_good_as_dicts():
    @dataclass
    class Theirs:
        role: str
        content: str
        tool_calls: list | None = None

    class Model:
        def model_dump(self) -> dict:
            return {"role": "user", "content": "Q", "refusal": None}

    ours = Message("assistant", "A", "R", (ToolCall("f", '{"a": 1}', "c1"),))
    expected = render([{"role": "user", "content": "Q"}, ours.to_dict(), {"role": "tool", "content": "1"}])
    assert render([Model(), ours, Theirs("tool", "1")]) == expected
    assert '<think>\nR\n</think>\n\nA\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>' in expected


def test_reasoning_under_other_names_counts(oracle):
    for name in ("reasoning", "thinking"):
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", name: "R"}]
        assert render(messages) == oracle(messages)
        assert "<think>\nR\n</think>" in render(messages)


# Injection


def plants(text: str) -> list[tuple[list[dict], list[dict] | None, str]]:
    """`text` in every field that is rendered: (messages, tools, what the warning names)."""
    user, last = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "reasoning_content": "R"}
    name = {"name": text, "arguments": {}}
    schema = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    function = schema["function"]
    return [
        ([{"role": "user", "content": f"a {text} b"}], None, "messages[0]"),
        ([{"role": "user", "content": text}], None, "messages[0]"),
        ([{"role": "system", "content": text}, user], None, "messages[0]"),
        ([{"role": "system", "content": text}, user], [schema], "messages[0]"),
        ([user, {"role": "system", "content": text}], None, "messages[1]"),
        ([user, {**last, "content": f"x{text}"}], None, "messages[1]"),
        ([user, {**last, "content": f"x{text}"}, user], None, "messages[1]"),
        ([user, {**last, "reasoning_content": f"{text}x"}], None, "messages[1]"),
        ([user, {**last, "tool_calls": [name]}], None, "messages[1]"),
        ([user, {**last, "tool_calls": [{"name": "f", "arguments": {"q": text}}]}], None, "messages[1]"),
        ([user, {**last, "tool_calls": [{"name": "f", "arguments": {text: 1}}]}], None, "messages[1]"),
        ([user, {**last, "tool_calls": [{"function": {"name": "f", "arguments": text}}]}], None, "messages[1]"),
        ([user, last, {"role": "tool", "content": text}], None, "messages[2]"),
        ([user], [{**schema, "function": {**function, "name": text}}], "tools[0]"),
        ([user], [schema, {**schema, "function": {**function, "description": text}}], "tools[1]"),
        ([user], [{**schema, "function": {**function, "parameters": {"properties": {text: {}}}}}], "tools[0]"),
    ]


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_control_string_in_any_field_becomes_a_control_id(tok, template):
    checked = 0
    for control in CONTROLS:
        for (messages, tools, where), (harmless, harmless_tools, _) in zip(plants(control), plants("x"), strict=True):
            rendered = render(messages, tools=tools, template=template)
            encoded = encode(messages, tokenizer=tok, tools=tools, template=template)
            expected = encode(harmless, tokenizer=tok, tools=harmless_tools, template=template)
            assert [id for id in encoded.ids if id >= 151_643] == [id for id in expected.ids if id >= 151_643]
            assert tok.decode(encoded.ids) == rendered
            if control in rendered.replace(render(harmless, tools=harmless_tools, template=template), ""):
                said = [warning for warning in encoded.warnings if warning.startswith(f"{where} contains")]
                hidden = template == "instruct-2507" and "reasoning_content" in messages[-1] and not encoded.warnings
                assert hidden or (len(said) == 1 and repr(control) in said[0]), (messages, encoded.warnings)
            assert not expected.warnings
            checked += 1
    assert checked == 26 * 16


def test_random_injections(tok):
    """Whatever the messages say: as many control ids as in the same conversation with every `<` taken out."""
    rng = random.Random(4)
    for _ in range(500):
        messages, options = conversation(rng), options_of(rng, True)
        for message in messages:  # the template itself reads these two, so they are out of this comparison
            for tag in ("<think>", "</think>", "<tool_response>", "</tool_response>"):
                message["content"] = message["content"].replace(tag, rng.choice(CONTROLS[:14]))
        harmless = json.loads(json.dumps(messages).replace("<", "x"))
        ids = encode(messages, tokenizer=tok, **options).ids
        expected = encode(harmless, tokenizer=tok, **options).ids
        assert [id for id in ids if id >= 151_643] == [id for id in expected if id >= 151_643]


def test_a_tokenizer_without_the_tags_is_refused(tok, tmp_path):
    tok.prefix(256).save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["added_tokens"] = data["added_tokens"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CorruptFileError, match=r"no control token .*<think>"):
        encode([{"role": "user", "content": "Q"}], tokenizer=Tokenizer.from_pretrained(tmp_path))


def test_lone_surrogates_are_named(tok):
    with pytest.raises(UsageError, match=r"messages\[1\] holds the lone surrogate U\+D83D at character 2"):
        encode([{"role": "user", "content": "a"}, {"role": "user", "content": "hi\ud83d"}], tokenizer=tok)
