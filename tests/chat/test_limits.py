"""What closes a thought, what may not be sampled, and what the report says about it. The models are scripts."""

from __future__ import annotations

import json
import random
import re
from itertools import chain, cycle, repeat

import numpy as np
import pytest

from qwen3.chat import ThinkingPolicy, TokenStream, fold
from qwen3.chat.stream import CLOSE_THINK, EARLY_STOP
from qwen3.engine.constraint import Constraint
from qwen3.errors import UsageError
from tests.chat.test_stream import drive

ANSWER = "\n</think>\n\nA<|im_end|>"


def stopped(thought: str) -> str:
    return thought + EARLY_STOP


def think(tok, prompt, policy, thought: str, answer: str = "A<|im_end|>", **options) -> tuple[TokenStream, object]:
    """A model that thinks `thought`, as long as it is let, and then answers."""
    stream = TokenStream(tok, prompt, policy, **options)
    thoughts, answers = iter(tok.encode(thought)), iter(tok.encode(answer))

    def model():
        while True:
            yield next(thoughts if stream.state == "thinking" else answers)

    return stream, fold(drive(stream, model()))


# Steps


PARAGRAPHS = "One is here.\n\nTwo (2).\n \nThree\n\n\n\nFour:\n- a\n- b\n\nFive."


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        (1, "One is here.\n\n"),
        (2, "One is here.\n\nTwo (2).\n \n"),
        (3, "One is here.\n\nTwo (2).\n \nThree\n\n\n\n"),
        (4, "One is here.\n\nTwo (2).\n \nThree\n\n\n\nFour:\n- a\n- b\n\n"),
    ],
)
def test_steps_are_paragraphs(tok, prompts, steps, kept):
    stream, result = think(tok, prompts["thinking"], ThinkingPolicy(max_steps=steps), PARAGRAPHS + ANSWER)
    assert tok.decode(stream.output_ids) == f"{stopped(kept)}A<|im_end|>"
    assert (result.thinking.ended_by, result.thinking.steps, result.content) == ("steps", steps, "A")
    assert result.thinking.used == len(tok.encode(kept))


def test_steps_that_suffice_change_nothing(tok, prompts):
    for policy in (None, ThinkingPolicy(max_steps=5), ThinkingPolicy(max_steps=32)):
        stream, result = think(tok, prompts["thinking"], policy, PARAGRAPHS + ANSWER)
        assert tok.decode(stream.output_ids) == PARAGRAPHS + "\n</think>A<|im_end|>"
        assert (result.thinking.ended_by, result.thinking.steps) == ("natural", 5)
    assert think(tok, prompts["thinking"], None, ANSWER)[1].thinking.steps == 0


# Landing


def test_soft_landing_ends_with_the_sentence(tok, prompts):
    thought = "First we add. Then, 3.5 of it! Is it so? Yes\nAnd so on and so on and so on"
    ids = tok.encode(thought)
    ends = [i + 1 for i, id in enumerate(ids) if re.search(r"[.!?]$|\n", tok.decode([id]))]
    assert len(ends) >= 4
    for budget in range(1, len(ids) + 1):
        for margin in (1, 2, 5, 1024):
            policy = ThinkingPolicy(budget=budget, soft_landing=margin)
            stream, result = think(tok, prompts["thinking"], policy, thought)
            inside = [end for end in ends if max(budget - margin, 1) <= end <= budget]
            cut = min(inside, default=budget)
            assert tok.decode(stream.output_ids) == stopped(tok.decode(ids[:cut])) + "A<|im_end|>"
            assert (result.thinking.used, result.thinking.ended_by) == (cut, "budget")


def test_landing_needs_a_sentence(tok, prompts):
    """The newline after the tag and empty lines end none."""
    policy = ThinkingPolicy(budget=10, soft_landing=100)
    _, result = think(tok, prompts["start"], ThinkingPolicy("on", 10, soft_landing=100), "\n\n\n\nSo. B.")
    assert result.reasoning_content.startswith("So.\n\nConsidering")
    stream = TokenStream(tok, prompts["start"], policy)
    for id in tok.encode("<think>\n"):
        stream.push(id)
    assert stream.forced() is None


# Whatever is asked for


def random_policy(rng: random.Random) -> ThinkingPolicy:
    budget = rng.choice([None, 0, 1, 2, 7, 25])
    mode = rng.choice([None, "on", "auto"])
    if budget == 0:
        return ThinkingPolicy(mode, 0)
    return ThinkingPolicy(
        mode,
        budget,
        max_steps=rng.choice([None, 1, 2, 32]),
        soft_landing=rng.choice([None, 1, 10, 1024]) if budget else None,
        loop_guard=rng.random() < 0.5,
    )


def test_no_policy_is_ever_overshot(tok, prompts):
    """Random policies, closings from outside and models: reasoning within its bounds, forced text exact and counted,
    and an answer follows."""
    rng = random.Random(3)
    pieces = [
        tok.encode(text) for text in ("\n\n", ".\n\n", "\n", ".", " so", " then 5", "𒀀", "</think>", "<tool_call>")
    ]
    closings = [tok.encode(EARLY_STOP), tok.encode(CLOSE_THINK)]
    seen: set[str | None] = set()
    for _ in range(1_500):
        policy, state = random_policy(rng), rng.choice(["start", "thinking"])
        stream = TokenStream(tok, prompts[state], policy)
        script = [tok.control.think] * (state == "start" and policy.mode != "on" and policy.budget != 0)
        weights = [1, 1, 1, 1, 4, 4, 1, rng.choice([0, 0.1]), 0.1]
        script += chain.from_iterable(rng.choices(pieces, weights, k=rng.randrange(1, 60)))
        close_when, ahead, events = rng.randrange(60), rng.randrange(5), []
        for id in script:
            if len(stream.output_ids) == close_when:
                stream.close_thinking("client", close_when + ahead)
            while (token := stream.forced()) is not None:
                events += stream.push(token)
            if stream.state == "answer":
                break
            if id not in stream.banned():
                events += stream.push(id)
        while (token := stream.forced()) is not None:
            events += stream.push(token)
        if stream.state == "thinking":
            events += stream.push(tok.eos_ids[0])
            while (token := stream.forced()) is not None:
                events += stream.push(token)
        events += chain.from_iterable(map(stream.push, tok.encode("A<|im_end|>")))
        result = fold(events)
        report = result.thinking
        seen.add(report.ended_by)
        assert result.finish_reason == "stop"
        assert policy.budget is None or report.used <= policy.budget
        assert policy.max_steps is None or report.steps <= policy.max_steps
        assert result.usage.reasoning_tokens == report.used
        assert result.usage.completion_tokens == len(stream.output_ids)
        assert "\ufffd" not in result.reasoning_content
        sampled = len(stream.output_ids) - report.forced_tokens
        assert 0 <= report.used <= sampled
        if report.ended_by in ("budget", "steps", "client") and report.used:
            ids, early = stream.output_ids, closings[0]
            assert any(ids[i : i + len(early)] == early for i in range(len(ids)))
            assert result.content == "A"
    assert seen >= {"budget", "steps", "client", "natural", "eos"}


def test_the_budget_comes_before_the_steps(tok, prompts):
    thought = "One.\n\nTwo."
    first = len(tok.encode("One.\n\n"))
    for budget, cause in ((first, "budget"), (first + 1, "steps")):
        assert think(tok, prompts["thinking"], ThinkingPolicy(budget=budget, max_steps=1), thought)[
            1
        ].thinking.ended_by == cause  # fmt: skip


def test_off_closes_a_block_that_the_prompt_left_open(tok, prompts):
    stream, result = think(tok, prompts["thinking"], ThinkingPolicy("off"), "")
    assert tok.decode(stream.output_ids) == CLOSE_THINK + "A<|im_end|>"
    assert (result.thinking.mode, result.thinking.used, result.thinking.ended_by) == ("off", 0, "budget")


# What must not be sampled


def test_banned(tok, prompts):
    c = tok.control
    calls = {c.tool_call, c.end_tool_call}
    assert TokenStream(tok, prompts["thinking"]).banned() == calls
    assert TokenStream(tok, prompts["thinking"], include_tools=False).banned() == set()
    assert TokenStream(tok, prompts["thinking"], min_tokens=1).banned() == calls | set(tok.eos_ids)
    for state in ("start", "answer"):
        assert TokenStream(tok, prompts[state]).banned() == set()
        assert TokenStream(tok, prompts[state], ThinkingPolicy("off")).banned() == {c.think}
        assert TokenStream(tok, prompts[state], forbid_think=True).banned() == {c.think}
        assert TokenStream(tok, prompts[state], ThinkingPolicy("off"), forbid_think=False).banned() == set()
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy("off"))
    stream.push(c.tool_call)
    assert stream.banned() == set()


# Closing from outside


def test_close_thinking_now_and_later(tok, prompts):
    thought = [*tok.encode(" one two three four five six")]
    for at in (None, 0, 3, 5, 6):
        for cause in ("client", "time", "loop"):
            stream = TokenStream(tok, prompts["thinking"])
            for id in thought[:3]:
                stream.push(id)
            assert stream.close_thinking(cause, at)
            assert stream.close_thinking(cause, at), "twice is once"
            result = fold(drive(stream, chain(thought[3 : max(at or 3, 3)], tok.encode("A<|im_end|>"))))
            kept = tok.decode(thought[: max(at or 3, 3)])
            assert tok.decode(stream.output_ids) == stopped(kept) + "A<|im_end|>"
            assert (result.thinking.ended_by, result.content) == (cause, "A")
            assert not stream.close_thinking(cause)


def test_the_earliest_closing_counts(tok, prompts):
    stream = TokenStream(tok, prompts["thinking"])
    assert stream.close_thinking("time", 9)
    assert stream.close_thinking("client", 2)
    assert stream.close_thinking("time", 5)
    result = fold(drive(stream, chain(repeat(tok.encode(" w")[0], 2), tok.encode("A<|im_end|>"))))
    assert (result.thinking.used, result.thinking.ended_by) == (2, "client")
    stream = TokenStream(tok, prompts["thinking"], ThinkingPolicy(budget=1))
    stream.close_thinking("time", 1)
    assert fold(drive(stream, tok.encode(" wA<|im_end|>"))).thinking.ended_by == "budget"


@pytest.mark.parametrize("mode", [None, "on", "auto"])
def test_closed_before_a_word_was_said(tok, prompts, mode):
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy(mode))
    for _ in range(2):
        assert stream.close_thinking("client")
    result = fold(drive(stream, tok.encode("A<|im_end|>")))
    assert tok.decode(stream.output_ids) == "<think>\n\n</think>\n\nA<|im_end|>"
    assert (result.thinking.ended_by, result.thinking.used, result.content) == ("client", 0, "A")
    assert result.thinking.mode == ("auto" if mode == "auto" else "off")


def test_closing_an_answer_does_nothing(tok, prompts):
    for stream in (
        TokenStream(tok, prompts["answer"]),
        TokenStream(tok, prompts["start"], ThinkingPolicy(budget=0)),
        TokenStream(tok, prompts["start"], ThinkingPolicy("off")),
    ):
        queued = stream.queued
        assert not stream.close_thinking("client")
        assert stream.queued == queued
    stream = TokenStream(tok, prompts["thinking"], ThinkingPolicy(budget=1))
    stream.push(5)
    assert not stream.close_thinking("client"), "the budget was first"
    stream = TokenStream(tok, prompts["start"])
    assert stream.close_thinking("client", 4), "thinking may still begin"
    result = fold(drive(stream, tok.encode("A, and so on, to the end<|im_end|>")))
    assert (result.content, result.thinking.ended_by) == ("A, and so on, to the end", None)
    with pytest.raises(UsageError, match="close_thinking: cause must be one of client, time, loop, not 'boredom'"):
        stream.close_thinking("boredom")


def test_closing_inside_a_character(tok, prompts):
    ids = tok.encode("ok 𒀀")
    for at in range(1, len(ids)):
        stream = TokenStream(tok, prompts["thinking"])
        stream.close_thinking("client", at)
        result = fold(drive(stream, chain(ids[:at], tok.encode("A<|im_end|>"))))
        assert result.thinking.used == at
        assert "\ufffd" not in result.reasoning_content


# Loops


def test_loops_are_seen(tok, prompts):
    words = tok.encode(" round and round it goes")
    stream = TokenStream(tok, prompts["thinking"])
    for _, id in zip(range(2_000), cycle(words), strict=False):
        stream.push(id)
        if stream.wants_close:
            break
    assert (stream.wants_close, stream.wants_end) == ("loop", None)
    assert 256 <= len(stream.output_ids) < 600
    stream.close_thinking("loop", len(stream.output_ids) + 1)
    assert stream.wants_close is None
    stream.push(words[0])
    while stream.forced() is not None:
        stream.push(stream.forced())
    assert stream.wants_close is None
    for _, id in zip(range(200), cycle(words), strict=False):
        stream.push(id)
    assert stream.wants_end is None, "the answer begins anew"
    while not stream.wants_end:
        stream.push(words[len(stream.output_ids) % len(words)])
    result = fold(stream.close(stream.wants_end))
    assert (result.finish_reason, result.thinking.ended_by) == ("loop", "loop")


def test_loops_that_are_nobodys_business(tok, prompts):
    word = tok.encode(" w")[0]
    for policy, options in (
        (ThinkingPolicy(loop_guard=False), {}),
        (None, {"ignore_eos": True}),
        (None, {"min_tokens": 10_000}),
    ):
        stream = TokenStream(tok, prompts["answer"], policy, **options)
        for _ in range(1_000):
            stream.push(word)
        assert (stream.wants_close, stream.wants_end) == (None, None)


# Grammar


class Spelled:
    """The grammar of one text, token by token, or of its ends."""

    def __init__(self, tok, text: str, late: bool = False):
        self.tok, self.ids, self.pushed = tok, tok.encode(text), []
        self.begins_with = self.ids[0] if late else None

    @property
    def done(self) -> bool:
        return self.pushed == self.ids

    def mask(self) -> np.ndarray:
        bits = np.zeros(-(-self.tok.vocab_size // 32) * 32, np.uint8)
        bits[list(self.tok.eos_ids) if self.done else [self.ids[len(self.pushed)]]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def push(self, id: int) -> None:
        assert id == self.ids[len(self.pushed)]
        self.pushed.append(id)

    def rollback(self, count: int) -> None:
        del self.pushed[len(self.pushed) - count :]


def allowed(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


def test_a_grammar_begins_with_the_answer(tok, prompts):
    c, text = tok.control, '{"a": 1}'
    first = tok.encode(text)[0]
    for state, policy, opening in (
        ("start", None, {first, c.think}),
        ("start", ThinkingPolicy("off"), {first}),
        ("answer", None, {first}),
    ):
        stream = TokenStream(tok, prompts[state], policy, matcher=Spelled(tok, text))
        assert stream.constrained
        assert allowed(stream.mask()) == opening
    for thought in ("<think>\nhm\n</think>", "<think></think>"):
        stream = TokenStream(tok, prompts["start"], matcher=Spelled(tok, text))
        for id in tok.encode(thought):
            stream.push(id)
            assert stream.mask() is None
        assert stream.queued == tuple(tok.encode("\n\n"))
        result = fold(drive(stream, tok.encode(f"{text}<|im_end|>")))
        assert (result.content, result.finish_reason) == (text, "stop")
        assert tok.decode(stream.output_ids[:-1]) == f"{thought}\n\n{text}"
        assert (stream.mask(), stream.constrained) == (None, False)
    assert TokenStream(tok, prompts["start"]).mask() is None


CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def test_a_grammar_of_calls_waits_for_the_first(tok, prompts):
    """Before it the model writes what it likes, nothing is forced and nothing is masked; after it only the grammar."""
    matcher = Spelled(tok, CALL, late=True)
    stream = TokenStream(tok, prompts["start"], matcher=matcher)
    free = "<think>\nhm <tool\n</think>\n\nLet me see: tool_call>"
    for id in tok.encode(free):
        assert (stream.mask(), stream.constrained, stream.queued) == (None, False, ())
        stream.push(id)
    assert matcher.pushed == []
    for id in tok.encode(CALL):
        assert stream.mask() is None or allowed(stream.mask()) == {id}
        assert stream.constrained is (id != tok.control.tool_call)
        stream.push(id)
    assert allowed(stream.mask()) == set(tok.eos_ids)
    again = stream.fresh()
    assert (again.mask(), again.constrained, matcher.pushed) == (None, False, [])
    result = fold(drive(again, tok.encode(f"{free}{CALL}<|im_end|>")))
    assert (result.content, result.finish_reason, result.warnings) == ("Let me see: tool_call>", "tool_calls", ())
    assert (result.tool_calls[0].name, result.tool_calls[0].arguments) == ("f", "{}")


def test_calls_have_their_form_whatever_the_model_says(tok, prompts):
    """A real grammar and a model that says anything allowed."""
    rng = random.Random(6)
    tool = {"name": "f", "parameters": {"properties": {"a": {"enum": [1, 22, "x"]}}, "required": ["a"]}}
    counts = set()
    for _ in range(60):
        parallel = rng.random() < 0.5
        constraint = Constraint.text_then_calls([tool], parallel)
        policy, state = random_policy(rng), rng.choice(["start", "answer", "thinking"])
        stream = TokenStream(tok, prompts[state], policy, matcher=constraint.matcher(tok))

        def model(stream=stream):
            words = [tok.control.tool_call, *tok.eos_ids, tok.control.end_think, *tok.encode(" so. {}\n\n")]
            while True:
                mask = stream.mask()
                yield rng.choice(sorted((set(words) if mask is None else allowed(mask)) - stream.banned()))

        result = fold(drive(stream, model()))
        assert all(json.loads(call.arguments)["a"] in (1, 22, "x") for call in result.tool_calls)
        assert result.finish_reason == ("tool_calls" if result.tool_calls else "stop")
        assert "tool_call" not in result.content
        counts.add((parallel, min(2, len(result.tool_calls))))
    assert counts == {(True, 0), (True, 1), (True, 2), (False, 0), (False, 1)}


@pytest.mark.parametrize("policy", [ThinkingPolicy("on", 0), ThinkingPolicy("on", 3), ThinkingPolicy(budget=3)])
def test_a_grammar_behind_forced_text(tok, prompts, policy):
    """The closing text brings its own newlines; the grammar hears of none of it."""
    matcher = Spelled(tok, "yes")
    stream = TokenStream(tok, prompts["start"], policy, matcher=matcher)

    def model():
        if stream.state == "start":
            yield tok.control.think
        while True:
            words = stream.mask()
            yield tok.encode(" w")[0] if words is None else allowed(words).pop()

    result = fold(drive(stream, model()))
    assert (result.content, result.thinking.ended_by) == ("yes", "budget")
    assert tok.decode(stream.output_ids).count("</think>\n\nyes") == 1


def test_a_grammar_that_is_done_ends_where_no_end_can_be_sampled(tok, prompts):
    for options, by_itself in (
        ({}, False),
        ({"ignore_eos": True}, True),
        ({"min_tokens": 99}, True),
        ({"eos_ids": []}, True),
    ):
        stream = TokenStream(tok, prompts["answer"], matcher=Spelled(tok, "yes"), **options)
        stream.push(tok.encode("yes")[0])
        assert stream.done == ("stop" if by_itself else None)
        if not by_itself:
            assert allowed(stream.mask()) == set(tok.eos_ids)


def test_grammars_meet_every_way_to_think(tok, prompts):
    """A real grammar and a model that says anything allowed: JSON always, in the content alone."""
    rng = random.Random(5)
    schema = {"type": "object", "properties": {"a": {"enum": [1, 22, "x"]}}, "required": ["a"], "additionalProperties": False}  # fmt: skip # noqa: E501
    constraint = Constraint.json_schema(schema)
    for _ in range(60):
        policy, state = random_policy(rng), rng.choice(["start", "answer", "thinking"])
        stream = TokenStream(tok, prompts[state], policy, matcher=constraint.matcher(tok))
        ends = rng.choice([[tok.control.end_think], tok.eos_ids])

        def model(stream=stream, ends=ends):
            while True:
                words = stream.mask()
                if words is None:
                    yield rng.choice([*tok.encode(" so. \n\n"), rng.choice(ends)])
                else:
                    yield rng.choice(sorted(allowed(words) - stream.banned()))

        result = fold(drive(stream, model()))
        assert result.finish_reason == "stop"
        assert re.fullmatch(r'\{\s*"a"\s*:\s*(1|22|"x")\s*\}', result.content)
        assert "{" not in result.reasoning_content


# Report, copies


def test_report(tok, prompts):
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy("auto"), source="explicit")
    assert (stream.report().mode, stream.report().source, stream.report().window) == ("auto", "explicit", None)
    again = stream.fresh(policy=ThinkingPolicy("on"))
    again.source, again.window, again.discarded = "auto", 7, 7
    result = fold(drive(again, tok.encode("R" + ANSWER)))
    report = result.thinking
    assert (report.mode, report.source, report.window, report.discarded_tokens) == ("on", "auto", 7, 7)
    assert result.usage.completion_tokens == len(again.output_ids) + 7
    stream.window, stream.source = 7, "auto"
    assert fold(drive(stream, tok.encode("A<|im_end|>"))).thinking.mode == "off"
    later = TokenStream(tok, [*prompts["thinking"], *tok.encode("First.\n")], ThinkingPolicy(max_steps=1))
    later.push(tok.encode("\n")[0])
    assert later.queued == tuple(tok.encode(EARLY_STOP)), "the prompt began the paragraph"


def test_fresh_is_the_same_from_the_beginning(tok, prompts):
    made = {
        "stop": ["zz"],
        "min_tokens": 2,
        "ignore_eos": True,
        "matcher": Spelled(tok, "yes, it is"),
        "source": "switch",
    }
    stream = TokenStream(tok, prompts["start"], ThinkingPolicy("on", 4), **made)
    runs = []
    for _ in range(3):
        stream = stream.fresh()
        assert stream.output_ids == []

        def model(stream=stream):
            while True:
                words = stream.mask()
                yield tok.encode(" w")[0] if words is None else allowed(words).pop()

        runs.append((fold(drive(stream, model())), stream.output_ids))
        assert runs[-1][0].content == "yes, it is"
    assert runs[0] == runs[1] == runs[2]
    other = stream.fresh(matcher=None, policy=None, ignore_eos=False, eos_ids=None)
    assert not other.constrained
    assert fold(drive(other, tok.encode("A!<|im_end|>"))).content == "A!"
