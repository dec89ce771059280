"""Users' chats on disk to samples: one JSON object a line, every bad row told by its line, nothing cut or lost unsaid.

A row is one of
    {"messages": [{"role": …, "content": …}, …]}                            OpenAI's shape
    {"conversations": [{"from": "human", "value": …}, …]}                   ShareGPT's
    {"instruction": …, "input": …, "output": …}                             Alpaca's
    {"prompt": …, "completion": …}                                          texts, or lists of messages
with, in any of them, "system", "tools" (JSON schemas) and "enable_thinking" (true, false). Assistant messages may have
`TRAINING_FIELDS` of `conversations`. A `.json` file may hold the rows as one list.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from qwen3.chat.messages import REASONING_FIELDS
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.conversations import Renderer, Turn, Turns, weighted
from qwen3.train.samples import TokenSample

SHOWN = 20  # bad rows that an error lists

_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "model": "assistant", "system": "system", "tool": "tool", "observation": "tool", "function_response": "tool",
    "function_call": "call",
}  # fmt: skip
_OPTIONS = ("tools", "enable_thinking", "system", "verdict")
_SHAPES = {
    "messages": (), "conversations": (), "instruction": ("input", "output", "history"), "prompt": ("completion",),
}  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """One row. where: "chats.jsonl line 17". thinking: what "enable_thinking" says. unused: columns nobody reads."""

    messages: list[dict[str, Any]]
    where: str
    tools: list[Any] | None = None
    thinking: bool | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class BadRow:
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadRowsError(UsageError):
    """Rows that cannot be trained on, all of them."""

    def __init__(self, bad: Sequence[BadRow], rows: int) -> None:
        self.bad = list(bad)
        lines = [
            f"{_count(len(bad), 'bad row')} of {rows:,}; nothing is trained:",
            *(f"  {row}" for row in bad[:SHOWN]),
        ]
        if len(bad) > SHOWN:
            lines.append(f"  … and {len(bad) - SHOWN:,} more")
        super().__init__("\n".join([*lines, "repair them, or leave them out with bad_rows=skip"]))


@dataclass
class ChatData:
    """Samples (their source is the file), the chats they are of, and what is to be known before training on them.

    rows: read, blank lines apart. thinking, direct: samples that think and that do not. bad: rows that were skipped.
    too_long: samples that were dropped. duplicates: samples that repeat an earlier one (they are kept). unused:
    columns nobody read, in how many rows. warnings: control strings that were encoded as text, by row.
    """

    context: int
    chats: list[Chat] = field(default_factory=list)
    samples: list[TokenSample] = field(default_factory=list)
    rows: int = 0
    thinking: int = 0
    direct: int = 0
    bad: list[BadRow] = field(default_factory=list)
    too_long: int = 0
    duplicates: int = 0
    unused: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(sample) for sample in self.samples)

    @property
    def trained(self) -> int:
        """Tokens whose prediction counts."""
        return sum(int(sample.trained.sum()) for sample in self.samples)

    def report(self) -> str:
        """A few lines for people: counts, lengths, and everything that is not as it should be."""
        modes = f"{self.thinking:,} think, {self.direct:,} do not"
        lines = [
            f"{_count(self.rows, 'row')}, {_count(len(self.samples), 'sample')} ({modes}), {self.tokens:,} tokens of "
            f"which {self.trained:,} are trained"
        ]
        if self.samples:
            low, middle, high, top = np.percentile([len(s) for s in self.samples], (0, 50, 90, 100))
            lines.append(
                f"tokens a sample: shortest {low:,.0f}, median {middle:,.0f}, 90 % up to {high:,.0f}, longest "
                f"{top:,.0f}; the context holds {self.context:,}"
            )
        if self.too_long:
            lines.append(f"dropped {_count(self.too_long, 'sample')} longer than the context")
        if self.duplicates:
            lines.append(f"{_count(self.duplicates, 'sample')} repeat an earlier one and count again")
        if self.bad:
            lines.append(f"skipped {_count(len(self.bad), 'bad row')}, the first: {self.bad[0]}")
        if self.unused:
            columns = ", ".join(f"{name} ({_count(rows, 'row')})" for name, rows in self.unused.most_common())
            lines.append(f"columns that are not used: {columns}")
        if self.warnings:
            lines.append(f"{_count(len(self.warnings), 'warning')}, the first: {self.warnings[0]}")
        return "\n".join(lines)


def load_chats(
    paths: Sequence[str | Path],
    renderer: Renderer,
    context: int,
    *,
    turns: Turns = "last",
    bad_rows: Literal["stop", "skip"] = "stop",
    too_long: Literal["stop", "drop"] = "stop",
    tell: Callable[[str], None] | None = None,
) -> ChatData:
    """All files, read and encoded. context: the longest a sample may be, in tokens. bad_rows, too_long: what becomes of
    rows that are wrong, and of samples longer than the context ("stop": they are bad rows). tell: gets a line now and
    then while large files are read.

    Raises BadRowsError with all bad rows, ModelNotFoundError for a file that is not there, UsageError where no sample
    is left.
    """
    allowed_values = {"bad_rows": ("stop", "skip"), "too_long": ("stop", "drop"), "turns": get_args(Turns)}
    for name, value in (("bad_rows", bad_rows), ("too_long", too_long), ("turns", turns)):
        allowed = allowed_values[name]
        if value not in allowed:
            raise UsageError(f"{name}={value!r} must be {' or '.join(allowed)}")
    data = ChatData(context)
    weights: list[float] = []
    for path in paths:
        for row in read_chats(path):
            data.rows += 1
            if tell is not None and data.rows % 20_000 == 0:
                tell(f"{path}: {data.rows:,} rows read")
            try:
                found = _turns(row, renderer, turns)
                if too_long == "stop":
                    _fitting(found, context)
            except UsageError as error:
                data.bad.append(BadRow(row.where, str(error)))
                continue
            assert isinstance(row, Chat)
            data.unused.update(row.unused)
            data.warnings += [f"{row.where}: {warning}" for turn in found for warning in turn.warnings]
            kept = [turn for turn in found if len(turn) <= context]
            data.too_long += len(found) - len(kept)
            data.chats += [row] if kept else []
            data.samples += [turn.sample(str(path)) for turn in kept]
            weights += [turn.weight for turn in kept]
            data.thinking += sum(turn.thinking for turn in kept)
    if data.bad and bad_rows == "stop":
        raise BadRowsError(data.bad, data.rows)
    if not data.samples:
        why = f": all {len(data.bad):,} rows are bad, the first: {data.bad[0]}" if data.bad else ""
        raise UsageError(f"{', '.join(map(str, paths))}: nothing to train on{why}")
    data.direct = len(weights) - data.thinking
    data.duplicates = len(weights) - len({sample.ids.tobytes() for sample in data.samples})
    if any(weight != 1 for weight in weights):  # all samples of an update have the stream, or none
        data.samples = [weighted(sample, weight) for sample, weight in zip(data.samples, weights, strict=True)]
    return data


def _turns(row: Chat | BadRow, renderer: Renderer, which: Turns) -> list[Turn]:
    if isinstance(row, BadRow):
        raise UsageError(row.reason)
    found = renderer.turns(row.messages, which, thinking=row.thinking, tools=row.tools)
    for turn in found if row.thinking is False else ():
        message = row.messages[turn.message]
        if any(message.get(name) for name in REASONING_FIELDS) or "</think>" in str(message.get("content")):
            raise UsageError(f"enable_thinking is false, but messages[{turn.message}] has reasoning")
    return found


def _fitting(found: Sequence[Turn], context: int) -> None:
    longest = max(len(turn) for turn in found)
    if longest > context:
        raise UsageError(f"{longest:,} tokens; the context holds {context:,} (too_long=drop leaves such rows out)")


# Reading


def read_chats(path: str | Path) -> Iterator[Chat | BadRow]:
    """The rows of a file in order, blank lines left out. Raises ModelNotFoundError or UsageError where it cannot be
    read at all."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".json"):
        raise UsageError(f"{path}: chats are read from .jsonl files, a JSON object on each line")
    for where, text in _rows(path):
        try:
            value = json.loads(text) if isinstance(text, (str, bytes)) else text
        except UnicodeDecodeError as error:
            yield BadRow(where, f"not UTF-8 at byte {error.start + 1}")
        except json.JSONDecodeError as error:
            yield BadRow(where, f"not JSON: {error.msg.lower()} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield BadRow(where, f"not JSON that can be read: {error}")
        else:
            try:
                yield _chat(value, where)
            except UsageError as error:
                yield BadRow(where, str(error))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, the row's bytes, or its value where the file is one list)."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".json" and file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                file.seek(0)
                yield from ((f"{path.name} row {i}", row) for i, row in enumerate(_whole(path, file.read()), 1))
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                if text := line.removeprefix(b"\xef\xbb\xbf").strip():
                    yield f"{path.name} line {number}", text
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise ModelNotFoundError(f"{path}: there is no such file") from None
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _whole(path: Path, text: bytes) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from None
    return rows


def _chat(row: Any, where: str) -> Chat:
    if not isinstance(row, dict):
        raise UsageError(f"a row must be a JSON object, not {_kind(row)}")
    row = {name: value for name, value in row.items() if value is not None}
    shapes = [name for name in _SHAPES if name in row]
    if len(shapes) != 1:
        has = f"both {' and '.join(shapes)}" if shapes else f"only {', '.join(row) or 'nothing'}"
        raise UsageError(f"a row has messages, conversations, instruction or prompt; this one has {has}")
    if row.get("verdict", "accepted") != "accepted":
        raise UsageError(f"its verdict is {row['verdict']!r}: only accepted answers are trained")
    messages = [dict(message) for message in _READERS[shapes[0]](row)]
    if "system" in row:
        messages.insert(0, {"role": "system", "content": _text(row, "system")})
    thinking = row.get("enable_thinking")
    if thinking is not None and not isinstance(thinking, bool):
        raise UsageError(f"enable_thinking must be true or false, not {thinking!r}")
    read = {shapes[0], *_SHAPES[shapes[0]], *_OPTIONS}
    return Chat(messages, where, _tools(row.get("tools")), thinking, tuple(name for name in row if name not in read))


def _tools(given: Any) -> list[Any] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError:
            raise UsageError("tools is a text that is not JSON") from None
    if given is not None and not isinstance(given, list):
        raise UsageError(f"tools must be a list of JSON schemas, not {_kind(given)}")
    return given or None


def _messages(row: dict[str, Any], name: str = "messages") -> list[Any]:
    given = row[name]
    if not isinstance(given, list) or not given:
        raise UsageError(f"{name} must be a list of messages, not {_kind(given)}")
    for i, message in enumerate(given):
        if not isinstance(message, dict):
            raise UsageError(f"{name}[{i}] must be an object, not {_kind(message)}")
    return given


def _sharegpt(row: dict[str, Any]) -> list[Any]:
    messages = []
    for i, turn in enumerate(_messages(row, "conversations")):
        if "role" in turn:
            messages.append(turn)
            continue
        role = _ROLES.get(str(turn.get("from")).lower())
        if role is None or "value" not in turn:
            raise UsageError(f"conversations[{i}] must have value, and from: human, gpt, system or tool")
        if role != "call":
            messages.append({"role": role, "content": turn["value"]})
            continue
        try:
            calls = json.loads(turn["value"])
        except (TypeError, ValueError):
            raise UsageError(f"conversations[{i}].value is a function_call, but not JSON") from None
        calls = calls if isinstance(calls, list) else [calls]
        messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    return messages


def _alpaca(row: dict[str, Any]) -> list[Any]:
    messages = []
    history = row.get("history", [])
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise UsageError("history must be a list of [instruction, output] pairs")
    for question, answer in history:
        messages += _exchange(question, answer)
    extra = _text(row, "input") if row.get("input") else ""
    question = _text(row, "instruction") + (f"\n\n{extra}" if extra else "")
    return messages + _exchange(question, _text(row, "output"))


def _completion(row: dict[str, Any]) -> list[Any]:
    if isinstance(row["prompt"], list):
        rest = row.get("completion")
        last = (
            [{"role": "assistant", "content": rest}]
            if isinstance(rest, str)
            else _messages(row | {"completion": rest}, "completion")
        )
        return [*_messages(row, "prompt"), *last]
    return _exchange(_text(row, "prompt"), _text(row, "completion"))


def _exchange(question: Any, answer: Any) -> list[Any]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


_READERS: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "messages": _messages, "conversations": _sharegpt, "instruction": _alpaca, "prompt": _completion,
}  # fmt: skip


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be a text, not {'missing' if value is None else _kind(value)}")
    return value


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(
        type(value), f"{value!r:.40}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# Showing


def preview(sample: TokenSample, tokenizer: Tokenizer, *, color: bool = False) -> str:
    """The sample as text, control tokens spelled out; what is trained is green, or stands in ⟦⟧."""
    before, after = ("\x1b[32m", "\x1b[0m") if color else ("⟦", "⟧")
    edges = np.flatnonzero(np.diff(sample.trained)) + 1
    parts = []
    for start, stop in zip((0, *edges), (*edges, len(sample)), strict=True):
        # Escape sequences in the data must not reach the terminal.
        text = re.sub(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f]",
            "\N{REPLACEMENT CHARACTER}",
            tokenizer.decode(sample.ids[start:stop].tolist()),
        )
        parts.append(f"{before}{text}{after}" if sample.trained[start] else text)
    return "".join(parts)
