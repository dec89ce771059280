"""A sample in Ollama's words: one object, or lines of JSON that add up to it.

`think` asks and `thinking` is the thought itself there, so how the thinking went is called `thinking_report`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from qwen3.chat import Finish, ReasoningDelta, Result, TextDelta
from qwen3.chat.messages import ToolCall
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Item, Sample, TokenLogprob
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.runs import Runs, report


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float | None) -> int:
    return max(0, round((seconds or 0.0) * 1e9))


def logprobs(entries: tuple[TokenLogprob, ...] | None) -> dict[str, Any]:
    """The field of tokens' log-probabilities; nothing where there are none."""

    def one(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    found = [
        one(e.data, e.logprob) | ({"top_logprobs": [one(data, p) for _, data, p in e.top]} if e.top else {})
        for e in entries or ()
    ]
    return {"logprobs": found} if found else {}


@dataclass
class Shape:
    """What the request decided of the answer's form. model: as the client named it. chat: a message, not a text.
    loading: seconds that the model's loading took."""

    model: str
    chat: bool = True
    loading: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def whole(self, sample: Sample) -> dict[str, Any]:
        result = sample.result
        calls = [_call(i, call) for i, call in enumerate(result.tool_calls)]
        timing = {name: value or 0.0 for name, value in sample.timing.items()}
        first = timing.get("first_token", 0.0)
        spent = (timing.get("prompt", first), timing.get("total", 0.0) - first)
        return {
            **self.part(result.content, result.reasoning_content, calls),
            **self.last(result, *spent),
            **logprobs(sample.logprobs),
        }

    def part(self, text: str = "", thinking: str = "", calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """One line's worth of the answer."""
        head = {"model": self.model, "created_at": now()}
        extra: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if calls:
            extra["tool_calls"] = calls
        if self.chat:
            return {**head, "message": {"role": "assistant", "content": text, **extra}, "done": False}
        return {**head, "response": text, **extra, "done": False}

    def last(self, end: Finish | Result, prompt: float, decoding: float) -> dict[str, Any]:
        """What the last line has besides. prompt, decoding: seconds."""
        usage = end.usage
        assert usage is not None
        reason = end.reason if isinstance(end, Finish) else end.finish_reason
        found = report(end)
        if "thinking" in found:
            found["thinking_report"] = found.pop("thinking")
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": nanoseconds(time.perf_counter() - self.started),
            "load_duration": nanoseconds(self.loading),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(prompt),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(decoding),
            **found,
        }


class Writer:
    """The lines of one stream."""

    media_type = "application/x-ndjson"
    clock: Clock

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._model = quoted(shape.model)
        self._runs = Runs()
        self._calls = 0

    def begin(self, stream: Any) -> bytes:
        return b""

    def feed(self, items: list[Item]) -> bytes:
        data = b"".join([self._write(event, found) for event, found in self._runs.feed(items)])
        return self._runs.said(data, self.keep_alive)

    def end(self) -> bytes:
        return b""

    def error(self, error: ApiError) -> bytes:
        return _line(shape(error, "ollama"))

    def keep_alive(self) -> bytes:
        """A line without news: white space alone is not a line to every client."""
        return _line(self._shape.part())

    def _write(self, event: Any, found: tuple[TokenLogprob, ...]) -> bytes:
        form = self._shape
        match event:
            case TextDelta():
                return self._text(quoted(event.text), found)
            case ReasoningDelta():
                return self._text(f'"","thinking":{quoted(event.text)}', found)
            case ToolCall():
                self._calls += 1
                return _line(form.part(calls=[_call(self._calls - 1, event)]))
        clock = self.clock
        began, ended = clock.first or clock.started, time.perf_counter()
        prompt = began - (clock.opened or clock.started)
        return _line({**form.part(), **form.last(event, prompt, ended - began), **logprobs(found)})

    def _text(self, said: str, found: tuple[TokenLogprob, ...]) -> bytes:
        """What `Shape.part` makes of a text, for every token: without an object for it. said: JSON."""
        body = f'"message":{{"role":"assistant","content":{said}}}' if self._shape.chat else f'"response":{said}'
        tail = "," + json.dumps(logprobs(found))[1:-1] if found else ""
        return f'{{"model":{self._model},"created_at":"{now()}",{body},"done":false{tail}}}\n'.encode()


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "function": function}


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
