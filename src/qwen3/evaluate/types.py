"""What the parts of an evaluation hand each other: items of a suite, answers to them, scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = ("right", "wrong", "truncated", "empty", "unparsed", "failed")
"""Classes of a sample. truncated: cut by a length limit, whatever it is worth. empty: no answer text. unparsed: an
answer, in which the scorer found nothing to score. failed: no answer came (the server, a sandbox). The rest are judged:
right at a value of 1, wrong below it (which may be partial)."""


@dataclass(frozen=True)
class Item:
    """One question. id: unique in its suite and the same in every run. messages: the chat so far, the last one asks.
    later: user messages of further turns, each sent after the model's answer to the one before. gold: what the scorer
    compares with; about: facts of the item that tables group by (subject, language, level, date, …). Both plain JSON.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    gold: Any = None
    about: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    later: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came back for one sample of an item. content: the last turn's answer without its thoughts; turns: all
    turns' answers, the last included. finish_reason as in OpenAI's API, or "error" with `error` saying why.
    thinking_tokens, answer_tokens: of all turns; None where an endpoint does not say. seconds: wall time.
    """

    content: str
    thinking: str = ""
    finish_reason: str = "stop"
    turns: tuple[str, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    prompt_tokens: int | None = None
    thinking_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Score:
    """value: 0 to 1. outcome: one of OUTCOMES. extracted: what was read out of the answer. parts: values of a
    metric's parts (strict and loose, one per instruction, …); note: why, for a reader of the record."""

    value: float
    outcome: str
    extracted: str | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Reference:
    """A published value. mode: "think" or "no-think". value: percent, unless the suite says otherwise."""

    model: str
    mode: str
    value: float
    source: str


@dataclass(frozen=True)
class Sampling:
    """How the report asked: `samples` per item, `max_tokens` a turn, None: the mode's default in chat/policy.py."""

    samples: int = 1
    max_tokens: int = 32768
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    presence_penalty: float | None = None


@dataclass(frozen=True)
class Suite:
    """One benchmark. load(source) gives its items: `source` None means wherever they usually come from (a package, the
    cache, the hub), else a file or folder; it raises UsageError that says how to get the data where there is none.
    score(item, answer) is called for finished answers alone: what is truncated, empty or failed is classed before
    (`score_answer`). think_messages: how a prompt differs in thinking mode, None: not at all. headline: the name of the
    number that is quoted, and what it averages."""

    name: str
    title: str
    load: Callable[[str | None], Sequence[Item]]
    score: Callable[[Item, Answer], Score]
    licence: str
    source: str
    headline: str = "accuracy"
    sampling: Sampling = Sampling()
    think_messages: Callable[[Item], tuple[Mapping[str, Any], ...]] | None = None
    references: tuple[Reference, ...] = ()
    groups: tuple[str, ...] = ()
    notes: str = ""
    needs: tuple[str, ...] = ()
    """Packages beyond the core, or "judge" (a judging endpoint), or "sandbox"."""


def score_answer(suite: Suite, item: Item, answer: Answer) -> Score:
    """The score of one sample, whatever came back. A scorer's own exception goes up: it is a bug, not an answer."""
    if answer.error or answer.finish_reason == "error":
        return Score(0.0, "failed", note=answer.error)
    if answer.finish_reason == "length":
        return Score(0.0, "truncated")
    if not answer.content.strip() and not answer.tool_calls:
        return Score(0.0, "empty")
    return suite.score(item, answer)
