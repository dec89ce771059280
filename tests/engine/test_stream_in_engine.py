"""What the stream decides and the engine must carry out: budgets, forced text, ends. The model says what it is told."""

from __future__ import annotations

from typing import Any

import pytest

from qwen3.chat import Finish, ThinkingPolicy, fold
from qwen3.chat.stream import CLOSE_THINK, EARLY_STOP
from qwen3.engine import Engine, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=300)
PROMPT = [1, 2, 3, 4]


def script(*answer: int, fill: int = 70) -> list[int]:
    """After PROMPT the model says `answer`, then `fill` for ever."""
    return [fill] * (len(PROMPT) - 1) + list(answer) + [fill]


def play(run: Any, tokenizer: Any, model: Any, params: SamplingParams, policy: ThinkingPolicy | None = None) -> Any:
    engine = Engine(model, tokenizer)
    request = run.make(PROMPT, params, policy)
    engine.add(request)
    events = run.finish(engine, request)[0]
    assert isinstance(events[-1], Finish)
    return request, fold(events)


def test_budget_forces_the_published_text_once_and_counts_it(run: Any, tokenizer: Any, scripted: Any) -> None:
    c = tokenizer.control
    closing = tokenizer.encode(EARLY_STOP)
    thoughts = [70] * 12
    answer_at = 1 + 12 + len(closing)
    said = [c.think, *thoughts, *[71] * len(closing), 40, 41, c.im_end]
    model = scripted(script(*said))
    request, result = play(run, tokenizer, model, GREEDY, ThinkingPolicy(mode=None, budget=12))
    assert request.output == [c.think, *thoughts, *closing, 40, 41, c.im_end]
    assert request.output[answer_at:] == [40, 41, c.im_end]
    assert result.usage.reasoning_tokens == result.thinking.used == 12
    assert result.thinking.forced_tokens == len(closing)
    assert result.usage.completion_tokens == len(request.output) == 1 + 12 + len(closing) + 3
    assert (result.thinking.mode, result.thinking.ended_by, result.finish_reason) == ("on", "budget", "stop")
    assert result.content == tokenizer.decode([40, 41])
    assert result.reasoning_content.startswith(tokenizer.decode(thoughts))
    assert result.reasoning_content.endswith("based on the thinking directly now.")
    widths = [len(ids) for batch in model.fed for _, ids in batch]
    assert max(widths) == 1 + len(closing), "the closing text is fed together with the token before it"
    assert sum(widths) == len(PROMPT) + len(request.output) - 1, "every token but the last was fed once"


def test_end_inside_thinking_is_replaced(run: Any, tokenizer: Any, scripted: Any) -> None:
    c = tokenizer.control
    close = tokenizer.encode(CLOSE_THINK)
    said = [c.think, 50, 51, c.im_end, *[71] * (len(close) - 1), 40, c.im_end]
    params = SamplingParams(temperature=0, max_tokens=300, logprobs=1)
    for settings in (GREEDY, params):
        model = scripted(script(*said))
        request, result = play(run, tokenizer, model, settings, ThinkingPolicy(budget=100))
        assert request.output == [c.think, 50, 51, *close, 40, c.im_end]
        assert result.thinking.ended_by == "eos"
        assert result.usage.reasoning_tokens == 2
        fed = [token for batch in model.fed for _, ids in batch for token in ids]
        assert fed == PROMPT + request.output[:-1], "the model reads what was recorded, not what was sampled"
    assert [entry.forced for entry in request.logprobs] == [False] * 3 + [True] * len(close) + [False] * 2
    assert [entry.id for entry in request.logprobs] == request.output


def test_mode_on_opens_the_block(run: Any, tokenizer: Any, scripted: Any) -> None:
    c = tokenizer.control
    newline = tokenizer.encode("\n")
    said = [71, 71, 50, c.end_think, 40, c.im_end]
    request, result = play(run, tokenizer, scripted(script(*said)), GREEDY, ThinkingPolicy(mode="on"))
    assert request.output == [c.think, *newline, 50, c.end_think, 40, c.im_end]
    assert (result.thinking.mode, result.thinking.used, result.thinking.forced_tokens) == ("on", 1, 2)
    assert result.thinking.ended_by == "natural"


def test_budget_zero_is_the_empty_block(run: Any, tokenizer: Any, scripted: Any) -> None:
    empty = tokenizer.encode("<think>\n\n</think>\n\n")
    said = [71] * len(empty) + [40, tokenizer.control.im_end]
    request, result = play(run, tokenizer, scripted(script(*said)), GREEDY, ThinkingPolicy(budget=0))
    assert request.output == [*empty, 40, tokenizer.control.im_end]
    assert result.usage.reasoning_tokens == 0
    assert result.reasoning_content == ""


def test_steps_and_landing(run: Any, tokenizer: Any, scripted: Any) -> None:
    """A model that thinks for ever, in paragraphs of two sentences."""
    c, early = tokenizer.control, tokenizer.encode(EARLY_STOP)
    paragraph = tokenizer.encode("ab. cd.\n\n")
    sentence = paragraph.index(tokenizer.encode(".")[0]) + 1
    for policy, thoughts, ended_by, steps in (
        (ThinkingPolicy(max_steps=2), paragraph * 2, "steps", 2),
        (ThinkingPolicy(budget=len(paragraph) + sentence + 2, soft_landing=3), [*paragraph, *paragraph[:sentence]],
         "budget", 2),
    ):  # fmt: skip
        said = [c.think, *thoughts, *[71] * len(early), 40, c.im_end]
        request, result = play(run, tokenizer, scripted(script(*said)), GREEDY, policy)
        assert request.output == [c.think, *thoughts, *early, 40, c.im_end]
        assert (result.thinking.ended_by, result.thinking.steps) == (ended_by, steps)
        assert (result.usage.reasoning_tokens, result.content) == (len(thoughts), tokenizer.decode([40]))


def test_closing_a_running_thought(run: Any, tokenizer: Any, scripted: Any) -> None:
    c, early = tokenizer.control, tokenizer.encode(EARLY_STOP)
    engine = Engine(scripted(script(c.think, *[70] * 9, *[71] * len(early), 40, c.im_end)), tokenizer)
    request = run.make(PROMPT, GREEDY)
    engine.add(request)
    while len(request.output) < 7:
        engine.step()
    assert request.stream.close_thinking("client", 10)
    result = fold(run.finish(engine, request)[0])
    assert request.output == [c.think, *[70] * 9, *early, 40, c.im_end]
    assert (result.thinking.ended_by, result.thinking.used, result.finish_reason) == ("client", 9, "stop")


def test_tool_calls_are_not_sampled_in_thinking_nor_thinking_where_it_is_off(
    run: Any, tokenizer: Any, scripted: Any
) -> None:
    c = tokenizer.control
    said = [c.think, c.tool_call, c.end_tool_call, c.end_think, 40, c.im_end]
    request, result = play(run, tokenizer, scripted(script(*said)), GREEDY)
    assert not {c.tool_call, c.end_tool_call} & set(request.output)
    assert len(request.output) == len(said)
    assert result.tool_calls == ()
    request, result = play(run, tokenizer, scripted(script(*said)), GREEDY, ThinkingPolicy("off"))
    assert c.think not in request.output


@pytest.mark.parametrize("which", ["im_end", "endoftext"])
def test_both_end_tokens_end(which: str, run: Any, tokenizer: Any, scripted: Any) -> None:
    end = getattr(tokenizer.control, which)
    request, result = play(run, tokenizer, scripted(script(40, 41, end)), GREEDY)
    assert request.output == [40, 41, end]
    assert result.finish_reason == request.finish_reason == "stop"
    assert result.content == tokenizer.decode([40, 41])
    assert result.usage.completion_tokens == 3


def test_ignore_eos_goes_on(run: Any, tokenizer: Any, scripted: Any) -> None:
    end = tokenizer.control.im_end
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    request, result = play(run, tokenizer, scripted(script(40, end, 41)), params)
    assert request.output == [40, end, 41, 70, 70, 70]
    assert result.finish_reason == "length"
    assert result.content == tokenizer.decode([40, 41, 70, 70, 70])


def test_min_tokens_bans_every_end(run: Any, tokenizer: Any, model: Any, scripted: Any) -> None:
    end = tokenizer.control.im_end
    params = SamplingParams(temperature=0, min_tokens=5, max_tokens=20, stop_token_ids=[41])
    request, _ = play(run, tokenizer, scripted(script(end, 41, end, 41, end, 41, 42)), params)
    assert len(request.output) == 6
    assert request.output[5] == 41
    assert not {end, 41, tokenizer.control.endoftext} & set(request.output[:5])


def test_stop_ids_and_stop_strings(run: Any, tokenizer: Any, scripted: Any) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, stop_token_ids=[43])
    request, result = play(run, tokenizer, scripted(script(40, 41, 43, 44)), params)
    assert request.output == [40, 41, 43]
    assert (result.finish_reason, result.matched) == ("stop", 43)
    word = tokenizer.encode("abcdef")
    params = SamplingParams(temperature=0, max_tokens=20, stop=["zzz", "cd"])
    request, result = play(run, tokenizer, scripted(script(*word)), params)
    assert result.content == "ab"
    assert (result.finish_reason, result.matched) == ("stop", "cd")
    assert len(request.output) <= len(word)


def test_length_inside_the_forced_text(run: Any, tokenizer: Any, scripted: Any) -> None:
    c = tokenizer.control
    params = SamplingParams(temperature=0, max_tokens=10)
    request, result = play(run, tokenizer, scripted(script(c.think)), params, ThinkingPolicy(budget=4))
    closing = tokenizer.encode(EARLY_STOP)
    assert request.output == [c.think, 70, 70, 70, 70, *closing[:5]]
    assert result.finish_reason == "length"
    assert result.usage.reasoning_tokens == 4
    assert result.content == ""


def test_a_failing_stream_costs_its_own_row(run: Any, tokenizer: Any, scripted: Any) -> None:
    engine = Engine(scripted(script(40, 41)), tokenizer)
    good, bad = (run.make(PROMPT, SamplingParams(temperature=0, max_tokens=8)) for _ in range(2))
    pushed = bad.stream.push
    bad.stream.push = lambda token: pushed(token) if len(bad.output) < 3 else 1 / 0
    engine.add(good)
    engine.add(bad)
    events = run.finish(engine, good, bad)
    assert isinstance(bad.error, ZeroDivisionError)
    assert events[1][-1].reason == "error"
    assert good.output == [40, 41, 70, 70, 70, 70, 70, 70]


def test_nan_logits_fail_the_request_with_a_hint(run: Any, tokenizer: Any, scripted: Any) -> None:
    model = scripted(script(40))
    logits = model.logits
    model.logits = lambda hidden, **how: logits(hidden, **how) * float("nan")
    request = run.make(PROMPT, SamplingParams(max_tokens=8))
    engine = Engine(model, tokenizer)
    engine.add(request)
    run.finish(engine, request)
    assert "qwen3 verify" in str(request.error)
    assert request.error.exit_code == 6  # type: ignore[union-attr]
