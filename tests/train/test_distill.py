"""Distillation between tiny models: students come nearer, resumed runs are the same, what does not fit is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwen3.errors import UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train import distill
from qwen3.train.cold_start import Question
from qwen3.train.distill import Distill, run_distill, token_kinds
from qwen3.train.optim import OptimConfig
from qwen3.train.recipe import override
from qwen3.train.run import TrainingError
from qwen3.train.start import Job
from qwen3.train.teacher_store import Teacher
from tests.fixtures import random_checkpoint, random_model, tiny_config
from tests.train.recorder import Recorder, change_model_after_sampling

TOK = Tokenizer.from_pretrained().prefix(608)
OPTIM = OptimConfig(kind="adamw", matrix_lr=3e-3, vector_lr=3e-3, betas=(0.9, 0.99), weight_decay=0.0)
SMALL = tiny_config(num_hidden_layers=1, hidden_size=48, intermediate_size=96)


def question(rng: random.Random) -> Question:
    number = rng.randrange(100)
    return Question(str(number), f"a{number}", lambda text: number % 2 == 0)


def teacher() -> Teacher:
    return Teacher(random_model(tiny_config(), seed=7), TOK)


STAGE = Distill(
    teacher=None, source=question, updates=14, prompts_per_update=4, samples_per_prompt=2, max_prompt=32, max_tokens=8,
    thinking=0.0, optim=OPTIM, answers=32, top_k=16,
)  # fmt: skip
ON = replace(STAGE, mode="on-policy", teacher=teacher())
OFF = replace(STAGE, mode="off-policy", teacher=teacher())
MODES = {
    "on-policy": ON,
    "sampled": replace(ON, estimator="sampled"),
    "mixed": replace(ON, teacher_share=0.5, reverse=0.5, cross_entropy=0.1),
    "stored": OFF,
    "live": replace(OFF, top_k=0, temperature=1.5),
}


def job(run: Recorder, student: Qwen3 | None = None, seed: int = 1) -> Job:
    return Job(student or random_model(SMALL, seed=2), TOK, run, seed, "hybrid", "qwen3", "tiny", {})


@pytest.mark.parametrize("mode", MODES)
def test_the_student_comes_nearer(tmp_path: Path, mode: str) -> None:
    run = Recorder(tmp_path)
    summary = run_distill(MODES[mode], job(run))
    assert summary["finished"]
    assert {"train"} < set(summary["seconds_by"])
    lines = [line for line in run.logged if "update" in line]
    gaps = [line["kl"] for line in lines]
    assert np.mean(gaps[-4:]) < 0.8 * np.mean(gaps[:2]), gaps
    assert lines[0]["kl/answer"] > 0
    assert sum(lines[0][f"share/{name}"] for name in distill.KINDS) == pytest.approx(1)
    assert lines[-1]["device_seconds"] == pytest.approx(sum(summary["seconds_by"].values()), abs=0.1)
    assert summary["gap"]["kl"] == pytest.approx(gaps[-1], rel=1e-3)
    assert f"gap to the teacher: {gaps[-1]:.3g} nats a token (answer" in run.said[-1]
    if mode != "sampled":
        assert lines[-1]["top"] > lines[0]["top"]
    if mode in ("on-policy", "sampled", "mixed"):
        assert max(line["agree_tail"] for line in lines) < 1e-4
        assert lines[0]["seconds/teacher"] > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_student_that_is_its_teacher_learns_nothing(tmp_path: Path, mode: str) -> None:
    run, stage = Recorder(tmp_path), replace(MODES[mode], updates=1, cross_entropy=0.0)
    run_distill(stage, job(run, random_model(tiny_config(), seed=7)))
    line = run.logged[-1]
    rounded = 1e-4 if mode == "stored" else 1e-6  # the store has 11 bits of a logarithm
    assert abs(line["loss"]) < rounded
    assert line["norm"] < 100 * rounded


@pytest.mark.parametrize("mode", ["mixed", "stored"])
def test_a_resumed_run_is_the_same(tmp_path: Path, mode: str) -> None:
    stage = replace(MODES[mode], updates=4, save_every=3)
    whole = job(Recorder(tmp_path / "whole"))
    run_distill(stage, whole)
    stopped = run_distill(stage, job(Recorder(tmp_path / "parts", stop_after=2)))
    assert (stopped["finished"], stopped["update"]) == (False, 2)
    with pytest.raises(UsageError, match="begun with other cross_entropy"):
        run_distill(replace(stage, cross_entropy=0.2), job(Recorder(tmp_path / "parts")))
    rest = job(Recorder(tmp_path / "parts"))
    summary = run_distill(stage, rest)
    assert summary["finished"]
    assert summary["seconds_by"]["train"] > stopped["seconds_by"]["train"], "seconds of both parts are counted"
    for (name, a), (_, b) in zip(whole.model.named_parameters(), rest.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    logs = [
        [{k: v for k, v in json.loads(line).items() if "seconds" not in k and k != "tokens_per_second"} for line in
         path.read_text().splitlines()] for path in (tmp_path / "whole/log.jsonl", tmp_path / "parts/log.jsonl")
    ]  # fmt: skip
    assert logs[0] == logs[1]


def test_sampler_and_trainer_must_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_model_after_sampling(monkeypatch)
    with pytest.raises(TrainingError, match=r"before update 1 .* they do not compute the same policy"):
        run_distill(ON, job(Recorder(tmp_path)))


def test_routes_of_a_sparse_student_are_replayed(tmp_path: Path) -> None:
    run = Recorder(tmp_path)
    run_distill(replace(ON, updates=1), job(run, random_model(tiny_config(moe=True))))
    assert run.logged[-1]["agree_tail"] < 1e-4


def test_a_store_of_right_answers_is_used_again_without_its_teacher(tmp_path: Path) -> None:
    stage = replace(OFF, updates=1, verify=True, store=str(tmp_path / "store"))
    run = Recorder(tmp_path / "a")
    run_distill(stage, job(run))
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    assert 0 < manifest["samples"] < 32, "questions of odd numbers have no right answer"
    made = json.loads((tmp_path / "store/seconds.json").read_text())
    again = run_distill(replace(stage, teacher=""), job(Recorder(tmp_path / "b")))
    assert again["seconds_by"]["sample"] == pytest.approx(made["sample"], abs=0.01), "the store's cost stays with it"
    for changes in ({"thinking": 1.0}, {"source": lambda rng: question(random.Random(3))}):
        with pytest.raises(UsageError, match="holds a teacher's store with data"):
            run_distill(replace(stage, **changes), job(Recorder(tmp_path / "c")))


def test_chats_as_data_and_a_teacher_from_a_folder(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "teacher", tiny_config(), tokenizer=True, seed=7)
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"a{i}"}, {"role": "assistant", "content": "b"}]} for i in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = replace(OFF, teacher=str(folder), data=(str(path),), updates=2)
    run = Recorder(tmp_path / "run")
    assert run_distill(stage, job(run))["finished"]
    assert json.loads((tmp_path / "run/teacher/manifest.json").read_text())["samples"] == 3


def test_tasks_thinking_and_what_is_held_out(tmp_path: Path) -> None:
    run = Recorder(tmp_path)
    stage = replace(
        ON, source=None, families=("chain",), level=1, thinking=0.5, updates=1, evaluate_every=1, held_out=2,
        max_prompt=200, max_tokens=24, budget=4,
    )  # fmt: skip
    run_distill(stage, job(run))
    assert {"held_out", "pass_1", "kl/thinking", "kl/tag"} <= set(run.logged[-1])
    second = Recorder(tmp_path / "off")
    run_distill(replace(stage, mode="off-policy", answers=8), job(second))
    assert "held_out" in second.logged[-1]


def test_kinds_of_tokens() -> None:
    c = TOK.control
    ids = np.array([c.im_start, 5, c.think, 6, 7, c.end_think, 8, c.im_end], np.int32)
    assert token_kinds(ids, TOK).tolist() == [2, 0, 2, 1, 1, 2, 0, 2]


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        (ON, {"teacher": ""}, "teacher is missing"),
        (ON, {"data": ("a",)}, "data is for off-policy"),
        (ON, {"store": "a"}, "store is for off-policy"),
        (ON, {"verify": True}, "verify is for off-policy"),
        (OFF, {"data": ("a",), "verify": True}, "leave out data"),
        (OFF, {"teacher_share": 0.5}, "teacher_share is for on-policy"),
        (ON, {"temperature": 2.0}, "temperature is for off-policy"),
        (OFF, {"reverse": 0.5}, "set top_k=0"),
        (OFF, {"estimator": "sampled"}, "estimator=sampled is for on-policy"),
        (ON, {"estimator": "sampled", "cross_entropy": 0.1}, "leave out teacher_share, reverse and cross_entropy"),
        (ON, {"teacher": Teacher(random_model(tiny_config()), TOK.prefix(600))}, "another tokenizer"),
        (OFF, {"top_k": 640}, "k=640 must be"),
        (OFF, {"families": ("chain",)}, "source is given beside"),
    ],
)
def test_wrong_keys(tmp_path: Path, stage: Distill, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        run_distill(replace(stage, **changes), job(Recorder(tmp_path)))


def test_keys_of_the_recipe() -> None:
    made = override(distill.recipe(), ["teacher=qwen3:8b", "families=chain,gcd", "on-policy.lr=1e-5"])
    off, on = made.stages
    assert (off.mode, on.mode) == ("off-policy", "on-policy")
    assert off.teacher == on.teacher == "qwen3:8b"
    assert off.families == on.families == ("chain", "gcd")
    assert (off.lr, on.lr, off.backward, on.backward) == (None, 1e-5, 0.0, 1.0)
    with pytest.raises(UsageError, match=r"say which, off-policy\.lr, on-policy\.lr"):
        override(made, ["lr=1e-5"])
    with pytest.raises(UsageError, match="reverse is a share"):
        override(made, ["on-policy.reverse=2"])
