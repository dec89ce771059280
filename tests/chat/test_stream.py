"""The token stream: what it shows, what it forces, and that streamed and folded are the same."""

from __future__ import annotations

import json
import random
import time
from itertools import chain, repeat

import pytest

from qwen3.chat import (
    Finish,
    ReasoningDelta,
    TextDelta,
    ThinkingPolicy,
    TokenStream,
    ToolCallDelta,
    encode,
    fold,
    parse,
    render,
)
from qwen3.chat.stream import CLOSE_THINK, EARLY_STOP
from qwen3.errors import UsageError

USER = [{"role": "user", "content": "Q"}]


def drive(stream: TokenStream, model, limit: int = 10_000) -> list:
    """What an engine does: forced tokens first, else the model's next; "length" when it has no more."""
    events, model = [], iter(model)
    while stream.done is None:
        token = stream.forced()
        if token is None:
            token = next(model, None)
        if token is None or len(stream.output_ids) >= limit:
            return events + stream.close("length")
        events += stream.push(token)
    return events


@pytest.fixture
def run(tok, prompts):
    """`run(text)`: the folded result of a model that says `text`, control strings parsed."""

    def run(text, policy=None, state="start", **options):
        stream = TokenStream(tok, prompts[state], policy, **options)
        result = fold(drive(stream, tok.encode(text) if isinstance(text, str) else text))
        assert result.usage.completion_tokens == len(stream.output_ids)
        return result

    return run


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("state", "text", "reasoning", "content", "reason"),
    [
        ("start", "<think>\nR\n</think>\n\nA<|im_end|>", "R", "A", "stop"),
        ("start", "<think>\n\nR\n\nS\n\n\n</think>\n\n\nA\n<|im_end|>", "R\n\nS", "A\n", "stop"),
        ("start", "<think>\n\n</think>\n\nA<|endoftext|>", "", "A", "stop"),
        ("start", "<think></think>A<|im_end|>", "", "A", "stop"),
        ("start", "A<|im_end|>", "", "A", "stop"),
        ("start", "\nA\n<|im_end|>", "", "\nA\n", "stop"),
        ("start", "<|im_end|>", "", "", "stop"),
        ("start", "<think>\nR", "R", "", "length"),
        ("start", "A <think>B</think>C<|im_end|>", "", "A <think>B</think>C", "stop"),
        ("start", "\n<think>B</think>C<|im_end|>", "", "\n<think>B</think>C", "stop"),
        ("start", "<think>B</think>C <think>D</think>\n\n<|im_end|>", "B", "C <think>D</think>\n\n", "stop"),
        ("start", "<think>B</think>\n</think>\nC</think><|im_end|>", "B", "C</think>", "stop"),
        ("start", f"<think>B</think>{CALL}</think><|im_end|>", "B", "</think>", "tool_calls"),
        ("answer", "</think>\nA<|im_end|>", "", "A", "stop"),
        ("start", "<think>a <tool_call> b <think> c</think>A<|im_end|>", "a <tool_call> b <think> c", "A", "stop"),
        ("answer", "\n\nA<|im_end|>", "", "A", "stop"),
        ("answer", "A", "", "A", "length"),
        ("thinking", "R\n</think>\n\nA<|im_end|>", "R", "A", "stop"),
        ("thinking", "\n\nR", "R", "", "length"),
        ("thinking", "<|im_start|>R</think><|im_start|>A<|im_end|>", "R", "A", "stop"),
        ("start", f"Let me.\n{CALL}<|im_end|>", "", "Let me.", "tool_calls"),
        ("start", f"Let me.\n\n{CALL}\n{CALL}\n<|im_end|>", "", "Let me.\n", "tool_calls"),
        ("thinking", f"R\n</think>\n\n{CALL}<|im_end|>", "R", "", "tool_calls"),
        ("start", f"A\n{CALL}\nB\n{CALL}<|im_end|>", "", "A\nB", "tool_calls"),
        ("start", "A\n<tool_call>\nx\n</tool_call>\nB<|im_end|>", "", "A\n<tool_call>\nx\n</tool_call>\nB", "stop"),
        ("start", '<tool_call>\n{"name": "f"<|im_end|>', "", '<tool_call>\n{"name": "f"', "stop"),
        ("start", f"<tool_call>\nx\n{CALL}<|im_end|>", "", "<tool_call>\nx", "tool_calls"),
        ("start", "A</tool_call>B<|im_end|>", "", "A</tool_call>B", "stop"),
    ],
)
def test_what_is_shown(run, state, text, reasoning, content, reason):
    result = run(text, state=state)
    assert (result.reasoning_content, result.content, result.finish_reason) == (reasoning, content, reason)
    left = content.count("<tool_call>")
    assert len([warning for warning in result.warnings if "left in the content" in warning]) == left
    assert len(result.tool_calls) == text.count(CALL)


def test_tool_call_events(tok, prompts):
    text = f'{CALL}\n<tool_call>\n{{"name": "g", "arguments": {{}}}}\n</tool_call><|im_end|>'
    events = drive(TokenStream(tok, prompts["start"]), tok.encode(text))
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert [(call.index, call.name) for call in calls if call.id] == [(0, "f"), (1, "g")]
    assert [call.arguments for call in fold(events).tool_calls] == ['{"a": 1}', "{}"]
    assert len({call.id for call in calls if call.id}) == 2
    assert len(calls) > 2, "arguments come in parts"
    assert isinstance(events[-1], Finish)


def test_tools_left_out(run):
    result = run(f"A\n{CALL}<|im_end|>", include_tools=False)
    assert (result.content, result.tool_calls, result.finish_reason) == (f"A\n{CALL}", (), "stop")


def test_usage_and_report(run, tok, prompts):
    result = run("<think>\none two\n</think>\n\nA<|im_end|>")
    assert result.usage.prompt_tokens == len(prompts["start"])
    assert result.usage.reasoning_tokens == result.thinking.used == len(tok.encode("\none two\n"))
    assert (result.thinking.mode, result.thinking.ended_by, result.thinking.forced_tokens) == ("on", "natural", 0)
    result = run("A<|im_end|>", state="answer")
    assert (result.thinking.mode, result.thinking.ended_by, result.usage.completion_tokens) == ("off", None, 2)
    result = run("R", state="thinking")
    assert (result.thinking.ended_by, result.reasoning_content, result.content) == ("length", "R", "")


def test_mode_on_opens_the_think_block(run, tok, prompts):
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy("on"))
    result = fold(drive(stream, tok.encode("R\n</think>\n\nA<|im_end|>")))
    assert tok.decode(stream.output_ids) == "<think>\nR\n</think>\n\nA<|im_end|>"
    assert (result.reasoning_content, result.content, result.thinking.forced_tokens) == ("R", "A", 2)
    assert run("R\n</think>A<|im_end|>", ThinkingPolicy("on"), "thinking").thinking.forced_tokens == 0
    assert "closed its think block already" in run("A<|im_end|>", ThinkingPolicy("on"), "answer").warnings[0]


@pytest.mark.parametrize("budget", [0, 1, 2, 7, 24, 100])
@pytest.mark.parametrize("state", ["start", "thinking"])
def test_budget_is_exact(tok, prompts, state, budget):
    """A model that never stops thinking: exactly `budget` tokens, then the published text, then its answer."""
    stream = TokenStream(tok, prompts[state], ThinkingPolicy("on", budget))
    word = tok.encode(" word")[0]
    answered = []

    def model():
        while stream.state != "answer":
            yield word
        answered.append(len(stream.output_ids))
        yield from tok.encode("A<|im_end|>")

    result = fold(drive(stream, model()))
    opening = "<think>\n" if state == "start" else ""
    closing = EARLY_STOP if budget else CLOSE_THINK
    expected = f"{opening}{' word' * budget}{closing}A<|im_end|>"
    if state == "start" and budget == 0:
        expected = "<think>\n\n</think>\n\nA<|im_end|>"
    assert tok.decode(stream.output_ids) == expected
    assert (result.usage.reasoning_tokens, result.thinking.used) == (budget, budget)
    assert (result.thinking.ended_by, result.content) == ("budget", "A")
    assert result.thinking.forced_tokens == len(stream.output_ids) - budget - 2
    assert result.thinking.mode == ("on" if budget else "off")
    shown = EARLY_STOP.strip("\n").removesuffix("\n</think>")
    assert result.reasoning_content == (" word" * budget + "\n\n" + shown if budget else "")


def test_early_stop_is_the_published_24_tokens(tok):
    published = [271, 82796, 279, 7199, 882, 553, 279, 1196, 11, 358, 614, 311, 2968, 279, 6291, 3118, 389, 279, 7274]
    assert tok.encode(EARLY_STOP) == [*published, 5961, 1431, 624, 151668, 271]


def test_budget_property(tok, prompts):
    """Random models and budgets: never more than the budget, and a block that ends within it is left alone."""
    rng = random.Random(8)
    for _ in range(300):
        budget, length = rng.randrange(30), rng.randrange(40)
        thoughts = [rng.randrange(151_643) for _ in range(length)]
        model = [*thoughts, tok.control.end_think, *tok.encode("\n\nA<|im_end|>")]
        stream = TokenStream(tok, prompts["thinking"], ThinkingPolicy("on", budget))
        result = fold(drive(stream, model))
        assert result.usage.reasoning_tokens == min(budget, length)
        cut = length >= budget
        assert result.thinking.ended_by == ("budget" if cut else "natural")
        closing = tok.encode(EARLY_STOP if budget else CLOSE_THINK)
        assert result.thinking.forced_tokens == (len(closing) if cut else 0)
        if cut:
            assert stream.output_ids[budget : budget + len(closing)] == closing
        else:
            assert stream.output_ids == model


def test_budget_inside_a_character(tok, prompts):
    """The budget stays exact; the character that it cuts is left out of the text."""
    ids = tok.encode("ok 𒀀𒀀")
    assert tok.token_bytes(ids[-1]) != "𒀀".encode()
    for budget in range(1, len(ids)):
        stream = TokenStream(tok, prompts["thinking"], ThinkingPolicy("on", budget))
        result = fold(drive(stream, ids))
        assert result.usage.reasoning_tokens == budget
        assert "\ufffd" not in result.reasoning_content
        assert result.reasoning_content.split("\n\n")[0] in ("ok", "ok ", "ok 𒀀")


def test_end_of_turn_inside_thinking(tok, prompts):
    for end in tok.eos_ids:
        stream = TokenStream(tok, prompts["thinking"])
        result = fold(drive(stream, [*tok.encode("R"), end, *tok.encode("A<|im_end|>")]))
        assert tok.decode(stream.output_ids) == "R\n</think>\n\nA<|im_end|>"
        assert (result.reasoning_content, result.content, result.finish_reason) == ("R", "A", "stop")
        assert (result.thinking.ended_by, result.thinking.forced_tokens, result.thinking.used) == ("eos", 3, 1)


def test_length_while_the_closing_text_is_forced(tok, prompts):
    stream = TokenStream(tok, prompts["thinking"], ThinkingPolicy("on", 3))
    result = fold(drive(stream, repeat(tok.encode(" w")[0]), limit=10))
    assert (result.finish_reason, result.thinking.ended_by, result.content) == ("length", "length", "")
    assert result.reasoning_content.startswith(" w w w\n\nConsidering")
    assert stream.forced() is None


def test_the_forced_token_must_be_pushed(tok, prompts):
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy("on"))
    with pytest.raises(UsageError, match="token 5 was pushed where 151667 is forced"):
        stream.push(5)


def test_ignore_eos_and_min_tokens(tok, prompts, run):
    result = run("A<|im_end|>B<|endoftext|>C", ignore_eos=True)
    assert (result.content, result.finish_reason) == ("ABC", "length")
    stream = TokenStream(tok, prompts["start"], min_tokens=3, stop_token_ids=[77])
    ids = tok.encode(" one two three four five<|im_end|>")
    for i, id in enumerate(ids):
        assert stream.banned() == ({*tok.eos_ids, 77} if i < 3 else set())
        stream.push(id)
    assert stream.done == "stop"
    assert run(" one STOP two STOP", stop="STOP", min_tokens=4).content == " one STOP two "


def test_stop_ids(run, tok):
    result = run(" one two three", stop_token_ids=tok.encode(" two"))
    assert (result.content, result.finish_reason, result.matched) == (" one", "stop", tok.encode(" two")[0])
    assert run("A<|im_end|>", eos_ids=()).finish_reason == "length"


# Stop strings


@pytest.mark.parametrize(
    ("text", "stop", "content", "matched"),
    [
        ("Hello world", ["o w"], "Hell", "o w"),
        ("Hello\nworld", "\n", "Hello", "\n"),
        ("Hello\n\nworld", ["\n\n"], "Hello", "\n\n"),
        ("ababac", ["abac"], "ab", "abac"),
        ("a stop b STOP", ["STOP", "stop b"], "a ", "stop b"),
        ("abc", ["c", "bc"], "a", "bc"),
        ("abc", ["b", "bc"], "a", "bc"),
        ("nothing", ["x"], "nothing", None),
        ("almost STO", ["STOP"], "almost STO", None),
        ("世界🙂!", ["🙂"], "世界", "🙂"),
        (f"A\n{CALL} STOP", ["name", "STOP"], "A ", "STOP"),
    ],
)
def test_stop_strings(run, text, stop, content, matched):
    result = run(text, stop=stop)
    assert (result.content, result.matched) == (content, matched)
    assert result.finish_reason == ("stop" if matched else "length")


def test_stop_strings_count_in_the_answer_only(run):
    result = run("<think>\na STOP b\n</think>\n\nc STOP d<|im_end|>", stop="STOP")
    assert (result.reasoning_content, result.content) == ("a STOP b", "c ")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<think>\na\n</think>\n\nc\n\nd<|im_end|>", "c"),
        ("<think>\n\n</think>\n\nc\nd<|im_end|>", "c\nd"),
        ("c\n\nd<|im_end|>", "c"),
        ("\n\nc<|im_end|>", ""),  # no thought: these newlines are the answer's
    ],
)
def test_stop_strings_do_not_find_the_blank_line_after_a_thought(run, text, content):
    result = run(text, stop="\n\n")
    assert (result.content, result.finish_reason) == (content, "stop")


def test_stop_strings_property(tok, prompts):
    """Random texts and stops: the content is the text up to the first match, and nothing beyond is ever shown."""
    rng = random.Random(17)
    hits = 0
    for _ in range(1_000):
        text = "".join(rng.choice("ab\n 世") for _ in range(rng.randrange(1, 40)))
        stops = ["".join(rng.choice("ab\n世") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4))]
        stream = TokenStream(tok, prompts["start"], stop=stops)
        shown = ""
        for event in drive(stream, tok.encode(text)):
            shown += getattr(event, "text", "")
            assert not any(stop in shown for stop in stops)
        ends = [text.find(stop) for stop in stops if stop in text]
        # A token can bring two matches at once; then the one that begins first counts.
        assert shown == (text[: min(ends)] if ends else text), (text, stops)
        hits += bool(ends)
    assert hits > 300


@pytest.mark.parametrize("stop", [[""], ["a", 3], [None]])
def test_bad_stops(tok, stop):
    with pytest.raises(UsageError, match=r"stop\[\d\] must be a string that is not empty"):
        TokenStream(tok, [1], stop=stop)


# Streamed = folded


def random_ids(rng: random.Random, tok) -> list[int]:
    """Control ids, texts, calls, good and bad, and raw bytes in any order."""
    control = tok.control
    pieces = [
        [control.think],
        [control.end_think],
        [control.tool_call],
        [control.end_tool_call],
        tok.encode(CALL),
        tok.encode("\n"),
        tok.encode("\n\n"),
        tok.encode("Hello, 世界 🙂 𒀀"),
        tok.encode(".\n\n"),
        [rng.randrange(256)],
        [rng.randrange(tok.vocab_size)],
        [control.im_start],
    ]
    return list(chain.from_iterable(rng.choice(pieces) for _ in range(rng.randrange(1, 25))))


def test_streamed_equals_parsed_on_random_ids(tok, prompts, capsys):
    """`parse` is the other way to read a turn, written apart: both must agree on every sequence of ids.

    Except where a `</think>` comes first: only the prompt can say what it closes. Then the prompt does.
    """
    rng = random.Random(42)
    thought = called = 0
    for _ in range(3_000):
        ids = [id for id in random_ids(rng, tok) if id not in tok.eos_ids]
        tags = [id for id in ids if id in (tok.control.think, tok.control.end_think)]
        state = "thinking" if tags[:1] == [tok.control.end_think] else "start"
        stream = TokenStream(tok, prompts[state])
        streamed, message = fold(drive(stream, ids)), parse(ids, tok)
        assert stream.output_ids == ids
        assert streamed.reasoning_content == message.reasoning_content, tok.decode(ids)
        assert streamed.tool_calls == message.tool_calls
        assert streamed.content == message.content, tok.decode(ids)
        thought += bool(message.reasoning_content)
        called += bool(message.tool_calls)
    assert min(thought, called) > 500
    with capsys.disabled():
        print(f"\n3,000 random id sequences ({thought} with thinking, {called} with calls): streamed = parsed")


def test_what_was_shown_stays(tok, prompts):
    """Cut anywhere: the events so far, then a close, show at least what was shown, and the rest only adds to it."""
    rng = random.Random(6)
    for _ in range(200):
        ids = random_ids(rng, tok)
        whole = TokenStream(tok, prompts["start"])
        steps = [whole.push(id) if whole.done is None and whole.forced() in (None, id) else [] for id in ids]
        cut = rng.randrange(len(ids) + 1)
        part = TokenStream(tok, prompts["start"])
        for id, events in zip(ids[:cut], steps, strict=False):
            if part.done is None and part.forced() in (None, id):
                again = part.push(id)
                assert [getattr(event, "text", None) for event in again] == [
                    getattr(event, "text", None) for event in events
                ]
        before, after = fold(chain(*steps[:cut])), fold(chain(*steps))
        assert after.content.startswith(before.content)
        assert after.reasoning_content.startswith(before.reasoning_content)
        closed = fold([*chain(*steps[:cut]), *part.close("cancelled")])
        assert closed.content.startswith(before.content)
        assert closed.finish_reason in ("cancelled", None)


def test_ids_of_deltas(tok, prompts):
    ids = tok.encode("<think>\nLet me see.\n</think>\n\nThe answer: 𒀀.<|im_end|>")
    events = drive(TokenStream(tok, prompts["start"]), ids)
    for event in events:
        if isinstance(event, ReasoningDelta | TextDelta):
            assert event.text
            assert event.text.strip("\n") in tok.decode(event.ids)
    given = list(chain.from_iterable(getattr(event, "ids", ()) for event in events))
    assert given == [id for id in ids if id in given]


def test_close_is_idempotent_and_late_tokens_are_ignored(tok, prompts):
    stream = TokenStream(tok, prompts["start"])
    stream.push(tok.encode("A")[0])
    events = stream.close("cancelled")
    assert isinstance(events[-1], Finish)
    assert events[-1].reason == stream.done == "cancelled"
    assert (stream.close("length"), stream.push(5), stream.forced(), stream.state) == ([], [], None, "done")
    with pytest.raises(UsageError, match="close: reason must be one of stop, length, cancelled, loop, not 'tired'"):
        stream.close("tired")


# First states


def test_first_state_is_read_off_the_prompt(tok, prompts):
    for state, ids in prompts.items():
        assert TokenStream(tok, ids).state == state
    history = [*USER, {"role": "assistant", "content": "A", "reasoning_content": "R"}, *USER]
    assert TokenStream(tok, encode(history, tokenizer=tok).ids).state == "start"
    last = encode(history[:2], tokenizer=tok, add_generation_prompt=False).ids[:-2]
    assert TokenStream(tok, last).state == "answer"
    assert TokenStream(tok, []).state == "start"
    typed = encode([{"role": "user", "content": "<think>"}], tokenizer=tok).ids
    assert TokenStream(tok, typed).state == "start"


@pytest.mark.parametrize("state", ["start", "thinking", "answer"])
def test_nothing_is_split_off_where_the_text_is_wanted_as_it_is(tok, prompts, state):
    text = "\n<think>\na b\n</think>\n\nc <tool_call>\n{}\n</tool_call>"
    stream = TokenStream(tok, prompts[state], split=False, include_tools=False, stop=["}"])
    events = drive(stream, iter(tok.encode(text)))
    assert (fold(events).content, fold(events).matched) == (text[: text.index("}")], "}")
    again = stream.fresh(stop=())
    assert fold(drive(again, iter(tok.encode(text)))).content == text


def test_going_on_with_a_started_answer(tok, prompts):
    """An answer or a thought that the prompt began keeps the newlines that come next."""
    begun = TokenStream(tok, [*prompts["answer"], *tok.encode("First line")])
    assert fold(drive(begun, tok.encode("\nSecond<|im_end|>"))).content == "\nSecond"
    begun = TokenStream(tok, [*prompts["thinking"], *tok.encode("First line")])
    assert fold(drive(begun, tok.encode("\n\nSecond</think>A<|im_end|>"))).reasoning_content == "\n\nSecond"


def test_other_tokenizers(tok):
    """Nothing depends on the official ids."""
    small = tok.prefix(1_000)
    prompt = encode(USER, tokenizer=small).ids
    stream = TokenStream(small, prompt, ThinkingPolicy("on", 5))
    result = fold(drive(stream, chain(repeat(small.encode("x")[0], 5), small.encode("A<|im_end|>"))))
    assert (result.reasoning_content.split("\n")[0], result.content, result.thinking.used) == ("xxxxx", "A", 5)


def test_result_renders_back_to_the_same_tokens(tok, prompts):
    """The turn, put into the history, is what the model wrote: the prefix cache can use it."""
    for answer in ("A\nB", f"A\n{CALL}\n{CALL}", CALL):
        text = f"<think>\nR\n\nS\n</think>\n\n{answer}"
        ids = tok.encode(text + "<|im_end|>")
        result = fold(drive(TokenStream(tok, prompts["start"]), ids))
        history = encode([*USER, result.message.to_dict()], tokenizer=tok, add_generation_prompt=False)
        assert history.ids == [*prompts["start"], *ids, 198]
        assert json.loads(json.dumps(result.message.to_dict())) == result.message.to_dict()
        assert render([*USER, result.message]).startswith(render(USER) + text)


def test_cost_of_a_token_does_not_grow(tok, prompts, capsys):
    stream = TokenStream(tok, prompts["start"], stop=["###", "User:"])
    ids = tok.encode("The quick brown fox. " * 4_000)
    seconds = []
    for block in range(4):
        part = ids[block * len(ids) // 4 : (block + 1) * len(ids) // 4]
        begin = time.perf_counter()
        for id in part:
            stream.push(id)
        seconds.append((time.perf_counter() - begin) / len(part))
    assert seconds[-1] < 5 * min(seconds)
    with capsys.disabled():
        print(f"\n{len(ids):,} tokens, {min(seconds) * 1e6:.1f} µs a push")
