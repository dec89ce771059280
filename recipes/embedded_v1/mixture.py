"""What the embedded model is trained on: what draws a sample, and the shares of tokens in each stage.

Everything that a model is to write comes from `qwen3.tasks`, which keeps 2 % of all problems for evaluation by a hash
of the problem. Draws are functions of this module (or partial calls of them), so that worker processes find them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.chat.stream import CLOSE_THINK, EARLY_STOP
from qwen3.tasks import FAMILIES, Labelled, Problem
from qwen3.tasks.dialogue import requested_mode, sample_dialogue
from qwen3.tasks.tools import sample_tool_dialogue
from qwen3.tokenizer import Tokenizer
from qwen3.train.chats import Chat
from qwen3.train.conversations import Renderer, Turn
from qwen3.train.fusion import Fusion, fuse
from qwen3.train.mixture import Source
from qwen3.train.samples import TokenSample

VOCAB_RANKS = 8192
LENGTH = 4096  # the context
Messages = list[dict[str, Any]]

# Share of the problems; the long families and those that people try first get more.
FAMILY_WEIGHTS = {
    "sums": 2.5, "chain": 1.4, "multiply": 1.8, "divide": 1.0, "gcd": 1.6, "base": 1.6, "countdown": 1.2, "reach": 1.0,
    "boolean": 1.0, "sudoku": 0.8, "sort": 0.7, "spell": 0.9, "count": 0.5, "track": 1.2, "cups": 0.8,
}  # fmt: skip
LABELLED = tuple(name for name, task in FAMILIES.items() if isinstance(task, Labelled))
STRIDES = {"track": 2, "cups": 3}
"""Of the terse traces. Their accuracy is to be 30 to 70 %, that of careful ones near 100: what RL has to find out."""
SYSTEM = (
    "You are a helpful assistant.",
    "You are Wren, a small demonstration model.",
    "Be brief.",
    "Answer the question.",
    "You are a careful assistant that solves puzzles.",
    "Help the user.",
)


@dataclass(frozen=True)
class Taste:
    """How problems are told in a stage. terse: share of terse traces in the labelled families. labelled: their weight,
    times that of FAMILY_WEIGHTS. traces: JSONL of `rejection_sample`, half of the labelled thoughts; "": none."""

    terse: float = 0.0
    labelled: float = 1.0
    traces: str = ""
    length: int = LENGTH


PLAIN = Fusion(switch=0.06, system=0.02, dialogue=0.10, turns=3)
"""Soft switches: at the question's end, in the system message, changing in dialogues of several turns."""


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained().prefix(VOCAB_RANKS)


@cache
def renderer() -> Renderer:
    return Renderer(tokenizer(), "qwen3")


# Problems


def level_of(rng: random.Random, levels: int, direct: bool) -> int:
    """Uniform where it thinks. Without a thought hard levels are mostly guesses: they are there so that the model's
    doubt is right, but most draws are problems it can know."""
    if not direct:
        return rng.randint(1, levels)
    return rng.choices(range(1, levels + 1), [1 / level for level in range(1, levels + 1)])[0]


def problem(rng: random.Random, taste: Taste, direct: bool) -> Problem:
    weights = [w * (taste.labelled if name in LABELLED else 1) for name, w in FAMILY_WEIGHTS.items()]
    name = rng.choices(list(FAMILY_WEIGHTS), weights)[0]
    task = FAMILIES[name]
    p = task.sample(rng, level_of(rng, task.levels, direct))
    if isinstance(task, Labelled) and rng.random() < taste.terse:
        p = replace(p, trace=task.told(p.key, STRIDES[name]))
    return replace(p, prompt=in_words(rng, p))


_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def in_words(rng: random.Random, p: Problem) -> str:
    """Now and then operators as words, as in "12 plus 30 minus 7"."""
    if p.family not in ("chain", "multiply", "divide") or rng.random() > 0.12:
        return p.prompt
    return re.sub(r"(?<=\d) ([-+*/]) (?=\d)", lambda m: f" {_WORDS[m[1]]} ", p.prompt)


def solved(p: Problem) -> Messages:
    return [
        {"role": "user", "content": p.prompt},
        {"role": "assistant", "reasoning_content": p.trace, "content": p.reply},
    ]


def chat(rng: random.Random, taste: Taste, direct: bool = False) -> Chat:
    """A problem and its solution; at times behind a system message or small talk."""
    own = sampled(taste.traces) if taste.traces and not direct else ()
    if own and rng.random() < 0.5 * taste.labelled * _labelled_share():
        return Chat(rng.choice(own), "sampled")
    messages: Messages = []
    if rng.random() < 0.06:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    if rng.random() < 0.03:
        messages += [m for m in sample_dialogue(rng) if m["role"] != "system"]
    return Chat(messages + solved(problem(rng, taste, direct)), "problem")


@cache
def _labelled_share() -> float:
    return sum(FAMILY_WEIGHTS[name] for name in LABELLED) / sum(FAMILY_WEIGHTS.values())


@cache
def sampled(path: str) -> tuple[Messages, ...]:
    """Accepted answers of the model after RL, with the ids that it sampled; none where it was never right."""
    return tuple(json.loads(line)["messages"] for line in Path(path).read_text(encoding="utf-8").splitlines())


def thinking(rng: random.Random, taste: Taste) -> TokenSample:
    draw = partial(chat, taste=taste)
    return fuse(PLAIN, rng, 0.0, renderer(), draw, None, taste.length).sample("thinking")


def direct(rng: random.Random, taste: Taste) -> TokenSample:
    draw = partial(chat, taste=taste, direct=True)
    return fuse(replace(PLAIN, modes="direct"), rng, 0.0, renderer(), draw, draw, taste.length).sample("direct")


def cut(rng: random.Random, taste: Taste) -> TokenSample:
    """A thought that ends before its time, then the right answer, which alone is trained. Half of the cuts are
    anywhere, half early (as small budgets are); seven in ten by the published early-stop text at any token, the others
    between paragraphs by the closing tag alone, as limits of steps and parts left out (Dualformer) have it."""
    while True:
        messages = chat(rng, replace(taste, traces="")).messages
        share = rng.random() if rng.random() < 0.5 else 0.01 ** rng.random()
        bare = rng.random() < 0.3
        turn = renderer().stopped(messages, share, "paragraphs" if bare else "tokens")
        if bare:
            turn = _closed(turn)
        if len(turn) <= taste.length:
            return turn.sample("cut")


def _closed(turn: Turn) -> Turn:
    """The early-stop text replaced by the closing tag."""
    text, tag = (tokenizer().encode(t) for t in (EARLY_STOP, CLOSE_THINK))
    end = turn.trained.index(True)
    kept, answer = turn.completion[: end - len(text)], turn.completion[end:]
    trained = [False] * (len(kept) + len(tag)) + [True] * len(answer)
    return replace(turn, completion=[*kept, *tag, *answer], trained=trained)


# Conversations


def woven(rng: random.Random) -> tuple[str, str, str]:
    """A problem as the dialogue sampler wants it: prompt, trace, reply."""
    while True:
        p = problem(rng, Taste(), direct=True)
        if len(p.trace) + len(p.reply) < 300:
            return p.prompt, p.trace, p.reply


def dialogue(rng: random.Random, taste: Taste) -> TokenSample:
    while True:
        messages = sample_dialogue(rng, problem=woven if rng.random() < 0.2 else None)
        # Any of the assistant's turns may be the trained one.
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        messages = messages[: rng.choice(turns) + 1]
        asked = requested_mode(messages)
        turn = renderer().turn(messages, thinking=rng.random() < 0.5 if asked is None else asked)
        if len(turn) <= taste.length:
            return turn.sample("dialogue")


def tools(rng: random.Random, taste: Taste) -> TokenSample:
    while True:
        messages, specs = sample_tool_dialogue(rng)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        calls = [i for i in turns if messages[i].get("tool_calls")]
        last = rng.choice(calls if calls and rng.random() < 0.4 else turns)
        turn = renderer().turn(messages[: last + 1], thinking=rng.random() < 0.7, tools=specs)
        if len(turn) <= taste.length:
            return turn.sample("tools")


_ASK_JSON = (
    "Answer as JSON with the key {k}.",
    'Give JSON: {{"{k}": …}}.',
    "Reply with a JSON object that has the key {k}.",
    "JSON only, key {k}.",
    'Answer in JSON like {{"{k}": 0}}.',
)
NUMERIC = ("sums", "chain", "multiply", "gcd", "track")


def json_messages(rng: random.Random, split: str = "train") -> tuple[Messages, dict[str, Any]]:
    """A problem with a number for an answer, that is asked for in JSON; and the object."""
    task = FAMILIES[rng.choice(NUMERIC)]
    p = task.sample(rng, level_of(rng, task.levels, True), split=split)
    name = rng.choice(("result", "result", "answer", "value", "number"))
    told = rng.choice(_ASK_JSON).format(k=name)
    wanted = {name: int(p.answer)}
    content = f"{p.prompt}{'' if p.prompt[-1] in '.?' else '.'} {told}"
    reply = {"role": "assistant", "reasoning_content": p.trace, "content": json.dumps(wanted)}
    if rng.random() < 0.25:
        return [{"role": "system", "content": told}, {"role": "user", "content": p.prompt}, reply], wanted
    return [{"role": "user", "content": content}, reply], wanted


def as_json(rng: random.Random, taste: Taste) -> TokenSample:
    return renderer().turn(json_messages(rng)[0], thinking=rng.random() < 0.6).sample("json")


# Sources of the stages

DRAWS: dict[str, Callable[..., TokenSample]] = {
    "thinking": thinking, "direct": direct, "cut": cut, "dialogue": dialogue, "tools": tools, "json": as_json,
}  # fmt: skip

# Shares of tokens. A dialogue has 70 tokens and a thought 150: shares by tokens, not by draws.
SHARES: dict[str, Mapping[str, float]] = {
    "general": {"text": 20, "thinking": 42, "direct": 14, "cut": 2, "dialogue": 12, "tools": 9, "json": 1},
    "reason": {"text": 6, "thinking": 50, "direct": 15, "cut": 6, "dialogue": 13, "tools": 9, "json": 1},
    "long": {"text": 5, "long text": 15, "thinking": 40, "direct": 12, "cut": 6, "dialogue": 12, "tools": 9, "json": 1},
    "cold": {"text": 2, "thinking": 52, "direct": 13, "cut": 9, "dialogue": 13, "tools": 10, "json": 1},
    "fusion": {"text": 1, "thinking": 31, "direct": 22, "cut": 14, "dialogue": 18, "tools": 12, "json": 2},
}
TASTES = {
    "general": Taste(),
    "reason": Taste(terse=0.5),
    "long": Taste(terse=0.5),
    "cold": Taste(terse=0.65, labelled=3.0),
    "fusion": Taste(terse=0.0, labelled=1.5),
}


def sources(stage: str, text: str | Path | None, *, length: int = LENGTH, traces: str = "") -> tuple[Source, ...]:
    """Of a stage in `SHARES`. text: the folder that `text.py` wrote, with `short` and `long`; None: no text. length:
    tokens of a row; samples are drawn anew until they fit. traces: see `Taste`."""
    taste = replace(TASTES[stage], length=length, traces=traces)
    found = []
    for name, share in SHARES[stage].items():
        if name in DRAWS:
            found.append(Source(name, share, partial(DRAWS[name], taste=taste)))
        elif text is not None:
            found.append(Source(name, share, str(Path(text) / ("long" if name == "long text" else "short")), 64))
    return tuple(found)


def trained_share(samples: list[TokenSample]) -> float:
    """Of their tokens."""
    return float(np.concatenate([sample.trained for sample in samples]).mean())
