"""A run: its folder, its log, its clock, and the loop that every stage is made of.

The folder holds `log.jsonl` (one JSON object a line, everything that was measured), a checkpoint folder for each stage,
`done.json` (the stages that ended, with their summaries) and what a failure left for its study. A run that is started
again goes on where it was; one that has ended says so.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import Qwen3Error
from qwen3.train.checkpoints import rewind
from qwen3.train.packing import PackedBatch
from qwen3.train.trainer import LossFn, Trainer

_SPIKE = 3.0  # a loss so many times its running mean, and as many deviations above it, is one
_SPIKES = 3  # in a row
_MEMORY = 0.98  # of the running mean


class TrainingError(Qwen3Error):
    """A loss that is not finite, or that left its course. What was trained on is saved; the message names the file."""


class Run:
    """folder: made if need be. minutes: until the run is to end, None: no limit. say: takes lines for people.

    Ctrl-C once (within `interruptible`): the update ends, a checkpoint is written, the run returns. Twice: at once.
    """

    def __init__(
        self, folder: str | Path, minutes: float | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.begin = time.monotonic()
        self.limit = math.inf if minutes is None else 60 * minutes
        self.interrupted = False
        self._writer: Any = None

    # The clock

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    @property
    def over(self) -> bool:
        """Whether a stage is to save and return: its time is up, or somebody asked."""
        return self.interrupted or self.seconds >= self.limit

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for an end instead of making one; the second is as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self.interrupted = True
            self.say("ending after this update, with a checkpoint; once more ends at once")
            signal.signal(number, old[signal.Signals(number)])

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    # What is written

    def log(self, **fields: Any) -> None:
        """A line of log.jsonl; numbers go to TensorBoard, too, where its writer is installed."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
        writer = self._board()
        if writer is not None and isinstance(step := fields.get("update"), int):
            for name, value in fields.items():
                if isinstance(value, (int, float)) and name != "update":
                    writer.add_scalar(f"{fields.get('stage', 'run')}/{name}", value, step)

    def _board(self) -> Any:
        if self._writer is None:
            try:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self.folder / "tensorboard"))
            except ImportError:
                self._writer = False
        return self._writer or None

    def done(self) -> dict[str, Any]:
        """Summaries of the stages that have ended, by name."""
        try:
            found: dict[str, Any] = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found

    def mark_done(self, stage: str, summary: Mapping[str, Any]) -> None:
        text = json.dumps(self.done() | {stage: dict(summary)}, indent=1)
        write_atomic(self.folder / "done.json", [text.encode() + b"\n"])

    def keep_batches(self, stage: str, update: int, batches: Sequence[PackedBatch]) -> Path:
        """What an update was made of, as one .npz, for the study of what went wrong."""
        path = self.folder / f"{stage}-{update}-batches.npz"
        arrays: dict[str, Any] = {}
        for i, batch in enumerate(batches):
            arrays |= {f"{i}/{name}": getattr(batch, name) for name in ("ids", "labels", "positions", "documents")}
            arrays |= {f"{i}/streams/{name}": values for name, values in batch.streams.items()}
        np.savez_compressed(path, **arrays)
        return path


Batches = Callable[[int], Sequence[PackedBatch]]


def loop(
    run: Run,
    trainer: Trainer,
    stage: str,
    updates: int,
    batches: Batches,
    loss: LossFn,
    schedule: Callable[[int], float],
    *,
    save_every: int = 100,
    log_every: int = 1,
    position: Callable[[], Mapping[str, Any]] | None = None,
    restore: Callable[[Mapping[str, Any]], None] | None = None,
    after: Callable[[int], Mapping[str, Any]] | None = None,
    watch: bool = True,
) -> dict[str, Any]:
    """Updates up to number `updates`, or until the run is over; returns a summary with `finished`.

    batches(i): those of update i, a pure function of i where nothing else is restored. schedule(i): what multiplies the
    learning rates. position, restore: what else a resumed run must know (JSON). after(i): measurements once update i
    is made, {} where there are none; they go into the log. watch: whether a loss has a course that it may leave (a
    policy's has none: its mean is about 0).

    Raises TrainingError for a loss or gradient that is not finite and for one that leaves its course.
    """
    folder = run.folder / stage
    found = trainer.load(folder)
    first = 0 if found is None else int(found["update"])
    if found is not None:
        rewind(run.folder / "log.jsonl", first)
        run.say(f"{stage}: going on from update {first} of {updates}")
        if restore is not None:
            restore(found["stage"])
    begin, tokens = time.monotonic(), 0
    mean, spread, spikes, value = math.nan, 0.0, 0, math.nan
    done = first
    for i in range(first, updates):
        if run.over:
            break
        made = batches(i)
        scale = schedule(i)
        metrics = trainer.update(made, loss, scale)
        done = i + 1
        tokens += int(metrics["tokens"])
        value, norm = metrics["loss"], metrics["norm"]
        if not math.isfinite(value) or not math.isfinite(norm):
            path = run.keep_batches(stage, done, made)
            raise TrainingError(
                f"{stage}: update {done} has a loss of {value} and a gradient norm of {norm}; its batches are in {path}"
            )
        apart = value - mean
        spiked = watch and apart > _SPIKE * abs(mean) and apart > _SPIKE * math.sqrt(spread)
        spikes = spikes + 1 if spiked else 0
        if spikes >= _SPIKES:
            path = run.keep_batches(stage, done, made)
            raise TrainingError(
                f"{stage}: the loss is {value:.3g} at update {done}, its running mean {mean:.3g}; batches in {path}: "
                "lower the learning rates, and go on from an earlier checkpoint"
            )
        mean = value if math.isnan(mean) else _MEMORY * mean + (1 - _MEMORY) * value
        spread = _MEMORY * spread + (1 - _MEMORY) * (value - mean) ** 2
        if done % log_every == 0 or done == updates or i == first:
            extra = dict(after(done)) if after is not None else {}
            run.log(stage=stage, update=done, lr=scale, **{k: _short(v) for k, v in metrics.items()}, **extra)
            run.say(progress(stage, done, updates, {**metrics, **extra}, time.monotonic() - begin, done - first, run))
        if save_every and done % save_every == 0 and done < updates:
            trainer.save(folder, {"update": done, "stage": dict(position()) if position else {}})
    trainer.save(folder, {"update": done, "stage": dict(position()) if position else {}})
    trainer.finish()
    seconds = time.monotonic() - begin
    return {
        "finished": done >= updates, "update": done, "of": updates, "tokens": tokens, "loss": value,
        "seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds, 1) if seconds > 0 else 0.0,
    }  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def progress(stage: str, done: int, of: int, metrics: Mapping[str, Any], seconds: float, made: int, run: Run) -> str:
    """One line: where it is, how it goes, how fast, and when it will end."""
    left = seconds / max(1, made) * (of - done)
    bound = min(left, run.limit - run.seconds)
    parts = [f"{stage} {done}/{of} {done / of:.0%}", f"loss {metrics['loss']:.4f}", f"norm {metrics['norm']:.2f}"]
    shown = ("loss", "norm", "tokens", "trained", "seconds", "tokens_per_second", "mfu", "memory", "stage", "update")
    parts += [f"{k} {v:.3g}" for k, v in metrics.items() if k not in shown and isinstance(v, (int, float))][:4]
    parts += [f"{metrics['tokens_per_second']:,.0f} tok/s"]
    parts += [f"mfu {metrics['mfu']:.1%}"] if "mfu" in metrics else []
    parts += [f"{duration(seconds)} gone", f"{duration(max(0.0, bound))} left"]
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """3 h 04 min, 2 min 10 s, 42 s."""
    whole = math.ceil(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
