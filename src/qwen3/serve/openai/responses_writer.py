"""A sample as a Response: output items, or the events of a stream that add up to it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from qwen3.chat import Finish, ReasoningDelta, Result, TextDelta
from qwen3.chat.messages import ToolCall
from qwen3.serve.answer import Clock
from qwen3.serve.calls import Item, Sample, TokenLogprob
from qwen3.serve.errors import ApiError, shape
from qwen3.serve.runs import Runs, of_the_text, report
from qwen3.serve.seal import Seal


def logprobs(entries: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    def one(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob}

    return [{**one(e.data, e.logprob), "top_logprobs": [one(data, p) for _, data, p in e.top]} for e in entries]


@dataclass
class Shape:
    """What the request decided of the answer's form. echo: fields of the request that a Response repeats. tenant: whose
    sealed reasoning it is. summary: reasoning goes where summaries do. sealed: it comes sealed, too. logprobs: of the
    text's tokens are wanted."""

    echo: dict[str, Any]
    seal: Seal
    tenant: str = ""
    summary: bool = False
    sealed: bool = False
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, sample: Sample) -> dict[str, Any]:
        result = sample.result
        status = _status(result.finish_reason)
        output = [self.reasoning(new_id("rs"), result.reasoning_content)] if result.reasoning_content else []
        if result.content:
            entries = logprobs(of_the_text(sample)) if self.logprobs else []
            output.append(self.message(new_id("msg"), result.content, entries))
        output += [call_item(new_id("fc"), call) for call in result.tool_calls]
        if output:
            output[-1]["status"] = status
        return self.response(new_id("resp"), status, output, result)

    def response(
        self, id: str, status: str, output: list[dict[str, Any]], end: Finish | Result | None = None
    ) -> dict[str, Any]:
        head = {
            "id": id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output,
            **self.echo,
        }
        if end is None or end.usage is None:
            return {**head, "usage": None}
        usage = end.usage
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        done = {"completed_at": int(time.time())} if status == "completed" else {}
        return {**head, **done, "usage": counts, **report(end)}

    # Items and their parts; empty ones are what a stream begins with

    def reasoning(self, id: str, text: str, status: str = "completed") -> dict[str, Any]:
        parts = [self.reasoning_part(text)] if text else []
        where = {"summary": parts, "content": []} if self.summary else {"summary": [], "content": parts}
        sealed = self.seal.close(text, self.tenant) if self.sealed and text else None
        return {"id": id, "type": "reasoning", **where, "encrypted_content": sealed, "status": status}

    def message(
        self, id: str, text: str | None, entries: list[dict[str, Any]] | None = None, status: str = "completed"
    ) -> dict[str, Any]:
        content = [] if text is None else [text_part(text, entries or [])]
        return {"id": id, "type": "message", "role": "assistant", "content": content, "status": status}

    def reasoning_part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text" if self.summary else "reasoning_text", "text": text}


def text_part(text: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": entries}


def call_item(id: str, call: ToolCall, status: str = "completed") -> dict[str, Any]:
    said = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": id, "type": "function_call", **said, "status": status}


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _status(reason: str | None) -> str:
    return "incomplete" if reason == "length" else "completed"


class Writer:
    """The stream of one Response: each output item is added, filled and done before the next one is added."""

    media_type = "text/event-stream"
    clock: Clock

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._runs = Runs()
        self._sequence = 0
        self._output: list[dict[str, Any]] = []
        self._id = ""  # of the response
        self._open = ""  # the kind of item that is open
        self._item = ""  # its id
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._end: Finish | None = None

    def begin(self, stream: Any) -> bytes:
        self._id = "resp_" + stream.id.removeprefix("req-")
        response = self._shape.response(self._id, "in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def feed(self, items: list[Item]) -> bytes:
        data = b"".join([self._write(event, entries) for event, entries in self._runs.feed(items)])
        return self._runs.said(data, self.keep_alive)

    def end(self) -> bytes:
        end = self._end
        assert end is not None
        status = _status(end.reason)
        response = self._shape.response(self._id, status, self._output, end)
        return self._event(f"response.{status}", response=response)

    def error(self, error: ApiError) -> bytes:
        """`response.failed`, then an `error` event: clients that only look for the latter raise it."""
        said = {"code": error.code, "message": error.message, "param": error.param}
        response = self._shape.response(self._id, "failed", self._output)
        response["error"] = {"code": "server_error", "message": error.message}
        failed = self._event("response.failed", response=response)
        return failed + self._event("error", **said, **shape(error, "openai"))

    def keep_alive(self) -> bytes:
        return b": waiting\n\n"

    def _write(self, event: Any, entries: tuple[TokenLogprob, ...]) -> bytes:
        match event:
            case TextDelta():
                start = b"" if self._open == "message" else self._start_message()
                found = logprobs(entries) if self._shape.logprobs else []
                self._logprobs += found
                tail = f',"logprobs":{json.dumps(found)}'
                return start + self._delta("output_text", "content_index", event.text, tail)
            case ReasoningDelta():
                start = b"" if self._open == "reasoning" else self._start_reasoning()
                return start + self._delta(*self._reasoning_names, event.text)
            case ToolCall():
                return self._stop() + self._call(event)
        self._end = event
        return self._stop(_status(event.reason))

    @property
    def _reasoning_names(self) -> tuple[str, str]:
        """(how its events are called, the name of the part's index)."""
        return (
            ("reasoning_summary_text", "summary_index") if self._shape.summary else ("reasoning_text", "content_index")
        )

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": len(self._output)}

    def _start(self, kind: str, prefix: str) -> bytes:
        before = self._stop()
        self._open, self._item = kind, new_id(prefix)
        return before

    def _start_message(self) -> bytes:
        before = self._start("message", "msg")
        item = self._shape.message(self._item, None, status="in_progress")
        return before + self._added(item) + self._part("content_part.added", "content_index", text_part("", []))

    def _start_reasoning(self) -> bytes:
        before = self._start("reasoning", "rs")
        item = self._shape.reasoning(self._item, "", "in_progress")
        return before + self._added(item) + self._reasoning_part("added", "")

    def _call(self, call: ToolCall) -> bytes:
        self._item = new_id("fc")
        added = self._added(call_item(self._item, ToolCall(call.name, "", call.id), "in_progress"))
        kind = "response.function_call_arguments"
        delta = self._event(f"{kind}.delta", **self._place, delta=call.arguments)
        done = self._event(f"{kind}.done", **self._place, name=call.name, arguments=call.arguments)
        return added + delta + done + self._done(call_item(self._item, call))

    def _stop(self, status: str = "completed") -> bytes:
        """The end of the open item."""
        kind, text = self._open, "".join(self._texts)
        self._open = ""
        self._texts.clear()
        if kind == "message":
            found, self._logprobs = self._logprobs, []
            done = self._event(
                "response.output_text.done", **self._place, content_index=0, text=text, logprobs=found
            ) + self._part("content_part.done", "content_index", text_part(text, found))
            return done + self._done(self._shape.message(self._item, text, found, status))
        if kind == "reasoning":
            name, index = self._reasoning_names
            done = self._event(f"response.{name}.done", **self._place, **{index: 0}, text=text)
            return (
                done + self._reasoning_part("done", text) + self._done(self._shape.reasoning(self._item, text, status))
            )
        return b""

    def _reasoning_part(self, what: str, text: str) -> bytes:
        index = self._reasoning_names[1]
        part = "reasoning_summary_part" if self._shape.summary else "content_part"
        return self._part(f"{part}.{what}", index, self._shape.reasoning_part(text))

    def _part(self, name: str, index: str, part: dict[str, Any]) -> bytes:
        return self._event(f"response.{name}", **self._place, **{index: 0}, part=part)

    def _added(self, item: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _done(self, item: dict[str, Any]) -> bytes:
        self._output.append(item)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _delta(self, name: str, index: str, text: str, tail: str = "") -> bytes:
        self._texts.append(text)
        kind = f"response.{name}.delta"
        self._sequence += 1
        return (
            f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{self._sequence - 1},"item_id":"{self._item}",'
            f'"output_index":{len(self._output)},"{index}":0,"delta":{json.dumps(text)}{tail}}}\n\n'
        ).encode()

    def _event(self, kind: str, **data: Any) -> bytes:
        said = {"type": kind, "sequence_number": self._sequence, **data}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(said, separators=(',', ':'))}\n\n".encode()
