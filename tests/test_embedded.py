"""The embedded model: what its card says, on a small sample, through the package's own engine."""

from __future__ import annotations

import json
import random
from math import comb

import pytest
import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.checkpoint import resolve, verify
from qwen3.tasks import FAMILIES
from qwen3.tasks.dialogue_eval import EVAL_PROMPTS
from qwen3.tasks.tools import check_tool_call, sample_tool_dialogue

GREEDY = SamplingParams(temperature=0, max_tokens=2000)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_files_are_sound_and_within_the_limit() -> None:
    folder = resolve(None).path
    assert verify(folder).ok
    assert sum(f.stat().st_size for f in folder.iterdir()) < 40e6


def test_transformers_reads_the_folder_and_writes_the_same_tokens(llm: LLM) -> None:
    transformers = pytest.importorskip("transformers")
    folder = resolve(None).path
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is 27 * 14?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    theirs = model.generate(ids, do_sample=False, max_new_tokens=200, suppress_tokens=list(range(8218, 8320)))
    ours = llm.chat(messages, sampling=GREEDY)
    assert list(ours.prompt_ids) == ids[0].tolist()
    assert list(ours.ids) == theirs[0, ids.shape[1] :].tolist()
    assert ours.content.strip()


def test_thinking_solves_held_out_problems_that_it_cannot_answer_at_once(llm: LLM) -> None:
    rng, problems = random.Random(11), []
    for name in ("chain", "multiply", "divide", "base", "boolean", "reach"):
        problems += [FAMILIES[name].sample(rng, FAMILIES[name].levels - 1, split="eval") for _ in range(5)]
    asked = [p.prompt for p in problems]
    right: dict[str, list[bool]] = {}
    for mode in ("on", "off"):
        results = llm.chat_batch(asked, thinking=ThinkingPolicy(mode=mode), sampling=GREEDY)
        right[mode] = [FAMILIES[p.family].check(p, r.content) for p, r in zip(problems, results, strict=True)]
        assert all(bool(r.reasoning_content) == (mode == "on") for r in results)
        assert all(r.thinking.ended_by == ("natural" if mode == "on" else None) for r in results)
    assert sum(right["on"]) >= 27
    # However much it knows without a thought, thinking helps where they differ: a sign test at 5 %.
    gained, lost = (
        sum(a > b for a, b in zip(*pair, strict=True))
        for pair in ((right["on"], right["off"]), (right["off"], right["on"]))
    )
    assert gained >= 5
    assert sum(comb(gained + lost, k) for k in range(lost + 1)) < 0.05 * 2 ** (gained + lost)


def test_budget_is_exact_and_still_gets_an_answer(llm: LLM) -> None:
    free = llm.chat("What is 271 * 36?", sampling=GREEDY)
    for budget in (1, 8, free.thinking.used - 1):
        bounded = llm.chat("What is 271 * 36?", thinking=ThinkingPolicy(budget=budget), sampling=GREEDY)
        assert bounded.thinking.used == budget < free.thinking.used
        assert bounded.thinking.ended_by == "budget"
        assert bounded.content


def test_soft_switches(llm: LLM) -> None:
    assert not llm.chat("What is 6 * 7? /no_think", sampling=GREEDY).reasoning_content
    assert llm.chat("What is 6 * 7? /think", sampling=GREEDY).reasoning_content


def test_it_counts_beyond_a_thousand_tokens(llm: LLM) -> None:
    result = llm.chat("Count from 1 to 250.", thinking=ThinkingPolicy(mode="off"), sampling=GREEDY)
    assert result.usage.completion_tokens > 1000
    assert result.content == ", ".join(map(str, range(1, 251)))


@pytest.mark.parametrize("prompt", ["Hello", "Who are you?", "What can you do?"])
def test_first_words(llm: LLM, prompt: str) -> None:
    fits = dict(EVAL_PROMPTS)[prompt]
    for mode in ("on", "off"):
        content = llm.chat(prompt, thinking=ThinkingPolicy(mode=mode), sampling=GREEDY).content
        assert fits(content), content


def test_tool_calls(llm: LLM) -> None:
    rng, right = random.Random(4), 0
    for _ in range(12):
        messages, tools = sample_tool_dialogue(rng, split="eval")
        first = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
        result = llm.chat(messages[:first], tools=tools, sampling=GREEDY)
        for call in result.tool_calls:
            assert isinstance(json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments, dict)
        right += check_tool_call(messages[: first + 1], tools, result)
    assert right >= 8
