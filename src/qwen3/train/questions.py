"""Questions that a model in training answers: how they are drawn and asked, what a round of answers costs, and whether
the sampler's numbers are the trainer's. What reinforcement learning and distillation have in common.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qwen3.chat import encode
from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.tasks import FAMILIES
from qwen3.train.cold_start import Question, sample_questions
from qwen3.train.forward import Checkpointing
from qwen3.train.optim import OptimConfig, processes
from qwen3.train.packing import IGNORED, PackedBatch
from qwen3.train.recipe import key
from qwen3.train.rewards import load_problems
from qwen3.train.rollout import Prompt, Rollout, rollouts
from qwen3.train.run import TrainingError
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.trainer import LossFn, Metrics, Trainer

if TYPE_CHECKING:
    from qwen3.train.start import Job


@dataclass(frozen=True)
class Asking:
    """Keys of a stage that asks questions. Raises UsageError for the first that is wrong."""

    name: str = ""
    families: tuple[str, ...] = key(
        (), "families of the built-in tasks; empty: all, unless problems are given", shared=True
    )
    level: int | None = key(None, "difficulty of the tasks from 1; none: any", shared=True)
    problems: tuple[str, ...] = key(
        (), "JSONL files of problems: prompt, and answer, cases, or entry and tests", shared=True
    )
    source: Callable[[random.Random], Question] | None = key(None, "in Python: what draws a question", shared=True)
    updates: int = key(100, "rounds of sampling and learning")
    prompts_per_update: int = key(16, "questions whose answers make one round")
    samples_per_prompt: int = key(8, "answers to each question")
    tokens_per_micro_batch: int | None = key(
        None, "tokens computed at once; none: 1,024 on a CPU, 16,384 on a GPU", shared=True
    )
    max_prompt: int = key(512, "longest prompt in tokens", shared=True)
    max_tokens: int = key(512, "longest answer in tokens, thought included", shared=True)
    budget: int | None = key(
        None, "longest thought in tokens, then it is closed; none: no limit but max_tokens", shared=True
    )
    thinking: float = key(1.0, "share of the questions that the model is to think about", shared=True)
    lr: float | None = key(None, "peak learning rate of AdamW; none: derived from the model's width")
    optim: OptimConfig | None = key(None, "in Python: the whole optimiser, instead of lr")
    warmup: float = key(0.05, "share of the updates over which the learning rate rises; then it falls to 0 in a line")
    agree_mean: float = key(0.01, "most that log-probabilities of sampler and trainer differ by on average")
    agree_tail: float = key(0.2, "most that they differ by at the 99.9th percentile")
    invariant: bool = key(
        True, "the engine computes an answer the same bit for bit, whatever runs beside it", shared=True
    )
    max_batch: int = key(64, "answers that are sampled at once", shared=True)
    checkpointing: Checkpointing = key(
        "none", "computed again on the way back, to save memory: layers, attention", shared=True
    )
    evaluate: Callable[[LLM], Mapping[str, float]] | None = key(
        None, "in Python: instead of held-out questions", shared=True
    )
    evaluate_every: int = key(0, "updates between evaluations; 0: none", shared=True)
    held_out: int = key(64, "questions of an evaluation, of the tasks' own split", shared=True)
    save_every: int = key(20, "updates between checkpoints")

    def __post_init__(self) -> None:
        self.check_whole({
            "updates": 1, "prompts_per_update": 1, "samples_per_prompt": 1, "max_prompt": 1, "max_tokens": 1,
            "max_batch": 1, "held_out": 1, "save_every": 1, "evaluate_every": 0, "tokens_per_micro_batch": 1,
            "level": 1, "budget": 1,
        })  # fmt: skip
        for name in ("lr", "agree_mean", "agree_tail"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{self.name}.{name} must be a number above 0, not {value!r}")
        if not 0 <= self.thinking <= 1 or not 0 <= self.warmup < 1:
            raise UsageError(f"{self.name}.thinking and warmup are shares, from 0 to 1 and to below 1")

    def check_whole(self, least: Mapping[str, int]) -> None:
        """Each field a whole number from the one given; none where that is its default."""
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and type(self).__dataclass_fields__[name].default is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise UsageError(f"{self.name}.{name} must be a whole number from {low}, not {value!r}")

    def check(self, template: Any) -> None:
        """Raises UsageError for keys that contradict each other, or the model, and where several processes run."""
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
        if processes() > 1:
            raise UsageError(f"{self.name} runs in one process: its answers are sampled on one device")

    @property
    def of_tasks(self) -> bool:
        return self.source is None and (bool(self.families) or not self.problems)

    def evaluates(self, update: int) -> bool:
        """Whether an evaluation is due once it is made."""
        every = self.evaluate_every
        return bool(every) and (update % every == 0 or update == self.updates)

    @property
    def context(self) -> int:
        return self.max_prompt + self.max_tokens

    @property
    def learning(self) -> Callable[[int], float]:
        """Update number -> what the learning rates are multiplied by."""
        warmup = math.ceil(self.warmup * self.updates)
        return lambda i: warmup_stable_decay(i, self.updates, warmup=warmup, decay=self.updates - warmup)

    def llm(self, job: Job, model: Any = None) -> LLM:
        """An engine around the job's model, or another with the same tokenizer, with room for a round's answers and no
        more: the rest of the memory is the trainer's."""
        rows = min(self.max_batch, self.prompts_per_update * self.samples_per_prompt)
        llm = LLM.of(
            model or job.model, job.tokenizer, mode=job.mode, context=self.context, max_batch=rows,
            invariant=self.invariant, blocks=rows * -(-self.context // 16) + 2,
        )  # fmt: skip
        if job.model.device.type == "cuda":  # all sizes now: as answers end, every one of them comes up
            llm.engine.warm_up()
        return llm

    def place(self, pool: Sequence[Question], seed: int) -> dict[str, Any]:
        """What a run that goes on must have in common with its beginning."""
        return {
            "families": list(self.families), "problems": fingerprint(pool), "seed": seed, "updates": self.updates,
            "prompts": self.prompts_per_update, "samples": self.samples_per_prompt,
        }  # fmt: skip


@dataclass(eq=False)
class Asker:
    """Draws a stage's questions and has them answered. pool: those of its files."""

    stage: Asking
    job: Job
    pool: list[Question] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pool = self.pool or [question for path in self.stage.problems for question in load_problems(path)]

    def sample(self, llm: LLM, seed: str, count: int) -> tuple[list[list[Rollout]], list[Question]]:
        """Answers to fresh questions, which depend on the seed and the weights alone."""
        stage, rng = self.stage, random.Random(seed)
        questions = self.draw(rng, count)
        prompts = [self.prompt(question, rng.random() < stage.thinking) for question in questions]
        found = rollouts(
            llm.engine, prompts, stage.samples_per_prompt, seed,
            max_tokens=stage.max_tokens, budget=stage.budget, routes=llm.config.is_moe,
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

    def right(self, question: Question, rollout: Rollout) -> bool:
        return question.check(rollout.message(self.job.tokenizer).content)

    def after(self, llm: LLM, update: int) -> dict[str, float]:
        """The evaluation, where one is due."""
        stage = self.stage
        if not stage.evaluates(update):
            return {}
        if stage.evaluate is not None:
            return dict(stage.evaluate(llm))
        names = stage.families or tuple(FAMILIES)
        questions = sample_questions(stage.held_out, self.job.seed, dict.fromkeys(names, 1.0), split="eval")
        prompts = [self.prompt(question, stage.thinking > 0) for question in questions]
        found = rollouts(
            llm.engine, prompts, 1, f"{self.job.seed}/held out",
            max_tokens=stage.max_tokens, budget=stage.budget, tenant="held out",
        )  # fmt: skip
        return {
            "held_out": float(np.mean([self.right(q, group[0]) for q, group in zip(questions, found, strict=True)]))
        }


class Phases:
    """Seconds by what they went to. On a GPU the wall's, the device waited for; on a CPU the process's own, which
    others on the machine do not change. A phase within another pauses it.

    total: by name, of the whole run (`restore` brings those of an earlier process back).
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.total: dict[str, float] = {}
        self._new: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter() if self.device.type == "cuda" else time.process_time()
        if self._open:
            name = self._open[-1]
            self._new[name] = self._new.get(name, 0.0) + now - self._since
        self._since = now

    def taken(self) -> dict[str, float]:
        """Those since the last call, "seconds/…" by name, and "device_seconds", the run's so far."""
        self._charge()
        new, self._new = self._new, {}
        for name, seconds in new.items():
            self.total[name] = self.total.get(name, 0.0) + seconds
        return {f"seconds/{n}": s for n, s in new.items()} | {"device_seconds": sum(self.total.values())}

    def restore(self, total: Mapping[str, float]) -> None:
        self.total = dict(total)


class RoundTrainer(Trainer):
    """A trainer whose update is a whole round: `parts` says how many of the batches each step of the optimiser takes.
    about: what was measured of the round, for its metrics. phases: what its seconds went to."""

    parts: Sequence[int] = ()
    about: Mapping[str, float] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.phases = Phases(self.device)

    def update(self, batches: Sequence[PackedBatch], loss: LossFn, lr_scale: float = 1.0) -> Metrics:
        """Means over the steps; sums of tokens and seconds. A round in which nothing is to be learnt changes
        nothing."""
        steps, start = [], 0
        with self.phases("train"):
            for count in self.parts:
                steps.append(dict(super().update(batches[start : start + count], loss, lr_scale)))
                start += count
        about = {**self.about, **self.phases.taken()}
        if not steps:
            nothing = {"loss": 0.0, "norm": 0.0, "tokens": 0.0, "trained": 0.0, "seconds": 0.0}
            return Metrics({**about, **nothing, "tokens_per_second": 0.0}, {})
        found = {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}
        for name in ("tokens", "trained", "seconds"):
            found[name] *= len(steps)
        return Metrics({**about, **found}, {})


def agreement(trainer: Trainer, batches: Sequence[PackedBatch]) -> tuple[float, float]:
    """How far the trainer's log-probabilities of the sampled tokens are from the sampler's: (the mean, the 99.9th
    percentile) of the absolute differences."""
    apart = []
    for batch in batches:
        kept = batch.labels != IGNORED
        apart.append(np.abs(trainer.logprobs(batch).numpy() - batch.streams["logprob"])[kept])
    every = np.concatenate(apart)
    return float(every.mean()), float(np.quantile(every, 0.999))


def must_agree(stage: Asking, trainer: RoundTrainer, batches: Sequence[PackedBatch], update: int) -> dict[str, float]:
    """`agreement` for the log; {} without batches. Raises TrainingError beyond the stage's bounds."""
    if not batches:
        return {}
    with trainer.phases("check"):
        mean, tail = agreement(trainer, batches)
    if not (mean <= stage.agree_mean and tail <= stage.agree_tail):
        raise TrainingError(
            f"{stage.name}: before update {update + 1} the trainer's log-probabilities of the sampled tokens "
            f"are {mean:.3g} from the sampler's on average and {tail:.3g} at the 99.9th percentile (bounds "
            f"{stage.agree_mean:g} and {stage.agree_tail:g}): they do not compute the same policy"
        )
    return {"agree_mean": mean, "agree_tail": tail}


def same_run(found: Mapping[str, Any], place: Mapping[str, Any], folder: Any) -> None:
    """Raises UsageError where a checkpoint is of a run with other arguments."""
    for name, value in place.items():
        if found.get(name) != value:
            raise UsageError(
                f"{folder} holds a run that was begun with other {name}: give another folder, or delete it"
            )


def fingerprint(questions: Sequence[Question]) -> str:
    text = json.dumps([(question.key, question.prompt) for question in questions])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derive_tokens(stage: Asking, longest: int, device: str) -> int:
    """Tokens that are computed at once: at least a whole prompt and answer."""
    if stage.tokens_per_micro_batch is None:
        return max(1024 if device == "cpu" else 16_384, -(-longest // 128) * 128)
    if stage.tokens_per_micro_batch < longest:
        raise UsageError(
            f"{stage.name}.tokens_per_micro_batch is {stage.tokens_per_micro_batch:,}, less than max_prompt and "
            f"max_tokens, {longest:,}: raise it"
        )
    return stage.tokens_per_micro_batch


def derive_optim(stage: Asking, width: int, share: float) -> tuple[OptimConfig, str]:
    """The optimiser and the reason for its learning rate. share: of min(1e-3, 1 / width), less where the signal is
    noisier."""
    if stage.optim is not None:
        return stage.optim, "optimiser as given"
    lr = stage.lr or share * min(1e-3, 1.0 / width)
    optim = OptimConfig(kind="adamw", matrix_lr=lr, vector_lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    why = "as given" if stage.lr else f"for width {width:,}"
    return optim, f"AdamW, learning rate {lr:.2g} {why}, rising over {stage.warmup:.0%}, then falling to 0"
