"""Reinforcement learning on verified problems: sample with the engine, judge, compare within groups, update.

    qwen3 train rl model=embedded families=chain,gcd updates=100

Engine and trainer share one set of parameters. Before every update the trainer computes the log-probabilities of what
was sampled: if the two do not agree, the gradient would be of another policy than the one that sampled, and the run
stops. What is sampled depends on the seed, the number of the update and the weights alone, so that a run that goes on
ends as one that was never stopped.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qwen3.chat import encode
from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.model import Qwen3
from qwen3.tasks import FAMILIES
from qwen3.train.cold_start import Question, sample_questions
from qwen3.train.feeds import micro_batches
from qwen3.train.forward import BatchTensors, Checkpointing, Forward, to_tensors
from qwen3.train.losses import chunk_for, token_logprobs
from qwen3.train.optim import OptimConfig, processes
from qwen3.train.packing import IGNORED, PackedBatch
from qwen3.train.policy_losses import Kind, PolicyLoss, advantages, informative, overlong_penalty
from qwen3.train.recipe import Recipe, key
from qwen3.train.rewards import Answer, Reward, load_problems, mean_parts, one_language, total, verified, well_formed
from qwen3.train.rollout import Prompt, Rollout, rollouts
from qwen3.train.run import TrainingError, loop
from qwen3.train.samples import TokenSample
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.trainer import LossFn, Metrics, Trainer

if TYPE_CHECKING:
    from qwen3.train.start import Job


@dataclass(frozen=True)
class RL:
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "rl"
    families: tuple[str, ...] = key((), "families of the built-in tasks; empty: all, unless problems are given")
    level: int | None = key(None, "difficulty of the tasks from 1; none: any")
    problems: tuple[str, ...] = key((), "JSONL files of problems: prompt, and answer, cases, or entry and tests")
    source: Callable[[random.Random], Question] | None = key(None, "in Python: what draws a question")
    rewards: Mapping[str, tuple[Reward, float]] | None = key(None, "in Python: rewards and weights by name")
    format: float = key(0.0, "weight of the reward for think tags in their places and an answer that ends")
    language: float = key(0.0, "weight of the reward for staying in the question's script")
    updates: int = key(100, "rounds of sampling and learning")
    prompts_per_update: int = key(16, "questions whose answers make one round")
    samples_per_prompt: int = key(8, "answers to each question, which are compared with each other")
    minibatches: int = key(1, "steps of the optimiser in a round; above 1 the later ones are off-policy")
    tokens_per_micro_batch: int | None = key(None, "tokens computed at once; none: 1,024 on a CPU, 16,384 on a GPU")
    max_prompt: int = key(512, "longest prompt in tokens")
    max_tokens: int = key(512, "longest answer in tokens, thought included")
    budget: int | None = key(None, "longest thought in tokens, then it is closed; none: no limit but max_tokens")
    thinking: float = key(1.0, "share of the questions that the model is to think about")
    loss: Kind = key("dapo", "grpo, dr_grpo, dapo, gspo or cispo")
    clip_low: float | None = key(None, "ratios count from 1 - clip_low; none: as published for the loss")
    clip_high: float | None = key(None, "ratios count up to 1 + clip_high; none: as published for the loss")
    kl: float = key(0.0, "weight of the divergence from the weights at the stage's beginning, kept beside")
    drop: bool = key(True, "leave out questions whose answers are all worth the same, and ask others")
    refills: int = key(2, "how often, at most, others are asked for those left out of a round")
    overlong: int = key(0, "tokens before max_tokens over which the reward falls by 1 in a line; 0: it does not")
    lr: float | None = key(None, "peak learning rate of AdamW; none: derived from the model's width")
    optim: OptimConfig | None = key(None, "in Python: the whole optimiser, instead of lr")
    warmup: float = key(0.05, "share of the updates over which the learning rate rises; then it falls to 0 in a line")
    agree_mean: float = key(0.01, "most that log-probabilities of sampler and trainer differ by on average")
    agree_tail: float = key(0.2, "most that they differ by at the 99.9th percentile")
    invariant: bool = key(True, "the engine computes an answer the same bit for bit, whatever runs beside it")
    max_batch: int = key(64, "answers that are sampled at once")
    checkpointing: Checkpointing = key("none", "computed again on the way back, to save memory: layers, attention")
    evaluate: Callable[[LLM], Mapping[str, float]] | None = key(None, "in Python: instead of held-out questions")
    evaluate_every: int = key(0, "updates between evaluations; 0: none")
    held_out: int = key(64, "questions of an evaluation, of the tasks' own split")
    save_every: int = key(20, "updates between checkpoints")

    def __post_init__(self) -> None:
        whole = {
            "updates": 1, "prompts_per_update": 1, "samples_per_prompt": 2, "minibatches": 1, "max_prompt": 1,
            "max_tokens": 1, "max_batch": 1, "held_out": 1, "save_every": 1, "refills": 0, "overlong": 0,
            "evaluate_every": 0, "tokens_per_micro_batch": 1, "level": 1, "budget": 1,
        }  # fmt: skip
        for name, least in whole.items():
            value = getattr(self, name)
            if value is None and name in ("tokens_per_micro_batch", "level", "budget"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"{self.name}.{name} must be a whole number from {least}, not {value!r}")
        for name in ("lr", "agree_mean", "agree_tail"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{self.name}.{name} must be a number above 0, not {value!r}")
        if not 0 <= self.thinking <= 1 or not 0 <= self.warmup < 1:
            raise UsageError(f"{self.name}.thinking and warmup are shares, from 0 to 1 and to below 1")
        self.policy  # noqa: B018 (raises for its own keys)

    @property
    def policy(self) -> PolicyLoss:
        return PolicyLoss(self.loss, self.clip_low, self.clip_high, self.max_tokens, self.kl)

    def check(self, template: Any) -> None:
        """Raises UsageError for keys that contradict each other, or the model."""
        if self.source is not None and (self.families or self.problems):
            raise UsageError(f"{self.name}.source is given beside families or problems: leave one out")
        if self.level is not None and not self.of_tasks:
            raise UsageError(f"{self.name}.level is of the built-in tasks: give families")
        for name in self.families:
            if name not in FAMILIES:
                raise UsageError(f"{self.name}.families: {name} is none of {', '.join(FAMILIES)}")
            if self.level is not None and self.level > FAMILIES[name].levels:
                raise UsageError(f"{self.name}.level: {name} has levels 1 to {FAMILIES[name].levels}, not {self.level}")
        if self.lr is not None and self.optim is not None:
            raise UsageError(f"{self.name}.lr and optim are both given: optim has learning rates of its own")
        if self.evaluate_every and self.evaluate is None and not self.of_tasks:
            raise UsageError(f"{self.name}.evaluate_every: only the tasks have questions held out; give evaluate")
        always = {"thinking-2507": 1.0, "instruct-2507": 0.0}.get(template if isinstance(template, str) else "")
        if always is not None and self.thinking != always:
            raise UsageError(f"{self.name}.thinking must be {always:g} for a model with the template {template}")
        if self.minibatches > self.prompts_per_update:
            raise UsageError(f"{self.name}.minibatches cannot be more than the {self.prompts_per_update} questions")

    @property
    def of_tasks(self) -> bool:
        return self.source is None and (bool(self.families) or not self.problems)

    def run(self, job: Job) -> dict[str, Any]:
        return run_rl(self, job)


def recipe() -> Recipe:
    return Recipe("rl", "embedded", (RL(),))


@dataclass(frozen=True)
class Policy:
    """A PolicyLoss over packed batches with the streams "logprob" (the sampler's), "advantage", and "reference" where
    it has a weight."""

    loss: PolicyLoss

    def normaliser(self, batch: PackedBatch) -> float:
        """By the trained tokens of each document."""
        trained = np.add.reduceat((batch.labels != IGNORED).reshape(-1), batch.bounds()[:-1], dtype=np.int64)
        return self.loss.normaliser(torch.from_numpy(trained))

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        at, streams = tensors.places, {name: values.flatten() for name, values in tensors.streams.items()}
        labels = tensors.labels.flatten()[at]
        logprob, entropy = token_logprobs(hidden[at], head, labels, chunk_for(head))
        sequence = torch.searchsorted(tensors.bounds, at.to(tensors.bounds.dtype), right=True) - 1
        reference = streams["reference"][at] if "reference" in streams else None
        found, metrics = self.loss(logprob, streams["logprob"][at], streams["advantage"][at], sequence, reference)
        return found, {"entropy": entropy.sum(), **metrics}


class RoundTrainer(Trainer):
    """A trainer whose update is a whole round: `parts` says how many of the batches each step of the optimiser takes.
    about: what was measured of the round, for its metrics."""

    parts: Sequence[int] = ()
    about: Mapping[str, float] = {}

    def update(self, batches: Sequence[PackedBatch], loss: LossFn, lr_scale: float = 1.0) -> Metrics:
        """Means over the steps; sums of tokens and seconds. A round in which no question says anything changes
        nothing."""
        steps, start = [], 0
        for count in self.parts:
            steps.append(dict(super().update(batches[start : start + count], loss, lr_scale)))
            start += count
        if not steps:
            nothing = {"loss": 0.0, "norm": 0.0, "tokens": 0.0, "trained": 0.0, "seconds": 0.0}
            return Metrics({**self.about, **nothing, "tokens_per_second": 0.0}, {})
        found = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        for name in ("tokens", "trained", "seconds"):
            found[name] *= len(steps)
        return Metrics({**self.about, **found}, {})


def agreement(trainer: Trainer, batches: Sequence[PackedBatch]) -> tuple[float, float]:
    """How far the trainer's log-probabilities of the sampled tokens are from the sampler's: (the mean, the 99.9th
    percentile) of the absolute differences."""
    apart = []
    for batch in batches:
        kept = batch.labels != IGNORED
        apart.append(np.abs(trainer.logprobs(batch).numpy() - batch.streams["logprob"])[kept])
    every = np.concatenate(apart)
    return float(every.mean()), float(np.quantile(every, 0.999))


@dataclass(eq=False)
class Rounds:
    """Update number -> its batches. reference: the weights at the stage's beginning, where they count."""

    stage: RL
    job: Job
    llm: LLM
    trainer: RoundTrainer
    length: int
    reference: Qwen3 | None
    pool: list[Question] = field(default_factory=list)

    def __call__(self, update: int) -> list[PackedBatch]:
        """Sample, judge, compare. Raises TrainingError where sampler and trainer do not agree."""
        stage, trainer = self.stage, self.trainer
        kept: list[list[TokenSample]] = []
        answers: list[list[Rollout]] = []
        parts: list[dict[str, float]] = []
        sums: list[Tensor] = []
        for attempt in range(1 + stage.refills if stage.drop else 1):
            missing = stage.prompts_per_update - len(kept)
            if not missing:
                break
            groups, questions = self.sample(f"{self.job.seed}/{stage.name}/{update}/{attempt}", missing)
            rewards = torch.zeros(len(groups), stage.samples_per_prompt)
            for i, (group, question) in enumerate(zip(groups, questions, strict=True)):
                for j, rollout in enumerate(group):
                    rewards[i, j], each = self.judge(question, rollout)
                    parts.append(each)
            if stage.overlong:
                lengths = torch.tensor([[len(rollout) for rollout in group] for group in groups])
                rewards += overlong_penalty(lengths, stage.max_tokens, stage.overlong)
            says, advantage = informative(rewards), advantages(rewards, stage.loss)
            kept += [
                [_with_advantage(rollout.sample, float(a)) for rollout, a in zip(group, row, strict=True)]
                for group, row, useful in zip(groups, advantage, says, strict=True)
                if useful or not stage.drop
            ]
            answers += groups
            sums.append(rewards)
        batches, trainer.parts = self.packed(kept)
        trainer.about = self.measured(torch.cat(sums), [r for group in answers for r in group], parts)
        if batches:
            mean, tail = agreement(trainer, batches)
            if not (mean <= stage.agree_mean and tail <= stage.agree_tail):
                raise TrainingError(
                    f"{stage.name}: before update {update + 1} the trainer's log-probabilities of the sampled tokens "
                    f"are {mean:.3g} from the sampler's on average and {tail:.3g} at the 99.9th percentile (bounds "
                    f"{stage.agree_mean:g} and {stage.agree_tail:g}): they do not compute the same policy"
                )
            trainer.about = {**trainer.about, "agree_mean": mean, "agree_tail": tail}
        return [self.referred(batch) for batch in batches]

    def sample(self, seed: str, count: int) -> tuple[list[list[Rollout]], list[Question]]:
        """Answers to fresh questions."""
        stage, rng = self.stage, random.Random(seed)
        questions = self.draw(rng, count)
        prompts = [self.prompt(question, rng.random() < stage.thinking) for question in questions]
        found = rollouts(
            self.llm.engine, prompts, stage.samples_per_prompt, seed,
            max_tokens=stage.max_tokens, budget=stage.budget, routes=self.job.model.config.is_moe,
        )  # fmt: skip
        return found, questions

    def draw(self, rng: random.Random, count: int) -> list[Question]:
        stage = self.stage
        if stage.source is not None:
            return [stage.source(rng) for _ in range(count)]
        if self.pool and not stage.of_tasks:
            return [question for _ in range(-(-count // len(self.pool))) for question in
                    rng.sample(self.pool, len(self.pool))][:count]  # fmt: skip
        names = stage.families or tuple(FAMILIES)
        if self.pool:
            names = (*names, "")
        drawn = (rng.choice(names) for _ in range(count))
        return [
            Question.of(FAMILIES[name].sample(rng, stage.level)) if name else rng.choice(self.pool) for name in drawn
        ]

    def prompt(self, question: Question, thinking: bool) -> Prompt:
        job = self.job
        messages = [{"role": "user", "content": question.prompt}]
        ids = encode(messages, tokenizer=job.tokenizer, enable_thinking=thinking, template=job.template).ids
        if len(ids) > self.stage.max_prompt:
            raise UsageError(
                f"{self.stage.name}.max_prompt is {self.stage.max_prompt}, but the problem {question.key} has "
                f"{len(ids):,} tokens: raise it"
            )
        return Prompt(ids, thinking)

    def judge(self, question: Question, rollout: Rollout) -> tuple[float, dict[str, float]]:
        stage, tokenizer = self.stage, self.job.tokenizer
        rewards = stage.rewards or {
            "verified": (verified, 1.0),
            "format": (well_formed, stage.format),
            "language": (one_language, stage.language),
        }
        return total(rewards, Answer(question, rollout.message(tokenizer), rollout, tokenizer))

    def packed(self, groups: Sequence[Sequence[TokenSample]]) -> tuple[list[PackedBatch], list[int]]:
        """(micro-batches of all steps, how many each step has). Groups stay whole."""
        batches, parts = [], []
        for step in np.array_split(np.arange(len(groups)), min(self.stage.minibatches, len(groups)) or 1):
            samples = [sample for i in step for sample in groups[i] if sample.trained.any()]
            if samples:
                made = micro_batches(
                    iter(samples), self.length, self.job.tokenizer.control.endoftext,
                    fixed=self.job.model.device.type != "cpu",
                )  # fmt: skip
                batches += made
                parts.append(len(made))
        return batches, parts

    def measured(
        self, rewards: Tensor, answers: Sequence[Rollout], parts: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        found = {"reward": float(rewards.mean())}
        if "verified" in parts[0]:
            found["pass_1"] = float(np.mean([part["verified"] for part in parts]))
        says = informative(rewards)
        return found | {
            "informative": float(says.float().mean()),
            "length": float(np.mean([len(answer) for answer in answers])),
            "cut": float(np.mean([answer.finish == "length" for answer in answers])),
            "asked": float(len(rewards)),
            "dropped": float((~says).sum()) if self.stage.drop else 0.0,
            **mean_parts(parts),
        }

    @torch.no_grad()
    def referred(self, batch: PackedBatch) -> PackedBatch:
        """The batch with the reference's log-probabilities, where they count."""
        if self.reference is None:
            return batch
        tensors = to_tensors(batch, self.reference.device)
        hidden = Forward(self.reference)(tensors)[0].flatten(0, 1)
        head = (self.reference.embed_tokens if self.reference.lm_head is None else self.reference.lm_head).weight
        found, _ = token_logprobs(hidden, head, tensors.labels.flatten(), chunk_for(head))
        return replace(batch, streams={**batch.streams, "reference": found.view(batch.labels.shape).cpu().numpy()})

    def after(self, update: int) -> dict[str, float]:
        """The evaluation, where one is due."""
        stage = self.stage
        if not stage.evaluate_every or (update % stage.evaluate_every and update != stage.updates):
            return {}
        if stage.evaluate is not None:
            return dict(stage.evaluate(self.llm))
        names = stage.families or tuple(FAMILIES)
        questions = sample_questions(stage.held_out, self.job.seed, dict.fromkeys(names, 1.0), split="eval")
        prompts = [self.prompt(question, stage.thinking > 0) for question in questions]
        found = rollouts(
            self.llm.engine,
            prompts,
            1,
            f"{self.job.seed}/held out",
            max_tokens=stage.max_tokens,
            budget=stage.budget,
            tenant="held out",
        )
        right = [
            q.check(group[0].message(self.job.tokenizer).content) for q, group in zip(questions, found, strict=True)
        ]
        return {"held_out": float(np.mean(right))}


def run_rl(stage: RL, job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier run stopped; returns `loop`'s summary.

    Raises UsageError for wrong keys and problems, and where the folder has a run with others; TrainingError where
    sampler and trainer do not agree, or a loss is not finite.
    """
    stage.check(job.template)
    if processes() > 1:
        raise UsageError(f"{stage.name} runs in one process: its answers are sampled on one device")
    model, run = job.model, job.run
    pool = [question for path in stage.problems for question in load_problems(path)]
    context = stage.max_prompt + stage.max_tokens
    length = derive_tokens(stage, context, model.device.type)
    optim, why = derive_optim(stage, model.config.hidden_size)
    run.say(
        f"{stage.updates:,} updates of {stage.prompts_per_update} questions with {stage.samples_per_prompt} answers "
        f"each, loss {stage.loss}, {length:,} tokens at once; {why}"
    )
    reference = copy.deepcopy(model).requires_grad_(False) if stage.kl else None
    trainer = RoundTrainer(model, optim, seed=job.seed, checkpointing=stage.checkpointing, balance=0.0)
    rows = min(stage.max_batch, stage.prompts_per_update * stage.samples_per_prompt)
    with LLM.of(
        model, job.tokenizer, mode=job.mode, context=context, max_batch=rows, invariant=stage.invariant,
        blocks=rows * -(-context // 16) + 2,  # no more: the rest of the memory is the trainer's
    ) as llm:  # fmt: skip
        trainer.engines.append(llm.engine)
        rounds = Rounds(stage, job, llm, trainer, length, reference, pool)
        place = {
            "families": list(stage.families), "problems": _fingerprint(pool), "seed": job.seed,
            "updates": stage.updates, "prompts": stage.prompts_per_update, "samples": stage.samples_per_prompt,
            "loss": stage.loss,
        }  # fmt: skip
        warmup = math.ceil(stage.warmup * stage.updates)
        return loop(
            run, trainer, stage.name, stage.updates, rounds, Policy(stage.policy),
            lambda i: warmup_stable_decay(i, stage.updates, warmup=warmup, decay=stage.updates - warmup),
            save_every=stage.save_every, position=lambda: place, after=rounds.after, watch=False,
            restore=lambda found: _same_run(found, place, run.folder),
        )  # fmt: skip


def _same_run(found: Mapping[str, Any], place: Mapping[str, Any], folder: Any) -> None:
    for name, value in place.items():
        if found.get(name) != value:
            raise UsageError(
                f"{folder} holds a run that was begun with other {name}: give another folder, or delete it"
            )


def _fingerprint(questions: Sequence[Question]) -> str:
    text = json.dumps([(question.key, question.prompt) for question in questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _with_advantage(sample: TokenSample, value: float) -> TokenSample:
    advantage = np.where(sample.trained, np.float32(value), np.float32(0))
    return replace(sample, streams={**sample.streams, "advantage": advantage})


def derive_tokens(stage: RL, context: int, device: str) -> int:
    """Tokens that are computed at once: at least a whole prompt and answer."""
    if stage.tokens_per_micro_batch is None:
        return max(1024 if device == "cpu" else 16_384, -(-context // 128) * 128)
    if stage.tokens_per_micro_batch < context:
        raise UsageError(
            f"{stage.name}.tokens_per_micro_batch is {stage.tokens_per_micro_batch:,}, less than max_prompt and "
            f"max_tokens, {context:,}: raise it"
        )
    return stage.tokens_per_micro_batch


def derive_optim(stage: RL, width: int) -> tuple[OptimConfig, str]:
    """The optimiser and the reason for its learning rate: a tenth of what fine-tuning all weights takes, as the signal
    is noisy."""
    if stage.optim is not None:
        return stage.optim, "optimiser as given"
    lr = stage.lr or 0.01 * min(1e-3, 1.0 / width)
    optim = OptimConfig(kind="adamw", matrix_lr=lr, vector_lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    why = "as given" if stage.lr else f"for width {width:,}"
    return optim, f"AdamW, learning rate {lr:.2g} {why}, rising over {stage.warmup:.0%}, then falling to 0"
