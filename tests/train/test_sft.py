"""Supervised fine-tuning of a tiny model: what it learns, what it tells, and that a killed run ends as a whole one."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import encode
from qwen3.checkpoint.adapter import read_adapter
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train.adapters import LoraConfig
from qwen3.train.chats import BadRowsError
from qwen3.train.feeds import micro_batches, rows_feed
from qwen3.train.fusion import Fusion, flag_obedience, some_questions
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import IGNORED
from qwen3.train.recipe import keys, override
from qwen3.train.run import Run
from qwen3.train.samples import TokenSample, completion_sample
from qwen3.train.sft import SFT, Lora, derive_optim, derive_tokens, recipe, run_sft
from qwen3.train.start import Job
from tests.fixtures import random_model, tiny_config
from tests.train.recorder import Recorder

TOK = Tokenizer.from_pretrained().prefix(608)


def job(run: Run, model: Qwen3 | None = None, seed: int = 1) -> Job:
    return Job(model or tiny(), TOK, run, seed, "hybrid", "qwen3", "tiny", {})


FULL = Lora(rank=0)


def tiny() -> Qwen3:
    return random_model(tiny_config())


def chats(folder: Path, rows: int = 12, name: str = "chats.jsonl") -> str:
    path = folder / name
    lines = []
    for i in range(rows):
        answer: dict[str, Any] = {"role": "assistant", "content": f"b{i % 3}"}
        if i % 2:
            answer["reasoning_content"] = f"c{i % 3}"
        lines.append(json.dumps({"messages": [{"role": "user", "content": f"a{i % 3}"}, answer]}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def parameters(model: Qwen3) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("lora", [FULL, Lora(rank=4)])
def test_a_tiny_model_learns_its_chats_in_both_modes(tmp_path: Path, lora: Lora) -> None:
    stage = SFT(data=(chats(tmp_path),), lora=lora, lr=0.01, updates=40, prompts_per_update=6)
    run, model = Recorder(tmp_path / "out"), tiny()
    before, work = parameters(model), job(run, model)
    summary = run_sft(stage, work)
    assert summary["finished"]
    assert summary["loss"] < 0.1 < 3 < run.logged[0]["loss"]
    frozen = [name for name, value in parameters(model).items() if name in before and value.equal(before[name])]
    assert len(frozen) == (len(before) if lora.rank else 0)
    assert bool(work.notes.get("adapter")) == bool(lora.rank)
    if lora.rank:
        adapter = read_adapter(tmp_path / "out" / "adapter", model.config)
        assert (adapter.rank, adapter.base) == (4, "tiny")
        llm = LLM.of(tiny(), TOK, adapters={"mine": adapter})
    else:
        llm = LLM.of(model, TOK)
    with llm:
        modes: tuple[Literal["on", "off"], ...] = ("on", "off")
        for i in range(3):
            for mode in modes:
                found = llm.chat(
                    f"a{i}", ThinkingPolicy(mode=mode), SamplingParams(temperature=0, max_tokens=20),
                    adapter="mine" if lora.rank else None,
                )  # fmt: skip
                assert found.content == f"b{i}"
                assert found.reasoning_content == (f"c{i}" if mode == "on" else "")


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    stage = SFT(data=(chats(tmp_path),), updates=7, prompts_per_update=5, save_every=2, lora=Lora(rank=2))
    whole, model = Recorder(tmp_path / "whole"), tiny()
    run_sft(stage, job(whole, model))
    for stop_after in (3, 1, 99):
        again, resumed = Recorder(tmp_path / "parts", stop_after), tiny()
        summary = run_sft(stage, job(again, resumed))
        assert summary["finished"] is (stop_after == 99)
    assert "sft: going on from update 4 of 7" in again.said
    assert all(value.equal(parameters(resumed)[name]) for name, value in parameters(model).items())
    assert [fields["loss"] for fields in again.logged] == [fields["loss"] for fields in whole.logged[4:]]
    with pytest.raises(UsageError, match=r"begun with updates=7, not 8: give another folder"):
        run_sft(replace(stage, updates=8), job(Recorder(tmp_path / "parts")))
    chats(tmp_path, rows=13)
    with pytest.raises(UsageError, match="begun with data="):
        run_sft(stage, job(Recorder(tmp_path / "parts")))


def test_the_loss_is_a_mean_over_the_updates_tokens_however_they_are_packed(tmp_path: Path) -> None:
    losses = []
    for tokens in (64, 1024):
        run = Recorder(tmp_path / str(tokens), stop_after=1)
        stage = SFT(data=(chats(tmp_path),), prompts_per_update=12, tokens_per_micro_batch=tokens, lora=FULL)
        run_sft(stage, job(run))
        losses.append(run.logged[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # against a plain loop: every sample by itself
    model, total, count = tiny(), 0.0, 0
    for i in range(12):
        thinks = bool(i % 2)
        prompt = encode([{"role": "user", "content": f"a{i % 3}"}], tokenizer=TOK, enable_thinking=thinks).ids
        text = f"<think>\nc{i % 3}\n</think>\n\n" if thinks else ""
        answer = TOK.encode(f"{text}b{i % 3}<|im_end|>")
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        count += len(answer)
    assert losses[0] == pytest.approx(total / count, rel=1e-4)


def test_weights_scale_what_a_row_adds(tmp_path: Path) -> None:
    def loss(*weights: float) -> float:
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a, "weight": w}]}
            for (q, a), w in zip((("a", "b"), ("c", "d e f")), weights, strict=True)
            if w
        ]
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = Recorder(tmp_path / f"out{weights}", stop_after=1)
        run_sft(SFT(data=(str(path),), prompts_per_update=len(rows)), job(run))
        return run.logged[0]["loss"]

    first, second = loss(1, 0), loss(0, 1)
    sizes = [len(TOK.encode(text)) + 1 for text in ("b", "d e f")]
    expected = (3 * first * sizes[0] + second * sizes[1]) / (3 * sizes[0] + sizes[1])
    assert loss(3, 1) == pytest.approx(expected, rel=1e-5)


def test_nothing_is_trained_on_bad_rows_and_one_mode_alone_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    good = {"prompt": "a", "completion": "b"}
    path.write_text(json.dumps(good) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    run, model = Recorder(tmp_path / "out"), tiny()
    before = parameters(model)
    with pytest.raises(BadRowsError, match="line 2"):
        run_sft(SFT(data=(str(path),)), job(run, model))
    assert not list((tmp_path / "out").iterdir())
    assert all(value.equal(before[name]) for name, value in parameters(model).items())
    run_sft(SFT(data=(str(path),), bad_rows="skip", updates=1), job(run, model))
    told = "\n".join(run.said)
    assert "skipped 1 bad row" in told
    assert "⟦b<|im_end|>⟧" in told
    assert "warning: every trained turn does not think" in told


def test_obedience_is_measured_where_checkpoints_are_due(tmp_path: Path) -> None:
    """On the adapter that is being trained: the base alone does not obey."""
    run, path = Recorder(tmp_path / "out"), tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for messages, thinks in some_questions(4, 1):
            answer = {"role": "assistant", "content": "b"} | ({"reasoning_content": "c"} if thinks else {})
            file.write(json.dumps({"messages": [*messages, answer]}) + "\n")
    stage = SFT(data=(str(path),), updates=25, save_every=12, obedience=4, lr=0.01, prompts_per_update=4)
    run_sft(stage, job(run))
    assert [fields["update"] for fields in run.logged if "obeyed" in fields] == [12, 24, 25]
    assert run.logged[-1]["obeyed"] == 1.0
    with LLM.of(tiny(), TOK) as llm:
        assert flag_obedience(llm, some_questions(4, 1))["obeyed"] < 1


def test_fusion_trains_both_modes_of_rows_that_think(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    answer = {"role": "assistant", "content": "b", "reasoning_content": "c"}
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, answer]}) + "\n")
    run, model = Recorder(tmp_path / "out"), tiny()
    stage = SFT(
        data=(str(path),), fusion=Fusion(direct=0.5), updates=40, prompts_per_update=6, lr=0.01, lora=FULL
    )  # fmt: skip
    assert run_sft(stage, job(run, model))["loss"] < 0.1
    assert not any(line.startswith("warning") for line in run.said)
    with LLM.of(model, TOK) as llm:
        for budget, thought in ((None, "c"), (0, "")):
            found = llm.chat("a", ThinkingPolicy(budget=budget), SamplingParams(temperature=0, max_tokens=20))
            assert (found.content, found.reasoning_content) == ("b", thought)


def test_the_recipe_is_set_by_words(tmp_path: Path) -> None:
    words = [f"data={chats(tmp_path)}", "lora.rank=4", "fusion.direct=0.5", "epochs=1", f"out={tmp_path / 'out'}"]
    made = override(recipe(), words)
    (stage,) = made.stages
    assert (stage.lora.config, stage.fusion.direct, stage.epochs) == (LoraConfig(rank=4), 0.5, 1)
    assert override(recipe(), ["lora.rank=0"]).stages[0].lora.config is None
    assert all(text for name, (_, text) in keys(made) if name.startswith("sft."))
    with pytest.raises(UsageError, match=r"data is missing: data=chats.jsonl"):
        run_sft(SFT(), job(Recorder(tmp_path / "out")))


def test_threads_are_measured_once_and_kept_by_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    stage = SFT(data=(chats(tmp_path),), updates=2)
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        torch.set_num_threads(2)
        run_sft(stage, job(Recorder(tmp_path / "out", stop_after=1)))
        chosen = torch.get_num_threads()
        assert chosen in (1, 2)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        torch.set_num_threads(3)
        run_sft(stage, job(Recorder(tmp_path / "out")))
        assert torch.get_num_threads() == chosen
        torch.set_num_threads(3)
        run_sft(stage, job(Recorder(tmp_path / "other", stop_after=1)))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def samples(count: int, source: str = "all") -> list[TokenSample]:
    return [completion_sample([1, 2], [10 + i] * (3 + i % 5), source=source) for i in range(count)]


def test_feeds_are_functions_of_the_seed_and_the_place() -> None:
    group = samples(10)
    feed = rows_feed(group, ("all",), (), seed=3)
    run = list(islice(feed(0, 100), 30))
    assert [s.ids.tolist() for s in islice(feed(13, 100), 17)] == [s.ids.tolist() for s in run[13:]]
    epochs = [[int(s.ids[2]) for s in run[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10, 20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len(list(feed(98, 100))) == 2
    both = rows_feed(samples(10, "a") + samples(40, "b"), ("a", "b"), (3, 1), seed=3)
    counts = Counter(s.source for s in both(0, 1000))
    assert counts["a"] == pytest.approx(750, abs=50)
    with pytest.raises(UsageError, match="b has a share of 1, but no sample"):
        rows_feed(samples(2, "a"), ("a", "b"), (1, 1), 0)


def test_every_sample_is_in_one_row_of_an_update() -> None:
    group = samples(23)
    for fixed in (True, False):
        batches = micro_batches(iter(group), 32, 0, fixed)
        assert sum(int(b.documents[b.documents > 0].size) for b in batches) == sum(map(len, group))
        assert sum(b.trained_tokens for b in batches) == sum(int(s.trained.sum()) for s in group)
        assert all(b.ids.shape[1] == 32 or (b is batches[-1] and not fixed) for b in batches)
        assert {int(x) for b in batches for x in np.unique(b.labels) if x != IGNORED} == set(range(10, 33))


def test_numbers_that_follow_from_others() -> None:
    stage = SFT()
    assert derive_tokens(stage, 70, "cpu") == 1024
    assert derive_tokens(stage, 3000, "cpu") == 3072
    assert derive_tokens(stage, 70, "cuda") == 16_384
    with pytest.raises(UsageError, match="the longest sample has 70"):
        derive_tokens(SFT(data=("a",), tokens_per_micro_batch=64), 70, "cpu")
    full, why = derive_optim(SFT(lora=FULL), 4096)
    adapter, _ = derive_optim(stage, 4096)
    assert adapter.vector_lr == pytest.approx(10 * full.vector_lr)
    assert "for all weights at width 4,096" in why
    assert derive_optim(SFT(data=("a",), lr=3e-4), 64)[0].matrix_lr == 3e-4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"epochs": 0}, "sft.epochs must be a number above 0"),
        ({"lr": math.nan}, "sft.lr must be a number above 0"),
        ({"prompts_per_update": 0}, "sft.prompts_per_update must be a whole number from 1"),
        ({"save_every": 2.5}, "sft.save_every must be a whole number from 1"),
        ({"warmup": 1}, "sft.warmup is a share"),
        ({"data": ("a",), "source": print}, "sft.data is given beside source"),
        ({"source": print}, "sft.updates must be given"),
        ({"data": ("a",), "shares": (1, 2)}, "sft.shares must be one number"),
        ({"data": ("a",), "shares": (0,)}, "sft.shares must be one number"),
        ({"data": ("a",), "turns": "all", "fusion": Fusion(direct=0.5)}, "sft.fusion goes with data alone"),
        ({"data": ("a",), "lr": 1e-3, "optim": OptimConfig()}, "sft.lr and optim are both given"),
        ({"data": ("a",), "template": "llama"}, "one of Qwen's chat templates"),
    ],
)
def test_keys_that_are_wrong(tmp_path: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        run_sft(SFT(**given), job(Recorder(tmp_path)))
