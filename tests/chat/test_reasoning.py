"""Reasoning put back into tool loops: the prompt is then the one the model had, and its own turn."""

from __future__ import annotations

import copy
import json
import random
import time
from typing import Any

import pytest

from qwen3.chat import Message, ToolCall, normalize, parse, render
from qwen3.chat.reasoning import memory_key, restore_reasoning
from qwen3.chat.template import split_think
from qwen3.errors import UsageError
from tests.chat.random_chat import WORDS, conversation, tool

THINKING = ["qwen3", "thinking-2507"]


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 5)))


def model_turn(rng: random.Random, calls: int) -> str:
    """What a model writes after the generation prompt, its end apart."""
    thought, answer = f"So {words(rng)}".strip("\n"), rng.choice(["", f"I say: {words(rng)}.".strip("\n")])
    bodies = []
    for _ in range(calls):
        arguments = json.dumps({words(rng): rng.randrange(9), "q": [words(rng)]}, ensure_ascii=False)
        bodies.append(f'<tool_call>\n{{"name": "f{rng.randrange(3)}", "arguments": {arguments}}}\n</tool_call>')
    return f"<think>\n{thought}\n</think>\n\n" + "\n".join([answer] * bool(answer) + bodies)


def dropped(rng: random.Random, message: Message) -> dict[str, Any]:
    """The turn as some client sends it back."""
    sent = message.to_dict()
    del sent["reasoning_content"]
    if rng.random() < 0.5:
        sent["content"] = sent["content"] or None
    if rng.random() < 0.3:
        sent |= {"reasoning_content": None, "refusal": None, "annotations": []}
    if rng.random() < 0.3:
        sent["content"] = [{"type": "text", "text": sent["content"] or ""}]
    if rng.random() < 0.5:  # the model wrote the arguments as the template does
        for call in sent["tool_calls"]:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return sent


class Memory:
    """A store in its simplest form."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.asked = 0

    def keep(self, messages: list[Any], turn: Message) -> None:
        for call in turn.tool_calls:
            assert call.id is not None
            self.kept[memory_key([*messages, turn], call.id)] = turn.reasoning_content

    def lookup(self, key: str, turn: dict[str, Any]) -> str | None:
        self.asked += 1
        assert turn["tool_calls"]
        return self.kept.get(key)


@pytest.mark.parametrize("template", THINKING)
def test_the_prompt_is_the_one_the_model_had(template):
    """Loops of up to four tool turns, two questions one after the other, clients that drop the thinking."""
    rng = random.Random(21)
    loops = 0
    for _ in range(150):
        memory, tools = Memory(), [tool(rng, False)] if rng.random() < 0.7 else None
        opens = "<think>\n" if template == "thinking-2507" else ""
        sent = [{"role": "system", "content": words(rng)}] if rng.random() < 0.5 else []
        for _ in range(2):
            sent.append({"role": "user", "content": words(rng) + "?"})
            before = ""
            for step in range(rng.randrange(1, 5)):
                messages, restored = restore_reasoning(sent, memory.lookup)
                assert restored == step
                prompt = render(messages, tools=tools, template=template)
                assert prompt.startswith(before)
                written = model_turn(rng, rng.randrange(1, 4))
                before = prompt + written.removeprefix(opens) + "<|im_end|>\n"
                turn = parse(written)
                assert turn.tool_calls
                assert not turn.warnings
                memory.keep(sent if rng.random() < 0.5 else messages, turn)
                sent.append(dropped(rng, turn))
                for call in turn.tool_calls:
                    content = f"result {words(rng)}"
                    sent.append({"role": "tool", "content": content, "tool_call_id": call.id})
                loops += 1
            messages, _ = restore_reasoning(sent, memory.lookup)
            assert render(messages, tools=tools, template=template).startswith(before)
            sent.append({"role": "assistant", "content": words(rng)})
    print(f"\n{loops} tool turns")


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": [2.5]}'}}
ASK: list[dict[str, Any]] = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
TURN = {"role": "assistant", "content": "", "tool_calls": [CALL]}
LOOP = [*ASK, TURN, {"role": "tool", "content": "R", "tool_call_id": "call_1"}]


def always(key: str, turn: dict[str, Any]) -> str:
    return "because"


@pytest.mark.parametrize(
    "change",
    [
        {"reasoning_content": "mine"},
        {"reasoning_content": ""},
        {"reasoning": "mine"},
        {"thinking": "mine"},
        {"content": "<think>\nmine\n</think>\n\nA"},
        {"tool_calls": []},
        {"tool_calls": [{"function": CALL["function"]}]},  # no id
    ],
)
def test_what_is_left_alone(change):
    messages = [*ASK, {**TURN, **change}, LOOP[-1]]
    assert restore_reasoning(messages, always) == (normalize(messages), 0)


def test_only_after_the_last_question():
    again = [*LOOP, {"role": "user", "content": "And?"}]
    assert restore_reasoning(again, always)[1] == 0
    assert restore_reasoning([*LOOP, TURN, LOOP[-1]], always)[1] == 2
    assert restore_reasoning([*again, TURN, LOOP[-1]], always)[1] == 1
    response = {"role": "user", "content": "<tool_response>\nR\n</tool_response>"}
    messages, restored = restore_reasoning([*ASK, TURN, response], always)
    assert restored == 1
    assert messages[2]["reasoning_content"] == "because"
    assert restore_reasoning([TURN, LOOP[-1]], always)[1] == 0  # no question: the template keeps no thinking


def test_agrees_with_the_template():
    """On any conversation: reasoning is given to exactly those turns whose prompt it changes."""
    rng = random.Random(4)
    total = 0
    for _ in range(400):
        messages = [m for m in conversation(rng) if m["content"] or m["role"] != "assistant"]
        for i, message in enumerate(messages):
            for j, call in enumerate(message.get("tool_calls", ())):
                function = {"name": "f", **call.get("function", {}), "arguments": {"x": rng.randrange(3)}}
                message["tool_calls"][j] = {"id": f"{i}.{j}", "function": {**function, "name": "f"}}
        messages = normalize(messages)
        changed = []
        for i, message in enumerate(messages):
            bare = "reasoning_content" not in message and not split_think(message["content"])[0]
            if message.get("tool_calls") and bare and "</think>" not in message["content"]:
                given = [*messages[:i], {**message, "reasoning_content": "because"}, *messages[i + 1 :]]
                if render(given) != render(messages):
                    changed.append(i)
        before = copy.deepcopy(messages)
        result, restored = restore_reasoning(messages, always)
        assert messages == before
        assert [i for i, turn in enumerate(result) if turn != messages[i]] == changed
        assert restored == len(changed)
        total += restored
    assert total > 50


def test_any_call_of_the_turn_will_do():
    calls = [{**CALL, "id": f"call_{i}"} for i in range(3)]
    messages = [*ASK, {**TURN, "tool_calls": calls}]
    keys = [memory_key(messages, call["id"]) for call in calls]
    assert len(set(keys)) == 3
    for key in keys:
        result, restored = restore_reasoning(messages, lambda asked, turn, key=key: "r" if asked == key else None)
        assert (restored, result[-1]["reasoning_content"]) == (1, "r")
    assert restore_reasoning(messages, lambda key, turn: None) == (normalize(messages), 0)
    assert restore_reasoning(messages, lambda key, turn: "")[1] == 0


def key(messages: list[Any]) -> str:
    return memory_key(messages, "call_1")


def test_the_key_stands():
    """What clients change without changing the conversation."""
    earlier = [*LOOP, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q2"}]
    loop = [*earlier, TURN]
    same = key(loop)
    assert len(same) == 64
    assert key([*loop, LOOP[-1], {"role": "user", "content": "more"}]) == same
    for i, change in [
        (0, {"content": [{"type": "text", "text": "S"}]}),
        (1, {"name": "user7"}),
        (2, {"content": None, "reasoning_content": "r"}),
        (2, {"content": "<think>\nr\n</think>\n\n"}),
        (2, {"tool_calls": [{**CALL, "id": "other"}]}),
        (2, {"tool_calls": [{"function": {"name": "f", "arguments": {"b": [2.5], "a": 1}}}]}),
        (3, {"tool_call_id": None}),
        (4, {"content": "A\n", "refusal": None}),
        (6, {"content": "Let me see."}),
        (6, {"reasoning_content": "r"}),
        (
            6,
            {
                "tool_calls": [
                    {**CALL, "id": "call_0"},
                    {**CALL, "function": {"name": "f", "arguments": ' {"b":[2.5],"a":1}'}},
                ]
            },
        ),
    ]:
        changed = [*loop[:i], {**loop[i], **change}, *loop[i + 1 :]]
        assert key(changed) == same, change
    calls = (ToolCall("f", '{"a":1,"b":[2.5]}', "call_1"),)
    assert key([*earlier, Message("assistant", "", "r", calls)]) == same


def test_the_key_tells_apart():
    loop = [*LOOP, TURN]
    seen = {key(loop), key([*ASK, TURN])}
    for i, change in [
        (0, {"content": "T"}),
        (0, {"role": "user"}),
        (1, {"content": "Q "}),
        (2, {"content": "x"}),
        (2, {"tool_calls": [{**CALL, "function": {"name": "g", "arguments": "{}"}}]}),
        (2, {"tool_calls": [CALL, CALL]}),
        (2, {"tool_calls": []}),
        (2, {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": "not json"}}]}),
        (3, {"content": "R2"}),
        (3, {"role": "user"}),
        (4, {"tool_calls": [{**CALL, "function": {"name": "g", "arguments": CALL["function"]["arguments"]}}]}),
        (4, {"tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"a": 2}'}}]}),
    ]:
        changed = [*loop[:i], {**loop[i], **change}, *loop[i + 1 :]]
        assert key(changed) not in seen, change
        seen.add(key(changed))
    other = [*LOOP, {**TURN, "tool_calls": [{**CALL, "id": "call_2"}]}]
    assert memory_key(other, "call_2") not in seen


def test_errors():
    with pytest.raises(UsageError, match="no tool call with the id 'call_9'"):
        memory_key(LOOP, "call_9")
    for function in (lambda m: restore_reasoning(m, always), key):
        with pytest.raises(UsageError, match=r"messages\[2\]\.role"):
            function([*ASK, {"role": "robot", "content": ""}])
    deep = '{"a": ' * 5000 + "1" + "}" * 5000
    messages = [*ASK, {**TURN, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": deep}}]}]
    assert restore_reasoning(messages, always)[1] == 1


def test_a_long_loop_is_cheap():
    """One pass over the conversation, however many turns there are."""
    messages = list(ASK)
    for i in range(300):
        messages += [{**TURN, "tool_calls": [{**CALL, "id": f"c{i}"}]}, {"role": "tool", "content": "x" * 10_000}]
    start = time.process_time()
    assert restore_reasoning(messages, always)[1] == 300
    spent = time.process_time() - start
    print(f"\n300 tool turns of 10 kB: {spent * 1e3:.0f} ms")
    assert spent < 1
