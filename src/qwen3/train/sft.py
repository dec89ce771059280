"""Supervised fine-tuning: chats in, an adapter or a whole model out.

Which samples update i gets depends on the seed and i alone, so a run that was killed goes on as if it had not been.
The loss is the mean over the trained tokens of an update, each times its weight, however they were packed.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from qwen3.checkpoint import save_checkpoint
from qwen3.errors import Qwen3Error, UsageError
from qwen3.model import Qwen3
from qwen3.tokenizer import Tokenizer
from qwen3.train.adapters import LoraConfig, add_lora, save_adapter, table
from qwen3.train.chats import ChatData, load_chats, preview
from qwen3.train.conversations import Renderer, Turns
from qwen3.train.forward import Checkpointing
from qwen3.train.optim import OptimConfig
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample
from qwen3.train.schedule import warmup_stable_decay
from qwen3.train.trainer import CrossEntropy, Trainer

Feed = Callable[[int, int], Iterator[TokenSample]]
"""(first, total) -> samples number first, first + 1, … of the `total` that a run takes: the same whenever asked."""


@dataclass(frozen=True)
class SFT:
    """The stage. Raises UsageError for the first key that is wrong."""

    data: tuple[str, ...] = ()
    """JSONL files of chats, in any of the shapes that `chats` reads."""
    shares: tuple[float, ...] = ()
    """How often samples are drawn from each file; (): all files are one."""
    source: Callable[[Renderer], Feed] | None = None
    """Instead of data, for recipes in Python: samples made as they are needed, such as `fusion.feed`."""
    turns: Turns = "last"
    """Which assistant turns are trained: "last", those after the last user message, or "all", each on its own."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What becomes of rows that cannot be trained on: "stop" lists them and trains nothing, "skip" counts them."""
    too_long: Literal["stop", "drop"] = "stop"
    """What becomes of samples longer than the context: "stop" makes them bad rows, "drop" counts them."""
    template: str = "qwen3"
    """The model's chat template: qwen3 (hybrid), instruct-2507 or thinking-2507."""
    context: int | None = None
    """Longest sample in tokens; None: what the model was trained for."""
    epochs: float = 3.0
    """How often each sample is trained on."""
    updates: int | None = None
    """Updates of the optimiser, instead of epochs; a source needs it."""
    prompts_per_update: int = 32
    """Samples whose gradients make one update."""
    tokens_per_micro_batch: int | None = None
    """Tokens that are computed at once; None: 1,024 on a CPU, 16,384 on a GPU, more where a sample is longer."""
    lora: LoraConfig | None = None
    """Train an adapter of this rank beside the frozen weights; None: train all weights."""
    lr: float | None = None
    """Peak learning rate of AdamW; None: derived from the model's width."""
    optim: OptimConfig | None = None
    """The whole optimiser, instead of lr; Muon, say."""
    warmup: float = 0.05
    """Share of the updates over which the learning rate rises; after that it falls to zero in a line."""
    checkpointing: Checkpointing = "none"
    """What is computed again on the way back, to save memory: none, layers, or attention (all but attention)."""
    save_every: int = 100
    """Updates between checkpoints; the last update always has one."""

    def __post_init__(self) -> None:
        if bool(self.data) is (self.source is not None):
            raise UsageError("give either data, a list of JSONL files, or source")
        if self.source is not None and self.updates is None:
            raise UsageError("updates must be given where samples come from a source: it has no end")
        if self.shares and (len(self.shares) != len(self.data) or min(self.shares) < 0 or not sum(self.shares)):
            raise UsageError(f"shares must be one number from 0 for each of the {len(self.data)} files of data")
        if self.lr is not None and self.optim is not None:
            raise UsageError("lr and optim are both given: optim has learning rates of its own")
        for name in ("prompts_per_update", "save_every", "updates", "tokens_per_micro_batch", "context"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} must be a whole number from 1, not {value!r}")
        for name in ("epochs", "lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be a number above 0, not {value!r}")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is a share of the updates, from 0 to below 1, not {self.warmup!r}")


class Run(Protocol):
    """What a stage gets from whoever runs it. folder: where results and checkpoints go. base: the model's name as it
    was asked for. base_folder: its files, if it has any. evaluate: called with the update after every checkpoint,
    gives numbers for the log."""

    folder: Path
    seed: int
    base: str
    base_folder: Path | None
    evaluate: Callable[[int], Mapping[str, float]] | None

    def say(self, line: str) -> None:
        """A line for people."""

    def log(self, **fields: Any) -> None:
        """What is known after an update: update, updates, and numbers by name."""

    def out_of_time(self) -> bool: ...


@dataclass(frozen=True)
class Summary:
    """updates: done, of `planned`. loss: of the last one, NaN where nothing was left to do."""

    updates: int
    planned: int
    loss: float

    @property
    def finished(self) -> bool:
        return self.updates >= self.planned


def run_sft(stage: SFT, model: Qwen3, tokenizer: Tokenizer, run: Run) -> Summary:
    """Train, or go on where an earlier run in `run.folder` stopped; the result is there afterwards (see `write`).

    Raises BadRowsError before anything is trained, UsageError for wrong keys and for a folder with another run in it,
    Qwen3Error where the loss is no number any more.
    """
    samples, feed, planned = _samples(stage, model, Renderer(tokenizer, stage.template), run)
    rows = derive_tokens(stage, max(map(len, samples), default=0), model.device.type)
    optim, why = derive_optim(stage, model.config.hidden_size)
    run.say(f"{planned:,} updates of {stage.prompts_per_update} samples, {rows:,} tokens at once; {why}")
    if stage.lora is not None:
        add_lora(model, stage.lora, run.seed)
        run.say(table(model))
    trainer = Trainer(model, optim, seed=run.seed, checkpointing=stage.checkpointing)
    place = {"data": _fingerprint(samples), "updates": planned, "prompts": stage.prompts_per_update, "seed": run.seed}
    began = done = _resume(trainer, run, place)
    draws, loss = feed(done * stage.prompts_per_update, planned * stage.prompts_per_update), math.nan
    warmup = math.ceil(stage.warmup * planned)
    fixed = model.device.type != "cpu"  # there, kernels are compiled for one shape
    while done < planned and not run.out_of_time():
        batches = micro_batches(islice(draws, stage.prompts_per_update), rows, tokenizer.control.endoftext, fixed)
        scale = warmup_stable_decay(done, planned, warmup=warmup, decay=planned - warmup)
        metrics = trainer.update(batches, CrossEntropy(), scale)
        done += 1
        loss = metrics["loss"]
        if not math.isfinite(loss) or not math.isfinite(metrics["norm"]):
            raise Qwen3Error(
                f"update {done}: the loss is {loss} and the gradient's norm {metrics['norm']}; go on from the last "
                "checkpoint with a smaller lr"
            )
        run.log(update=done, updates=planned, lr=scale, **metrics)
        if done % stage.save_every == 0 and done < planned:
            _save(trainer, run, done, place)
    if done > began:
        _save(trainer, run, done, place)
    trainer.finish()
    write(stage, model, tokenizer, run)
    return Summary(done, planned, loss)


def _samples(stage: SFT, model: Qwen3, renderer: Renderer, run: Run) -> tuple[list[TokenSample], Feed, int]:
    """(all samples that there are, empty where a source makes them; what feeds the run; updates)."""
    if stage.source is not None:
        assert stage.updates is not None
        return [], stage.source(renderer), stage.updates
    context = stage.context or model.config.max_position_embeddings
    data = load_chats(
        stage.data, renderer, context,
        turns=stage.turns, bad_rows=stage.bad_rows, too_long=stage.too_long, tell=run.say,
    )  # fmt: skip
    run.say(data.report())
    run.say(f"the first sample, trained tokens marked:\n{preview(data.samples[0], renderer.tokenizer)}")
    for warning in one_mode_only(data, stage.template):
        run.say(f"warning: {warning}")
    planned = stage.updates or math.ceil(stage.epochs * len(data.samples) / stage.prompts_per_update)
    return data.samples, rows_feed(data.samples, stage.data, stage.shares, run.seed), planned


def write(stage: SFT, model: Qwen3, tokenizer: Tokenizer, run: Run) -> None:
    """What was trained, into `run.folder`: an adapter in PEFT's format (`qwen3 run MODEL --adapter FOLDER`), or a
    checkpoint with all its files (`qwen3 run FOLDER`)."""
    if stage.lora is not None:
        save_adapter(run.folder, model, run.base)
        return
    generation = None
    if run.base_folder is not None and (path := run.base_folder / "generation_config.json").is_file():
        generation = json.loads(path.read_text(encoding="utf-8"))
    save_checkpoint(run.folder, model, tokenizer=tokenizer, generation_config=generation)


def one_mode_only(data: ChatData, template: str) -> list[str]:
    """What a hybrid model would lose on these data."""
    if template != "qwen3" or (data.thinking and data.direct):
        return []
    thinks = bool(data.thinking)
    has, lacks = ("thinks", "does not think") if thinks else ("does not think", "thinks")
    what = "answer without thinking" if thinks else "think"
    return [
        f"every trained turn {has}: a hybrid model may forget how to {what}, or do so at random. Mix in turns where it "
        f"{lacks}: sample them from the model before training, on the same questions (`fusion` builds both modes from "
        "one set of prompts)"
    ]


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
    lr = stage.lr or (1.0 if stage.lora else 0.1) * min(1e-3, 1.0 / width)
    why = "as given" if stage.lr else f"for {'an adapter' if stage.lora else 'all weights'} at width {width:,}"
    optim = OptimConfig(kind="adamw", matrix_lr=lr, vector_lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    return optim, f"AdamW, learning rate {lr:.2g} {why}, rising over {stage.warmup:.0%}, then falling to 0"


# Samples to updates


def rows_feed(samples: Sequence[TokenSample], files: Sequence[str], shares: Sequence[float], seed: int) -> Feed:
    """Samples in a new order every time around; of several files with shares, each goes around by itself."""

    def around(group: Sequence[TokenSample], name: str) -> Iterator[TokenSample]:
        for epoch in range(1 << 62):
            yield from random.Random(f"{seed}/{name}/{epoch}").sample(group, len(group))

    def feed(first: int, total: int) -> Iterator[TokenSample]:
        return islice(mixed(), first, total)

    def mixed() -> Iterator[TokenSample]:
        if not shares:
            yield from around(samples, "all")
        groups = [[sample for sample in samples if sample.source == str(file)] for file in files]
        for file, group, share in zip(files, groups, shares, strict=True):
            if share and not group:
                raise UsageError(f"{file} has a share of {share}, but no sample is left of it")
        turns = [around(group, str(file)) for file, group in zip(files, groups, strict=True)]
        choose = random.Random(f"{seed}/shares")
        while True:
            yield next(choose.choices(turns, shares)[0])

    return feed


def micro_batches(samples: Iterator[TokenSample], length: int, pad_id: int, fixed: bool) -> list[PackedBatch]:
    """One update's samples in rows of `length`; unless fixed, a row is no longer than what is left to put into it."""
    left, batches = list(samples), []
    while left:
        size = length if fixed else min(length, sum(map(len, left)))
        batch, left = pack(left, 1, size, pad_id)
        batches.append(batch)
    return batches


# Checkpoints


def _save(trainer: Trainer, run: Run, update: int, place: Mapping[str, Any]) -> None:
    trainer.save(run.folder / "checkpoints", {**place, "update": update})
    if run.evaluate is not None:
        run.log(update=update, **run.evaluate(update))


def _resume(trainer: Trainer, run: Run, place: Mapping[str, Any]) -> int:
    position = trainer.load(run.folder / "checkpoints")
    if position is None:
        return 0
    done = int(position.pop("update"))
    for name, value in place.items():
        if position.get(name) != value:
            raise UsageError(
                f"{run.folder} holds a run that was begun with {name}={position.get(name)}, not {value}: give another "
                "folder, or delete it to begin anew"
            )
    run.say(f"going on after update {done:,}")
    return done


def _fingerprint(samples: Sequence[TokenSample]) -> str:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.ids.tobytes() + sample.trained.tobytes())
        digest.update(b"".join(sample.streams[name].tobytes() for name in sorted(sample.streams)))
    return digest.hexdigest()[:16]
