"""Thinking over time: what a second turn costs after a long thought, and whether answers come within their limit."""

from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat import encode
from qwen3.chat.next_turn import next_turn_ids
from qwen3.evaluate.crowd import Case, Progress, Say, asker
from qwen3.evaluate.thinking import Result, families_of, head, held_out
from qwen3.tasks import STEP_FAMILIES, Problem

BLOCK = 16
_NEVER = -100.0  # bias of a token that must not come
_FOLLOW_UP = "Are you sure? Please check it once more."
_EDITED = "Now explain in one sentence what you did."
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds a number in a table.",
        "parameters": {
            "type": "object",
            "properties": {"row": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["row"],
            "additionalProperties": False,
        },
    },
}

# Second turns


@dataclass(frozen=True)
class Turn:
    """What one more prompt of a conversation cost. new: tokens of it that were not in the conversation before."""

    kind: str
    prompt: int
    cached: int
    new: int
    same_tokens: bool
    apart: float  # largest difference of a log-probability from a cold engine's; 0.0: the same bits
    first_token: float  # seconds
    cold_first_token: float

    @property
    def recomputed(self) -> int:
        return self.prompt - self.cached

    @property
    def kept(self) -> bool:
        """Whether no more than the new message and a part of a block was computed."""
        return self.recomputed <= self.new + BLOCK


def second_turns(
    base: LLM,
    conversations: int = 20,
    thought: int = 1000,
    seed: int = 1,
    crowd: int = 16,
    pause: float = 1.0,
    busy: int = 600,
    say: Say = lambda line: None,
    command: str = "",
) -> Result:
    """Conversations whose first answer is thought about for `thought` tokens, then: another message ("next"), the same
    again ("regenerate"), a different one in its place ("edit"). And a call, with the thought that the model gives it,
    and the tool's result ("tools"). Idle (`pause` seconds between turns, as a reader takes) and beside more requests
    than run at once, of up to `busy` tokens; batch-invariant and not; each turn again by an engine without a cache."""
    runs = []
    for invariant, loaded in itertools.product((False, True), (False, True)):
        options: dict[str, Any] = {
            "max_batch": crowd,
            "invariant": invariant,
            "blocks": crowd * -(-base.context // BLOCK),
        }
        warm = LLM.of(base.model, base.tokenizer, mode=base.mode, context=base.context, prefill_ahead=True, **options)
        cold = LLM.of(base.model, base.tokenizer, mode=base.mode, context=base.context, prefix_cache=False, **options)
        turns: list[Turn] = []
        problems = held_out(STEP_FAMILIES, conversations, seed)
        with _load(warm, seed, busy) if loaded else _nothing():
            for i, problem in enumerate(problems):
                turns += _conversation(warm, cold, problem, thought, seed + i, pause)
        name = f"{'invariant' if invariant else 'usual'}, {'full load' if loaded else 'idle'}"
        runs.append({"run": name, "invariant": invariant, "loaded": loaded, "kinds": _by_kind(turns)})
        kept = sum(turn.kept for turn in turns)
        bits = sum(turn.same_tokens and turn.apart == 0 for turn in turns)
        say(f"{name}: {kept} of {len(turns)} within their new message + {BLOCK}, {bits} bit for bit a cold engine's")
        warm.close()
        cold.close()
    settings = {"conversations": conversations, "thought": thought, "crowd": crowd, "pause": pause, "seed": seed}
    return {**head("second turns after a long thought", base, command, **settings), "runs": runs}


def _by_kind(turns: Sequence[Turn]) -> dict[str, Any]:
    out = {}
    for kind in dict.fromkeys(turn.kind for turn in turns):
        group = [turn for turn in turns if turn.kind == kind]
        out[kind] = {
            "of": len(group),
            "kept": sum(turn.kept for turn in group),
            "prompt_tokens": statistics.mean(turn.prompt for turn in group),
            "recomputed": statistics.mean(turn.recomputed for turn in group),
            "most_beyond_new": max(turn.recomputed - turn.new for turn in group),
            "same_tokens": sum(turn.same_tokens for turn in group),
            "same_bits": sum(turn.same_tokens and turn.apart == 0 for turn in group),
            "apart": max(turn.apart for turn in group),
            "first_token_ms": 1e3 * statistics.median(turn.first_token for turn in group),
            "cold_first_token_ms": 1e3 * statistics.median(turn.cold_first_token for turn in group),
        }
    return out


def _conversation(warm: LLM, cold: LLM, problem: Problem, thought: int, seed: int, pause: float) -> Iterator[Turn]:
    tokenizer = warm.tokenizer
    long = ThinkingPolicy("on", budget=thought, loop_guard=False)
    # It would close its thinking sooner, or end its turn.
    stuck = SamplingParams(seed=seed, min_tokens=thought, logit_bias={tokenizer.control.end_think: _NEVER})

    def ask(kind: str, messages: list[Any], before: int, tools: Any = None) -> Turn:
        sampling = SamplingParams(seed=seed, max_tokens=64, logprobs=0)
        found, again = (llm.chat(messages, ThinkingPolicy("on", budget=32), sampling, tools) for llm in (warm, cold))
        pairs = list(zip(found.logprobs, again.logprobs, strict=False))
        same = list(itertools.takewhile(lambda pair: pair[0].id == pair[1].id, pairs))
        apart = max((abs(a.logprob - b.logprob) for a, b in same), default=0.0)
        usage = found.usage
        return Turn(
            kind, usage.prompt_tokens, usage.cached_tokens, usage.prompt_tokens - before,
            found.ids == again.ids, apart, found.timing.first_token, again.timing.first_token,
        )  # fmt: skip

    messages: list[Any] = [{"role": "user", "content": problem.prompt}]
    first = warm.chat(messages, long, stuck)
    if first.thinking.used != thought or first.finish_reason != "stop":
        return  # an answer that was cut has no next turn
    time.sleep(pause)
    before = len(next_turn_ids(messages, first.message, tokenizer=tokenizer, template=warm.template))
    messages.append(first.message)
    again = [*messages, {"role": "user", "content": _FOLLOW_UP}]
    yield ask("next", again, before)
    time.sleep(pause)
    whole = len(encode(again, tokenizer=tokenizer, template=warm.template).ids)
    yield ask("regenerate", again, whole)
    yield ask("edit", [*messages, {"role": "user", "content": _EDITED}], before)
    calls: list[Any] = [{"role": "user", "content": f"{problem.prompt} Look up row 3 first."}]
    called = warm.chat(calls, ThinkingPolicy("on"), SamplingParams(seed=seed), [_TOOL], "required")
    if called.finish_reason != "tool_calls":
        return
    time.sleep(pause)
    calls.append(called.message)
    known = encode(calls, tokenizer=tokenizer, tools=[_TOOL], template=warm.template, add_generation_prompt=False)
    calls.append({"role": "tool", "content": '{"value": 42}'})
    yield ask("tools", calls, len(known.ids), [_TOOL])


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _load(llm: LLM, seed: int, tokens: int) -> Iterator[None]:
    """Meanwhile twice as many requests as run at once are there, of up to so many tokens, all the time."""
    problems = held_out(families_of("tasks"), 8 * llm.engine.max_batch, seed)
    over, started = threading.Event(), threading.Event()

    def keep_busy(part: Sequence[Problem]) -> None:
        for i in itertools.count():
            if over.is_set():
                return
            started.set()
            llm.chat(part[i % len(part)].prompt, ThinkingPolicy("on"), SamplingParams(seed=seed + i, max_tokens=tokens))

    count = 2 * llm.engine.max_batch
    threads = [threading.Thread(target=keep_busy, args=(problems[i::count],), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    started.wait()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


# Time limits


def time_limits(
    base: LLM,
    requests: int = 500,
    limits: Sequence[float] = (1.0, 2.0, 4.0),
    crowd: int = 96,
    max_batch: int = 64,
    seed: int = 1,
    say: Say = lambda line: None,
    command: str = "",
) -> Result:
    """`requests` with a time limit each, `crowd` there at once of which `max_batch` run, so that all of them queue.
    Half of them never close their thinking. A crowd before them, not counted, meets what an engine does for the first
    time (some 0.3 s on a GPU), and gives it a notion of its speed. in_time: ended within limit + 5 %; stop: by
    themselves, of those in time; used: the share of the time after queueing that thinking took, where it would have
    taken all."""
    llm = LLM.of(
        base.model, base.tokenizer, mode=base.mode, context=base.context,
        max_batch=max_batch, blocks=max_batch * -(-base.context // BLOCK),
    )  # fmt: skip
    llm.engine.warm_up()
    ask, rng = asker(llm), random.Random(seed)
    problems = held_out(families_of("tasks"), requests, seed)
    rng.shuffle(problems)
    endless = {llm.tokenizer.control.end_think: _NEVER}

    def cases() -> Iterator[Case]:
        for i in range(-crowd, requests):
            problem, limit, stuck = problems[i % requests], limits[i % len(limits)], i % 2 == 0
            policy = ThinkingPolicy("on", time_limit_s=limit, loop_guard=not stuck)
            sampling = SamplingParams(seed=seed + i, logit_bias=endless if stuck else None)
            what = {"limit": limit, "stuck": stuck, "family": problem.family, "closed": 0.0, "counts": i >= 0}
            yield Case(ask(problem.prompt, Form(), policy, sampling), what)

    progress, engine, waiting = Progress(requests, say), llm.engine, cases()
    live: list[Case] = []
    records: list[dict[str, Any]] = []
    while True:
        for case in itertools.islice(waiting, crowd - len(live)):
            case.request.clock.added = time.perf_counter()
            engine.add_samples([case.request])
            live.append(case)
        if not live:
            break
        engine.advance()
        now = time.perf_counter()
        for case in list(live):
            stream = case.request.stream
            if not case.what["closed"] and stream is not None and stream.state not in ("start", "thinking"):
                case.what["closed"] = now
            if case.request.done:
                live.remove(case)
                if case.what["counts"]:
                    records.append(_timed(case))
                    progress.add(1, "time limits")
    llm.close()
    settings = {"requests": requests, "limits": list(limits), "crowd": crowd, "max_batch": max_batch, "seed": seed}
    return {**head("time limits under load", base, command, **settings), **_times(records)}


def _timed(case: Case) -> dict[str, Any]:
    request, clock = case.request, case.request.clock
    assert request.stream is not None
    report = request.stream.report()
    queued = clock.started - clock.added
    return {
        "limit": case.what["limit"],
        "stuck": case.what["stuck"],
        "family": case.what["family"],
        "took": clock.finished - clock.added,
        "queued": queued,
        "reason": request.finish_reason,
        "ended_by": report.ended_by,
        "thought": report.used,
        "tokens": len(request.output),
        "used": (case.what["closed"] - clock.started) / max(1e-9, case.what["limit"] - queued),
    }


def _times(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    in_time = [r for r in records if r["took"] <= 1.05 * r["limit"]]
    used = sorted(r["used"] for r in records if r["stuck"] and r["ended_by"] == "time")
    late = sorted(records, key=lambda r: r["took"] / r["limit"])[-5:]
    return {
        "in_time": len(in_time),
        "of": len(records),
        "stop": sum(r["reason"] in ("stop", "tool_calls") for r in in_time),
        "used_mean": statistics.mean(used) if used else None,
        "used_at_least_half": sum(share >= 0.5 for share in used),
        "used_of": len(used),
        "used_tenth": used[len(used) // 10] if used else None,
        "ended_by": dict(Counter(f"{'endless' if r['stuck'] else 'usual'}: {r['ended_by']}" for r in records)),
        "reasons": dict(Counter(str(r["reason"]) for r in records)),
        "not_stopped": [r for r in in_time if r["reason"] not in ("stop", "tool_calls")][:20],
        "latest": late,
        "queued_mean": statistics.mean(r["queued"] for r in records),
    }
