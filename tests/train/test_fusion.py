"""Fusion: shares of modes and switches, the last switch holding, cut thoughts, and the measure of obedience."""

from __future__ import annotations

import random
from itertools import islice
from typing import Any

import pytest

from qwen3 import LLM
from qwen3.chat import encode, resolve_mode
from qwen3.chat.policy import soft_switch
from qwen3.chat.stream import EARLY_STOP
from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer
from qwen3.train.chats import Chat
from qwen3.train.conversations import Renderer, Turn
from qwen3.train.fusion import Fusion, chat_draws, flag_obedience, fuse, fusion_feed, some_questions
from tests.fixtures import random_model, tiny_config

TOK = Tokenizer.from_pretrained().prefix(608)
RENDERER = Renderer(TOK)
THOUGHT = "One.\n\nTwo.\n\nThree.\n\nFour."


def chat(i: int, **answer: Any) -> Chat:
    question = {"role": "user", "content": f"q{i}"}
    return Chat([question, {"role": "assistant", "content": f"a{i}", **answer}], f"row {i}")


THINKING = [chat(i, reasoning_content=THOUGHT) for i in range(20)]


def turns(fusion: Fusion, count: int = 400, progress: float = 0.5, chats: list[Chat] = THINKING) -> list[Turn]:
    rng = random.Random(1)
    return [fuse(fusion, rng, progress, RENDERER, *chat_draws(chats), 4096) for _ in range(count)]


def share(found: list[Turn], what: Any) -> float:
    return sum(bool(what(turn)) for turn in found) / len(found)


def prompt(turn: Turn) -> str:
    return TOK.decode(turn.prompt)


def test_both_modes_come_from_one_set_of_prompts() -> None:
    found = turns(Fusion(direct=0.5))
    assert share(found, lambda t: t.thinking) == pytest.approx(0.5, abs=0.08)
    for turn in found:
        empty = prompt(turn).endswith("<think>\n\n</think>\n\n")
        assert empty is not turn.thinking
        text = TOK.decode(turn.completion)
        assert text.startswith(f"<think>\n{THOUGHT}\n</think>\n\na" if turn.thinking else "a")
        assert all(turn.trained)
    questions = {prompt(t).split("\n")[1] for t in found if t.thinking}
    assert questions == {prompt(t).split("\n")[1] for t in found if not t.thinking}


def test_switches_stand_where_they_should_and_the_last_one_holds() -> None:
    found = turns(Fusion(direct=0.5, switch=0.3, system=0.2, dialogue=0.3), 600)
    kinds = {"switch": 0, "system": 0, "dialogue": 0, "none": 0}
    for turn in found:
        text = prompt(turn)
        users = text.count("<|im_start|>user")
        kind = "dialogue" if users > 1 else "system" if "<|im_start|>system" in text else "switch"
        kinds[kind if "/" in text.replace("</think>", "") else "none"] += 1
        assert "One." not in text  # earlier thoughts are dropped, as inference does
        # what a request with these messages would be resolved to, and rendered as
        messages = []
        for part in text.split("<|im_start|>")[1:-1]:
            role, _, content = part.partition("\n")
            messages.append({"role": role, "content": content.removesuffix("<|im_end|>\n")})
        if soft_switch(messages):
            resolved = resolve_mode(messages, model_mode="hybrid")
            assert resolved.thinks is turn.thinking
            assert encode(messages, tokenizer=TOK, enable_thinking=resolved.enable_thinking).ids == turn.prompt
    assert {name: count / 600 for name, count in kinds.items()} == pytest.approx(
        {"switch": 0.3, "system": 0.2, "dialogue": 0.3, "none": 0.2}, abs=0.06
    )
    changing = [t for t in found if "/think" in prompt(t).replace("</think>", "") and "/no_think" in prompt(t)]
    assert len({t.thinking for t in changing}) == 2


def test_cut_thoughts_train_the_answer_and_get_shorter() -> None:
    def kept(progress: float) -> list[int]:
        found = turns(Fusion(cut=1.0, cut_from=1.0, cut_to=0.0), 200, progress)
        for turn in found:
            trained = TOK.decode([id for id, t in zip(turn.completion, turn.trained, strict=True) if t])
            assert trained.startswith("a")
            assert EARLY_STOP in TOK.decode(turn.completion)
        return [TOK.decode(turn.completion).split(EARLY_STOP)[0].count(".") for turn in found]

    assert set(kept(0.0)) == {4}
    assert set(kept(1.0)) == {1, 2, 3}
    assert sum(kept(0.0)) > sum(kept(0.5)) > sum(kept(1.0))
    assert share(turns(Fusion(direct=0.5, cut=0.4)), lambda t: not all(t.trained)) == pytest.approx(0.2, abs=0.06)
    tokens = {len(t.completion) for t in turns(Fusion(cut=1.0, cut_by="tokens"), 200, 1.0)}
    assert len(tokens) > 8


def test_an_ablation_has_the_same_prompts_in_one_mode() -> None:
    both, thinking, direct = (turns(Fusion(direct=0.5, modes=modes), 50) for modes in ("both", "thinking", "direct"))
    assert share(thinking, lambda t: t.thinking) == 1
    assert share(direct, lambda t: t.thinking) == 0
    questions = [[prompt(t).split("\n")[1] for t in found] for found in (both, thinking, direct)]
    assert questions[0] == questions[1] == questions[2]
    assert not Fusion().active
    assert Fusion(modes="thinking").active


def test_direct_conversations_of_their_own_and_switches_that_are_there_already() -> None:
    own = [chat(i + 50) for i in range(3)]
    found = turns(Fusion(direct=0.5), 200, chats=[*THINKING, *own])
    assert {TOK.decode(t.completion) for t in found if not t.thinking} == {f"a{i}<|im_end|>" for i in (50, 51, 52)}
    switched = Chat([{"role": "user", "content": "q /think"}, THINKING[0].messages[1]], "row")
    assert share(turns(Fusion(direct=0.9, switch=0.5), 50, chats=[switched]), lambda t: t.thinking) == 1
    with pytest.raises(UsageError, match="has reasoning_content: these have none"):
        chat_draws(own)


def test_the_feed_is_a_function_of_the_place_and_fits_the_context() -> None:
    fusion = Fusion(direct=0.5, dialogue=1.0, cut=0.5)
    feed = fusion_feed(fusion, RENDERER, *chat_draws(THINKING), context=110, seed=3)
    run = list(islice(feed(0, 60), 60))
    assert max(map(len, run)) <= 110
    assert [s.ids.tolist() for s in feed(40, 60)] == [s.ids.tolist() for s in run[40:]]
    with pytest.raises(UsageError, match="100 conversations in a row do not fit the context of 20"):
        next(fusion_feed(fusion, RENDERER, *chat_draws(THINKING), context=20, seed=3)(0, 1))
    with pytest.raises(UsageError, match="for hybrid models"):
        fusion_feed(fusion, Renderer(TOK, "instruct-2507"), *chat_draws(THINKING), context=20, seed=3)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"direct": 1.5}, "fusion.direct must be a share"),
        ({"switch": 0.6, "dialogue": 0.6}, "shares of one whole"),
        ({"turns": 0}, "fusion.turns must be"),
        ({"cut_by": "words"}, "cut_by='words' must be"),
        ({"modes": "none"}, "modes='none' must be"),
    ],
)
def test_keys_that_are_wrong(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Fusion(**keys)


def test_obedience_is_what_the_last_switch_asked_for() -> None:
    questions = some_questions(40, seed=2)
    assert [thinks for _, thinks in questions] == [True, False] * 20
    for messages, thinks in questions:
        switch = soft_switch(messages)
        assert switch is not None
        assert switch[0] is thinks
    assert sum(len(messages) > 1 for messages, _ in questions) == 20
    with LLM("embedded", "cpu") as llm:
        shares = flag_obedience(llm, questions[:8], max_tokens=8)
    assert shares == {"obeyed": 1.0, "obeyed_think": 1.0, "obeyed_no_think": 1.0}
    with LLM.of(random_model(tiny_config()), TOK) as llm:
        assert flag_obedience(llm, questions[:4], max_tokens=4)["obeyed_think"] < 1
