"""A model in this process, many samples at once on its engine."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy, family
from qwen3.asking import Form
from qwen3.chat.policy import Mode
from qwen3.errors import Qwen3Error
from qwen3.evaluate.crowd import Case, Folded, asker, drive
from qwen3.evaluate.machine import describe
from qwen3.evaluate.runs.talk import Reply, Talk


class InProcess:
    """A loaded model that answers talks.

    mode: "think", "no-think", "auto", None: the model's own. budget: most thinking tokens of a turn. concurrency:
    samples at once, None: twice the engine's batch. thinks: whether prompts are those for thinking. mode is settled
    afterwards. weights: what they were rounded to while they were read, for the record. Raises UsageError for what the
    model cannot do.
    """

    def __init__(
        self, llm: LLM, mode: str | None, budget: int | None, concurrency: int | None = None, weights: str | None = None
    ) -> None:
        self.llm, self.weights = llm, weights
        self._told = mode
        self.mode = mode or ("think" if llm.mode in ("hybrid", "thinking") else "no-think")
        self.thinks = self.mode != "no-think"
        self.concurrency = concurrency or 2 * llm.engine.max_batch
        self.ask = asker(llm)
        self.bound(budget)

    def bound(self, budget: int | None) -> None:
        """From now on so many tokens of thinking at most. Raises UsageError where the model has no such mode."""
        kind: Mode | None = {"think": "on", "no-think": "off", "auto": "auto"}.get(self._told or "")  # type: ignore[assignment]
        self.budget = budget
        self.policy = ThinkingPolicy(None if budget == 0 else kind, budget=budget)
        self.ask([{"role": "user", "content": "?"}], Form(), self.policy, SamplingParams())  # refuses now, not later

    def sampling(self, wish: dict[str, Any]) -> dict[str, Any]:
        """What is sampled with: `wish`, and what Qwen recommends for the mode where it has nothing."""
        given = {name: value for name, value in wish.items() if value is not None}
        key = family.sampling_key(self.llm.mode, self.thinks)
        params = SamplingParams(**given).resolved(key)
        names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens")
        return {name: getattr(params, name) for name in names}

    def head(self) -> dict[str, Any]:
        """Its part of a run's head."""
        llm, found = self.llm, self.llm.resolved
        template = llm.template if isinstance(llm.template, str) else llm.template.text
        engine = llm.engine
        return {
            "model": found.name if found else "in memory",
            "source": found.describe() if found else None,
            "endpoint": None,
            "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            "checkpoint_sha256": found.sha256 if found else None,
            "numbers": {
                "device": llm.device.type,
                "dtype": str(llm.dtype).removeprefix("torch."),
                "weights": self.weights,
                "invariant": engine.runner.invariant,
                "context": llm.context,
            },
            "concurrency": self.concurrency,
            "machine": describe(llm.device),
        }

    def answers(self, talks: Iterator[Talk], sampling: dict[str, Any]) -> Iterator[Talk]:
        """The talks as they end, in whatever order."""
        waiting = _Cases(self, talks, sampling)
        for case, result in drive(self.llm.engine, waiting, self.concurrency):
            talk: Talk = case.what["talk"]
            if talk.add(_reply(case, result)):
                waiting.more.append(talk)
            else:
                yield talk
            yield from waiting.refused()
        yield from waiting.refused()

    def close(self) -> None:
        self.llm.close()


class _Cases(Iterator[Case]):
    """Next turns first, then new talks. It may say that it has ended and go on later, when there are next turns."""

    def __init__(self, model: InProcess, talks: Iterator[Talk], sampling: dict[str, Any]) -> None:
        self.model, self.talks, self.params = model, talks, sampling
        self.more: deque[Talk] = deque()
        self._refused: deque[Talk] = deque()

    def __next__(self) -> Case:
        while True:
            talk = self.more.popleft() if self.more else next(self.talks)
            params = SamplingParams(**self.params, seed=talk.seed)
            form = Form.of(list(talk.item.tools) or None)
            try:
                request = self.model.ask(talk.messages, form, self.model.policy, params)
            except Qwen3Error as error:  # a prompt that is too long, say
                talk.add(Reply(finish_reason="error", error=str(error)))
                self._refused.append(talk)
                continue
            return Case(request, {"talk": talk, "start": time.monotonic()})

    def refused(self) -> Iterator[Talk]:
        while self._refused:
            yield self._refused.popleft()


def _reply(case: Case, result: Folded) -> Reply:
    reason, request = result.finish_reason or "error", case.request
    used = result.thinking.used if result.thinking else 0
    made = result.usage.completion_tokens if result.usage else 0
    asked = request.params.max_tokens
    short = asked is not None and request.max_tokens is not None and request.max_tokens < asked
    failed = reason in ("error", "cancelled")
    return Reply(
        content=result.content,
        thinking=result.reasoning_content,
        # An answer that repeats itself without end would go on to the limit.
        finish_reason={"loop": "length", "cancelled": "error"}.get(reason, reason),
        tool_calls=tuple(call.to_dict() for call in result.tool_calls),
        prompt_tokens=len(request.ids),
        thinking_tokens=used,
        answer_tokens=max(0, made - used),
        seconds=time.monotonic() - case.what["start"],
        error=str(request.error or reason) if failed else "",
        flags=(*(("loop",) if reason == "loop" else ()), *(("context",) if short and reason == "length" else ())),
    )
