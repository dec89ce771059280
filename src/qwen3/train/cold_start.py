"""Data for a long-CoT cold start: answers whose thoughts lead to what a verifier accepts.

    questions = sample_questions(1000, seed=0)
    report = rejection_sample(llm, questions, "traces.jsonl", samples=8, keep=2)
    qwen3 train sft data=traces.jsonl …

Of each question, `samples` answers come from the engine, at most `keep` different ones are written that the verifier
accepts, with the ids as they were sampled (the Qwen3 report's stage 1, arXiv 2505.09388, section 4.1). A first model,
which samples nothing right yet, begins with worked traces: `write_worked`, in the same format.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen3.chat import ThinkingPolicy
from qwen3.checkpoint.journal import write_atomic
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError
from qwen3.llm import LLM, Generation
from qwen3.tasks import FAMILIES, Problem
from qwen3.train.chats import Chat
from qwen3.train.parts import all_rows, begin_parts, missing_parts, write_rows

VERDICTS = ("accepted", "wrong", "cut", "no thought", "repeated", "enough")
"""accepted: written. wrong: the verifier says so. cut: the thought or the answer was ended from outside (budget,
length, loop). no thought: nothing stands between the tags. repeated: an accepted answer of this question once more.
enough: right, but `keep` are there already."""


@dataclass(frozen=True)
class Question:
    """What is asked and how an answer is judged. key: names it in files, one question each. check: whether the visible
    text is right. family, level: for statistics. trace, reply: worked out, where somebody did."""

    key: str
    prompt: str
    check: Callable[[str], bool]
    family: str = ""
    level: int = 0
    trace: str = ""
    reply: str = ""

    @classmethod
    def of(cls, problem: Problem) -> Question:
        """A task's problem, judged by its family."""
        task = FAMILIES[problem.family]
        return cls(
            f"{problem.family}/{problem.key}",
            problem.prompt,
            lambda text: task.check(problem, text),
            problem.family,
            problem.level,
            problem.trace,
            problem.reply,
        )


def sample_questions(
    count: int, seed: int = 0, families: Mapping[str, float] | None = None, *, split: str = "train"
) -> list[Question]:
    """Different problems of the tasks, the same for a seed. families: weights by name; None: all alike. Raises
    UsageError for a family that does not exist, or where so many different problems are not found."""
    weights = dict.fromkeys(FAMILIES, 1.0) if families is None else families
    if unknown := [name for name in weights if name not in FAMILIES]:
        raise UsageError(f"families: {unknown[0]} is none of {', '.join(FAMILIES)}")
    rng, found = random.Random(f"{seed}/questions"), dict[str, Question]()
    for _ in range(50 * count + 100):
        if len(found) == count:
            break
        name = rng.choices(list(weights), list(weights.values()))[0]
        question = Question.of(FAMILIES[name].sample(rng, split=split))
        found.setdefault(question.key, question)
    if len(found) < count:
        raise UsageError(
            f"there are hardly more than {len(found):,} different problems in these families; ask for fewer"
        )
    return list(found.values())


@dataclass
class FamilyReport:
    """Of one family. pass_1: share of samples that were right. pass_n: share of questions with a right one. tokens:
    of a thought, the mean over samples that ended by themselves. kept: answers written."""

    questions: int = 0
    samples: int = 0
    right: int = 0
    solved: int = 0
    kept: int = 0
    ended: int = 0
    tokens: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)

    def add(self, result: Mapping[str, Any]) -> None:
        """result: one question's line of a part file."""
        self.questions += 1
        self.samples += result["samples"]
        self.right += result["right"]
        self.solved += result["right"] > 0
        self.verdicts.update(result["verdicts"])
        self.kept += result["verdicts"].get("accepted", 0)
        self.ended += result["ended"]
        self.tokens += result["tokens"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "samples": self.samples,
            "pass_1": self.right / max(1, self.samples),
            "pass_n": self.solved / max(1, self.questions),
            "kept": self.kept,
            "tokens": self.tokens / max(1, self.ended),
            "verdicts": dict(self.verdicts),
        }


@dataclass(frozen=True)
class Report:
    """families: by name, "all" for the whole. seconds: of this call."""

    path: Path
    families: dict[str, FamilyReport]
    seconds: float = 0.0

    def table(self) -> str:
        lines = [f"{'family':12}{'questions':>10}{'samples':>9}{'pass@1':>8}{'pass@n':>8}{'kept':>8}{'tokens':>8}"]
        for name, found in self.families.items():
            row = found.to_dict()
            lines.append(
                f"{name:12}{row['questions']:>10,}{row['samples']:>9,}{row['pass_1']:>8.1%}{row['pass_n']:>8.1%}"
                f"{row['kept']:>8,}{row['tokens']:>8.0f}"
            )
        whole = self.families["all"].verdicts
        lines.append("verdicts: " + ", ".join(f"{name} {whole[name]:,}" for name in VERDICTS if whole[name]))
        return "\n".join(lines)


def rejection_sample(
    llm: LLM,
    questions: Sequence[Question],
    path: str | Path,
    *,
    samples: int = 8,
    keep: int = 2,
    thinking: bool = True,
    budget: int | None = None,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    chunk: int = 128,
    adapter: str | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Sample, judge, write. The file has one row for each accepted answer, as `chats` reads them, and beside it
    `….report.json` has the statistics. Every row of other verdicts is in `….rejected.jsonl`.

    samples: answers to each question. keep: of these, the most that are written. thinking: answers with a thought, or
    without any. budget: of thinking; what it cuts is not kept. sampling: temperature, max_tokens and the like; None:
    what Qwen published. chunk: questions that are in work at once, and are lost where the process is killed: a call
    with the same arguments goes on behind the last chunk that was written. The files appear when all is done.

    Raises UsageError for what is wrong in the arguments, and where an unfinished run has others.
    """
    path = Path(path)
    for name, value in (("samples", samples), ("keep", keep), ("chunk", chunk)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} must be a whole number from 1, not {value!r}")
    if len({question.key for question in questions}) < len(questions) or not questions:
        raise UsageError("questions must be different: two have the same key, or there are none")
    policy = ThinkingPolicy(mode="on", budget=budget) if thinking else ThinkingPolicy(mode="off")
    params = replace(sampling or SamplingParams(), n=samples)
    began = time.monotonic()
    parts = begin_parts(path.with_name(path.name + ".parts"), {
        "questions": len(questions), "first": questions[0].key, "last": questions[-1].key, "samples": samples,
        "keep": keep, "thinking": thinking, "budget": budget, "sampling": repr(params), "seed": seed, "chunk": chunk,
    })  # fmt: skip
    for number, part, group in missing_parts(parts, questions, chunk):
        conversations = [[{"role": "user", "content": question.prompt}] for question in group]
        seeds = random.Random(f"{seed}/{number}")  # one for all would give all questions the same luck
        own = [replace(params, seed=seeds.getrandbits(53)) for _ in group]
        found = llm.chat_batch(conversations, policy, own, adapter=adapter)
        answers = [answer if isinstance(answer, list) else [answer] for answer in found]
        lines = [_judge(question, tries, keep, thinking) for question, tries in zip(group, answers, strict=True)]
        write_rows(part, lines)
        if tell is not None:
            tell(_progress(lines, number * chunk + len(group), len(questions), time.monotonic() - began))
    return replace(_join(path, parts), seconds=time.monotonic() - began)


def _judge(question: Question, answers: Sequence[Generation], keep: int, thinking: bool) -> dict[str, Any]:
    """One question's line: its statistics, and a row for each answer."""
    rows, seen = [], set[tuple[str, str]]()
    verdicts: Counter[str] = Counter()
    right = ended = tokens = 0
    for number, answer in enumerate(answers):
        text = (answer.reasoning_content.strip(), answer.content.strip())
        verdict = _verdict(question, answer, thinking)
        if verdict != "cut":
            ended += 1
            tokens += answer.thinking.used if answer.thinking else 0
        if verdict == "accepted":
            right += 1
            verdict = "repeated" if text in seen else "enough" if len(seen) >= keep else verdict
        if verdict == "accepted":
            seen.add(text)
        verdicts[verdict] += 1
        message = {"role": "assistant", "content": answer.content, "ids": list(answer.ids)}
        if answer.reasoning_content:
            message["reasoning_content"] = answer.reasoning_content
        rows.append(_row(question, message, thinking, verdict, number))
    statistics = {"samples": len(answers), "right": right, "ended": ended, "tokens": tokens, "verdicts": verdicts}
    return {"key": question.key, "family": question.family, **statistics, "rows": rows}


def _verdict(question: Question, answer: Generation, thinking: bool) -> str:
    ended_by = answer.thinking.ended_by if answer.thinking else None
    if answer.finish_reason != "stop" or (thinking and ended_by not in ("natural", None)):
        return "cut"
    if thinking and not answer.reasoning_content.strip():
        return "no thought"
    return "accepted" if question.check(answer.content) else "wrong"


def _row(question: Question, message: dict[str, Any], thinking: bool, verdict: str, sample: int) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question.prompt}, message],
        "enable_thinking": thinking,
        "verdict": verdict,
        "key": question.key,
        "family": question.family,
        "level": question.level,
        "sample": sample,
    }


def _progress(lines: Sequence[Mapping[str, Any]], done: int, of: int, seconds: float) -> str:
    right, tried = sum(line["right"] for line in lines), sum(line["samples"] for line in lines)
    return f"{done:,} of {of:,} questions · right {right / tried:.1%} · {seconds:.0f} s gone"


# Worked traces

Style = Callable[[Question, random.Random], str]
"""The trace of a question told in some way: terse, careful."""


def as_worked(question: Question, rng: random.Random) -> str:
    """The question's own trace."""
    return question.trace


def worked_message(
    question: Question, rng: random.Random, styles: Mapping[Style, float] | None = None
) -> dict[str, Any]:
    """The assistant's message with the question's reply, behind a trace in one of the styles, by their weights.

    Raises UsageError where there is no trace, and for a reply that the question's own verifier does not accept.
    """
    weights = styles or {as_worked: 1.0}
    trace = rng.choices(list(weights), list(weights.values()))[0](question, rng)
    if not trace.strip() or not question.check(question.reply):
        what = "has no trace" if not trace.strip() else f"has a reply that is wrong: {question.reply!r}"
        raise UsageError(f"the question {question.key} {what}")
    return {"role": "assistant", "content": question.reply, "reasoning_content": trace}


def write_worked(
    questions: Iterable[Question], path: str | Path, styles: Mapping[Style, float] | None = None, seed: int = 0
) -> int:
    """The questions with worked traces, in the format of `rejection_sample`, without ids; returns how many. Raises as
    `worked_message` does; nothing is written then."""
    rng = random.Random(f"{seed}/styles")
    rows = [_row(question, worked_message(question, rng, styles), True, "accepted", 0) for question in questions]
    write_rows(Path(path), rows)
    return len(rows)


def worked_draw(
    families: Mapping[str, float], styles: Mapping[Style, float] | None = None
) -> Callable[[random.Random], Chat]:
    """Fresh problems of the tasks with worked traces, without end, as `fusion_feed` takes them. families: weights."""

    def draw(rng: random.Random) -> Chat:
        name = rng.choices(list(families), list(families.values()))[0]
        question = Question.of(FAMILIES[name].sample(rng))
        return Chat([{"role": "user", "content": question.prompt}, worked_message(question, rng, styles)], question.key)

    return draw


# Files


def _join(path: Path, parts: Path) -> Report:
    """The part files to those that are for reading; then the parts go."""
    families: dict[str, FamilyReport] = {"all": FamilyReport()}

    for result in all_rows(parts):
        for name in ("all", result["family"]):
            families.setdefault(name, FamilyReport()).add(result)
    report = {name: found.to_dict() for name, found in families.items()}
    write_atomic(path.with_suffix(".report.json"), [json.dumps(report, indent=1).encode() + b"\n"])
    for name, accepted in ((path.with_suffix(".rejected.jsonl"), False), (path, True)):
        rows = (row for result in all_rows(parts) for row in result["rows"])
        write_rows(name, (row for row in rows if (row["verdict"] == "accepted") is accepted))
    shutil.rmtree(parts)
    return Report(path, families)
