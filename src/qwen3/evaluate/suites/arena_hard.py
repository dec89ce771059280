"""Arena-Hard: real users' hard prompts, each answer judged beside a baseline's (Li et al., arXiv 2406.11939).

The judge is any endpoint: the runner binds it with `with_judge`. Without one, answers are kept unscored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qwen3.errors import UsageError
from qwen3.evaluate.score.judge import Ask, score_pair
from qwen3.evaluate.suites.source import Row, field, published, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite

BASELINES = {"arena-hard-v0.1": "gpt-4-0314", "creative_writing": "gemini-2.0-flash-001"}
_OTHERS = "o3-mini-2025-01-31"
HOW = (
    "Put question.jsonl and the baselines' files of model_answer, from github.com/lmarena/arena-hard-auto's data or "
    "lmarena-ai/arena-hard-auto on the hub, into a folder."
)


def _load(version: str, source: str | None) -> list[Item]:
    name = "arena_hard" if version.endswith("0.1") else "arena_hard_2"
    found = rows(name, local=source, how=HOW)
    questions = [row for row in found if "prompt" in row]
    answers = {
        (field(row, "model", "model_id"), str(field(row, "uid", "question_id"))): _text(row)
        for row in found
        if "messages" in row or "choices" in row
    }
    if not questions:
        raise UsageError(f"{name}: no question.jsonl among the data. {HOW}")
    items = []
    for row in questions:
        key, kind = str(field(row, "uid", "question_id")), row.get("category", version)
        baseline = BASELINES.get(kind, _OTHERS)
        if (answer := answers.get((baseline, key))) is None:
            raise UsageError(f"{name}: no answer of the baseline {baseline} to question {key}. {HOW}")
        about = {"category": kind, "cluster": row.get("cluster") or row.get("subcategory") or "?"}
        gold = {"baseline": baseline, "answer": answer}
        items.append(Item(key, ({"role": "user", "content": field(row, "prompt")},), gold, about))
    return items


def _text(row: Row) -> str:
    """The answer of a model's record, in the form of either version."""
    said = row["messages"][-1]["content"] if "messages" in row else row["choices"][0]["turns"][-1]["content"]
    return str(said["answer"] if isinstance(said, Mapping) else said)


def load_1(source: str | None) -> list[Item]:
    """The 500 prompts of v0.1, with GPT-4-0314's answers."""
    return _load("arena-hard-v0.1", source)


def load_2(source: str | None) -> list[Item]:
    """The 750 prompts of v2.0, with o3-mini's answers, and Gemini 2.0 Flash's to creative writing."""
    return _load("arena-hard-v2.0", source)


def score(item: Item, answer: Answer) -> Score:
    """Raises UsageError: this suite is scored by a judge, bound by `with_judge`."""
    raise UsageError(f"item {item.id}: Arena-Hard needs a judge; name an endpoint and a model that judges")


def with_judge(suite: Suite, ask: Ask, *, tries: int = 2) -> Suite:
    """The suite with its answers judged by `ask`, each in both orders. Its value is the share of battles won."""

    def judged(item: Item, answer: Answer) -> Score:
        return score_pair(ask, item, answer, item.gold["answer"], tries=tries)

    return replace(suite, score=judged)


_FIRST = Suite(
    name="arena_hard",
    title="Arena-Hard v0.1",
    load=load_1,
    score=score,
    licence="Apache-2.0",
    source="https://github.com/lmarena/arena-hard-auto",
    headline="win rate against GPT-4-0314",
    references=published("8.5 43.1 76.6 85.8 91.7 93.8 91.0 95.6", "6.5 36.9 66.2 79.6 86.3 92.8 88.0 96.1"),
    groups=("category",),
    notes="The report does not name its judge; the benchmark's own was GPT-4-Turbo. Win rates of two judges do not "
    "compare. An item's value is its share of won battles; in `score.judge.win_rate` items weigh by their battles.",
    needs=("judge",),
)
SUITES = (
    _FIRST,
    replace(
        _FIRST,
        name="arena_hard_2",
        title="Arena-Hard v2.0",
        load=load_2,
        headline="win rate against the category's baseline",
        references=(),
        notes="The benchmark's own judges are GPT-4.1 and Gemini 2.5.",
    ),
)
