"""Rewards: each on answers that deserve it and answers that do not, and problem files with their errors by line."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.chat import Message
from qwen3.errors import UsageError
from qwen3.sandbox import require
from qwen3.tasks import FAMILIES
from qwen3.tokenizer import Tokenizer
from qwen3.train.cold_start import Question
from qwen3.train.rewards import (
    Answer,
    RewardModel,
    gym_problems,
    load_problems,
    mean_parts,
    one_language,
    program_of,
    same_answer,
    scripts,
    tool_calls,
    total,
    verified,
    well_formed,
)
from qwen3.train.rollout import Rollout
from qwen3.train.samples import completion_sample
from tests.fixtures import random_model, tiny_config

TOK = Tokenizer.from_pretrained()


def answer(text: str, question: Question | None = None, thinking: bool = False, finish: str = "stop") -> Answer:
    output = TOK.encode(text)
    rollout = Rollout(completion_sample([1, 2], output), tuple(output), 0, finish, thinking)
    asked = question or Question("q", "What is 2 + 2?", lambda text: "4" in text)
    return Answer(asked, rollout.message(TOK), rollout, TOK)


def test_a_task_verifies_what_it_asked() -> None:
    for task in FAMILIES.values():
        problem = task.sample(random.Random(3), 1)
        question = Question.of(problem)
        assert verified(answer(problem.reply, question)) == 1
        assert verified(answer("I do not know", question)) == 0


def test_only_the_visible_text_counts() -> None:
    assert verified(answer("<think>\n4\n</think>\n\n5<|im_end|>", thinking=True)) == 0
    assert verified(answer("<think>\n4", thinking=True)) == 0


@pytest.mark.parametrize(
    ("text", "thinking", "finish", "good"),
    [
        ("<think>\na\n</think>\n\n4<|im_end|>", True, "stop", 1),
        ("a\n</think>\n\n4<|im_end|>", True, "stop", 1),  # the prompt opened it
        ("<think>\na\n</think>\n\n4", True, "length", 0),
        ("<think>\na\n</think>\n\n<|im_end|>", True, "stop", 0),
        ("<think>\na\n</think>\n\nb</think>4<|im_end|>", True, "stop", 0),
        ("<think>\n<think>a\n</think>\n\n4<|im_end|>", True, "stop", 0),
        ("4<|im_end|>", True, "stop", 0),
        ("4<|im_end|>", False, "stop", 1),
        ("<think>\na\n</think>\n\n4<|im_end|>", False, "stop", 0),
    ],
)
def test_form(text: str, thinking: bool, finish: str, good: int) -> None:
    assert well_formed(answer(text, thinking=thinking, finish=finish)) == good


def test_language() -> None:
    assert scripts("ab 1 дж 漢かカ") == {"LATIN": 2, "CYRILLIC": 2, "CJK": 3}
    assert one_language(answer("four")) == 1
    assert one_language(answer("four 四四四四")) == 0.5
    assert one_language(answer("4")) == 1
    assert one_language(answer("four", Question("q", "二加二是多少？", bool))) == 0


def test_tool_calls() -> None:
    tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    reward = tool_calls(lambda question: (messages, tools))
    written = '<tool_call>\n{"name": "f", "arguments": {"x": %d}}\n</tool_call><|im_end|>'
    assert reward(answer(written % 1)) == 1
    assert reward(answer(written % 2)) == 0
    assert reward(answer("no call")) == 0
    assert well_formed(answer(written % 1)) == 1


def test_weighted_sums_and_their_parts() -> None:
    rewards = {"verified": (verified, 1.0), "format": (well_formed, 0.5), "language": (one_language, 0.0)}
    value, parts = total(rewards, answer("4 四<|im_end|>"))
    assert (value, parts) == (1.5, {"verified": 1.0, "format": 1.0, "language": 0.0})
    assert mean_parts([parts, {"verified": 0.0, "format": 0.0, "language": 1.0}]) == {
        "reward/verified": 0.5, "reward/format": 0.5, "reward/language": 0.5,
    }  # fmt: skip


def test_a_reward_model_reads_the_last_token() -> None:
    model = random_model(tiny_config())
    head = torch.randn(64, generator=torch.Generator().manual_seed(0))
    ids = [5, 6, 7, 8]
    rollout = Rollout(completion_sample(ids[:2], ids[2:]), (7, 8), 0, "stop", False)
    one = Answer(Question("q", "a", bool), Message(), rollout, TOK.prefix(608))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
        # the head of the vocabulary is the embedding: a reward head that is one of its rows gives that logit
        row = model.embed_tokens.weight[9]
    assert RewardModel(model, row)(one) == pytest.approx(logits[9].item(), rel=1e-5)
    assert np.isfinite(RewardModel(model, head)(one))
    with pytest.raises(UsageError, match=r"shape \[3\]; \[64\] fits"):
        RewardModel(model, head[:3])


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("42", "It is 42.", True),
        ("42", "It is 142", False),
        ("42", "42\nor maybe 43", False),
        ("1/2", r"so \boxed{1/2} is it", True),
        ("Paris", "The answer: **paris**.", True),
        ("42", "", False),
    ],
)
def test_same_answer(expected: str, text: str, right: bool) -> None:
    assert same_answer(expected, text) is right


def test_programs(tmp_path: Path) -> None:
    assert program_of("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```\n") == "y = 2\n"
    assert program_of("z = 3") == "z = 3"
    try:
        require()
    except Exception as error:
        pytest.skip(str(error))
    path = problems(
        tmp_path,
        {"prompt": "double", "cases": [["2", "4"], ["3", "6"]]},
        {"prompt": "f", "entry": "f", "tests": "assert f(2) == 4"},
    )
    output, calls = load_problems(path)
    assert output.check("```\nprint(2 * int(input()))\n```")
    assert not output.check("```\nprint(4)\n```")
    assert calls.check("```\ndef f(x):\n    return 2 * x\n```")
    assert not calls.check("nothing")


def problems(folder: Path, *rows: Any) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_problem_files(tmp_path: Path) -> None:
    path = problems(
        tmp_path, {"prompt": "2 + 2?", "answer": 4, "key": "a", "family": "sums"}, "", {"prompt": "b", "answer": "c"}
    )
    first, second = load_problems(path)
    assert (first.key, first.family, first.check("4"), first.check("5")) == ("a", "sums", True, False)
    assert second.key.endswith("line 3")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2: no JSON"),
        ([1], "line 2: must be an object"),
        ({"answer": "1"}, "line 2: prompt must be a text"),
        ({"prompt": "a"}, "not none"),
        ({"prompt": "a", "answer": "1", "cases": []}, "not answer and cases"),
        ({"prompt": "a", "answer": ""}, "answer must be a text or a number"),
        ({"prompt": "a", "cases": [["1"]]}, "cases must be a list of"),
        ({"prompt": "a", "tests": "assert 1"}, "entry and tests must be texts"),
        ({"prompt": "a", "awnser": "1"}, "awnser is no field"),
        ({"prompt": "a", "answer": "1", "key": "k"}, "the key 'k' comes twice"),
    ],
)
def test_wrong_rows(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load_problems(problems(tmp_path, {"prompt": "p", "answer": "x", "key": "k"}, row))


def test_optional_packages_are_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        with pytest.raises(UsageError, match="pip install reasoning-gym"):
            gym_problems("chain_sum", 1)
    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(UsageError, match="pip install math-verify"):
            load_problems(problems(tmp_path, {"prompt": "a", "answer": "1/2", "math": True}))
