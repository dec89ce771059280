"""What goes between the server and an engine's process: frames of JSON over a socket, never pickle.

A frame is four bytes of length (big-endian) and compact JSON in UTF-8. To the engine go lists [what, key, …]; back
comes one frame a step, [statistics or null, replies, news]. Each piece of news is a list [key, index of the sample,
kind, …], in order; a busy step has one for each stream, so they are lists, and decoded when somebody reads them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from qwen3 import errors
from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ToolCallDelta, ToolCallDropped
from qwen3.chat.events import ThinkingReport, Usage
from qwen3.errors import Qwen3Error, UsageError
from qwen3.serve.calls import Call, Item, TokenLogprob

MAX_FRAME = 128 << 20
TEXT, REASONING, TOOL_CALL, DROPPED, FINISH, ERROR = range(6)
"""Kinds of news. Of TEXT and REASONING come [text, ids], and where log-probabilities were asked for those of the tokens
before it that are in no event, and its own."""

_HEAD = struct.Struct(">I")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_CALL = Call()


def pack(message: Any) -> bytes:
    """One frame. Raises UsageError for what is too large or has no JSON form."""
    try:
        data = _encode(message).encode("utf-8", "surrogatepass")
    except RecursionError:
        raise UsageError("the request is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"the request has no JSON form: {error}") from None
    if len(data) > MAX_FRAME:
        raise UsageError(f"the request has {len(data):,} bytes, at most {MAX_FRAME:,} are allowed")
    return _HEAD.pack(len(data)) + data


class Frames:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._needed = _HEAD.size

    def feed(self, data: bytes) -> Iterator[tuple[Any, int]]:
        """(message, its bytes) of every frame that is whole by now. Raises Qwen3Error for one that is too long."""
        self._data += data
        while len(self._data) >= self._needed:
            (size,) = _HEAD.unpack_from(self._data)
            if size > MAX_FRAME:
                raise Qwen3Error(f"a frame of {size:,} bytes came, at most {MAX_FRAME:,} are allowed")
            self._needed = _HEAD.size + size
            if len(self._data) < self._needed:
                return
            message = json.loads(self._data[_HEAD.size : self._needed])
            del self._data[: self._needed]
            self._needed = _HEAD.size
            yield message, size


# Calls


def call_to_wire(call: Call) -> dict[str, Any]:
    """The fields that say something."""
    found = {name: value for name, value in vars(call).items() if value != getattr(_CALL, name)}
    biases = call.sampling.get("logit_bias")
    if isinstance(biases, dict):  # JSON has no integer keys
        found["sampling"] = {**call.sampling, "logit_bias": list(biases.items())}
    return found


def call_from_wire(fields: dict[str, Any]) -> Call:
    sampling = fields.get("sampling", {})
    if isinstance(biases := sampling.get("logit_bias"), list):
        fields["sampling"] = {**sampling, "logit_bias": dict(biases)}
    return Call(**fields)


# News


def finish_to_wire(finish: Finish) -> list[Any]:
    usage, thinking = list(vars(finish.usage).values()), list(vars(finish.thinking).values())
    return [finish.reason, usage, thinking, list(finish.warnings), finish.matched]


def event_of(news: Sequence[Any]) -> Event:
    """The event of a piece of news that is no error."""
    kind = news[2]
    if kind == TEXT:
        return TextDelta(news[3], tuple(news[4]))
    if kind == REASONING:
        return ReasoningDelta(news[3], tuple(news[4]))
    if kind == TOOL_CALL:
        return ToolCallDelta(*news[3:])
    if kind == DROPPED:
        return ToolCallDropped(*news[3:])
    reason, usage, thinking, warnings, matched = news[3]
    return Finish(reason, Usage(*usage), ThinkingReport(*thinking), tuple(warnings), matched)


def item_of(news: Sequence[Any]) -> Item:
    event = event_of(news)
    if news[2] <= REASONING and len(news) > 6:
        return Item(news[1], event, tuple(map(logprob_of, news[6])), tuple(map(logprob_of, news[5])))
    if news[2] == FINISH and "logprobs" in news[4]:
        return Item(news[1], event, before=tuple(map(logprob_of, news[4]["logprobs"])))
    return Item(news[1], event)


def logprob_of(entry: Sequence[Any]) -> TokenLogprob:
    """From [id, bytes as Latin-1, log-probability, rank, [[id, bytes, log-probability]…]]."""
    id, data, value, rank, top = entry
    return TokenLogprob(
        id, data.encode("latin-1"), value, rank, tuple((i, text.encode("latin-1"), v) for i, text, v in top)
    )


def merged(news: Sequence[list[Any]]) -> list[list[Any]]:
    """The same news in fewer pieces: deltas of one sample that follow each other joined."""
    found: list[list[Any]] = []
    last: dict[int, list[Any]] = {}
    for piece in news:
        before = last.get(piece[1])
        if before is not None and before[2] == piece[2] <= REASONING and len(piece) == len(before) == 5:
            before[3] += piece[3]
            before[4] += piece[4]
            continue
        last[piece[1]] = piece
        found.append(piece)
    return found


# Errors


def error_to_wire(error: Exception) -> list[str]:
    """[class, message]; of what is none of ours only that there was something."""
    return [type(error).__name__ if isinstance(error, Qwen3Error) else "", str(error)]


def error_of(entry: Sequence[str]) -> Exception:
    """The same class again, an Exception for what was none of ours."""
    kind = getattr(errors, entry[0], None) if entry[0] else None
    return kind(entry[1]) if isinstance(kind, type) and issubclass(kind, Qwen3Error) else Exception(entry[1])
