"""The embedded model's stages, from nothing to a hybrid model: python -m qwen3 train recipes/embedded_v1/stages.py

    general → reason → long    pretraining (S1, S2, S3 of Qwen3's report): text gives way to worked problems
    cold                       long-CoT cold start: terse traces that often go wrong beside careful ones that do not
    rl → sampled               reasoning RL; then the model's own right answers, for fusion
    fusion                     both modes in one: direct answers, cut thoughts, switches, tools, dialogue
    polish                     general RL in both modes: right, well formed, in the question's script, brief

All next-token stages are `Pretrain` stages, the cold start and fusion too: their samples carry what is trained in them
(prompts, forced text and histories are not), and worker processes draw them, which `SFT` has not. `campaign.py` runs
the stages in parts that fit a lease, and measures.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3 import LLM, SamplingParams
from qwen3.tasks import FAMILIES
from qwen3.train.cold_start import Question, rejection_sample, sample_questions
from qwen3.train.optim import OptimConfig
from qwen3.train.pretrain import Pretrain
from qwen3.train.recipe import Recipe, key
from qwen3.train.rewards import Answer, one_language, verified, well_formed
from qwen3.train.rl import RL
from recipes.embedded_v1.evaluate import skills
from recipes.embedded_v1.mixture import FAMILY_WEIGHTS, LABELLED, LENGTH, VOCAB_RANKS, level_of, sources

if TYPE_CHECKING:
    from qwen3.train.start import Job

CONTROL = VOCAB_RANKS  # the control tokens follow the ranks; the first is <|endoftext|>, the third <|im_end|>
GENERATION = {
    "bos_token_id": CONTROL,
    "pad_token_id": CONTROL,
    "eos_token_id": [CONTROL + 2, CONTROL],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}
OPTIM = OptimConfig(matrix_lr=0.02, vector_lr=0.003)  # Muon for hidden matrices, AdamW for all else, as for v0
NEXT_TOKEN = ("general", "reason", "long", "cold", "fusion")


@dataclass(frozen=True)
class Size:
    """Everything that the size of the run decides. tokens: of each next-token stage. Shapes: every linear's input is a
    multiple of 256 in full size, so that every quantization format applies."""

    width: int = 512
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 128
    ffn: int = 1024
    tokens: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"general": 520 << 20, "reason": 380 << 20, "long": 120 << 20, "cold": 100 << 20,
                                 "fusion": 200 << 20}
    )  # fmt: skip
    tokens_per_update: int = 1 << 17
    length: int = LENGTH
    workers: int = 16  # as many as `Rows.lanes`: with fewer, some pack for two and the GPU waits for them
    rl_updates: int = 20  # held-out problems are right from the tenth on
    prompts: int = 64
    samples: int = 16
    answer: int = 384  # tokens of an answer in RL, thought included: the longest that is asked for takes 320
    polish_updates: int = 25
    polish_answer: int = 1024  # a sudoku takes 850
    sampled: int = 4000
    max_batch: int = 1024
    held_out: int = 192  # questions of an evaluation between updates
    agree: float = 0.01  # see RL.agree_mean
    save_every: int = 500

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": 8320,  # 8,192 ranks + 26 control tokens + rows that are never sampled
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "hidden_act": "silu",
            "max_position_embeddings": LENGTH,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "bos_token_id": CONTROL,
            "eos_token_id": CONTROL + 2,
            "torch_dtype": "bfloat16",
        }


FULL = Size()
TINY = Size(
    width=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128,
    tokens=dict.fromkeys(NEXT_TOKEN, 2 << 11), tokens_per_update=1 << 11, length=1024, workers=0, rl_updates=2,
    prompts=4, samples=2, answer=16, polish_updates=1, polish_answer=16, sampled=4, max_batch=8, held_out=4,
    save_every=4,
)  # fmt: skip


# What reinforcement learning asks

RL_WEIGHTS = {"track": 3.5, "cups": 2.5, "sums": 1.0, "chain": 0.8, "multiply": 0.8, "gcd": 0.8, "base": 0.6}


def reasoning_question(rng: random.Random) -> Question:
    """Mostly of the labelled families, where terse thoughts lose; the others so that they are not forgotten."""
    return _question(rng, RL_WEIGHTS, uniform=True)


def any_question(rng: random.Random) -> Question:
    """Easy ones more often, of all families but the one whose answers have a thousand tokens whatever is thought."""
    return _question(rng, {name: w for name, w in FAMILY_WEIGHTS.items() if name != "count"}, uniform=False)


def _question(rng: random.Random, weights: Mapping[str, float], uniform: bool) -> Question:
    task = FAMILIES[rng.choices(list(weights), list(weights.values()))[0]]
    return Question.of(task.sample(rng, level_of(rng, task.levels, direct=not uniform)))


def brief(answer: Answer) -> float:
    """1 for a right answer of no tokens, falling to 0 at 256: of two right thoughts the shorter one is better."""
    return verified(answer) * max(0.0, 1 - len(answer.rollout) / 256)


POLISH = {"verified": (verified, 1.0), "format": (well_formed, 0.2), "language": (one_language, 0.1),
          "brief": (brief, 0.1)}  # fmt: skip


# The model's own answers


@dataclass(frozen=True)
class Sampled:
    """The stage after RL: right answers of the model to questions of the labelled families, as they were sampled."""

    name: str = "sampled"
    path: str = key("", "JSONL file that they are written to")
    questions: int = key(4000, "questions")
    samples: int = key(2, "answers to each, of which one right one is kept")
    max_tokens: int = key(320, "longest answer")
    max_batch: int = key(256, "answers that are sampled at once")

    def run(self, job: Job) -> dict[str, Any]:
        weights = {name: FAMILY_WEIGHTS[name] for name in LABELLED}
        questions = sample_questions(self.questions, job.seed, weights)
        sampling = SamplingParams(max_tokens=self.max_tokens)
        with LLM.of(job.model, job.tokenizer, mode=job.mode, context=1024, max_batch=self.max_batch) as llm:
            report = rejection_sample(
                llm, questions, self.path, samples=self.samples, keep=1, sampling=sampling, seed=job.seed,
                chunk=self.max_batch, tell=job.run.say,
            )  # fmt: skip
        every = report.families["all"].to_dict()
        return {"finished": True, "kept": every["kept"], "pass_1": every["pass_1"], "seconds": round(report.seconds, 1)}


# The recipe


def pretrain(size: Size, name: str, text: str | Path | None, traces: str = "") -> Pretrain:
    """A next-token stage. general warms up, reason holds, long brings the learning rate down (WSD over the three);
    cold and fusion begin with a tenth and a quarter of the peak and fall to 0."""
    pretraining = name in ("general", "reason", "long")
    peak = 1.0 if pretraining else 0.10 if name == "cold" else 0.25
    warmup = 0.02 if name == "general" else 0.0 if pretraining else 0.05
    # Early stages see short documents alone: what is drawn anew for being longer comes later.
    length = min(size.length, {"general": 1024, "reason": 2048}.get(name, LENGTH))
    updates = size.tokens[name] // size.tokens_per_update
    return Pretrain(
        name,
        sources=sources(name, text, length=length, traces=traces),
        updates=updates,
        tokens_per_update=size.tokens_per_update,
        tokens_per_micro_batch=size.tokens_per_update,
        length=size.length,
        rope_theta=1e6 if name == "long" else None,
        optim=OPTIM,
        peak=peak,
        warmup=warmup,
        decay=0.0 if name in ("general", "reason") else 1.0 - warmup,
        carry=name in ("reason", "long"),
        workers=size.workers,
        evaluate_every=0,  # the first of a process costs 40 s of compilation; needles are `recipes/long_text.py`'s
        samples=0,
        save_every=size.save_every,
    )


def stages(size: Size, text: str | Path | None, out: str | Path) -> tuple[Any, ...]:
    traces = str(Path(out) / "traces.jsonl")
    common: dict[str, Any] = {
        "prompts_per_update": size.prompts, "samples_per_prompt": size.samples, "refills": 1, "save_every": 20,
        "max_batch": size.max_batch, "held_out": size.held_out, "agree_mean": size.agree, "agree_tail": 20 * size.agree,
        "invariant": False,  # sampler and trainer are compared at every update all the same; invariant costs a third
    }  # fmt: skip
    return (
        *(pretrain(size, name, text) for name in ("general", "reason", "long", "cold")),
        RL(
            "rl", source=reasoning_question, updates=size.rl_updates, loss="dr_grpo", clip_high=0.28, lr=1e-4,
            max_tokens=size.answer, evaluate=partial(skills, questions=size.held_out, max_tokens=size.answer),
            evaluate_every=max(1, size.rl_updates // 4), **common,
        ),
        Sampled(path=traces, questions=size.sampled, max_tokens=size.answer, max_batch=size.max_batch),
        pretrain(size, "fusion", text, traces),
        RL(
            "polish", source=any_question, rewards=POLISH, thinking=0.6, updates=size.polish_updates, loss="dr_grpo",
            lr=3e-5, max_tokens=size.polish_answer, **common,
        ),
    )  # fmt: skip


def build(
    size: Size = FULL, text: str | Path | None = "runs/shards", out: str | Path = "runs/embedded_v1", **keys: Any
) -> Recipe:
    """text: the folder that `text.py` wrote; None: without text. keys: of `Recipe`."""
    return Recipe("embedded_v1", size.config(), stages(size, text, out), out=str(out), **keys)


def recipe() -> Recipe:
    return build()
