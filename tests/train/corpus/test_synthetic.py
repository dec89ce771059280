"""What a model writes from texts: only whole answers are kept, the others counted, and a killed call goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from qwen3 import LLM, SamplingParams
from qwen3.errors import UsageError
from qwen3.train.corpus.documents import Document
from qwen3.train.corpus.readers import read
from qwen3.train.corpus.synthetic import STYLES, passages, synthesize

TEXTS = [Document(f"The tower of number {i} was built long ago.", f"t{i}", "towers") for i in range(7)]


@dataclass
class Answer:
    content: str
    finish_reason: str = "stop"
    ids: tuple[int, ...] = (1, 2, 3)
    thinking: Any = None


@dataclass
class Writer:
    """Stands for the engine: answers by rules, and dies when it is told to."""

    dies_at: int = -1
    asked: list[str] = field(default_factory=list)

    def chat_batch(self, conversations: Sequence[Any], *rest: Any, **more: Any) -> list[Answer]:
        if len(self.asked) >= self.dies_at > 0:
            raise KeyboardInterrupt
        prompts = [messages[0]["content"] for messages in conversations]
        self.asked += prompts
        return [self.answer(prompt.rpartition("\n\n")[2]) for prompt in prompts]

    def answer(self, text: str) -> Answer:
        number = int(text.split()[4])
        return [
            Answer(f"Number {number} is an old tower."), Answer(" \n"), Answer("Number", "length"), Answer(text),
            Answer("I cannot."),
        ][number] if number < 5 else Answer(f"Number {number} is an old tower.")  # fmt: skip


def synthesized(path: Path, writer: Any, **keys: Any) -> Any:
    return synthesize(writer, TEXTS, path, check=lambda part, text: part.text.split()[4] in text, chunk=2, **keys)


def test_only_good_answers_are_written_and_the_others_counted(tmp_path: Path) -> None:
    found = synthesized(tmp_path / "x.jsonl", Writer())
    assert found.verdicts == {"accepted": 3, "empty": 1, "cut": 1, "copied": 1, "refused": 1}
    assert (found.documents, found.passages, found.tokens) == (7, 7, 21)
    texts = list(read(str(tmp_path / "x.jsonl")))
    assert [text.id for text in texts] == ["rephrase:t0:0", "rephrase:t5:0", "rephrase:t6:0"]
    assert texts[1].text == "Number 5 is an old tower."
    rejected = [json.loads(line)["verdict"] for line in (tmp_path / "x.rejected.jsonl").read_text().splitlines()]
    assert sorted(rejected) == ["copied", "cut", "empty", "refused"]
    assert "accepted 3, empty 1" in str(found)


def test_a_killed_call_goes_on_to_the_same_files(tmp_path: Path) -> None:
    synthesized(tmp_path / "whole.jsonl", Writer())
    with pytest.raises(KeyboardInterrupt):
        synthesized(tmp_path / "x.jsonl", Writer(dies_at=4))
    with pytest.raises(UsageError, match="template"):
        synthesized(tmp_path / "x.jsonl", Writer(), style="textbook")
    rest = Writer()
    synthesized(tmp_path / "x.jsonl", rest)
    assert len(rest.asked) == 3
    for name in (".jsonl", ".rejected.jsonl", ".report.json"):
        assert (tmp_path / f"x{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()


def test_long_documents_become_passages() -> None:
    text = "\n\n".join(["a short one", "words " * 40, "x" * 130, "line one\nline two"])
    found = list(passages(Document(text, "d"), 100))
    assert [part.id for part in found] == [f"d#{i}" for i in range(1, len(found) + 1)]
    assert max(len(part.text) for part in found) <= 100
    assert "".join("".join(part.text.split()) for part in found) == "".join(text.split())
    assert [part.id for part in passages(Document("short", "d"), 100)] == ["d"]
    assert not list(passages(Document(" \n\n ", "d"), 100))


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"style is one of rephrase, questions, textbook"):
        synthesized(tmp_path / "x", Writer(), style="poem")
    with pytest.raises(UsageError, match="no text"):
        synthesize(Writer(), [Document("", "d")], tmp_path / "x")  # type: ignore[arg-type]


def test_the_engine_writes(tmp_path: Path) -> None:
    with LLM(device="cpu") as llm:
        found = synthesize(llm, TEXTS[:2], tmp_path / "x.jsonl", "Count the letters of this: {text}", samples=2,
                           sampling=SamplingParams(max_tokens=24), tell=print)  # fmt: skip
    assert sum(found.verdicts.values()) == 4
    assert found.tokens > 0
    assert set(STYLES) == {"rephrase", "questions", "textbook"}
