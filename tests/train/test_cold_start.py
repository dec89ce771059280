"""Rejection sampling through the engine: what is kept, why the rest is not, and going on after a kill."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qwen3 import LLM, SamplingParams
from qwen3.errors import UsageError
from qwen3.tasks import FAMILIES
from qwen3.tokenizer import Tokenizer
from qwen3.train.chats import load_chats
from qwen3.train.cold_start import (
    Question,
    Report,
    as_worked,
    rejection_sample,
    sample_questions,
    worked_draw,
    write_worked,
)
from qwen3.train.conversations import Renderer

SHORT = SamplingParams(max_tokens=160)


@pytest.fixture(scope="module")
def llm() -> Any:
    with LLM("embedded", "cpu") as llm:
        yield llm


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def easy() -> list[Question]:
    rng = random.Random(1)
    problems = {p.key: p for p in (FAMILIES[name].sample(rng, 1) for name in ("chain", "gcd", "chain", "gcd"))}
    return [Question.of(problem) for problem in problems.values()]


def sample(llm: LLM, questions: list[Question], path: Path, **options: Any) -> Report:
    return rejection_sample(llm, questions, path, samples=3, keep=2, sampling=SHORT, **options)


def test_what_the_verifier_accepts_is_written_as_it_was_sampled(llm: LLM, easy: list[Question], tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    report = sample(llm, easy, path)
    kept, rest = rows(path), rows(tmp_path / "traces.rejected.jsonl")
    assert len(kept) + len(rest) == 3 * len(easy)
    assert kept
    by_key = {question.key: question for question in easy}
    for row in kept:
        message = row["messages"][-1]
        assert by_key[row["key"]].check(message["content"])
        assert message["reasoning_content"]
        assert row["verdict"] == "accepted"
    texts = [(row["key"], row["messages"][-1]["reasoning_content"], row["messages"][-1]["content"]) for row in kept]
    assert len(set(texts)) == len(texts)
    assert max(sum(row["key"] == key for row in kept) for key in by_key) <= 2
    for row in rest:
        right = by_key[row["key"]].check(row["messages"][-1]["content"])
        assert row["verdict"] != "wrong" or not right
        assert row["verdict"] not in ("repeated", "enough") or right
    whole = report.families["all"]
    assert whole.kept == len(kept)
    assert whole.samples == 3 * len(easy)
    assert sum(whole.verdicts.values()) == whole.samples
    written = json.loads((tmp_path / "traces.report.json").read_text())
    assert set(written) == {"all", "chain", "gcd"}
    assert written["all"]["pass_1"] <= written["all"]["pass_n"] <= 1
    assert "pass@1" in report.table()
    # what comes out goes into training, ids and all
    data = load_chats([path], Renderer(llm.tokenizer), 4096)
    assert (len(data.samples), data.thinking) == (len(kept), len(kept))
    ids = kept[0]["messages"][-1]["ids"]
    assert data.samples[0].ids[-len(ids) :].tolist() == ids
    with pytest.raises(UsageError, match="only accepted answers are trained"):
        load_chats([tmp_path / "traces.rejected.jsonl"], Renderer(llm.tokenizer), 4096)


def test_a_killed_run_goes_on_behind_its_last_chunk(
    llm: LLM, easy: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.jsonl"
    sample(llm, easy, whole, chunk=1)
    calls = []
    original = LLM.chat_batch

    def counted(self: LLM, conversations: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(conversations))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, conversations, *args, **options)

    monkeypatch.setattr(LLM, "chat_batch", counted)
    path = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sample(llm, easy, path, chunk=1)
    assert not path.exists()
    with pytest.raises(UsageError, match="unfinished run with keep=2, not 1"):
        rejection_sample(llm, easy, path, samples=3, keep=1, sampling=SHORT, chunk=1)
    told: list[str] = []
    sample(llm, easy, path, chunk=1, tell=told.append)
    assert len(calls) == 3 + len(easy) - 2
    assert told[-1].startswith(f"{len(easy)} of {len(easy)} questions")
    assert path.read_text() == whole.read_text()
    assert sorted(p.name for p in tmp_path.glob("parts*")) == [
        "parts.jsonl", "parts.rejected.jsonl", "parts.report.json",
    ]  # fmt: skip


def test_verdicts(llm: LLM, easy: list[Question], tmp_path: Path) -> None:
    def verdicts(check: Any = lambda text: True, **options: Any) -> dict[str, int]:
        asked = [Question("q", easy[0].prompt, check)]
        given: dict[str, Any] = {"samples": 3, "keep": 1, "sampling": SHORT} | options
        return dict(rejection_sample(llm, asked, tmp_path / "a.jsonl", **given).families["all"].verdicts)

    assert verdicts(lambda text: False) == {"wrong": 3}
    assert verdicts(budget=2) == {"cut": 3}
    assert verdicts(sampling=SamplingParams(max_tokens=4)) == {"cut": 3}
    same = SamplingParams(max_tokens=160, temperature=0)
    assert verdicts(sampling=same) == {"accepted": 1, "repeated": 2}
    assert verdicts(sampling=same, thinking=False) == {"accepted": 1, "repeated": 2}
    (row,) = rows(tmp_path / "a.jsonl")
    assert row["enable_thinking"] is False
    assert load_chats([tmp_path / "a.jsonl"], Renderer(llm.tokenizer), 4096).direct == 1
    for wrong in ({"samples": 0}, {"keep": True}, {"chunk": 1.5}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} must be a whole number"):
            verdicts(**wrong)
    with pytest.raises(UsageError, match="same key"):
        rejection_sample(llm, easy[:1] * 2, tmp_path / "a.jsonl")


def test_questions_are_different_and_the_same_for_a_seed() -> None:
    found = sample_questions(60, seed=4, families={"chain": 2, "sort": 1})
    assert len({question.key for question in found}) == 60
    assert {question.family for question in found} == {"chain", "sort"}
    again = sample_questions(60, seed=4, families={"chain": 2, "sort": 1})
    assert [q.prompt for q in again] == [q.prompt for q in found]
    assert all(question.check(question.reply) for question in found)
    with pytest.raises(UsageError, match="chess is none of chain"):
        sample_questions(1, families={"chess": 1})


def test_worked_traces_in_several_styles(tmp_path: Path) -> None:
    def terse(question: Question, rng: random.Random) -> str:
        return "\n\n".join(question.trace.split("\n\n")[::2])

    questions = sample_questions(40, families={"chain": 1})
    path = tmp_path / "worked.jsonl"
    assert write_worked(questions, path, {as_worked: 1, terse: 1}) == 40
    tok = Tokenizer.from_pretrained().prefix(8192)
    assert load_chats([path], Renderer(tok), 4096).thinking == 40
    traces = [row["messages"][-1]["reasoning_content"] for row in rows(path)]
    long = [question for question in questions if question.trace.count("\n\n") > 1]
    kept = sum(question.trace in traces for question in long)
    assert 0 < kept < len(long)
    chat = worked_draw({"gcd": 1})(random.Random(1))
    assert chat.messages[-1]["reasoning_content"]
    with pytest.raises(UsageError, match="the question q has no trace"):
        write_worked([Question("q", "?", lambda text: True)], path)
    with pytest.raises(UsageError, match="has a reply that is wrong: 'no'"):
        write_worked([Question("q", "?", lambda text: False, trace="t", reply="no")], path)
    assert len(rows(path)) == 40
