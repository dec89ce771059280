"""The model class for lm-evaluation-harness. Most of it is tested without the harness; what needs it is skipped where
the package `lm_eval` (0.4.13, not among our extras: it brings some forty others) is not installed."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.errors import UsageError
from qwen3.evaluate.lm_eval_model import Methods, model_class, sampling

GREEDY = SamplingParams(temperature=0, max_tokens=400)
QUESTIONS = ["Compute 148 + 998.", "Sort these numbers from smallest to largest: 5, 3, 9.", "What is 12 * 13?"]


@pytest.fixture(scope="module")
def llm():
    with LLM() as llm:
        yield llm


@pytest.fixture
def made(llm):
    """made(**arguments): the class without the harness, of a model that is loaded."""
    hook = SimpleNamespace(add_partial=lambda *args: None)
    return lambda **arguments: type("Alone", (Methods,), {"cache_hook": hook})(llm=llm, **arguments)


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_sampling():
    greedy = {"do_sample": False, "until": ["\n\n", ""], "max_gen_toks": 7, "temperature": 0.9}
    found = sampling(greedy, 5)
    assert (found.temperature, found.stops, found.max_tokens, found.seed) == (0.0, ("\n\n",), 7, 5)
    found = sampling({"do_sample": True, "until": [], "max_gen_toks": 7, "top_p": 0.5, "seed": 3}, 5)
    assert (found.temperature, found.top_p, found.seed) == (None, 0.5, 3)  # Qwen's own temperature
    with pytest.raises(UsageError, match="'num_beams' is unknown"):
        sampling({"do_sample": False, "until": [], "max_gen_toks": 7, "num_beams": 2}, 5)


def test_wrong_arguments(made, monkeypatch):
    for given, message in (
        ({"enable_thinking": "yes"}, "must be true or false"),
        ({"thinking_budget": 10}, "goes with enable_thinking"),
        ({"pretrained": "a", "model": "b"}, "give one"),
    ):
        with pytest.raises(UsageError, match=message):
            made(**given)
    with pytest.raises(UsageError, match="have no thoughts"):
        made(enable_thinking=True).loglikelihood([])
    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="pip install lm_eval"):
        model_class.__wrapped__()


@pytest.mark.parametrize("think", [None, True, False])
def test_prompts_are_those_of_chat(made, llm, think):
    policy = {None: None, True: ThinkingPolicy("on"), False: ThinkingPolicy("off")}[think]
    model = made(enable_thinking=think)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}]
    own = llm.chat(turns, policy, SamplingParams(max_tokens=1))
    assert model.tok_encode(model.apply_chat_template(turns)) == list(own.prompt_ids)


def test_an_answer_that_the_task_begins(made):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The answer is"}]
    text = made(enable_thinking=False).apply_chat_template(turns, add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nThe answer is")
    with pytest.raises(UsageError, match="gen_prefix"):
        made(enable_thinking=True).apply_chat_template(turns, add_generation_prompt=False)


def test_log_probabilities_are_those_of_the_logits(made, llm):
    """Against log-softmax over a plain forward of each text."""
    model, asked = made(), []
    for context, continuation in (("The answer is", " 12."), ("Hi", " there, you"), ("1 + 1 =", " 2")):
        asked.append((None, model.tok_encode(context), model.tok_encode(continuation)))
    for (_, context, continuation), (value, greedy) in zip(
        asked, model._loglikelihood_tokens(asked, disable_tqdm=True), strict=True
    ):
        with torch.inference_mode():
            logits = llm.model(torch.tensor([context + continuation])).float()[0, len(context) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(continuation)[:, None]).sum().item()
        assert value == pytest.approx(expected, abs=2e-3)
        assert greedy == (logits.argmax(-1).tolist() == continuation)


def harness(monkeypatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("lm_eval", reason="lm-evaluation-harness (lm_eval) is not installed")


@pytest.mark.parametrize("think", [True, False])
def test_answers_through_the_harness_are_those_of_chat(llm, tmp_path, monkeypatch, think):
    lm_eval = harness(monkeypatch)
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps({"question": text}) + "\n" for text in QUESTIONS))
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "",
        "process_results": lambda doc, results: {"acc": 1.0},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 400},
    }  # fmt: skip
    model = model_class()(llm=llm, enable_thinking=think)
    samples = lm_eval.simple_evaluate(model, tasks=[task], apply_chat_template=True, bootstrap_iters=0)["samples"]
    found = [s["filtered_resps"][0] for s in sorted(samples["own"], key=lambda s: s["doc_id"])]
    policy = ThinkingPolicy("on" if think else "off")
    assert found == [llm.chat(text, policy, GREEDY).content for text in QUESTIONS]
    assert all(found)  # the stop text "\n\n" ends neither thoughts nor the gap behind them


def test_whole_texts_and_cut_answers(llm, monkeypatch, caplog):
    harness(monkeypatch)
    model = model_class()(llm=llm, enable_thinking=False)
    text = "one two three four five six seven"
    ids = model.tok_encode(text)
    whole = model._loglikelihood_tokens([(None, [model.eot_token_id], ids)], disable_tqdm=True)[0][0]
    assert model.loglikelihood_rolling([request(text)]) == [pytest.approx(whole, abs=1e-3)]
    monkeypatch.setattr(llm, "context", 6)  # windows of 5: each token once
    monkeypatch.setattr(model, "_loglikelihood_tokens", lambda scored, **_: [(len(s[2]), True) for s in scored])
    assert model.loglikelihood_rolling([request(text)]) == [len(ids)]
    prompt = model.apply_chat_template([{"role": "user", "content": QUESTIONS[0]}])
    with caplog.at_level("WARNING", logger="lm_eval"):
        assert model.generate_until([request(prompt, {"until": [], "max_gen_toks": 2})], disable_tqdm=True)[0]
    assert "1 of 1 answers were cut" in caplog.text
