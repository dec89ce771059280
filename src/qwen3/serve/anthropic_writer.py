"""A sample in Anthropic's words: content blocks in one message, or the events of a stream that add up to it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qwen3.chat import Finish, ReasoningDelta, Result, TextDelta
from qwen3.chat.messages import ToolCall
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Item, Sample
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.runs import Runs, report
from qwen3.serve.seal import Seal

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


def tool_use_id(id: str | None) -> str:
    """A tool call's id in their spelling."""
    return "toolu_" + (id or "").removeprefix("call_")


def call_id(id: str) -> str:
    """And back: the id under which the call is known here. Ids of others stay as they are."""
    return "call_" + id[6:] if id.startswith("toolu_") else id


def message_id(request: str) -> str:
    return "msg_" + request.removeprefix("req-")


@dataclass(frozen=True)
class Shape:
    """What the request decided of the answer's form. model: as the client named it. omit: thinking is not shown, but
    comes sealed in its signature. tenant: whose signatures these are."""

    model: str
    seal: Seal
    tenant: str = ""
    omit: bool = False

    def sign(self, thinking: str) -> str:
        return self.seal.close(thinking, self.tenant) if self.omit else self.seal.sign(thinking, self.tenant)

    def message(self, sample: Sample, id: str) -> dict[str, Any]:
        """The whole answer. id: the request's."""
        result = sample.result
        content: list[dict[str, Any]] = []
        if thinking := result.reasoning_content:
            shown = "" if self.omit else thinking
            content.append({"type": "thinking", "thinking": shown, "signature": self.sign(thinking)})
        if result.content:
            content.append({"type": "text", "text": result.content})
        content += [{**_tool_use(call), "input": json.loads(call.arguments)} for call in result.tool_calls]
        return {
            **self.head(id),
            "content": content,
            **_stop(result.finish_reason, result.matched),
            "usage": _usage(result),
            **report(result),
        }

    def head(self, id: str) -> dict[str, Any]:
        return {"id": message_id(id), "type": "message", "role": "assistant", "model": self.model}


class Writer:
    """The stream of one message: each block is started, filled and stopped before the next one starts."""

    media_type = "text/event-stream"
    clock: Clock

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._runs = Runs()
        self._block = -1
        self._open = ""  # the kind of block that is open
        self._thinking: list[str] = []

    def begin(self, stream: Any) -> bytes:
        usage = {"input_tokens": stream.opened["prompt_tokens"], "output_tokens": 0}
        message = {**self._shape.head(stream.id), "content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**message, "usage": usage}) + PING

    def feed(self, items: list[Item]) -> bytes:
        data = b"".join([self._write(event) for event, _ in self._runs.feed(items)])
        return self._runs.said(data, self.keep_alive)

    def end(self) -> bytes:
        return _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + _json(shape(error, "anthropic")) + b"\n\n"

    def keep_alive(self) -> bytes:
        return PING

    def _write(self, event: Any) -> bytes:
        match event:
            case TextDelta():
                return self._in("text", {"text": ""}) + self._delta("text_delta", "text", event.text)
            case ReasoningDelta():
                self._thinking.append(event.text)
                start = self._in("thinking", {"thinking": "", "signature": ""})
                return start if self._shape.omit else start + self._delta("thinking_delta", "thinking", event.text)
            case ToolCall():
                start = self._stop() + self._in("tool_use", {**_tool_use(event), "input": {}})
                return start + self._delta("input_json_delta", "partial_json", event.arguments)
        stop = _stop(event.reason, event.matched)
        return self._stop() + _event("message_delta", delta=stop, usage=_usage(event), **report(event))

    def _in(self, kind: str, block: dict[str, Any]) -> bytes:
        """What has to come before a delta of such a block."""
        if self._open == kind:
            return b""
        before = self._stop()
        self._open = kind
        self._block += 1
        return before + _event("content_block_start", index=self._block, content_block={"type": kind, **block})

    def _delta(self, kind: str, key: str, text: str) -> bytes:
        head = f'{{"type":"content_block_delta","index":{self._block},"delta":{{"type":"{kind}","{key}":'
        return f"event: content_block_delta\ndata: {head}{json.dumps(text)}}}}}\n\n".encode()

    def _stop(self) -> bytes:
        """The end of the open block; the signature of a thinking block stands just before it."""
        if not self._open:
            return b""
        signature = b""
        if self._open == "thinking":
            signature = self._delta("signature_delta", "signature", self._shape.sign("".join(self._thinking)))
            self._thinking.clear()
        self._open = ""
        return signature + _event("content_block_stop", index=self._block)


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": tool_use_id(call.id), "name": call.name}


def _stop(reason: str | None, matched: str | int | None) -> dict[str, Any]:
    text = matched if reason == "stop" and isinstance(matched, str) else None
    stopped = "stop_sequence" if text is not None else _REASONS.get(reason or "", "end_turn")
    return {"stop_reason": stopped, "stop_sequence": text}


def _usage(end: Finish | Result) -> dict[str, Any]:
    """Theirs counts what was cached apart from the rest of the input."""
    usage = end.usage
    assert usage is not None
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + _json({"type": kind, **data}) + b"\n\n"
