"""Outputs that are meant to confuse: read the same however they are cut into tokens, and as `parse` reads them."""

from __future__ import annotations

import json
import random
import re
import time
from itertools import chain

import pytest

from qwen3.chat import TextDelta, ThinkingPolicy, TokenStream, ToolCallDelta, ToolCallDropped, encode, fold, parse
from tests.chat.test_stream import CALL, drive

TAG = re.compile(r"(<think>|</think>|<tool_call>|</tool_call>|<\|im_end\|>|<\|im_start\|>)")
OPEN = '<tool_call>\n{"name": "f", "arguments": {"a": [1, '

# (output, reasoning, content, arguments of the calls, finish reason). The prompt leaves it to the model to think.
CORPUS = [
    ("<think>\nThe tag `<think>` opens.</think>\nA", "The tag `<think>` opens.", "A", [], "stop"),
    ("<think>a</think>Write <think> and </think>, so.", "a", "Write <think> and </think>, so.", [], "stop"),
    ("Write <think>x</think>.", "", "Write <think>x</think>.", [], "stop"),
    ("<think><think>a</think>b</think>", "<think>a", "b</think>", [], "stop"),
    ("<think>a</think>\n</think>\n\n</think>b", "a", "b", [], "stop"),
    ("<think></think><think>b</think>", "", "<think>b</think>", [], "stop"),
    ("\n<think>b</think>", "", "\n<think>b</think>", [], "stop"),
    (f"<think>I call {CALL} now</think>A", f"I call {CALL} now", "A", [], "stop"),
    (f"<think>{OPEN}</think>A", OPEN, "A", [], "stop"),
    ("<think>a</think>A</tool_call>", "a", "A</tool_call>", [], "stop"),
    (f"<think>a</think>{CALL}\n{CALL}", "a", "", ['{"a": 1}'] * 2, "tool_calls"),
    (f"A\n{OPEN}", "", f"A\n{OPEN}", [], "stop"),
    (f"A\n\n{OPEN}2]]]}}\n</tool_call>B", "", f"A\n\n{OPEN}2]]]}}\n</tool_call>B", [], "stop"),
    (f"{OPEN}{CALL}", "", OPEN, ['{"a": 1}'], "tool_calls"),
    (f"{CALL}\n{OPEN}</tool_call>\n{CALL}", "", f"\n{OPEN}</tool_call>", ['{"a": 1}'] * 2, "tool_calls"),
    (f"{OPEN}<think>2</think>]}}}}</tool_call>", "", f"{OPEN}<think>2</think>]}}}}</tool_call>", [], "stop"),
    (
        '<tool_call>{"name": "f", "arguments": {"a": "<think> </think> }{ \\" }"}}</tool_call>',
        "", "", ['{"a": "<think> </think> }{ \\" }"}'], "tool_calls",
    ),
    ('<tool_call>{"arguments": {"é": "世🙂"}, "name": "f"}</tool_call>', "", "", ['{"é": "世🙂"}'], "tool_calls"),
    ('<tool_call>{"name": "f", "arguments": {}} more</tool_call>', "", None, [], "stop"),
    ('<tool_call>{"name": "f", "arguments": {"a": 1, }}</tool_call>', "", None, [], "stop"),
    ("<tool_call></tool_call>", "", "<tool_call></tool_call>", [], "stop"),
    ("<think>世界🙂𒀀</think>\n\n世界🙂𒀀\n", "世界🙂𒀀", "世界🙂𒀀\n", [], "stop"),
    ("<|im_start|><think>a</think>", "", "<think>a</think>", [], "stop"),
]  # fmt: skip


@pytest.fixture(scope="module")
def prompt(tok) -> list[int]:
    return encode([{"role": "user", "content": "Q"}], tokenizer=tok).ids


def cut(tok, rng: random.Random, text: str) -> list[int]:
    """Ids of `text`, the tags as such and the rest cut anywhere, inside characters too."""
    ids: list[int] = []
    for piece in TAG.split(text):
        if TAG.fullmatch(piece):
            ids += tok.encode(piece)
        elif rng.random() < 0.3:
            ids += piece.encode() and [BYTES[byte] for byte in piece.encode()]
        else:
            while piece:
                size = rng.randrange(1, len(piece) + 1)
                ids += tok.encode_plain(piece[:size])
                piece = piece[size:]
    return ids


BYTES: dict[int, int] = {}


@pytest.fixture(scope="module", autouse=True)
def _bytes(tok) -> None:
    for id in range(300):
        if len(data := tok.token_bytes(id)) == 1:
            BYTES[data[0]] = id
    assert len(BYTES) == 256


@pytest.mark.parametrize(("output", "reasoning", "content", "calls", "reason"), CORPUS)
def test_corpus_however_it_is_cut(tok, prompt, output, reasoning, content, calls, reason):
    rng = random.Random(output)
    content = output if content is None else content
    for n in range(20):
        ids = cut(tok, rng, output) if n else tok.encode(output)
        events = drive(TokenStream(tok, prompt), [*ids, tok.eos_ids[0]])
        result = fold(events)
        assert (result.reasoning_content, result.content, result.finish_reason) == (reasoning, content, reason)
        assert [call.arguments for call in result.tool_calls] == calls
        assert all(call.id for call in result.tool_calls)
        assert merged(events) == (result.content, [(call.name, call.arguments) for call in result.tool_calls])
        message = parse(ids, tok)
        assert (message.reasoning_content, message.content, message.tool_calls) == (
            reasoning, content, result.tool_calls,
        )  # fmt: skip


def merged(events) -> tuple[str, list[tuple[str, str]]]:
    """What a client puts together by itself from the events as they come; what was shown is only taken back where it
    is told so."""
    text, calls = "", {}
    for event in events:
        if isinstance(event, TextDelta):
            text += event.text
        elif isinstance(event, ToolCallDelta):
            assert (event.index not in calls) == bool(event.id) == bool(event.name), "the first delta says who"
            name, arguments = calls.get(event.index, (event.name, ""))
            calls[event.index] = name, arguments + event.arguments_delta
        elif isinstance(event, ToolCallDropped):
            del calls[event.index]
    return text, list(calls.values())


def test_any_output_however_it_is_cut(tok, prompt):
    """Random texts of tags, calls and broken calls: all cuts give one result, which is `parse`'s."""
    rng = random.Random(11)
    pieces = [
        "<think>", "</think>", "<tool_call>", "</tool_call>", CALL, OPEN, "\n", "\n\n", "Hello, 世界 🙂 𒀀", ".\n\n",
        '\n{"name": "g", "arguments": {"k": "é}"}}\n', '{"arguments": {}, "name": "h"}', "}}", '"', "\\",
    ]  # fmt: skip
    dropped = called = 0
    for _ in range(400):
        output = "".join(rng.choices(pieces, k=rng.randrange(1, 14)))
        if rng.random() < 0.5:
            output = "<think>" + output
        tags = re.findall("</?think>", output)
        if tags[:1] == ["</think>"]:
            continue  # only the prompt can say what it closes
        results = []
        for _ in range(3):
            ids = cut(tok, rng, output)
            events = drive(TokenStream(tok, prompt), ids)
            result, message = fold(events), parse(ids, tok)
            calls = [(call.name, call.arguments) for call in result.tool_calls]
            assert (message.content, message.reasoning_content) == (result.content, result.reasoning_content)
            assert [(call.name, call.arguments) for call in message.tool_calls] == calls
            assert merged(events) == (result.content, calls)
            dropped += any(isinstance(event, ToolCallDropped) for event in events)
            results.append((result.content, result.reasoning_content, calls))
        assert results[0] == results[1] == results[2], output
        called += bool(results[0][2])
    assert min(dropped, called) > 50


def test_a_dropped_call_is_told_and_its_index_not_given_again(tok, prompt):
    events = drive(TokenStream(tok, prompt), tok.encode(f"{CALL}\n{OPEN}</tool_call>\n{CALL}"))
    told = [event for event in events if isinstance(event, ToolCallDropped)]
    assert [(event.index, event.text) for event in told] == [(1, f"\n{OPEN}</tool_call>")]
    following = events[events.index(told[0]) + 1]
    assert isinstance(following, TextDelta)
    assert told[0].text.startswith(following.text)
    assert {event.index for event in events if isinstance(event, ToolCallDelta)} == {0, 1, 2}
    assert len(fold(events).tool_calls) == 2


def test_a_stop_string_does_not_reach_over_a_tag(tok, prompt):
    def said(output: str, stop: str):
        return fold(drive(TokenStream(tok, prompt, stop=stop), tok.encode(output)))

    for output in ("<think>EN</think>D", "EN</tool_call>D", f"EN{CALL}D"):
        result = said(output, "END")
        assert result.matched is None
        assert result.content == {"<": "D", "E": output.replace(CALL, "")}[output[0]]
    assert said("<think>a</think>EN<think>D", "N<think>").content == "E", "a tag that is text counts"
    assert said("<think>END</think>END", "END").reasoning_content == "END"


def test_an_end_inside_thinking_and_half_a_character(tok, prompt):
    character = [BYTES[byte] for byte in "𒀀".encode()]
    for size in (1, 2, 3):
        for tag in ("<think>", ""):
            part = character[:size]
            ids = [*tok.encode(f"{tag}ok "), *part, tok.eos_ids[0], *tok.encode("A"), *part, tok.eos_ids[0]]
            result = fold(drive(TokenStream(tok, prompt), ids))
            shown = result.reasoning_content if tag else result.content
            assert shown == "ok "
            assert result.content == ("A" if tag else "ok ")
            before = [*tok.encode("A"), *part, *tok.encode(f"{CALL}B"), *part, *tok.encode("<tool_call>"), *part]
            result = fold(drive(TokenStream(tok, prompt), before))
            assert (result.content, len(result.tool_calls)) == ("AB<tool_call>", 1)
            stream = TokenStream(tok, prompt, ThinkingPolicy("on", size))
            result = fold(drive(stream, [*part, *tok.encode("A")]))
            assert (result.thinking.used, "\ufffd" in result.reasoning_content) == (size, False)


def test_a_megabyte_of_arguments_takes_linear_time(tok, prompt):
    """Streamed as they come; broken at the very end they are content. The cost of a token does not grow."""
    item = json.dumps({"path": 'C:\\dir\\"x"', "text": "lorem ipsum { dolor } [sit] " * 4, "n": [1, 2, {"é": None}]})
    arguments = '{"items": [' + ", ".join([item] * 6_500) + "]}"
    assert len(arguments) > 1_000_000
    ids = tok.encode(item + ", ") * 6_499
    head, tail = tok.encode('<tool_call>\n{"name": "f", "arguments": {"items": ['), tok.encode(item + "]}")
    blocks = []
    for end, broken in (("}\n</tool_call>", False), ("\n</tool_call>", True)):
        stream = TokenStream(tok, prompt)
        events, seconds = [*chain.from_iterable(map(stream.push, head))], []
        for block in range(4):
            part = ids[block * len(ids) // 4 : (block + 1) * len(ids) // 4]
            begin = time.process_time()
            for id in part:
                events += stream.push(id)
            seconds.append(time.process_time() - begin)
        blocks.append(seconds)
        begin = time.process_time()
        events += drive(stream, [*tail, *tok.encode(end + "<|im_end|>")], limit=10**7)
        result = fold(events)
        assert time.process_time() - begin < max(2, sum(seconds))
        if broken:
            assert result.content == f'<tool_call>\n{{"name": "f", "arguments": {arguments}\n</tool_call>'
            assert result.tool_calls == ()
        else:
            assert [call.arguments for call in result.tool_calls] == [arguments]
            assert len(events) > 100_000, "they came as they were written"
    quickest = [*map(min, zip(*blocks, strict=True))]  # a pause of the machine comes in one of them
    assert quickest[-1] < 4 * min(quickest)
