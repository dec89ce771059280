"""Text to calibrate with: what a model is asked and answers, in the form in which it meets it.

Built in ("qwen3"): this project's own problems with their worked traces, small talk and tool calls, rendered with the
model's chat template, thinking and not, from the training split. It needs no network, and activations of a chat model
look like its chats; for other domains give a file. Conversations lie behind each other in sequences of one length, and
see no other conversation.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3.chat import encode
from qwen3.checkpoint import read_config, resolve
from qwen3.checkpoint.mode import detect_mode, find_tokenizer
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.tasks import CONTROL_FAMILIES, FAMILIES, STEP_FAMILIES
from qwen3.tasks.dialogue import sample_dialogue
from qwen3.tasks.tools import sample_tool_dialogue

BUILT_IN = "qwen3"
CHARACTERS = 8  # of a text for one token, at most: how long the pieces are that it is cut into

Encode = Callable[[dict[str, Any]], list[int]]
"""A document, {"text": …} or {"messages": […], "tools": […]}, to ids."""


@dataclass(frozen=True)
class Calibration:
    """ids int64 [sequences, length]; positions: of a token in its document; documents: which one of its sequence."""

    name: str
    ids: Tensor
    positions: Tensor
    documents: Tensor
    count: int
    """Documents, whole or cut at the end of a sequence."""

    @property
    def sha256(self) -> str:
        """Of ids and positions, as int32, little-endian."""
        both = torch.stack([self.ids, self.positions]).to(torch.int32)
        return hashlib.sha256(both.numpy().astype("<i4").tobytes()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        sequences, length = self.ids.shape
        shown = {"name": self.name, "documents": self.count, "sequences": sequences, "length": length}
        return shown | {"tokens": self.ids.numel(), "sha256": self.sha256}

    def __str__(self) -> str:
        sequences, length = self.ids.shape
        size = f"{sequences} × {length} = {self.ids.numel():,} tokens of {self.count:,} documents"
        return f"{self.name}: {size}, sha256 {self.sha256[:16]}"


def load_calibration(
    path: str | Path, name: str, *, samples: int = 128, length: int = 512, seed: int = 0
) -> Calibration:
    """Calibration data for the checkpoint at `path`, with its tokenizer and template; the same for the same seed.

    name: "qwen3", or a file: .txt, or .jsonl with {"text": …} or {"messages": […], "tools": […]} a line (as in
    `chat.encode`; thoughts in "reasoning_content"). A short file gives fewer sequences, or a shorter
    one. Raises UsageError for another name, a line that is neither, and a length beyond the model's context;
    ModelNotFoundError where there is no such file.
    """
    config = read_config(Path(path))
    if length > config.max_position_embeddings:
        raise UsageError(
            f"calibration length {length} is beyond the model's {config.max_position_embeddings} positions"
        )
    resolved = resolve(str(path))
    tokenizer, _ = find_tokenizer(resolved, config)
    mode, template, _ = detect_mode(resolved, config, tokenizer.control.endoftext)

    def ids(document: dict[str, Any]) -> list[int]:
        try:
            if "text" in document:
                return tokenizer.encode(document["text"])
            tools = document.get("tools")
            messages = document["messages"]
            options: dict[str, Any] = {"tools": tools, "add_generation_prompt": False, "template": template}
            return encode(messages, tokenizer=tokenizer, **options).ids
        except UsageError as error:
            raise UsageError(f"{document.get('where', name)}: {error}") from None

    rng = random.Random(seed)
    documents = conversations(rng, mode) if name == BUILT_IN else read_documents(Path(name), rng, length)
    return pack(name, documents, ids, samples, length)


def conversations(rng: random.Random, mode: str = "hybrid", split: str = "train") -> Iterator[dict[str, Any]]:
    """Endless. Half are problems that are thought about, a fifth such that are not, the rest small talk and tool calls.

    mode "thinking" or "instruct": all problems with a thought, or none."""
    while True:
        kind = rng.random()
        if kind < 0.7:
            thinks = mode == "thinking" or (mode == "hybrid" and kind < 0.5)
            task = FAMILIES[rng.choice(STEP_FAMILIES if thinks else STEP_FAMILIES + CONTROL_FAMILIES)]
            problem = task.sample(rng, split=split)
            reply = {"role": "assistant", "content": problem.reply}
            if thinks:
                reply["reasoning_content"] = problem.trace
            yield {"messages": [{"role": "user", "content": problem.prompt}, reply]}
        elif kind < 0.85:
            yield {"messages": sample_dialogue(rng)}
        else:
            messages, tools = sample_tool_dialogue(rng, split)
            yield {"messages": messages, "tools": tools}


def read_documents(file: Path, rng: random.Random, length: int) -> Iterator[dict[str, Any]]:
    """Of a .txt (pieces that end with a line, of about `length` tokens) or .jsonl file, in a random order."""
    if file.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"calibration {str(file)!r} must be 'qwen3' (built in), or a .txt or .jsonl file")
    if not file.is_file():
        raise ModelNotFoundError(f"{file}: no such calibration file")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from None
    if file.suffix == ".jsonl":
        found = [_document(file, i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    else:
        found, piece, size = [], [], 0
        for line in text.splitlines(keepends=True):
            piece.append(line)
            size += len(line)
            if size >= length * CHARACTERS:
                found.append({"text": "".join(piece)})
                piece, size = [], 0
        found += [{"text": "".join(piece)}] if "".join(piece).strip() else []
    if not found:
        raise UsageError(f"{file} is empty: there is nothing to calibrate with")
    rng.shuffle(found)
    yield from found


def _document(file: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{file}, line {number}"
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    if not isinstance(value, dict) or not (
        isinstance(value.get("text"), str) or isinstance(value.get("messages"), list)
    ):
        raise UsageError(f'{where} must be an object with "text" (a string) or "messages" (a list)')
    return value | {"where": where}


def pack(name: str, documents: Iterator[dict[str, Any]], ids: Encode, samples: int, length: int) -> Calibration:
    """Documents behind each other, cut at the end of a sequence; what a sequence cuts off is not used."""
    rows: list[list[int]] = []
    starts: list[list[int]] = []  # of each row's documents
    row: list[int] = []
    begins: list[int] = []
    count = 0
    for document in documents:
        new = ids(document)[: length - len(row)]
        if not new:
            continue
        begins.append(len(row))
        row += new
        count += 1
        if len(row) == length:
            rows.append(row)
            starts.append(begins)
            row, begins = [], []
            if len(rows) == samples:
                break
    if not rows:  # less than one sequence
        if len(row) < 2:
            raise UsageError(f"{name}: fewer than two tokens to calibrate with")
        rows, starts = [row], [begins]
    return Calibration(name, torch.tensor(rows), *_places(starts, len(rows[0])), count)


def _places(starts: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    first = torch.zeros(len(starts), length, dtype=torch.int64)
    for mark, begins in zip(first, starts, strict=True):
        mark[torch.tensor(begins)] = 1
    documents = first.cumsum(1) - 1
    steps = torch.arange(length).expand_as(documents)
    begun = torch.where(first == 1, steps, 0).cummax(1).values
    return steps - begun, documents
