"""A student of at most 6M parameters, distilled from v1: python -m qwen3 train recipes/embedded_student/stages.py

    general → cold        a base with the teacher's own data, and a cold start: own answers must be right now and then
    off-policy            the teacher's distributions over its own right answers
    on-policy             the teacher's distributions over the student's answers

Neither reinforcement learning nor on-policy distillation finds a skill that is not there (pass@1 near chance, pass@16
too): both stages before are needed. `rl()` is what distillation is compared with: from the same point, the same
questions, as many seconds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwen3.train.distill import Distill
from qwen3.train.recipe import Recipe
from qwen3.train.rl import RL
from recipes.embedded_v1.evaluate import skills
from recipes.embedded_v1.stages import Size, pretrain, reasoning_question

TEACHER = "runs/embedded_v1/embedded"
STUDENT = Size(
    width=256, layers=4, heads=2, kv_heads=1, head_dim=128, ffn=768, tokens={"general": 100 << 20, "cold": 40 << 20},
)  # fmt: skip


@dataclass(frozen=True)
class Lessons:
    """How much is distilled."""

    answers: int = 8192  # of the teacher, off-policy
    off_updates: int = 500
    on_updates: int = 60
    prompts: int = 64
    samples: int = 4
    rl_samples: int = 16
    top_k: int = 64


def asking(size: Size, lessons: Lessons) -> dict[str, Any]:
    """What distillation and its rival have in common."""
    return {
        "source": reasoning_question, "prompts_per_update": lessons.prompts, "max_tokens": size.answer,
        "max_batch": size.max_batch, "evaluate": partial(skills, questions=size.held_out, max_tokens=size.answer),
        "agree_mean": size.agree, "agree_tail": 20 * size.agree,
    }  # fmt: skip


def build(
    size: Size = STUDENT,
    lessons: Lessons = Lessons(),
    teacher: str = TEACHER,
    text: str | Path | None = "runs/embedded_v1/shards",
    out: str | Path = "runs/embedded_student",
    **keys: Any,
) -> Recipe:
    common = asking(size, lessons)
    learn = {"teacher": teacher, "samples_per_prompt": lessons.samples, **common}
    stages = (
        dataclasses.replace(pretrain(size, "general", text), decay=0.5),
        pretrain(size, "cold", text),
        Distill(
            "off-policy", mode="off-policy", updates=lessons.off_updates, answers=lessons.answers, top_k=lessons.top_k,
            verify=True, cross_entropy=0.1, lr=1e-3, evaluate_every=max(1, lessons.off_updates // 4), **learn,
        ),
        Distill(
            "on-policy", mode="on-policy", updates=lessons.on_updates, lr=3e-4,
            evaluate_every=max(1, lessons.on_updates // 6), **learn,
        ),
    )  # fmt: skip
    return Recipe("embedded_student", size.config(), stages, out=str(out), **keys)


def recipe() -> Recipe:
    return build()


def rl(start: str | Path, out: str | Path, size: Size = STUDENT, lessons: Lessons = Lessons(), **keys: Any) -> Recipe:
    """Reinforcement learning from `start`, a checkpoint of the student (after-cold or after-off-policy, say)."""
    stage = RL(
        "rl", samples_per_prompt=lessons.rl_samples, updates=lessons.on_updates, loss="dr_grpo", clip_high=0.28,
        lr=3e-4, evaluate_every=max(1, lessons.on_updates // 6), **asking(size, lessons),
    )  # fmt: skip
    return Recipe("embedded_student_rl", str(start), (stage,), out=str(out), **keys)
