"""Tool conversations: seeded, varied, split by hash; the checkers accept the reference and reject what differs."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import pytest

from qwen3.chat import parse, render
from qwen3.errors import UsageError
from qwen3.tasks.base import is_eval
from qwen3.tasks.tools import KINDS, check_tool_answer, check_tool_call, dialogue_key, sample_tool_dialogue

TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def written(message: dict[str, Any], thinking: bool) -> str:
    """What a model writes for this message of the assistant, in the template's form."""
    text = f"<think>\n{message.get('reasoning_content', '').strip()}\n</think>\n\n" if thinking else ""
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function", call)
        arguments = function["arguments"]
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>')
    content = message.get("content") or ""
    return text + "\n".join([content, *calls] if content else calls) + "<|im_end|>"


def samples(count: int, seed: int = 0, split: str = "train") -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    rng = random.Random(seed)
    return [sample_tool_dialogue(rng, split) for _ in range(count)]


def calling(count: int, seed: int) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]], int]]:
    """Conversations with the place of their first calling message."""
    found = []
    for messages, tools in samples(count, seed):
        at = next((i for i, m in enumerate(messages) if m.get("tool_calls")), None)
        if at is not None:
            found.append((messages, tools, at))
    return found


def test_the_same_seed_gives_the_same_conversations():
    assert samples(300, 4) == samples(300, 4)


def test_conversations_and_names_are_varied():
    drawn = samples(10_000, 1)
    assert len({dialogue_key(messages) for messages, _ in drawn}) > 9_500
    assert len({"\n".join(m["content"] for m in messages if m["role"] == "user") for messages, _ in drawn}) > 8_000
    assert len({tool["function"]["name"] for _, tools in drawn for tool in tools}) > 2_000
    assert len({kind.group for kind in KINDS}) >= 40


def test_calls_fit_the_declared_tools():
    for messages, tools in samples(2_000, 2):
        declared = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
        assert len(declared) == len(tools) >= 1
        for message in messages:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                schema = declared[function["name"]]
                assert set(schema.get("required", ())) <= set(function["arguments"]) <= set(schema["properties"])
                for name, value in function["arguments"].items():
                    spec = schema["properties"][name]
                    assert isinstance(value, TYPES[spec["type"]])
                    assert isinstance(value, bool) == (spec["type"] == "boolean")
                    assert value in spec.get("enum", [value])


def test_shape_and_what_a_user_said():
    for messages, _ in samples(2_000, 3):
        roles = [m["role"] for m in messages]
        assert roles[-1] == "assistant"
        assert "  " not in "".join(m["content"] for m in messages)
        said = ""
        for i, message in enumerate(messages):
            text = message["content"] + message.get("reasoning_content", "")
            assert not re.search(r"<\||</?think|</?tool_|\{[a-z]+\}", text), text
            if message["role"] == "user":
                said += message["content"].lower()
            calls = message.get("tool_calls", ())
            assert bool(message["content"]) != bool(calls)
            if calls:
                assert roles[i + 1 : i + 1 + len(calls)] == ["tool"] * len(calls)
            for call in calls:
                for value in call["function"]["arguments"].values():
                    if not isinstance(value, bool):
                        assert str(value).lower() in said


def test_parallel_calls_questions_and_refusals_occur():
    drawn = samples(3_000, 5)
    parallel = sum(any(len(m.get("tool_calls", ())) == 2 for m in messages) for messages, _ in drawn)
    first = [next(m for m in messages if m["role"] == "assistant") for messages, _ in drawn]
    assert parallel > 60
    assert sum("tool_calls" not in m and m["content"].endswith("?") for m in first) > 60
    assert sum("fits" in m.get("reasoning_content", "") and "tool_calls" not in m for m in first) > 30
    assert sum("tool_calls" in m for m in first) > 2_000


def test_split_by_hash():
    for split in ("train", "eval"):
        for messages, _ in samples(40, 6, split):
            assert is_eval(dialogue_key(messages)) == (split == "eval")
    with pytest.raises(UsageError, match="split must be 'train' or 'eval', not 'test'"):
        sample_tool_dialogue(random.Random(0), "test")


def test_answers_say_what_the_tool_returned():
    seen = 0
    for messages, _ in samples(1_500, 7):
        for i, message in enumerate(messages):
            if message["role"] != "tool" or not message["content"].startswith("{"):
                continue
            answer = next(m["content"] for m in messages[i:] if m["role"] == "assistant")
            result = json.loads(message["content"])
            numbers = [str(v) for k, v in result.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
            assert all(number in answer for number in numbers)
            seen += len(numbers)
            assert check_tool_answer([{"role": "assistant", "content": answer}], answer)
            if numbers:
                silent = re.sub(r"\d", "", answer) + "!"
                assert not check_tool_answer([{"role": "assistant", "content": answer}], silent)
    assert seen > 300


def test_everything_renders_and_stays_short():
    for messages, tools in samples(300, 8):
        text = render(messages, tools=tools, add_generation_prompt=False)
        assert len(text) < 4_500


def test_the_checker_accepts_the_reference_and_what_parses_to_it():
    for messages, tools, at in calling(300, 9):
        reference = messages[: at + 1]
        assert check_tool_call(reference, tools, messages[at])
        assert check_tool_call(reference, tools, parse(written(messages[at], True)))
        assert check_tool_call(reference, tools, parse(written(messages[at], False)))
        turned = copy.deepcopy(messages[at])
        turned["tool_calls"].reverse()
        assert check_tool_call(reference, tools, turned)


def test_the_checker_rejects_what_differs():
    for messages, tools, at in calling(300, 10):
        reference = messages[: at + 1]

        def changed(change: Any, message: dict[str, Any] = messages[at]) -> dict[str, Any]:
            copied = copy.deepcopy(message)
            change(copied["tool_calls"])
            return copied

        def first(calls: list[dict[str, Any]]) -> dict[str, Any]:
            return calls[0]["function"]

        wrong = [
            {"role": "assistant", "content": "I do not know."},
            changed(lambda calls: calls.append(calls[0])),
            changed(lambda calls: calls.pop()),
            changed(lambda calls: first(calls).update(name=first(calls)["name"] + "x")),
            changed(lambda calls: first(calls)["arguments"].update(extra=1)),
            changed(lambda calls: first(calls).update(arguments="{broken")),
        ]
        for key, value in messages[at]["tool_calls"][0]["function"]["arguments"].items():
            other = (not value) if isinstance(value, bool) else value + 1 if not isinstance(value, str) else value + "s"
            wrong.append(changed(lambda calls, k=key, v=other: first(calls)["arguments"].update({k: v})))
            wrong.append(changed(lambda calls, k=key: first(calls)["arguments"].pop(k)))
        for message in wrong:
            assert not check_tool_call(reference, tools, message)


def test_the_checker_knows_turns_without_calls():
    tools = samples(1, 11)[0][1]
    said = {"role": "assistant", "content": "For which city?"}
    assert check_tool_call([said], tools, {"role": "assistant", "content": "Which one?"})
    name = tools[0]["function"]["name"]
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": {}}}]}
    assert not check_tool_call([said], tools, called)
    with pytest.raises(UsageError, match="must end with the assistant message"):
        check_tool_call([{"role": "user", "content": "Hi"}], tools, said)


def test_numbers_are_compared_as_json_numbers():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]

    def call(value: Any) -> dict[str, Any]:
        function = {"name": "f", "arguments": {"x": value}}
        return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}

    assert check_tool_call([call(5)], tools, call(5.0))
    assert not check_tool_call([call(True)], tools, call(1))
    assert not check_tool_call([call(5)], tools, call("5"))
