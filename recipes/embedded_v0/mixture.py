"""What the embedded model is trained on: sources and their weights over the run."""

from __future__ import annotations

import functools
import random
from functools import cache
from typing import Any

from qwen3.tasks import FAMILIES, Problem
from qwen3.tasks.dialogue import requested_mode, sample_dialogue
from qwen3.tasks.tools import sample_tool_dialogue
from qwen3.tokenizer import Tokenizer
from qwen3.train.conversation import stopped_sample, turn_sample
from qwen3.train.data import Mixture, Sample, Source
from recipes.embedded_v1.text import passages

VOCAB_RANKS = 8192
LENGTH = 4096  # tokens a row, and the context

# Share of the problems; the long or error-prone families get more.
FAMILY_WEIGHTS = {
    "chain": 1.5,
    "multiply": 2.0,
    "divide": 1.2,
    "gcd": 1.6,
    "base": 2.0,
    "countdown": 1.5,
    "reach": 1.0,
    "boolean": 1.0,
    "sudoku": 1.0,
    "sort": 0.8,
    "spell": 1.0,
    "count": 0.6,
}
SYSTEM = (
    "You are a helpful assistant.",
    "You are Wren, a small demonstration model.",
    "Be brief.",
    "Answer the question.",
    "You are a careful assistant that solves puzzles.",
    "Help the user.",
)

# For each phase: (until this share of the run, weights per draw), the sources being
# text, long text, thinking, direct, stopped early, dialogue, tools.
PHASES = {
    "general": (
        (0.30, (0.15, 0.004, 0.50, 0.20, 0.00, 0.10, 0.05)),
        (0.65, (0.06, 0.006, 0.54, 0.21, 0.01, 0.11, 0.06)),
        (1.00, (0.02, 0.006, 0.53, 0.22, 0.02, 0.14, 0.06)),
    ),
    "final": ((1.00, (0.02, 0.005, 0.445, 0.17, 0.02, 0.23, 0.11)),),
}

Messages = list[dict[str, Any]]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained().prefix(VOCAB_RANKS)


def text_sample(rng: random.Random, folder: str, characters: int) -> Sample:
    """Consecutive texts up to about so many characters, cut to what a row takes."""
    all_texts = passages(folder)
    at, parts, size = rng.randrange(len(all_texts)), [], 0
    while size < characters and at < len(all_texts):
        parts.append(all_texts[at][1])
        size += len(parts[-1])
        at += 1
    text = "\n".join(parts)[: characters + 1000]
    tok = tokenizer()
    ids = tok.encode_plain(text)
    if len(ids) > LENGTH - 8:
        text = tok.decode(ids[: LENGTH - 300]).strip("\ufffd")
    return Sample("", text + "<|endoftext|>")


def problem(rng: random.Random) -> Problem:
    name = rng.choices(list(FAMILY_WEIGHTS), list(FAMILY_WEIGHTS.values()))[0]
    return FAMILIES[name].sample(rng)


def solved(p: Problem, suffix: str = "") -> Messages:
    return [
        {"role": "user", "content": p.prompt + suffix},
        {"role": "assistant", "reasoning_content": p.trace, "content": p.reply},
    ]


def woven(rng: random.Random) -> tuple[str, str, str]:
    """A problem as the dialogue sampler wants it: prompt, trace, reply."""
    while True:
        p = problem(rng)
        if len(p.trace) + len(p.reply) < 300:
            return p.prompt, p.trace, p.reply


def problem_sample(rng: random.Random, thinking: bool) -> Sample:
    messages: Messages = []
    if rng.random() < 0.08:
        messages.append({"role": "system", "content": rng.choice(SYSTEM)})
    if rng.random() < 0.12:
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3))):
            messages += solved(problem(rng)) if rng.random() < 0.7 else plain_turns(rng)
    elif rng.random() < 0.01:  # a long history, for the far end of the context
        while sum(len(m["content"]) for m in messages) < 4000:
            messages += solved(problem(rng))
    p = problem(rng)
    while len(p.reply) > 400 and len(messages) > 2:
        p = problem(rng)
    suffix = rng.choice((" /think",) if thinking else (" /no_think",)) if rng.random() < 0.1 else ""
    messages += solved(p, suffix)
    return turn_sample(messages, thinking=thinking)


def plain_turns(rng: random.Random) -> Messages:
    """A conversation without a system message, to put in front of something else."""
    return [m for m in sample_dialogue(rng) if m["role"] != "system"]


def stopped(rng: random.Random) -> Sample:
    p = problem(rng)
    return stopped_sample(solved(p), rng.randint(1, max(1, p.trace.count("\n\n"))))


def dialogue(rng: random.Random) -> Sample:
    messages = sample_dialogue(rng, problem=woven if rng.random() < 0.2 else None)
    # Any of the assistant's turns may be the trained one.
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    messages = messages[: rng.choice(turns) + 1]
    asked = requested_mode(messages)
    return turn_sample(messages, thinking=rng.random() < 0.6 if asked is None else asked)


def tools(rng: random.Random) -> Sample:
    messages, specs = sample_tool_dialogue(rng)
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    calls = [i for i in turns if messages[i].get("tool_calls")]
    last = rng.choice(calls if calls and rng.random() < 0.4 else turns)
    return turn_sample(messages[: last + 1], thinking=rng.random() < 0.7, tools=specs)


def fitting(source: Source, rng: random.Random) -> Sample:
    """Draws until a sample fits a row (a token is at least a byte, so only long ones need counting)."""
    while True:
        sample = source(rng)
        text = sample.prompt + sample.forced + sample.completion
        if len(text.encode()) <= LENGTH or len(tokenizer().encode(text)) < LENGTH - 8:
            return sample


def build(phase: str, steps: int, folder: str) -> tuple[Mixture, Tokenizer]:
    """The mixture for a phase of so many steps, and the model's tokenizer."""

    def weights(step: int) -> tuple[float, ...]:
        return next(w for until, w in PHASES[phase] if step < until * steps or until == 1.0)

    sources: list[Source] = [
        lambda rng: text_sample(rng, folder, rng.randint(300, 2500)),
        lambda rng: text_sample(rng, folder, rng.randint(9000, 13000)),
        lambda rng: problem_sample(rng, True),
        lambda rng: problem_sample(rng, False),
        stopped,
        dialogue,
        tools,
    ]
    return Mixture([functools.partial(fitting, source) for source in sources], weights), tokenizer()
