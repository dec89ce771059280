"""Strong-to-weak distillation: a small model learns the distributions of a larger one with the same tokenizer.

    qwen3 train distill teacher=qwen3:8b model=qwen3:0.6b families=chain,gcd

Two stages (the Qwen3 report, arXiv 2505.09388, section 4.5). Off-policy: the teacher answers questions, and the student
learns its distribution of every token of these answers, from a store that is written once (`teacher_store`), or with
the teacher in memory. On-policy: the student answers, with the engine on its own parameters, and learns what the
teacher would have said at each of its own tokens. Neither teaches the other's part: a student that never saw a skill
does not find it in its own answers, and one that only read the teacher's does not know how to go on after its own
mistakes.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.tokenizer import Tokenizer
from qwen3.train.chats import load_chats
from qwen3.train.conversations import Renderer
from qwen3.train.distill_losses import Seen, divergence, sampled_divergence, stored_divergence
from qwen3.train.feeds import micro_batches, update_batches
from qwen3.train.forward import BatchTensors
from qwen3.train.losses import chunk_for
from qwen3.train.packing import PackedBatch
from qwen3.train.questions import (
    Asker,
    Asking,
    Phases,
    RoundTrainer,
    derive_optim,
    derive_tokens,
    fingerprint,
    must_agree,
    same_run,
)
from qwen3.train.recipe import Recipe, key
from qwen3.train.rollout import Rollout
from qwen3.train.run import loop
from qwen3.train.samples import TokenSample, samples_fingerprint
from qwen3.train.teacher_store import Teacher, TeacherStore, write_store
from qwen3.train.trainer import LossFn, Metrics

if TYPE_CHECKING:
    from qwen3.train.start import Job

Estimator = Literal["full", "sampled"]
KINDS = ("answer", "thinking", "tag")
_CHUNK = 256  # chats of a shard


@dataclass(frozen=True)
class Distill(Asking):
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "distill"
    samples_per_prompt: int = key(4, "answers to each question")
    teacher: Any = key("", "who teaches: a model by name or folder, with the student's tokenizer", shared=True)
    mode: Literal["off-policy", "on-policy"] = key("on-policy", "whose answers are learnt from: the teacher's, or own")
    data: tuple[str, ...] = key((), "off-policy: JSONL files of chats, instead of answers that the teacher samples")
    store: str = key("", "off-policy: folder of the teacher's store, made if need be; empty: in the run's folder")
    answers: int = key(2048, "off-policy: answers of the teacher that are stored")
    verify: bool = key(False, "off-policy: store right answers only")
    top_k: int = key(64, "off-policy: tokens that are stored of a distribution; 0: nothing is stored, the teacher "
                         "stays in memory and answers as they are needed")  # fmt: skip
    teacher_share: float = key(0.0, "on-policy: share of the questions that the teacher answers instead")
    reverse: float | None = key(None, "share of the divergence of the student from the teacher, beside the teacher's "
                                      "from the student; none: 1 on-policy, 0 off-policy")  # fmt: skip
    cross_entropy: float = key(0.0, "share of the loss that is -log p of the answers' own tokens")
    temperature: float = key(1.0, "off-policy: of both distributions")
    estimator: Estimator = key("full", "on-policy: the divergence of whole distributions, or of sampled tokens alone")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole({"answers": 1, "top_k": 0})
        for name in ("teacher_share", "reverse", "cross_entropy"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{self.name}.{name} is a share, from 0 to 1, not {value!r}")
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"{self.name}.temperature must be a number above 0, not {self.temperature!r}")

    @property
    def stored(self) -> bool:
        return self.mode == "off-policy" and self.top_k > 0

    @property
    def backward(self) -> float:
        """`reverse`, derived where none is given."""
        return float(self.mode == "on-policy") if self.reverse is None else self.reverse

    def check(self, template: Any) -> None:
        super().check(template)
        own = self.mode == "on-policy"
        wrong = {
            "teacher is missing: teacher=qwen3:8b, say": not self.teacher and not (self.stored and self.store),
            "data is for off-policy with top_k above 0": bool(self.data) and not self.stored,
            "store is for off-policy with top_k above 0": bool(self.store) and not self.stored,
            "verify is for off-policy with top_k above 0": self.verify and not self.stored,
            "verify judges answers to questions: leave out data": self.verify and bool(self.data),
            "teacher_share is for on-policy: off-policy the teacher answers all": bool(self.teacher_share) and not own,
            "temperature is for off-policy: own samples are compared at 1": self.temperature != 1 and own,
            "reverse needs whole distributions: set top_k=0": bool(self.reverse) and self.stored,
            "estimator=sampled is for on-policy": self.estimator == "sampled" and not own,
            "estimator=sampled is of the student's own samples and the reverse divergence alone: leave out "
            "teacher_share, reverse and cross_entropy": self.estimator == "sampled"
            and (self.teacher_share > 0 or self.backward != 1 or self.cross_entropy > 0),
        }
        for text, holds in wrong.items():
            if holds:
                raise UsageError(f"{self.name}.{text}")

    def run(self, job: Job) -> dict[str, Any]:
        return run_distill(self, job)


def recipe() -> Recipe:
    stages = (Distill("off-policy", mode="off-policy"), Distill("on-policy", mode="on-policy"))
    return Recipe("distill", "embedded", stages)


def token_kinds(ids: NDArray[np.int32], tokenizer: Tokenizer) -> NDArray[np.float32]:
    """Of each token, which of KINDS it is. Between <think> and </think> is thinking; control tokens are tags."""
    control = tokenizer.control
    inside = np.cumsum(ids == control.think) - np.cumsum(ids == control.end_think) > 0
    return np.where(np.isin(ids, list(tokenizer.added_tokens)), 2, inside).astype(np.float32)


def with_kinds(sample: TokenSample, tokenizer: Tokenizer) -> TokenSample:
    return replace(sample, streams={**sample.streams, "kind": token_kinds(sample.ids, tokenizer)})


# Losses


class _OfTokens:
    """What losses over all trained tokens have in common."""

    def normaliser(self, batch: PackedBatch) -> float:
        """Trained tokens."""
        return float(batch.trained_tokens)

    @staticmethod
    def metrics(seen: Seen, tensors: BatchTensors) -> dict[str, Tensor]:
        """Sums of what was seen; of the divergence also over the tokens of each kind, and how many there are."""
        kind = tensors.streams["kind"].flatten()[tensors.places]
        found = {name: values.sum() for name, values in seen.items()}
        for number, name in enumerate(KINDS):
            of = kind == number
            found |= {f"kl/{name}": (seen["kl"] * of).sum(), f"share/{name}": of.float().sum()}
        return found


@dataclass(frozen=True, eq=False)
class Stored(_OfTokens):
    """The forward divergence from distributions that come with the samples."""

    temperature: float = 1.0
    cross_entropy: float = 0.0

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        at = tensors.places
        ids, logprobs, tail = (
            tensors.streams[f"teacher_{name}"].flatten(0, 1)[at] for name in ("ids", "logprobs", "tail")
        )
        loss, seen = stored_divergence(
            hidden[at], head, ids.long(), logprobs, tail, temperature=self.temperature,
            labels=tensors.labels.flatten()[at], cross_entropy=self.cross_entropy, chunk=chunk_for(head),
        )  # fmt: skip
        return loss, self.metrics(seen, tensors)


@dataclass(frozen=True, eq=False)
class Live(_OfTokens):
    """Divergences from a teacher in memory, which reads the batch that the student just read. phases: where its
    seconds are counted."""

    teacher: Teacher
    phases: Phases
    reverse: float = 1.0
    temperature: float = 1.0
    cross_entropy: float = 0.0
    estimator: Estimator = "full"

    def __call__(self, hidden: Tensor, head: Tensor, tensors: BatchTensors) -> tuple[Tensor, dict[str, Tensor]]:
        at, labels = tensors.places, tensors.labels.flatten()[tensors.places]
        with self.phases("teacher"):
            theirs = self.teacher.hidden(tensors)[at]
        their_head, chunk = self.teacher.head(len(head)), chunk_for(head)
        if self.estimator == "sampled":
            loss, seen = sampled_divergence(hidden[at], head, theirs, their_head, labels, chunk=chunk)
        else:
            loss, seen = divergence(
                hidden[at], head, theirs, their_head, reverse=self.reverse, temperature=self.temperature,
                labels=labels, cross_entropy=self.cross_entropy, chunk=chunk,
            )  # fmt: skip
        return loss, self.metrics(seen, tensors)


class DistillTrainer(RoundTrainer):
    """Divergences by kind are means over the tokens of the kind. gap: what the last update saw of it."""

    gap: Mapping[str, float] = {}

    def update(self, batches: Sequence[PackedBatch], loss: LossFn, lr_scale: float = 1.0) -> Metrics:
        self.parts = [len(batches)]
        found = dict(super().update(batches, loss, lr_scale))
        for name in KINDS:
            share = found[f"share/{name}"]
            found[f"kl/{name}"] = found[f"kl/{name}"] / share if share else 0.0
        first = ("kl", "top", "pass_1", "device_seconds")  # what the line for people has room for
        found = {name: found[name] for name in first if name in found} | found
        self.gap = {name: value for name, value in found.items() if name.startswith("kl") or name in ("top", "entropy")}
        return Metrics(found, {})


def gap_report(gap: Mapping[str, float]) -> str:
    """What is left between student and teacher, in one line."""
    kinds = ", ".join(f"{name} {gap[f'kl/{name}']:.3g}" for name in KINDS if gap[f"kl/{name}"])
    top = f"; the teacher's first choice has {gap['top']:.1%}" if "top" in gap else ""
    return f"gap to the teacher: {gap['kl']:.3g} nats a token ({kinds}){top}; entropy {gap['entropy']:.3g}"


# The stage


@dataclass(eq=False)
class Lessons:
    """Update number -> its batches, sampled now. theirs: an engine on the teacher, where it answers."""

    stage: Distill
    asker: Asker
    trainer: DistillTrainer
    length: int
    own: LLM | None
    theirs: LLM | None

    def __call__(self, update: int) -> list[PackedBatch]:
        """Raises TrainingError where the student's sampler and trainer do not agree."""
        stage, trainer, job = self.stage, self.trainer, self.asker.job
        by_teacher = round(stage.prompts_per_update * (1.0 if self.own is None else stage.teacher_share))
        batches: list[list[PackedBatch]] = []
        answers: list[Rollout] = []
        right: list[bool] = []
        for llm, count in ((self.own, stage.prompts_per_update - by_teacher), (self.theirs, by_teacher)):
            if llm is None or not count:
                batches.append([])
                continue
            with trainer.phases("sample"):
                who = "" if llm is self.own else "/teacher"
                groups, questions = self.asker.sample(llm, f"{job.seed}/{stage.name}/{update}{who}", count)
            with trainer.phases("judge"):
                right += [self.asker.right(q, one) for q, group in zip(questions, groups, strict=True) for one in group]
            answers += (found := [rollout for group in groups for rollout in group])
            samples = [with_kinds(rollout.sample, job.tokenizer) for rollout in found if rollout.sample.trained.any()]
            batches.append(
                micro_batches(
                    iter(samples), self.length, job.tokenizer.control.endoftext, job.model.device.type != "cpu"
                )
            )
        trainer.about = {
            "pass_1": float(np.mean(right)),
            "length": float(np.mean([len(answer) for answer in answers])),
            "cut": float(np.mean([answer.finish == "length" for answer in answers])),
            **must_agree(stage, trainer, batches[0], update),
        }
        return [batch for made in batches for batch in made]


def run_distill(stage: Distill, job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier run stopped; returns `loop`'s summary with "seconds_by", the device's seconds by
    what they went to, the store's making included.

    Raises UsageError for wrong keys, a teacher of another tokenizer, a store of other data, and where the folder has a
    run with others; TrainingError where sampler and trainer do not agree, or a loss leaves its course.
    """
    stage.check(job.template)
    model, run, asker, own = job.model, job.run, Asker(stage, job), stage.mode == "on-policy"
    # Off-policy is fine-tuning; on its own samples a student's gradient is noisier.
    optim, why = derive_optim(stage, model.config.hidden_size, 0.03 if own else 0.1)
    trainer = DistillTrainer(
        model, optim, seed=job.seed, checkpointing=stage.checkpointing, balance=0.0 if own else None
    )
    teacher = _teacher(stage, job)
    place = stage.place(asker.pool, job.seed) | {
        "mode": stage.mode, "teacher": teacher.hash if teacher else "", "reverse": stage.backward,
        "estimator": stage.estimator, "cross_entropy": stage.cross_entropy, "temperature": stage.temperature,
        "teacher_share": stage.teacher_share, "top_k": stage.top_k,
    }  # fmt: skip
    with ExitStack() as engines:
        llm = engines.enter_context(stage.llm(job)) if own or stage.evaluate_every else None
        trainer.engines += [llm.engine] if llm is not None else []
        if stage.stored:
            store = _store(stage, job, asker, teacher, trainer.phases)
            if store is None:
                return {"finished": False, "update": 0, "of": stage.updates, "tokens": 0}
            del teacher  # its memory is free again
            gc.collect()
            torch.cuda.empty_cache()
            place |= {"store": store.fingerprint, "teacher": store.about["teacher"]}
            length, batches = _lessons_of(store, stage, job)
            loss: LossFn = Stored(stage.temperature, stage.cross_entropy)
        else:
            assert teacher is not None
            length = derive_tokens(stage, stage.context, model.device.type)
            asked = not own or stage.teacher_share > 0
            theirs = engines.enter_context(stage.llm(job, teacher.model)) if asked else None
            batches = Lessons(stage, asker, trainer, length, llm if own else None, theirs)
            loss = Live(
                teacher, trainer.phases, stage.backward, stage.temperature, stage.cross_entropy, stage.estimator
            )
        run.say(
            f"{stage.updates:,} updates of {stage.prompts_per_update} × {stage.samples_per_prompt} answers, "
            f"{stage.mode}, {length:,} tokens at once; {why}"
        )

        def restore(found: Mapping[str, Any]) -> None:
            same_run(found, place, run.folder)
            trainer.phases.restore(found["phases"])

        summary = loop(
            run, trainer, stage.name, stage.updates, batches, loss, stage.learning, save_every=stage.save_every,
            position=lambda: place | {"phases": trainer.phases.total}, restore=restore, watch=not own,
            after=None if llm is None else lambda update: asker.after(llm, update),
        )  # fmt: skip
    if trainer.gap:
        run.say(gap_report(trainer.gap))
    seconds = {name: round(spent, 2) for name, spent in trainer.phases.total.items()}
    return summary | {"seconds_by": seconds, "gap": {name: float(f"{v:.4g}") for name, v in trainer.gap.items()}}


def _lessons_of(store: TeacherStore, stage: Distill, job: Job) -> tuple[int, Callable[[int], list[PackedBatch]]]:
    """(tokens computed at once, update number -> its batches)."""
    device, feed = job.model.device.type, store.feed(job.seed)

    def kinds(first: int, total: int) -> Iterator[TokenSample]:
        return (with_kinds(sample, job.tokenizer) for sample in feed(first, total))

    length = derive_tokens(stage, store.longest, device)
    count = stage.prompts_per_update * stage.samples_per_prompt
    end = job.tokenizer.control.endoftext
    return length, update_batches(kinds, stage.updates, count, length, end, fixed=device != "cpu")


def _teacher(stage: Distill, job: Job) -> Teacher | None:
    """None where a store is whole that stands for it."""
    if not stage.teacher:
        return None
    if isinstance(stage.teacher, Teacher):
        teacher = stage.teacher
    else:
        teacher = Teacher.load(str(stage.teacher), job.model.device)
    teacher.fits(job.tokenizer, job.model.config.vocab_size)
    return teacher


def _store(stage: Distill, job: Job, asker: Asker, teacher: Teacher | None, phases: Phases) -> TeacherStore | None:
    """The store, made or gone on with; None where the run was over before."""
    folder, run = Path(stage.store or job.run.folder / "teacher"), job.run
    device, rows = job.model.device.type, job.model.config.vocab_size
    spent = folder / "seconds.json"  # what the store cost is part of every run with it
    if spent.exists():
        phases.restore(json.loads(spent.read_text()))
    if teacher is None:
        return TeacherStore(folder, job.tokenizer)

    def tell(shards: int, count: int) -> None:
        phases.taken()
        write_atomic(spent, [json.dumps(phases.total).encode()])
        run.say(f"the teacher's answers: shard {shards} of {chunks}, {count:,} samples")

    common: dict[str, Any] = {
        "rows": rows, "k": stage.top_k, "temperature": stage.temperature, "over": lambda: run.over, "tell": tell,
    }  # fmt: skip
    if stage.data:
        renderer = Renderer(job.tokenizer, job.template)
        chats = load_chats(stage.data, renderer, job.model.config.max_position_embeddings, tell=run.say)
        samples = chats.samples
        run.say(chats.report())
        chunks = -(-len(samples) // _CHUNK)
        with phases("teacher"):
            return write_store(
                folder, chunks, lambda i: samples[i * _CHUNK : (i + 1) * _CHUNK], teacher,
                job.tokenizer, data={"chats": samples_fingerprint(samples)},
                length=derive_tokens(stage, max(map(len, samples)), device), **common,
            )  # fmt: skip
    each = stage.prompts_per_update * stage.samples_per_prompt
    chunks = -(-stage.answers // each)
    with stage.llm(job, teacher.model) as llm:

        def answers(number: int) -> list[TokenSample]:
            with phases("sample"):
                seed = f"{job.seed}/{stage.name}/teacher/{number}"
                groups, questions = asker.sample(llm, seed, stage.prompts_per_update)
            with phases("judge"):
                pairs = [(q, one) for q, group in zip(questions, groups, strict=True) for one in group]
                kept = [one for q, one in pairs if not stage.verify or asker.right(q, one)]
            return [one.sample for one in kept if one.sample.trained.any()]

        asked = fingerprint(asker.draw(Random(f"{job.seed}/{stage.name}/teacher/0"), stage.prompts_per_update))
        with phases("teacher"):
            return write_store(
                folder, chunks, answers, teacher, job.tokenizer,
                data={
                    "questions": asked, "thinking": stage.thinking, "max_tokens": stage.max_tokens,
                    "budget": stage.budget, "prompts": stage.prompts_per_update, "samples": stage.samples_per_prompt,
                    "seed": job.seed, "verify": stage.verify,
                },
                length=derive_tokens(stage, stage.context, device), **common,
            )  # fmt: skip
