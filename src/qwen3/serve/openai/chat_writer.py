"""Chat completions as server-sent events: a chunk is a prefix, one string's JSON, and a suffix."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

from qwen3.chat import Finish, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallDropped
from qwen3.chat.events import Usage
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Item, TokenLogprob
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.openai.completions import LEAST, spelt

if TYPE_CHECKING:
    from qwen3.serve.openai.chat import ChatBody

_DONE = "data: [DONE]\n\n"
_json = json.JSONEncoder(separators=(",", ":")).encode


def reason_of(reason: str | None, forced: bool) -> str | None:
    """OpenAI's `finish_reason`. One tool called by name ends with "stop", as OpenAI and vLLM have it."""
    if reason == "tool_calls" and forced:
        return "stop"
    return "stop" if reason in ("loop", "cancelled") else reason


def stop_reason(reason: str | None, matched: str | int | None) -> str | int | None:
    """What `finish_reason` does not say: the stop text or token that was found (vLLM's field), "loop", "cancelled"."""
    return reason if reason in ("loop", "cancelled") else matched


def usage_of(usages: list[Usage]) -> dict[str, Any]:
    """Of all samples of one prompt."""
    prompt = usages[0].prompt_tokens if usages else 0
    made = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": usages[0].cached_tokens if usages else 0},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
    }


def logprobs_of(entries: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    """Of every token in order, those of the reasoning among them."""
    return {
        "content": [
            {**_entry(e.data, e.logprob), "top_logprobs": [_entry(d, p) for _, d, p in e.top]} for e in entries
        ],
        "refusal": None,
    }


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": spelt(data), "logprob": max(logprob, LEAST), "bytes": list(data)}


class ChatWriter:
    """Of one stream. name: the model's public one. fields: names under which reasoning is sent."""

    media_type = "text/event-stream"
    clock: Clock

    def __init__(self, body: ChatBody, name: str, fields: tuple[str, ...]) -> None:
        self._body, self._name, self._fields = body, name, fields
        options = body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._each = bool(options and options.continuous_usage_stats)
        self._left = self._n = body.n or 1
        self._usages: list[Usage] = []
        self._counts = [0] * self._n  # tokens so far of each sample, of what has ids
        self._warnings: list[str] = []
        self._report: dict[str, Any] | None = None

    def begin(self, stream: Any) -> bytes:
        self._stream = stream
        head = {
            "id": "chatcmpl-" + stream.id.removeprefix("req-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._name,
            "system_fingerprint": None,
        }
        self._head = f"data: {_json(head)[:-1]}"
        self._heads = [f'{self._head},"choices":[{{"index":{i},"delta":{{' for i in range(self._n)]
        self._tail = '},"logprobs":null,"finish_reason":null}]' + self._last_field() + "}\n\n"
        role = '"role":"assistant","content":""'
        return "".join(self._chunk(i, role, Item(i, TextDelta(""))) for i in range(self._n)).encode()

    def feed(self, items: list[Item]) -> bytes:
        return "".join(map(self._item, items)).encode()

    def end(self) -> bytes:
        if not self._with_usage:
            return _DONE.encode()
        more = self._closing() | {"usage": usage_of(self._usages)}
        return f'{self._head},"choices":[], {_json(more)[1:]}\n\n{_DONE}'.encode()

    def error(self, error: ApiError) -> bytes:
        return f"data: {_json(shape(error, 'openai'))}\n\n{_DONE}".encode()

    def keep_alive(self) -> bytes:
        return b": keep-alive\n\n"

    # Pieces

    def _item(self, item: Item) -> str:
        event = item.event
        if type(event) is TextDelta:
            return self._chunk(item.index, f'"content":{quoted(event.text)}', item)
        if type(event) is ReasoningDelta:
            if not self._fields:
                return ""
            text = quoted(event.text)
            return self._chunk(item.index, ",".join([f'"{name}":{text}' for name in self._fields]), item)
        if isinstance(event, ToolCallDelta):
            return self._call(item, event)
        if isinstance(event, ToolCallDropped):  # what was sent cannot be taken back, only marked
            dropped = {"index": event.index, "function": {"arguments": ""}, "dropped": True}
            return self._chunk(item.index, f'"tool_calls":[{_json(dropped)}]', item)
        assert isinstance(event, Finish)
        return self._finish(item, event)

    def _call(self, item: Item, event: ToolCallDelta) -> str:
        """A call's first chunk has its name and empty arguments, all others have arguments alone."""
        parts = []
        if event.name is not None:
            function = {"name": event.name, "arguments": ""}
            first = {"index": event.index, "id": event.id, "type": "function", "function": function}
            parts.append(self._chunk(item.index, f'"tool_calls":[{_json(first)}]', Item(item.index, event)))
        if event.arguments_delta:
            arguments = f'{{"arguments":{quoted(event.arguments_delta)}}}'
            parts.append(
                self._chunk(item.index, f'"tool_calls":[{{"index":{event.index},"function":{arguments}}}]', item)
            )
        return "".join(parts)

    def _chunk(self, index: int, delta: str, item: Item) -> str:
        if not (item.logprobs or item.before or self._each):
            return f"{self._heads[index]}{delta}{self._tail}"
        entries = item.before + item.logprobs
        logprobs = _json(logprobs_of(entries)) if entries else "null"
        self._counts[index] += len(getattr(item.event, "ids", ()))
        end = f'}},"logprobs":{logprobs},"finish_reason":null}}]{self._last_field()}}}\n\n'
        return self._heads[index] + delta + end

    def _last_field(self) -> str:
        """Between the choices and the end of a chunk: OpenAI has a null usage where one comes at the end."""
        if not self._each:
            return ',"usage":null' if self._with_usage else ""
        prompt, made = self._stream.opened["prompt_tokens"], sum(self._counts)
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        return f',"usage":{_json(usage)}'

    def _finish(self, item: Item, finish: Finish) -> str:
        self._left -= 1
        self._usages.append(finish.usage)
        self._warnings += finish.warnings
        self._counts[item.index] = finish.usage.completion_tokens
        report = asdict(finish.thinking)
        if item.index == 0:
            self._report = report
        choice: dict[str, Any] = {
            "index": item.index,
            "delta": {},
            "logprobs": logprobs_of(item.before) if item.before else None,
            "finish_reason": reason_of(finish.reason, self._body.forced),
            "stop_reason": stop_reason(finish.reason, finish.matched),
        }
        if self._n > 1:
            choice["thinking"] = report
        more = "" if self._left or self._with_usage else "," + _json(self._closing())[1:-1]
        return f'{self._head},"choices":[{_json(choice)}]{more}{self._last_field()}}}\n\n'

    def _closing(self) -> dict[str, Any]:
        """What the last chunk of a stream has beside OpenAI's fields, as the whole response has it."""
        ends = getattr(self._stream, "ends", {})
        return {
            "warnings": list(dict.fromkeys(self._warnings)),
            "thinking": self._report,
            "timings": ends[0]["timing"] if 0 in ends else self.clock.timing(),
            "seed": self._stream.opened.get("seed"),
        }
