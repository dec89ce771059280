"""Thinking-mode fusion: one set of questions, answered with and without thinking, by soft switches and without.

The Qwen3 report's stage 3 (arXiv 2505.09388, section 4.3): half of the samples think; a direct one has the empty think
block in its prompt, where it is not trained; `/think` and `/no_think` stand in user or system text; in dialogues of
several turns switches change, and the last one holds. As an option, a share of the thoughts is cut by the early-stop
text of a thinking budget, shorter and shorter as training goes on ("annealing"): the answer behind it is trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen3.chat.policy import soft_switch
from qwen3.engine.params import SamplingParams
from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.tasks import FAMILIES
from qwen3.train.chats import Chat
from qwen3.train.conversations import CutBy, Renderer, Turn, weighted
from qwen3.train.feeds import Feed
from qwen3.train.recipe import key
from qwen3.train.samples import TokenSample

Draw = Callable[[random.Random], Chat]
"""A conversation that ends with the assistant."""
Messages = list[dict[str, Any]]

_TRIES = 100  # draws for one sample that fits


@dataclass(frozen=True)
class Fusion:
    """Shares of samples, 0 to 1; all 0: conversations are trained as they are. Raises UsageError for the first key that
    is wrong."""

    direct: float = key(0.0, "share of samples without thinking; 0.5 for both modes from one set of prompts")
    switch: float = key(0.0, "share of samples whose question ends with /think or /no_think")
    system: float = key(0.0, "share of samples with the switch in the system message")
    dialogue: float = key(0.0, "share of samples behind other exchanges with switches, the last of which holds")
    turns: int = key(3, "exchanges before the trained one in such a dialogue, at most")
    cut: float = key(0.0, "share of thinking samples whose thought is closed early, as by a budget")
    cut_by: CutBy = key("paragraphs", "where thoughts are cut: between paragraphs, or at any of the tokens")
    cut_from: float = key(1.0, "of a cut thought at least this share is kept at the beginning of training,")
    cut_to: float = key(0.0, "and this one at its end")
    modes: Literal["both", "thinking", "direct"] = key("both", "for ablations: the same prompts in one mode alone")

    def __post_init__(self) -> None:
        for name in ("direct", "switch", "system", "dialogue", "cut", "cut_from", "cut_to"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise UsageError(f"fusion.{name} must be a share from 0 to 1, not {value!r}")
        if self.switch + self.system + self.dialogue > 1:
            raise UsageError("fusion.switch, fusion.system and fusion.dialogue are shares of one whole, above 1 now")
        if isinstance(self.turns, bool) or not isinstance(self.turns, int) or self.turns < 1:
            raise UsageError(f"fusion.turns must be a whole number from 1, not {self.turns!r}")
        if self.cut_by not in ("paragraphs", "tokens"):
            raise UsageError(f"fusion.cut_by={self.cut_by!r} must be paragraphs or tokens")
        if self.modes not in ("both", "thinking", "direct"):
            raise UsageError(f"fusion.modes={self.modes!r} must be both, thinking or direct")

    @property
    def active(self) -> bool:
        """Whether anything is other than in the conversations themselves."""
        return self.modes != "both" or any((self.direct, self.switch, self.system, self.dialogue, self.cut))


def fusion_feed(
    fusion: Fusion, renderer: Renderer, thinking: Draw, direct: Draw | None, context: int, seed: int
) -> Feed:
    """thinking: conversations whose last message has reasoning. direct: those for samples without thinking; None: the
    same ones, their reasoning left out. context: the longest a sample may be. Raises UsageError unless the model is a
    hybrid one."""
    if renderer.template != "qwen3":
        raise UsageError(f"fusion is for hybrid models, not for the template {renderer.template}")

    def feed(first: int, total: int) -> Iterator[TokenSample]:
        for i in range(first, total):
            rng = random.Random(f"{seed}/fusion/{i}")
            turn = fuse(fusion, rng, i / total, renderer, thinking, direct, context)
            yield weighted(turn.sample("fusion"), turn.weight)

    return feed


def fuse(
    fusion: Fusion,
    rng: random.Random,
    progress: float,
    renderer: Renderer,
    thinking: Draw,
    direct: Draw | None,
    context: int,
) -> Turn:
    """One trained turn. progress: how much of the training is done, 0 to 1. Arguments as of `fusion_feed`.

    Raises UsageError where no conversation fits the context.
    """
    wanted = rng.random() >= fusion.direct  # drawn in any case: an ablation has the same prompts
    wanted = wanted if fusion.modes == "both" else fusion.modes == "thinking"
    draw = thinking if wanted or direct is None else direct
    kind, cut = rng.random(), rng.random() < fusion.cut
    for _ in range(_TRIES):
        chat = draw(rng)
        messages, thinks = chat.messages, wanted
        if given := soft_switch(messages[:-1]):  # it has a switch of its own
            thinks = given[0]
        elif kind < fusion.switch:
            messages = _with_switch(messages, _last_user(messages), thinks)
        elif kind < fusion.switch + fusion.system:
            messages = _in_system(messages, thinks)
        elif kind < fusion.switch + fusion.system + fusion.dialogue:
            messages = _in_dialogue(messages, thinks, [draw(rng) for _ in range(rng.randint(1, fusion.turns))], rng)
        if thinks and cut:
            low = fusion.cut_from + (fusion.cut_to - fusion.cut_from) * progress
            turn = renderer.stopped(messages, rng.uniform(min(low, 1.0), 1.0), fusion.cut_by, tools=chat.tools)
        else:
            turn = renderer.turn(messages, thinking=thinks, tools=chat.tools)
        if len(turn) <= context:
            return turn
    raise UsageError(f"{_TRIES} conversations in a row do not fit the context of {context:,} tokens")


def _word(thinks: bool) -> str:
    return "/think" if thinks else "/no_think"


def _last_user(messages: Sequence[Mapping[str, Any]]) -> int:
    return max(i for i, message in enumerate(messages) if message["role"] == "user")


def _with_switch(messages: Messages, at: int, thinks: bool) -> Messages:
    message = {**messages[at], "content": f"{messages[at]['content']} {_word(thinks)}"}
    return [*messages[:at], message, *messages[at + 1 :]]


def _in_system(messages: Messages, thinks: bool) -> Messages:
    if messages[0]["role"] == "system":
        return _with_switch(messages, 0, thinks)
    return [{"role": "system", "content": _word(thinks)}, *messages]


def _in_dialogue(messages: Messages, thinks: bool, others: Sequence[Chat], rng: random.Random) -> Messages:
    """The conversation behind exchanges of others. Each question may have a switch; the last switch says `thinks`."""
    head = [message for message in messages[:1] if message["role"] == "system"]
    before: Messages = []
    for other in others:
        last = other.messages[-1]
        if last.get("content") and not last.get("tool_calls"):
            question = other.messages[_last_user(other.messages)]
            before += [
                {"role": "user", "content": question["content"]},
                {"role": "assistant", "content": last["content"]},
            ]
    whole = [*head, *before, *messages[len(head) :]]
    asked = [i for i, message in enumerate(whole) if message["role"] == "user"]
    marked = [i for i in asked if rng.random() < 0.6] or [rng.choice(asked)]
    for i in marked:
        whole = _with_switch(whole, i, thinks if i == marked[-1] else rng.random() < 0.5)
    return whole


def chat_draws(chats: Sequence[Chat]) -> tuple[Draw, Draw | None]:
    """(conversations that think, those that do not or None) as `fusion_feed` takes them. Raises UsageError where none
    has reasoning."""
    thinking = [chat for chat in chats if _reasons(chat)]
    direct = [chat for chat in chats if not _reasons(chat)]
    if not thinking:
        raise UsageError("fusion needs conversations whose last message has reasoning_content: these have none")
    return (lambda rng: rng.choice(thinking)), (lambda rng: rng.choice(direct)) if direct else None


def _reasons(chat: Chat) -> bool:
    last = chat.messages[-1]
    return bool(last.get("reasoning_content")) or "</think>" in str(last.get("content"))


# Whether the switches are obeyed


def some_questions(count: int, seed: int = 0) -> list[tuple[Messages, bool]]:
    """(a conversation that waits for an answer, whether it is to think): questions of the evaluation split with a
    switch, every other one in the midst of a dialogue in which switches change."""
    rng = random.Random(f"{seed}/obedience")
    tasks = list(FAMILIES.values())
    found: list[tuple[Messages, bool]] = []
    for i in range(count):
        problems = [rng.choice(tasks).sample(rng, 1, split="eval") for _ in range(3 if i % 4 > 1 else 1)]
        thinks, messages = i % 2 == 0, []
        for j, problem in enumerate(problems):
            switch = thinks if j == len(problems) - 1 else rng.random() < 0.5
            messages.append({"role": "user", "content": f"{problem.prompt} {_word(switch)}"})
            messages.append({"role": "assistant", "content": problem.reply})
        found.append((messages[:-1], thinks))
    return found


def flag_obedience(
    llm: LLM, questions: Sequence[tuple[Messages, bool]], max_tokens: int = 48, adapter: str | None = None
) -> dict[str, float]:
    """Shares of the questions where the model thought as told: "obeyed", and of either kind "obeyed_think" and
    "obeyed_no_think". An answer of `max_tokens` is enough to see it. adapter: as for `LLM.chat`."""
    sampling = [SamplingParams(max_tokens=max_tokens, seed=number) for number in range(len(questions))]
    answers = llm.chat_batch([messages for messages, _ in questions], None, sampling, adapter=adapter)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for (_, thinks), answer in zip(questions, answers, strict=True):
        thought = bool(answer.reasoning_content.strip()) or ("<think>" in answer.text and not thinks)
        right[thinks].append(thought is thinks)
    shares = {"obeyed": [*right[True], *right[False]], "obeyed_think": right[True], "obeyed_no_think": right[False]}
    return {name: sum(values) / len(values) for name, values in shares.items() if values}
