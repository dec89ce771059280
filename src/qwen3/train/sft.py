"""Supervised fine-tuning: chats in, an adapter or a whole model out.

    qwen3 train sft data=chats.jsonl model=embedded lora.rank=16

The loss is the mean over the trained tokens of an update, each times its weight, however they were packed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from qwen3.errors import UsageError
from qwen3.llm import LLM
from qwen3.train.adapters import LoraConfig, adapter_of, add_lora, save_adapter, table
from qwen3.train.chats import ChatData, load_chats, preview
from qwen3.train.conversations import Renderer, Turns
from qwen3.train.feeds import Feed, rows_feed, update_batches
from qwen3.train.forward import Checkpointing
from qwen3.train.fp8 import Fp8
from qwen3.train.fusion import Fusion, chat_draws, flag_obedience, fusion_feed, some_questions
from qwen3.train.optim import OptimConfig, processes
from qwen3.train.packing import PackedBatch
from qwen3.train.recipe import Recipe, key
from qwen3.train.run import loop
from qwen3.train.samples import TokenSample, samples_fingerprint
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.trainer import CrossEntropy, Trainer

if TYPE_CHECKING:
    from qwen3.train.start import Job


@dataclass(frozen=True)
class Lora:
    """What `LoraConfig` has, and a rank of 0."""

    rank: int = key(16, "rank of the adapter's matrices; 0: train all weights instead")
    alpha: float = key(32.0, "what is added is alpha / rank · B A x")
    targets: tuple[str, ...] = key(LoraConfig.targets, "modules by the ends of their official names, * and ? allowed")
    rslora: bool = key(False, "scale by alpha / √rank instead: for high ranks")

    @property
    def config(self) -> LoraConfig | None:
        return LoraConfig(self.rank, self.alpha, self.targets, self.rslora) if self.rank else None


@dataclass(frozen=True)
class SFT:
    """The stage. Raises UsageError for the first key that is wrong."""

    name: str = "sft"
    data: tuple[str, ...] = key((), "JSONL files of chats: messages, ShareGPT, Alpaca, or prompt and completion")
    shares: tuple[float, ...] = key((), "how often samples are drawn from each file of data; empty: all are one")
    source: Callable[[Renderer], Feed] | None = key(None, "in Python: what makes samples as they are needed, no data")
    turns: Turns = key("last", "trained are turns after the last user message (last), or all, each on its own")
    bad_rows: Literal["stop", "skip"] = key(
        "stop", "rows that cannot be trained on: all are listed, or skipped and counted"
    )
    too_long: Literal["stop", "drop"] = key("stop", "samples longer than the context: bad rows, or dropped and counted")
    context: int | None = key(None, "longest sample in tokens; none: what the model was trained for")
    fusion: Fusion = key(Fusion, "both modes from the conversations of data")
    template: str = key("", "chat template: qwen3, instruct-2507, thinking-2507; empty: the model's own")
    epochs: float = key(3.0, "how often each sample is trained on")
    updates: int | None = key(None, "updates of the optimiser, instead of epochs")
    prompts_per_update: int | None = key(None, "samples of one update; none: 4 to 32, so that there are 75 updates")
    tokens_per_micro_batch: int | None = key(None, "tokens computed at once; none: 1,024 on a CPU, 16,384 on a GPU")
    lora: Lora = key(Lora, "the adapter that is trained beside the frozen weights")
    lr: float | None = key(None, "peak learning rate of AdamW; none: derived from the model's width")
    optim: OptimConfig | None = key(None, "in Python: the whole optimiser, instead of lr")
    warmup: float = key(0.05, "share of the updates over which the learning rate rises; then it falls to 0 in a line")
    checkpointing: Checkpointing = key("none", "computed again on the way back, to save memory: layers, attention")
    fp8: Fp8 = key(False, "products of the layers in 8 bits: true, or rowwise; for wide models on a GPU that has FP8")
    save_every: int = key(100, "updates between checkpoints")
    obedience: int = key(0, "questions asked with /think and /no_think whenever a checkpoint is due; 0: none")

    def __post_init__(self) -> None:
        for name in ("prompts_per_update", "save_every", "updates", "tokens_per_micro_batch", "context"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{self.name}.{name} must be a whole number from 1, not {value!r}")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{self.name}.{name} must be a number above 0, not {value!r}")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"{self.name}.warmup is a share of the updates, from 0 to below 1, not {self.warmup!r}")

    def check(self) -> None:
        """Raises UsageError for keys that contradict each other."""
        if bool(self.data) is (self.source is not None):
            raise UsageError(
                f"{self.name}.data is {'given beside source' if self.data else 'missing: data=chats.jsonl'}"
            )
        if self.source is not None and self.updates is None:
            raise UsageError(f"{self.name}.updates must be given where samples come from a source: it has no end")
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) < 0 or not sum(self.shares)):
            raise UsageError(
                f"{self.name}.shares must be one number from 0 for each of the {len(self.data)} files of data"
            )
        if self.fusion.active and (self.source is not None or self.shares or self.turns != "last"):
            raise UsageError(f"{self.name}.fusion goes with data alone: leave out source, shares and turns")
        if self.lr is not None and self.optim is not None:
            raise UsageError(f"{self.name}.lr and optim are both given: optim has learning rates of its own")

    def run(self, job: Job) -> dict[str, Any]:
        return run_sft(self, job)


def recipe() -> Recipe:
    return Recipe("sft", "embedded", (SFT(),))


def run_sft(stage: SFT, job: Job) -> dict[str, Any]:
    """Train, or go on where an earlier run stopped; returns `loop`'s summary. An adapter is written to `adapter/` in
    the run's folder, finished or not.

    Raises BadRowsError before anything is trained, UsageError for wrong keys and where the folder has a run on other
    data in it, TrainingError where the loss leaves its course.
    """
    stage.check()
    if processes() > 1:
        raise UsageError(f"{stage.name} runs in one process")
    model, run, end = job.model, job.run, job.tokenizer.control.endoftext
    renderer = Renderer(job.tokenizer, stage.template or job.template)
    plan = _plan(stage, job, renderer)
    optim, why = derive_optim(stage, model.config.hidden_size)
    run.say(f"{plan.updates:,} updates of {plan.prompts} samples, {plan.length:,} tokens at once; {why}")
    if stage.lora.config is not None:
        add_lora(model, stage.lora.config, job.seed)
        run.say(table(model))
    trainer = Trainer(model, optim, seed=job.seed, checkpointing=stage.checkpointing, fp8=stage.fp8)
    place = {
        "data": samples_fingerprint(plan.samples),
        "updates": plan.updates,
        "prompts": plan.prompts,
        "seed": job.seed,
    }
    warmup, on_cpu = math.ceil(stage.warmup * plan.updates), model.device.type == "cpu"
    # On a GPU kernels are compiled for one shape.
    batches = update_batches(plan.feed, plan.updates, plan.prompts, plan.length, end, fixed=not on_cpu)
    if on_cpu:
        fit_threads(trainer, batches(0)[0])
    summary = loop(
        run, trainer, stage.name, plan.updates, batches, CrossEntropy(),
        lambda i: warmup_stable_decay(i, plan.updates, warmup=warmup, decay=plan.updates - warmup),
        save_every=stage.save_every,
        position=lambda: place | ({"threads": torch.get_num_threads()} if on_cpu else {}),
        restore=lambda found: _same_run(found, place, run.folder),
        after=lambda update: _obedience(stage, job, update, plan.updates),
    )  # fmt: skip
    if stage.lora.config is not None:
        save_adapter(run.folder / "adapter", model, job.source)
        job.notes["adapter"] = str(run.folder / "adapter")
    return summary


@dataclass(frozen=True)
class _Plan:
    """samples: all, none where a source makes them. updates, prompts of each, length: tokens computed at once."""

    samples: list[TokenSample]
    feed: Feed
    updates: int
    prompts: int
    length: int


def _plan(stage: SFT, job: Job, renderer: Renderer) -> _Plan:
    device = job.model.device.type
    if stage.source is not None:
        assert stage.updates is not None
        return _Plan(
            [], stage.source(renderer), stage.updates, stage.prompts_per_update or 32, derive_tokens(stage, 0, device)
        )
    say, context = job.run.say, stage.context or job.model.config.max_position_embeddings
    data = load_chats(
        stage.data, renderer, context,
        turns=stage.turns, bad_rows=stage.bad_rows, too_long=stage.too_long, tell=say,
    )  # fmt: skip
    say(data.report())
    say(f"the first sample, trained tokens marked:\n{preview(data.samples[0], job.tokenizer)}")
    length = derive_tokens(stage, max(map(len, data.samples)), device)
    wanted = stage.epochs * len(data.samples)
    prompts = stage.prompts_per_update or min(32, max(4, round(wanted / 75)))
    updates = stage.updates or math.ceil(wanted / prompts)
    if stage.fusion.active:
        say(f"the conversations' last turns are trained as fusion makes them: {stage.fusion}")
        feed = fusion_feed(stage.fusion, renderer, *chat_draws(data.chats), min(context, length), job.seed)
    else:
        feed = rows_feed(data.samples, stage.data, stage.shares, job.seed)
        for warning in one_mode_only(data, renderer.template):
            say(f"warning: {warning}")
    return _Plan(data.samples, feed, updates, prompts, length)


def one_mode_only(data: ChatData, template: str) -> list[str]:
    """What a hybrid model would lose on these data."""
    if template != "qwen3" or (data.thinking and data.direct):
        return []
    thinks = bool(data.thinking)
    has, lacks = ("thinks", "does not think") if thinks else ("does not think", "thinks")
    what = "answer without thinking" if thinks else "think"
    return [
        f"every trained turn {has}: a hybrid model may forget how to {what}, or do so at random. Mix in turns where it "
        f"{lacks}: answers of the model itself to the same questions, sampled before training"
        + (", or fusion.direct=0.5, which trains the answers without their thoughts, too" if thinks else "")
    ]


def _obedience(stage: SFT, job: Job, update: int, planned: int) -> dict[str, float]:
    if not stage.obedience or (update % stage.save_every and update != planned):
        return {}
    # An engine serves adapters beside its model: one that is in the network for training it would not see.
    adapters = {"trained": adapter_of(job.model)} if stage.lora.rank else {}
    with LLM.of(job.model, job.tokenizer, mode=job.mode, adapters=adapters) as llm:
        return flag_obedience(llm, some_questions(stage.obedience, job.seed), adapter=next(iter(adapters), None))


# Numbers that follow from others


def derive_tokens(stage: SFT, longest: int, device: str) -> int:
    """Tokens that are computed at once: at least the longest sample, which is never cut."""
    if stage.tokens_per_micro_batch is None:
        return max(1024 if device == "cpu" else 16_384, -(-longest // 128) * 128)
    if stage.tokens_per_micro_batch < longest:
        raise UsageError(
            f"tokens_per_micro_batch is {stage.tokens_per_micro_batch:,}, but the longest sample has {longest:,}: "
            "raise it, or set context and too_long=drop"
        )
    return stage.tokens_per_micro_batch


def derive_optim(stage: SFT, width: int) -> tuple[OptimConfig, str]:
    """The optimiser and the reason for its learning rate. Adapters want about ten times the rate of whole weights, and
    wider models less, about as 1 / width."""
    if stage.optim is not None:
        return stage.optim, "optimiser as given"
    lr = stage.lr or (1.0 if stage.lora.rank else 0.1) * min(2e-3, 1.0 / width)
    why = "as given" if stage.lr else f"for {'an adapter' if stage.lora.rank else 'all weights'} at width {width:,}"
    optim = OptimConfig(kind="adamw", matrix_lr=lr, vector_lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    return optim, f"AdamW, learning rate {lr:.2g} {why}, rising over {stage.warmup:.0%}, then falling to 0"


def fit_threads(trainer: Trainer, batch: PackedBatch) -> int:
    """Set PyTorch's threads to all or to one, whichever computes a batch sooner, and return the number: on cores that
    others use, threads wait for each other. Left alone where OMP_NUM_THREADS says how many."""
    everything = torch.get_num_threads()
    if everything == 1 or "OMP_NUM_THREADS" in os.environ:
        return everything
    seconds: dict[int, float] = {}
    for count in (1, everything) * 2:
        torch.set_num_threads(count)
        began = time.perf_counter()
        trainer.logprobs(batch)
        seconds[count] = min(time.perf_counter() - began, seconds.get(count, math.inf))
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return best


# Going on


def _same_run(found: Mapping[str, Any], place: Mapping[str, Any], folder: Any) -> None:
    if "threads" in found:  # sums are made in the same order as before
        torch.set_num_threads(found["threads"])
    for name, value in place.items():
        if found.get(name) != value:
            raise UsageError(
                f"{folder} holds a run that was begun with {name}={found.get(name)}, not {value}: give another folder, "
                "or delete it to begin anew"
            )
