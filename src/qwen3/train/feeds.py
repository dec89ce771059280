"""Samples in the order in which a run takes them, and the batches of its updates.

Sample number i depends on the seed and i alone, so a run that goes on takes what it would have taken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from qwen3.errors import UsageError
from qwen3.train.packing import PackedBatch, pack
from qwen3.train.samples import TokenSample

Feed = Callable[[int, int], Iterator[TokenSample]]
"""(first, total) -> samples number first, first + 1, … of the `total` that a run takes: the same whenever asked."""


def rows_feed(samples: Sequence[TokenSample], files: Sequence[str], shares: Sequence[float], seed: int) -> Feed:
    """Samples without end, in a new order every time around; of several files (the samples' sources) with shares, each
    goes around by itself. Raises UsageError for a file that has a share and no samples."""
    groups = {str(file): [sample for sample in samples if sample.source == str(file)] for file in files}
    for (file, group), share in zip(groups.items(), shares, strict=False):
        if share and not group:
            raise UsageError(f"{file} has a share of {share}, but no sample is left of it")

    def around(group: Sequence[TokenSample], name: str) -> Iterator[TokenSample]:
        for epoch in range(1 << 62):
            yield from random.Random(f"{seed}/{name}/{epoch}").sample(group, len(group))

    def mixed() -> Iterator[TokenSample]:
        if not shares:
            yield from around(samples, "all")
        turns = [around(group, file) for file, group in groups.items()]
        choose = random.Random(f"{seed}/shares")
        while True:
            yield next(choose.choices(turns, shares)[0])

    return lambda first, total: islice(mixed(), first, total)


def micro_batches(samples: Iterator[TokenSample], length: int, pad_id: int, fixed: bool) -> list[PackedBatch]:
    """One update's samples in rows of `length`; unless fixed, a row is no longer than what is left to put into it."""
    left, batches = list(samples), []
    while left:
        batch, left = pack(left, 1, length if fixed else min(length, sum(map(len, left))), pad_id)
        batches.append(batch)
    return batches


def update_batches(
    feed: Feed, updates: int, prompts: int, length: int, pad_id: int, fixed: bool
) -> Callable[[int], list[PackedBatch]]:
    """Update number -> its micro-batches; quick where updates are asked for in order."""
    at, draws = -1, iter(())  # type: tuple[int, Iterator[TokenSample]]

    def batches(update: int) -> list[PackedBatch]:
        nonlocal at, draws
        if update != at:
            draws = feed(update * prompts, updates * prompts)
        at = update + 1
        return micro_batches(islice(draws, prompts), length, pad_id, fixed)

    return batches
