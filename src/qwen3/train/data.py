"""Samples to packed batches. Batch i is a pure function of (seed, i): a run resumes at any step, with any workers."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.tokenizer import Tokenizer


class Sample(NamedTuple):
    """Text to train on. The loss is on `completion` alone.

    The parts are encoded apart, as they are at run time, where one is prompt, one forced by the engine and one sampled;
    control strings are parsed in all of them.
    """

    prompt: str
    completion: str
    forced: str = ""  # between the two: what the engine inserted, such as the early-stop text


Source = Callable[[random.Random], Sample]


class Mixture:
    """Weighted sources; `weights` may change with the step, which makes the stages of a recipe."""

    def __init__(self, sources: Sequence[Source], weights: Callable[[int], Sequence[float]]) -> None:
        self.sources = sources
        self.weights = weights

    def draw(self, rng: random.Random, step: int) -> Iterator[Sample]:
        """Samples without end. Raises UsageError if there is not one weight for each source."""
        weights = list(self.weights(step))
        if len(weights) != len(self.sources):
            raise UsageError(f"{len(weights)} weights for {len(self.sources)} sources")
        while True:
            yield rng.choices(self.sources, weights)[0](rng)


@dataclass(frozen=True)
class Batch:
    """Packed rows. All arrays are int32 [rows, length] (the official vocabulary has more ids than 16 bits).

    ids: tokens. labels: the next token where it is trained, else -100. positions: from 0 in each document. documents:
    1, 2, … for the documents of a row, 0 where it is empty.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    positions: NDArray[np.int32]
    documents: NDArray[np.int32]

    @property
    def trained_tokens(self) -> int:
        return int((self.labels >= 0).sum())

    @property
    def filled(self) -> float:
        """Share of the places that hold a token of a sample."""
        return float((self.documents > 0).mean())


def encode_samples(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[tuple[list[int], int]]:
    """(ids, how many of them come before the completion) of each sample."""
    parts = ([s.prompt for s in samples], [s.forced for s in samples], [s.completion for s in samples])
    prompts, forced, completions = (tokenizer.encode_batch(part) for part in parts)
    return [(p + f + c, len(p) + len(f)) for p, f, c in zip(prompts, forced, completions, strict=True)]


def pack(documents: Sequence[tuple[list[int], int]], rows: int, length: int, pad_id: int) -> tuple[Batch, int]:
    """Best-fit-decreasing packing into `rows` rows of `length`. Returns the batch and how many documents found no room.

    documents: (ids, how many of them come before the completion), as `encode_samples` gives. Raises UsageError for a
    document longer than a row: nothing is cut.
    """
    ids = np.full((rows, length), pad_id, dtype=np.int32)
    labels = np.full((rows, length), -100, dtype=np.int32)
    positions = np.zeros((rows, length), dtype=np.int32)
    numbers = np.zeros((rows, length), dtype=np.int32)
    room = [length] * rows
    count = [0] * rows
    left_out = 0
    for tokens, prompt in sorted(documents, key=lambda d: -len(d[0])):
        size = len(tokens)
        if size > length:
            raise UsageError(f"a sample of {size} tokens does not fit a row of {length}")
        best = min((r for r in range(rows) if room[r] >= size), key=room.__getitem__, default=None)
        if best is None:
            left_out += 1
            continue
        start = length - room[best]
        end = start + size
        ids[best, start:end] = tokens
        first = max(prompt, 1)  # the label at place t is the token at t + 1
        labels[best, start + first - 1 : end - 1] = tokens[first:]
        positions[best, start:end] = np.arange(size)
        count[best] += 1
        numbers[best, start:end] = count[best]
        room[best] -= size
    return Batch(ids, labels, positions, numbers), left_out


@dataclass(frozen=True)
class BatchPlan:
    """How batches are made."""

    rows: int
    length: int
    seed: int = 0


def make_batch(mixture: Mixture, tokenizer: Tokenizer, plan: BatchPlan, step: int) -> Batch:
    """Batch number `step`: draw samples until they overfill it a little, then pack."""
    rng = random.Random(f"{plan.seed}/{step}")
    draw = mixture.draw(rng, step)
    wanted, have = int(plan.rows * plan.length * 1.01), 0
    documents: list[tuple[list[int], int]] = []
    while have < wanted:
        encoded = encode_samples(tokenizer, [next(draw) for _ in range(64)])
        documents += encoded
        have += sum(len(ids) for ids, _ in encoded)
    return pack(documents, plan.rows, plan.length, tokenizer.control.endoftext)[0]


def _work(
    build: Callable[[], tuple[Mixture, Tokenizer]],
    plan: BatchPlan,
    steps: range,
    queue: multiprocessing.Queue[Batch],
) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    mixture, tokenizer = build()
    for step in steps:
        queue.put(make_batch(mixture, tokenizer, plan, step))


def stream_batches(
    build: Callable[[], tuple[Mixture, Tokenizer]], plan: BatchPlan, steps: range, workers: int
) -> Iterator[Batch]:
    """Batches of `steps` in order, made ahead by `workers` processes (0: here). `build` is called in each of them."""
    if workers == 0:
        mixture, tokenizer = build()
        for step in steps:
            yield make_batch(mixture, tokenizer, plan, step)
        return
    context = multiprocessing.get_context("spawn")
    queues: list[multiprocessing.Queue[Batch]] = [context.Queue(maxsize=4) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(build, plan, steps[w::workers], queues[w]), daemon=True)
        for w in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        for i in range(len(steps)):
            yield _next(queues[i % workers], processes[i % workers])
    finally:
        for process in processes:
            process.terminate()


def _next(queue: multiprocessing.Queue[Batch], process: multiprocessing.process.BaseProcess) -> Batch:
    """The next batch, or an error when its worker died (an endless wait would hide that)."""
    from queue import Empty

    while True:
        try:
            return queue.get(timeout=5)
        except Empty:
            if not process.is_alive():
                raise RuntimeError(f"a data worker ended with exit code {process.exitcode}") from None
