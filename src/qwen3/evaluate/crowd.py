"""Many requests at once on one engine, each with its own seed: what the measurements of thinking run on."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Asking, Form
from qwen3.chat import Event, fold
from qwen3.chat.events import Result as Folded
from qwen3.engine import Engine
from qwen3.engine.request import Request

Say = Callable[[str], None]


class Progress:
    """One line now and then: how much is done, how long the rest will take. Work is in any unit."""

    def __init__(self, total: float, say: Say, every: float = 5.0) -> None:
        self.total, self.say, self.every = total, say, every
        self.done, self.start = 0.0, time.monotonic()
        self._said = self.start

    def add(self, work: float, what: str) -> None:
        """So much more is done; `what` it was about."""
        self.done += work
        now = time.monotonic()
        if now - self._said >= self.every and self.done < self.total:
            self._said = now
            left = math.ceil((now - self.start) * (self.total - self.done) / self.done)
            minutes, seconds = divmod(left, 60)
            self.say(f"{what}: {self.done / self.total:.0%}, {f'{minutes} min ' * (minutes > 0)}{seconds} s left")


@dataclass(eq=False)
class Case:
    """One request and what is expected of it. schema: the name of the one that binds the answer. streamed: its events
    are taken as they come."""

    request: Request
    what: dict[str, Any]
    budget: int | None = None
    schema: str | None = None
    streamed: bool = False
    events: list[Event] = field(default_factory=list)


def drive(engine: Engine, cases: Iterator[Case], crowd: int) -> Iterator[tuple[Case, Folded]]:
    """Run the cases, `crowd` at once, and give each with its result when it has ended."""
    live: list[Case] = []
    while True:
        for case in itertools.islice(cases, crowd - len(live)):
            engine.add_samples([case.request])
            live.append(case)
        if not live:
            return
        engine.advance()
        for case in [case for case in live if case.streamed or case.request.done]:
            done = case.request.done
            case.events += case.request.take_events()
            if done:
                live.remove(case)
                yield case, fold(case.events)


def asker(llm: LLM) -> Callable[..., Request]:
    """request(messages, form, policy, sampling) for the engine of `llm`, as `LLM.chat` would make it."""
    asking, engine = Asking(llm.tokenizer, llm.config, llm.mode, llm.template), llm.engine

    def ask(messages: Any, form: Form, policy: ThinkingPolicy | None, sampling: SamplingParams) -> Request:
        return asking.chat(messages, form, policy, sampling, engine.check).requests[0]

    return ask
