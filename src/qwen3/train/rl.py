"""Reinforcement learning on verified problems: sample with the engine, judge, compare within groups, update.

    qwen3 train rl model=embedded families=chain,gcd updates=100

Engine and trainer share one set of parameters. Before every update the trainer computes the log-probabilities of all
that was sampled: if the two do not agree, the gradient would be of another policy than the one that sampled, and the
run stops. What is sampled depends on the seed, the number of the update and the weights alone, so that a run that goes
on ends as one that was never stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.model import Qwen3
from qwen3.train.cold_start import Question
from qwen3.train.feeds import micro_batches
from qwen3.train.forward import BatchTensors, Forward, to_tensors
from qwen3.train.losses import chunk_for, token_logprobs
from qwen3.train.packing import IGNORED, PackedBatch
from qwen3.train.policy_losses import Kind, PolicyLoss, advantages, informative, overlong_penalty
from qwen3.train.questions import (
    Asker,
    Asking,
    RoundTrainer,
    derive_optim,
    derive_tokens,
    must_agree,
    same_run,
)
from qwen3.train.recipe import Recipe, key
from qwen3.train.rewards import Answer, Reward, mean_parts, one_language, total, verified, well_formed
from qwen3.train.rollout import Rollout
from qwen3.train.run import loop
from qwen3.train.samples import TokenSample

if TYPE_CHECKING:
    from qwen3.train.start import Job


@dataclass(frozen=True)
class RL(Asking):
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "rl"
    samples_per_prompt: int = key(8, "answers to each question, which are compared with each other")
    rewards: Mapping[str, tuple[Reward, float]] | None = key(None, "in Python: rewards and weights by name")
    format: float = key(0.0, "weight of the reward for think tags in their places and an answer that ends")
    language: float = key(0.0, "weight of the reward for staying in the question's script")
    minibatches: int = key(1, "steps of the optimiser in a round; above 1 the later ones are off-policy")
    loss: Kind = key("dapo", "grpo, dr_grpo, dapo, gspo or cispo")
    clip_low: float | None = key(None, "ratios count from 1 - clip_low; none: as published for the loss")
    clip_high: float | None = key(None, "ratios count up to 1 + clip_high; none: as published for the loss")
    kl: float = key(0.0, "weight of the divergence from the weights at the stage's beginning, kept beside")
    drop: bool = key(True, "leave out questions whose answers are all worth the same, and ask others")
    refills: int = key(2, "how often, at most, others are asked for those left out of a round")
    overlong: int = key(0, "tokens before max_tokens over which the reward falls by 1 in a line; 0: it does not")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole({"samples_per_prompt": 2, "minibatches": 1, "refills": 0, "overlong": 0})
        self.policy  # noqa: B018 (raises for its own keys)

    @property
    def policy(self) -> PolicyLoss:
        return PolicyLoss(self.loss, self.clip_low, self.clip_high, self.max_tokens, self.kl)

    def check(self, template: Any) -> None:
        super().check(template)
        if self.minibatches > self.prompts_per_update:
            raise UsageError(f"{self.name}.minibatches cannot be more than the {self.prompts_per_update} questions")

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


@dataclass(eq=False)
class Rounds:
    """Update number -> its batches. reference: the weights at the stage's beginning, where they count."""

    stage: RL
    asker: Asker
    llm: LLM
    trainer: RoundTrainer
    length: int
    reference: Qwen3 | None

    def __call__(self, update: int) -> list[PackedBatch]:
        """Sample, judge, compare. Raises TrainingError where sampler and trainer do not agree."""
        stage, trainer, seed = self.stage, self.trainer, self.asker.job.seed
        kept: list[list[TokenSample]] = []
        answers: list[list[Rollout]] = []
        parts: list[dict[str, float]] = []
        sums: list[Tensor] = []
        for attempt in range(1 + stage.refills if stage.drop else 1):
            missing = stage.prompts_per_update - len(kept)
            if not missing:
                break
            with trainer.phases("sample"):
                groups, questions = self.asker.sample(self.llm, f"{seed}/{stage.name}/{update}/{attempt}", missing)
            rewards = torch.zeros(len(groups), stage.samples_per_prompt)
            with trainer.phases("judge"):
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
        # Of all answers: those that are trained are the uncertain ones, in which 16 bits are furthest apart.
        every = self.batched([rollout.sample for group in answers for rollout in group])
        trainer.about = {**trainer.about, **must_agree(stage, trainer, every, update)}
        with trainer.phases("reference"):
            return [self.referred(batch) for batch in batches]

    def judge(self, question: Question, rollout: Rollout) -> tuple[float, dict[str, float]]:
        stage, tokenizer = self.stage, self.asker.job.tokenizer
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
            if made := self.batched([sample for i in step for sample in groups[i]]):
                batches += made
                parts.append(len(made))
        return batches, parts

    def batched(self, samples: Sequence[TokenSample]) -> list[PackedBatch]:
        """Micro-batches of the samples in which anything is trained."""
        job = self.asker.job
        kept = [sample for sample in samples if sample.trained.any()]
        fixed = job.model.device.type != "cpu"
        return micro_batches(iter(kept), self.length, job.tokenizer.control.endoftext, fixed=fixed)

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


def run_rl(stage: RL, job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier run stopped; returns `loop`'s summary.

    Raises UsageError for wrong keys and problems, and where the folder has a run with others; TrainingError where
    sampler and trainer do not agree, or a loss is not finite.
    """
    stage.check(job.template)
    model, run, asker = job.model, job.run, Asker(stage, job)
    length = derive_tokens(stage, stage.context, model.device.type)
    # A tenth of what fine-tuning all weights takes: the signal is noisy.
    optim, why = derive_optim(stage, model.config.hidden_size, 0.01)
    run.say(
        f"{stage.updates:,} updates of {stage.prompts_per_update} questions with {stage.samples_per_prompt} answers "
        f"each, loss {stage.loss}, {length:,} tokens at once; {why}"
    )
    reference = copy.deepcopy(model).requires_grad_(False) if stage.kl else None
    trainer = RoundTrainer(model, optim, seed=job.seed, checkpointing=stage.checkpointing, balance=0.0)
    with stage.llm(job) as llm:
        trainer.engines.append(llm.engine)
        place = stage.place(asker.pool, job.seed) | {"loss": stage.loss}

        def restore(found: Mapping[str, Any]) -> None:
            same_run(found, place, run.folder)
            trainer.phases.restore(found.get("phases", {}))

        return loop(
            run, trainer, stage.name, stage.updates, Rounds(stage, asker, llm, trainer, length, reference),
            Policy(stage.policy), stage.learning,
            save_every=stage.save_every, position=lambda: place | {"phases": trainer.phases.total}, watch=False,
            restore=restore, after=lambda update: asker.after(llm, update),
        )  # fmt: skip


def _with_advantage(sample: TokenSample, value: float) -> TokenSample:
    advantage = np.where(sample.trained, np.float32(value), np.float32(0))
    return replace(sample, streams={**sample.streams, "advantage": advantage})
