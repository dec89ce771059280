"""A run: its folder, its log, its clock, and the loop that every stage is made of.

The folder holds `log.jsonl` (one JSON object a line: everything that was measured), `run.txt` (what was said), a
checkpoint folder for each stage, `done.json` (the stages that ended, with their summaries), `report.html` and what a
failure left for its study. A run that is started again goes on where it was; one that has ended says so.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwen3.checkpoint.journal import write_atomic
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.train.checkpoints import rewind
from qwen3.train.optim import process
from qwen3.train.packing import PackedBatch
from qwen3.train.parallel import any_of_all
from qwen3.train.trainer import LossFn, Metrics, Trainer

_SPIKE = 3.0  # a loss so many times its running mean, and as many deviations above it, is one
_SPIKES = 3  # in a row
_MEMORY = 0.98  # of the running mean


class TrainingError(Qwen3Error):
    """A loss that is not finite, or that left its course. What was trained on is saved; the message names the file."""


class Run:
    """folder: made if need be. minutes: until the run is to end, None: no limit. say: takes lines for people.
    tensorboard: numbers go to `tensorboard/STAGE`, too. Of several processes the first speaks and writes.

    Ctrl-C once (within `interruptible`): the update ends, a checkpoint is written, the run returns. Twice: at once.
    Raises UsageError for a TensorBoard that is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        minutes: float | None = None,
        say: Callable[[str], None] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self._board = _summary_writer() if tensorboard and not process() else None
        self._boards: dict[str, Any] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        self._tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.begin = time.monotonic()
        self.limit = math.inf if minutes is None else 60 * minutes
        self.interrupted = False

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

    def show(self, line: str) -> None:
        """A line for people, gone when it is read: progress."""
        if not process():
            self._tell(line)

    def say(self, line: str) -> None:
        """A line for people that stays in run.txt, and in the report: what was derived and why, warnings."""
        self.show(line)
        self._append("run.txt", line)

    def log(self, **fields: Any) -> None:
        """A line of log.jsonl. With `update`, its numbers are measurements of that update of the `stage`."""
        self._append("log.jsonl", json.dumps(fields))
        if self._board is not None and isinstance(step := fields.get("update"), int):
            stage = fields.get("stage", "run")
            if stage not in self._boards:  # steps that are made again, after a kill, replace the old ones
                self._boards[stage] = self._board(str(self.folder / "tensorboard" / stage), purge_step=step)
            for name, value in fields.items():
                if isinstance(value, (int, float)) and name != "update":
                    self._boards[stage].add_scalar(name, value, step)

    def _append(self, name: str, line: str) -> None:
        if process():
            return
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise Qwen3Error(f"{path} could not be written ({error.strerror}); the run can go on afterwards") from error

    def close(self) -> None:
        """What TensorBoard was told is on the disk."""
        for board in self._boards.values():
            board.close()
        self._boards.clear()

    def done(self) -> dict[str, Any]:
        """Summaries of the stages that have ended, by name."""
        return ended_stages(self.folder)

    def mark_done(self, stage: str, summary: Mapping[str, Any]) -> None:
        if process():
            return
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


def ended_stages(folder: Path) -> dict[str, Any]:
    """`Run.done` of a folder, {} where there is no run. Raises CorruptFileError for one that cannot be read."""
    path = folder / "done.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CorruptFileError(f"{path} is no JSON ({error}): give another out=FOLDER") from None
    return dict(found)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("tensorboard=true needs TensorBoard: pip install 'qwen3[train]'") from None
    return SummaryWriter


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
    late: bool | None = None,
) -> dict[str, Any]:
    """Updates up to number `updates`, or until the run is over; returns a summary with `finished`.

    batches(i): those of update i, a pure function of i where nothing else is restored. schedule(i): what multiplies the
    learning rates. position, restore: what else a resumed run must know (JSON). after(i): measurements once update i
    is made, {} where there are none; they go into the log. watch: whether a loss has a course that it may leave (a
    policy's has none: its mean is about 0).

    late: read the numbers of an update when the next one has been launched, so that a GPU never waits for it (None: on
    GPUs). What is checked is the same, and a checkpoint is written after all were read.

    Raises TrainingError for a loss or gradient that is not finite and for one that leaves its course.
    """
    folder = run.folder / stage
    found = trainer.load(folder)
    first = 0 if found is None else int(found["update"])
    if not process():  # also what was logged before the first checkpoint
        rewind(run.folder / "log.jsonl", first, stage)
    if found is not None:
        run.say(f"{stage}: going on from update {first} of {updates}")
        if restore is not None:
            restore(found["stage"])
    begin, done = time.monotonic(), first
    course = _Course(run, stage, watch)
    late = trainer.device.type == "cuda" if late is None else late
    pending: list[_Made] = []

    def settle(keep: int = 0) -> None:
        """Look at what was made, but for the last `keep` updates."""
        while len(pending) > keep:
            now = pending.pop(0)
            course.take(now)
            if now.logged:
                numbers = {name: _short(value) for name, value in now.metrics.items()}
                run.log(stage=stage, update=now.update, lr=now.scale, **numbers, **now.extra)
                shown, seconds = {**now.metrics, **now.extra}, time.monotonic() - begin
                run.show(progress(stage, now.update, updates, shown, seconds, now.update - first, run))

    def save() -> None:
        settle()
        trainer.save(folder, {"update": done, "stage": dict(position()) if position else {}})

    try:
        for i in range(first, updates):
            if any_of_all(run.over, trainer.device):
                break
            made = batches(i)
            scale = schedule(i)
            metrics = trainer.update(made, loss, scale)
            done = i + 1
            logged = done % log_every == 0 or done == updates or i == first
            extra = dict(after(done)) if after is not None and logged else {}
            pending.append(_Made(done, made, scale, metrics, extra, logged))
            settle(keep=int(late))
            if save_every and done % save_every == 0 and done < updates:
                save()
        save()
    except Exception:
        if not course.left:  # a loss that was not finite is the reason of much that follows
            settle()
        raise
    trainer.finish()
    seconds = time.monotonic() - begin
    return {
        "finished": done >= updates, "update": done, "of": updates, "tokens": course.tokens, "loss": course.loss,
        "seconds": round(seconds, 1), "tokens_per_second": round(course.tokens / seconds, 1) if seconds > 0 else 0.0,
    }  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Made:
    """An update that was made. logged: whether its numbers go into the log, with `extra`."""

    update: int
    batches: Sequence[PackedBatch]
    scale: float
    metrics: Metrics
    extra: Mapping[str, Any]
    logged: bool


class _Course:
    """Watches the loss, update by update."""

    def __init__(self, run: Run, stage: str, watch: bool) -> None:
        self.run, self.stage, self.watch = run, stage, watch
        self.mean, self.spread, self.spikes = math.nan, 0.0, 0
        self.tokens, self.loss = 0, math.nan
        self.left = False

    def take(self, made: _Made) -> None:
        """Raises TrainingError, with the update's batches kept."""
        value, norm = made.metrics["loss"], made.metrics["norm"]
        self.tokens += int(made.metrics["tokens"])
        self.loss = value
        if not math.isfinite(value) or not math.isfinite(norm):
            raise TrainingError(
                f"{self.stage}: update {made.update} has a loss of {value} and a gradient norm of {norm}; its batches "
                f"are in {self._keep(made)}"
            )
        apart = value - self.mean
        spiked = self.watch and apart > _SPIKE * abs(self.mean) and apart > _SPIKE * math.sqrt(self.spread)
        self.spikes = self.spikes + 1 if spiked else 0
        if self.spikes >= _SPIKES:
            raise TrainingError(
                f"{self.stage}: the loss is {value:.3g} at update {made.update}, its running mean {self.mean:.3g}; "
                f"batches in {self._keep(made)}: lower the learning rates, and go on from an earlier checkpoint"
            )
        self.mean = value if math.isnan(self.mean) else _MEMORY * self.mean + (1 - _MEMORY) * value
        self.spread = _MEMORY * self.spread + (1 - _MEMORY) * (value - self.mean) ** 2

    def _keep(self, made: _Made) -> Path:
        self.left = True
        return self.run.keep_batches(self.stage, made.update, made.batches)


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
