"""Reinforcement learning on a tiny random model: what it learns, when it stops, and that a resumed run is the same."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.chat import encode
from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train import rl
from qwen3.train.cold_start import Question
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import pack
from qwen3.train.policy_losses import PolicyLoss
from qwen3.train.recipe import override
from qwen3.train.rewards import Answer
from qwen3.train.rl import RL, Policy, Rounds, run_rl
from qwen3.train.run import Run, TrainingError
from qwen3.train.samples import completion_sample
from qwen3.train.start import Job
from qwen3.train.trainer import Trainer
from tests.fixtures import random_model, tiny_config
from tests.train.recorder import Recorder, change_model_after_sampling

TOK = Tokenizer.from_pretrained().prefix(608)
OPTIM = OptimConfig(kind="adamw", matrix_lr=1e-3, vector_lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)


def question(rng: random.Random) -> Question:
    number = rng.randrange(100)
    return Question(str(number), f"a{number}", lambda text: number % 2 == 0)


def even(answer: Answer) -> float:
    """Share of the answer's tokens with an even id: half of them, at first."""
    return float(np.mean([token % 2 == 0 for token in answer.rollout.output]))


STAGE = RL(
    source=question, rewards={"even": (even, 1.0)}, updates=20, prompts_per_update=4, samples_per_prompt=8,
    max_prompt=32, max_tokens=4, thinking=0.0, optim=OPTIM,
)  # fmt: skip


def job(run: Run, seed: int = 1, moe: bool = False, model: Qwen3 | None = None) -> Job:
    return Job(model or random_model(tiny_config(moe=moe)), TOK, run, seed, "hybrid", "qwen3", "tiny", {})


@pytest.mark.parametrize("loss", ["dapo", "gspo"])
def test_the_reward_rises(tmp_path: Path, loss: Any) -> None:
    run = Recorder(tmp_path)
    summary = run_rl(replace(STAGE, loss=loss, refills=0), job(run))
    assert summary["finished"]
    rewards = [line["reward"] for line in run.logged]
    assert np.mean(rewards[:2]) < 0.7
    assert np.mean(rewards[-4:]) > np.mean(rewards[:2]) + 0.2, rewards
    first = run.logged[0]
    assert first["agree_mean"] < 1e-5
    assert first["agree_tail"] < 1e-4
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert {"entropy", "clipped", "kl_old", "informative", "length", "cut", "reward/even"} <= set(first)


def test_sampler_and_trainer_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_model_after_sampling(monkeypatch)
    with pytest.raises(TrainingError, match=r"before update 1 .* on average and .* at the 99.9th percentile"):
        run_rl(STAGE, job(Recorder(tmp_path)))


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    stage = replace(STAGE, updates=4, minibatches=2, kl=0.01, save_every=3)
    whole = job(Recorder(tmp_path / "whole"))
    run_rl(stage, whole)
    stopped = run_rl(stage, job(Recorder(tmp_path / "parts", stop_after=2)))
    assert (stopped["finished"], stopped["update"]) == (False, 2)
    with pytest.raises(UsageError, match="other samples"):
        run_rl(replace(stage, samples_per_prompt=4), job(Recorder(tmp_path / "parts")))
    rest = job(Recorder(tmp_path / "parts"))
    assert run_rl(stage, rest)["finished"]
    for (name, a), (_, b) in zip(whole.model.named_parameters(), rest.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "tokens_per_second"}
            for line in path.read_text().splitlines()
        ]
        for path in (tmp_path / "whole/log.jsonl", tmp_path / "parts/log.jsonl")
    ]
    assert logs[0] == logs[1]
    assert logs[0][-1]["kl_reference"] > 0
    assert all(line["kl_old"] > 1e-6 for line in logs[0]), "the second step of a round is off-policy"


def test_questions_that_say_nothing_are_left_out_and_others_asked(tmp_path: Path) -> None:
    def reward(answer: Answer) -> float:  # of even questions all answers are worth the same
        return 1.0 if answer.question.check("") else even(answer)

    run = Recorder(tmp_path)
    stage = replace(STAGE, rewards={"r": (reward, 1.0)}, updates=2, refills=4)
    run_rl(stage, job(run))
    for line in run.logged:
        assert line["dropped"] > 0
        assert 4 <= line["asked"] <= 4 * 5
        assert line["informative"] == pytest.approx(1 - line["dropped"] / line["asked"])
    nothing = job(Recorder(tmp_path / "nothing"))
    before = {name: p.clone() for name, p in nothing.model.named_parameters()}
    summary = run_rl(replace(stage, rewards={"r": (lambda answer: 1.0, 1.0)}, refills=1), nothing)
    assert (summary["finished"], summary["tokens"]) == (True, 0)
    assert all(torch.equal(before[name], p) for name, p in nothing.model.named_parameters())


def test_routes_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = Rounds.__call__

    def spy(self: Rounds, update: int) -> Any:
        seen.append(real(self, update))
        return seen[-1]

    monkeypatch.setattr(Rounds, "__call__", spy)
    run = Recorder(tmp_path)
    run_rl(replace(STAGE, updates=2), job(run, moe=True))
    batch = seen[0][0]
    assert batch.routes is not None
    assert (batch.routes[:, batch.labels != -100] >= 0).all()
    assert max(line["agree_tail"] for line in run.logged) < 1e-4


def test_tasks_thinking_and_what_is_held_out(tmp_path: Path) -> None:
    run = Recorder(tmp_path)
    stage = RL(
        families=("chain",), level=1, updates=1, prompts_per_update=2, samples_per_prompt=2, max_prompt=200,
        max_tokens=24, budget=4, overlong=8, evaluate_every=1, held_out=2, drop=False, format=0.5, language=0.1,
    )  # fmt: skip
    run_rl(stage, job(run))
    line = run.logged[0]
    assert {"held_out", "pass_1", "reward/verified", "reward/format", "reward/language"} <= set(line)
    own = replace(stage, evaluate=lambda llm: {"mine": float(llm.engine.version)}, overlong=0)
    second = Recorder(tmp_path / "own")
    run_rl(own, job(second))
    assert second.logged[0].get("mine") in (0.0, 1.0)


def test_problems_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"a{i}", "answer": "b"}) + "\n" for i in range(3)))
    stage = replace(STAGE, source=None, problems=(str(path),), updates=1, refills=0)
    run = Recorder(tmp_path / "run")
    run_rl(stage, job(run))
    assert run.logged[0]["asked"] == 4
    path.write_text(json.dumps({"prompt": "other", "answer": "b"}) + "\n")
    with pytest.raises(UsageError, match="begun with other problems"):
        run_rl(stage, job(Recorder(tmp_path / "run")))


def test_the_normaliser_counts_documents_that_are_trained() -> None:
    samples = [completion_sample([1, 2], [3] * n, {"logprob": [0.0] * n}) for n in (1, 4, 2)]
    samples[2].trained[:] = False
    batch, left = pack(samples, 2, 8, 0)
    assert not left
    assert Policy(PolicyLoss("dapo")).normaliser(batch) == 5
    assert Policy(PolicyLoss("grpo")).normaliser(batch) == 2
    assert Policy(PolicyLoss("dr_grpo", length=10)).normaliser(batch) == 20


def test_batching_changes_nothing() -> None:
    """Loss and gradient norm are those of one micro-batch, whatever the parts."""
    rng = np.random.default_rng(0)
    samples = []
    for n in (3, 5, 2, 4):
        sample = completion_sample([1, 2], rng.integers(0, 600, n).tolist(), {"logprob": [-6.0] * n})
        samples.append(rl._with_advantage(sample, float(rng.normal())))
    for kind in ("grpo", "dapo", "gspo"):
        found = []
        for rows, length in ((1, 32), (4, 8)):
            trainer = Trainer(random_model(tiny_config()), OPTIM, balance=0.0)
            batches = [pack(samples, rows, length, 0)[0]] if rows == 1 else [pack([s], 1, 8, 0)[0] for s in samples]
            metrics = trainer.update(batches, Policy(PolicyLoss(kind)))
            found.append((metrics["loss"], metrics["norm"], metrics["kl_old"]))
        assert found[0] == pytest.approx(found[1], rel=1e-4), kind


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": None, "families": ("chian",)}, "chian is none of"),
        ({"families": ("chain",)}, "source is given beside"),
        ({"level": 2}, "give families"),
        ({"minibatches": 9}, "minibatches cannot be more than the 4"),
        ({"tokens_per_micro_batch": 16}, "less than max_prompt and max_tokens, 36"),
        ({"max_prompt": 5}, "max_prompt is 5"),
        ({"lr": 1e-3}, "lr and optim are both given"),
        ({"evaluate_every": 1}, "only the tasks have questions held out"),
    ],
)
def test_wrong_keys(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_rl(replace(STAGE, **changes), job(Recorder(tmp_path)))


def test_keys_of_the_recipe() -> None:
    made = override(rl.recipe(), ["families=chain,gcd", "loss=gspo", "max_tokens=64"])
    stage = made.stages[0]
    assert (stage.families, stage.loss, stage.policy.kind) == (("chain", "gcd"), "gspo", "gspo")
    with pytest.raises(UsageError, match="samples_per_prompt must be a whole number from 2, not 1"):
        override(rl.recipe(), ["samples_per_prompt=1"])
    with pytest.raises(UsageError, match="must be 1 for a model with the template thinking-2507"):
        replace(stage, thinking=0.0).check("thinking-2507")
    assert encode([{"role": "user", "content": "a"}], tokenizer=TOK).ids
