"""A model as the judge: which of two answers is better, asked both ways round, and how often one side wins.

A judge prefers what it reads first (Zheng et al., "Judging LLM-as-a-Judge", arXiv 2306.05685), so each pair is judged
twice with the answers changed over, and a pair counts by both verdicts. A reply without a readable verdict is asked for
again, then counts as unparsed: it is left out of the win rate, and how many there were is said beside it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.types import Answer, Item, Score

Ask = Callable[[Sequence[Mapping[str, Any]]], str]
"""Messages to the judge, its reply's text without its thoughts: any endpoint, or an engine."""

SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the "
    "user prompt displayed below. You will be given assistant A's answer and assistant B's answer. Your job is to "
    "evaluate which assistant's answer is better.\n\n"
    "Begin your evaluation by generating your own answer to the prompt. You must provide your answers before judging "
    "any answers.\n\n"
    "When evaluating the assistants' answers, compare both assistants' answers with your answer. You must identify and "
    "correct any mistakes or inaccurate information.\n\n"
    "Then consider if the assistant's answers are helpful, relevant, and concise. Helpful means the answer correctly "
    "responds to the prompt or follows the instructions. Note when user prompt has any ambiguity or more than one "
    "interpretation, it is more helpful and appropriate to ask for clarifications or more information from the user "
    "than providing an answer based on assumptions. Relevant means all parts of the response closely connect or are "
    "appropriate to what is being asked. Concise means the response is clear and not verbose or excessive.\n\n"
    "Then consider the creativity and novelty of the assistant's answers when needed. Finally, identify any missing "
    "important information in the assistants' answers that would be beneficial to include when responding to the user "
    "prompt.\n\n"
    "After providing your explanation, you must output only one of the following choices as your final verdict with a "
    "label:\n\n"
    "1. Assistant A is significantly better: [[A>>B]]\n2. Assistant A is slightly better: [[A>B]]\n"
    "3. Tie, relatively the same: [[A=B]]\n4. Assistant B is slightly better: [[B>A]]\n"
    "5. Assistant B is significantly better: [[B>>A]]\n\n"
    'Example output: "My final verdict is tie: [[A=B]]".'
)
"""Arena-Hard's judge prompt, which defines the benchmark (github.com/lmarena/arena-hard-auto, Apache-2.0)."""

PAIR = (
    "<|User Prompt|>\n{question}\n\n<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
)
SINGLE = (
    "Please act as an impartial judge and rate the answer of an AI assistant to the user prompt below. Consider "
    "whether it is correct, helpful, relevant and concise, and name mistakes. After your explanation, give a whole "
    "number from 1 (useless) to 10 (could not be better) as your verdict in this form: [[7]]"
)

_PAIR_VERDICT = re.compile(r"\[\[\s*([AB])\s*(>>|>|=|<|<<)\s*([AB])\s*\]\]")
_RATING = re.compile(r"\[\[\s*(10|[1-9])(?:\.0+)?\s*(?:/\s*10\s*)?\]\]")
_PREFERENCE = {">>": 2, ">": 1, "=": 0, "<": -1, "<<": -2}


def preference(reply: str) -> int | None:
    """The verdict of a reply about A and B: 2 A is much better, 1 better, 0 a tie, -1, -2; None where there is none. Of
    several, the last one counts. They are read in double brackets alone: prose that mentions them is no verdict."""
    found = [m for m in _PAIR_VERDICT.finditer(reply.upper()) if m[1] != m[3]]
    if not found:
        return None
    sign = 1 if found[-1][1] == "A" else -1
    return sign * _PREFERENCE[found[-1][2]]


def rating(reply: str) -> int | None:
    """The last rating from 1 to 10 in double brackets, None where there is none."""
    found = _RATING.findall(reply)
    return int(found[-1]) if found else None


@dataclass(frozen=True)
class Game:
    """One verdict. preference: from the side of the answer under test, 2 to -2; None: unparsed, and the last reply."""

    preference: int | None
    reply: str


def _verdict(
    ask: Ask, messages: Sequence[Mapping[str, Any]], read: Callable[[str], int | None], tries: int
) -> tuple[int | None, str]:
    if tries < 1:
        raise UsageError(f"tries must be at least 1, not {tries}")
    reply = ""
    for _ in range(tries):
        reply = ask(messages)
        if (value := read(reply)) is not None:
            return value, reply
    return None, reply


def judged_pair(ask: Ask, question: str, answer: str, baseline: str, *, tries: int = 2) -> tuple[Game, Game]:
    """Two verdicts on `answer` against `baseline`: with the baseline as A, as Arena-Hard begins, then changed over."""
    games = []
    for a, b, sign in ((baseline, answer, -1), (answer, baseline, 1)):
        asked = PAIR.format(question=question, a=a, b=b)
        messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": asked})
        value, reply = _verdict(ask, messages, preference, tries)
        games.append(Game(None if value is None else sign * value, reply))
    return games[0], games[1]


def wins(games: Sequence[Game], *, weight: int = 3) -> list[float]:
    """The battles of a pair as Arena-Hard counts them: 1 won, 0 lost, 0.5 a tie, a significant verdict `weight` times.
    None of the pair's where one of its verdicts is unparsed."""
    if any(game.preference is None for game in games):
        return []
    found: list[float] = []
    for game in games:
        value = game.preference or 0
        found += [0.5 + 0.5 * ((value > 0) - (value < 0))] * (weight if abs(value) == 2 else 1)
    return found


def pair_score(games: Sequence[Game]) -> Score:
    """Value: the pair's share of battles won; right where more are won than lost. extracted: both preferences, of which
    `recorded` makes games again. parts: `agreed`, whether both verdicts are for the same side."""
    if not (battles := wins(games)):
        return Score(0.0, "unparsed", note="the judge gave no verdict")
    value = sum(battles) / len(battles)
    signs = {((game.preference or 0) > 0) - ((game.preference or 0) < 0) for game in games}
    shown = " ".join(str(game.preference) for game in games)
    parts = {"agreed": float(len(signs) == 1)}
    return Score(value, "right" if value > 0.5 else "wrong", shown, parts, "a tie" if value == 0.5 else "")


def recorded(extracted: str | None) -> tuple[Game, ...]:
    """The games of a score's `extracted`, for `win_rate`; None: a pair without a verdict."""
    return tuple(Game(int(one), "") for one in extracted.split()) if extracted else (Game(None, ""),)


def score_pair(ask: Ask, item: Item, answer: Answer, baseline: str, *, tries: int = 2) -> Score:
    """The score of an answer beside the baseline's answer to the item's last message."""
    return pair_score(judged_pair(ask, str(item.messages[-1]["content"]), answer.content, baseline, tries=tries))


def score_single(ask: Ask, item: Item, answer: Answer, *, tries: int = 2) -> Score:
    """The judge's rating from 1 to 10, as a value from 0 to 1; right at 10."""
    asked = f"<|User Prompt|>\n{item.messages[-1]['content']}\n\n<|The Answer|>\n{answer.content}\n<|The End|>"
    messages = ({"role": "system", "content": SINGLE}, {"role": "user", "content": asked})
    value, reply = _verdict(ask, messages, rating, tries)
    if value is None:
        return Score(0.0, "unparsed", note=f"the judge gave no rating: {reply[-200:]}")
    return Score((value - 1) / 9, "right" if value == 10 else "wrong", str(value))


@dataclass(frozen=True)
class WinRate:
    """rate, low, high: 0 to 1, the bounds of a bootstrap over pairs. pairs: counted ones; unparsed: those left out."""

    rate: float
    low: float
    high: float
    pairs: int
    unparsed: int


def win_rate(pairs: Sequence[Sequence[Game]], *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> WinRate:
    """The share of battles won over all pairs. A bootstrap draws whole pairs: the battles of one are not independent,
    and drawing battles alone, as Arena-Hard's script does, makes intervals too narrow. Raises UsageError where no pair
    has a verdict, or `level` is not between 0 and 1."""
    if not 0 < level < 1:
        raise UsageError(f"level must be between 0 and 1, not {level}")
    counted = [(sum(battles), len(battles)) for games in pairs if (battles := wins(games))]
    if not counted:
        raise UsageError(f"none of {len(pairs)} pairs has a verdict that can be read")
    rng, many = random.Random(seed), []
    for _ in range(draws):
        drawn = rng.choices(counted, k=len(counted))
        many.append(sum(won for won, _ in drawn) / sum(count for _, count in drawn))
    many.sort()
    tail = (1 - level) / 2
    low, high = many[int(tail * (draws - 1))], many[-1 - int(tail * (draws - 1))]
    rate = sum(won for won, _ in counted) / sum(count for _, count in counted)
    return WinRate(rate, low, high, len(counted), len(pairs) - len(counted))
