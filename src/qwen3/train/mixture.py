"""What pretraining reads: sources with shares, in an order that a number determines, packed ahead of their time.

Sample number n of a mixture is always the same: `n` determines the source, by shares that are kept exactly in every
block of samples, and the document in it, without replacement within an epoch. A place in the data is therefore a few
numbers, and a run that goes on takes what it would have taken, with however many processes.

A document longer than a row is cut into parts, each a sample of its own, so that nothing of it is lost and no parts of
one document crowd into one update. Positions begin at 0 in each: a part cannot see the one before it, as in training on
sequences of one length (Qwen3: 4,096 tokens), and its rotary angles should not say that there is something to see.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import pickle
import random
import signal
import statistics
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import Qwen3Error, UsageError
from qwen3.train.corpus.shards import Shards
from qwen3.train.packing import PackedBatch, pack, part_bounds
from qwen3.train.samples import TokenSample

Draw = Callable[[random.Random], TokenSample]


@dataclass(frozen=True)
class Source:
    """name: for statistics. weight: its share of the tokens, of whatever sum. draw: a folder of shards, or what draws a
    sample; a function of a module, where worker processes are to call it. kept: documents of the shards that are left
    out, to measure on; see `kept_out`."""

    name: str
    weight: float
    draw: Draw | str | Path
    kept: int = 0


def kept_out(shards: Shards, kept: int) -> list[int]:
    """Numbers of the documents that a source leaves out: the same in every run, from everywhere in the shards."""
    return [shuffled(i, len(shards), "kept out") for i in range(len(shards) - kept, len(shards))]


class Mixture:
    """Samples of at most `length` tokens by number. Raises UsageError for sources that cannot be mixed, and what
    `Shards` raises.

    shares: of each source among the samples; as weights are of tokens, a source of long documents has fewer of them.
    parts: samples of each source in an epoch, 0 where there is no end.
    """

    def __init__(self, sources: Sequence[Source], length: int, seed: int | str = 0) -> None:
        if not sources:
            raise UsageError("a mixture needs a source")
        if double := [name for name, times in Counter(s.name for s in sources).items() if times > 1]:
            raise UsageError(f"two sources have one name: {double[0]}")
        for source in sources:
            if not 0 <= source.weight < math.inf:
                raise UsageError(f"the weight of {source.name} must be a number from 0, not {source.weight!r}")
        self.sources = tuple(source for source in sources if source.weight)
        if not self.sources:
            raise UsageError("every source has the weight 0: nothing can be drawn")
        self.seed, self.length = seed, length
        self._shards = [None if callable(s.draw) else Shards(s.draw) for s in self.sources]
        self._ends = [_part_ends(*pair, length) for pair in zip(self.sources, self._shards, strict=True)]
        self.parts = [0 if ends is None else int(ends[-1]) for ends in self._ends]
        self.mean_tokens = [self._mean_tokens(i) for i in range(len(self.sources))]
        often = [source.weight / mean for source, mean in zip(self.sources, self.mean_tokens, strict=True)]
        self.shares = [part / math.fsum(often) for part in often]
        self._block = max(4096, len(self.sources) ** 2)
        # The commonest source takes what rounding leaves.
        self._rest = max(range(len(often)), key=often.__getitem__)
        self.order = lru_cache(8)(self._order)

    def _mean_tokens(self, source: int) -> float:
        if self.parts[source]:
            places = range(0, self.parts[source], max(1, self.parts[source] // 4096))
            return statistics.fmean(stop - start for _, start, stop in (self._part(source, at) for at in places))
        return statistics.fmean(len(self.document(source, -1 - i)) for i in range(32))

    def _part(self, source: int, at: int) -> tuple[int, int, int]:
        """(document, start, stop) of part number `at` of a source of shards."""
        ends, shards = self._ends[source], self._shards[source]
        assert ends is not None
        assert shards is not None
        document = int(np.searchsorted(ends, at, side="right"))
        bounds = part_bounds(int(shards.lengths[document]), self.length)
        return document, *bounds[at - int(ends[document])]  # counted from the document's end

    @property
    def tokens(self) -> int:
        """Of an epoch of the source that is through first, and what the others give meanwhile; 0: there is no end."""
        every = [number / share for number, share in zip(self.parts, self.shares, strict=True) if number]
        mean = math.fsum(share * tokens for share, tokens in zip(self.shares, self.mean_tokens, strict=True))
        return int(min(every) * mean) if every else 0

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes the samples (but not with the code of what draws them)."""
        parts = [
            (s.name, s.weight, s.kept, None if shards is None else shards.fingerprint)
            for s, shards in zip(self.sources, self._shards, strict=True)
        ]
        return hashlib.sha256(repr((self.seed, self.length, parts)).encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        return Mixture, (self.sources, self.length, self.seed)

    def epochs(self, samples: int) -> dict[str, float]:
        """How often each source that has an end was gone through, after so many samples."""
        taken = zip(self.sources, self._counts(samples), self.parts, strict=True)
        return {source.name: number / parts for source, number, parts in taken if parts}

    def sample(self, number: int) -> TokenSample:
        block, at = divmod(number, self._block)
        return self.document(*self.order(block)[at])

    def feed(self, first: int, total: int) -> Iterator[TokenSample]:
        """As `feeds.Feed`."""
        return map(self.sample, range(first, total))

    def _order(self, block: int) -> list[tuple[int, int]]:
        """(source, number in the source) of a block's samples; each source's numbers follow each other."""
        before, after = (self._counts(b * self._block) for b in (block, block + 1))
        turns = [s for s in range(len(self.sources)) for _ in range(after[s] - before[s])]
        random.Random(f"{self.seed}/block/{block}").shuffle(turns)
        numbers = [count(first) for first in before]
        return [(s, next(numbers[s])) for s in turns]

    def _counts(self, samples: int) -> list[int]:
        """How many of the first so many samples are of each source."""
        counts = [int(samples * share) for share in self.shares]
        counts[self._rest] += samples - sum(counts)
        return counts

    def document(self, source: int, number: int) -> TokenSample:
        """Sample `number` that is taken of a source: of shards, one after the other in a new order every epoch."""
        name, draw, shards = self.sources[source].name, self.sources[source].draw, self._shards[source]
        if shards is None:
            assert callable(draw)
            return draw(random.Random(f"{self.seed}/{name}/{number}"))
        epoch, at = divmod(number, self.parts[source])
        document, start, stop = self._part(source, shuffled(at, self.parts[source], f"{self.seed}/{name}/{epoch}"))
        return TokenSample(shards[document][start:stop], np.arange(stop - start) > 0, source=name)


def _part_ends(source: Source, shards: Shards | None, length: int) -> NDArray[np.int64] | None:
    """How many parts there are up to and with each document, int64 [documents]."""
    if shards is None:
        return None
    if not 0 <= source.kept < len(shards):
        raise UsageError(f"{source.draw} has {len(shards)} documents, and {source.kept} are kept to measure on")
    parts = np.maximum(1, -(-(shards.lengths - 1) // (length - 1)))
    parts[kept_out(shards, source.kept)] = 0
    return np.cumsum(parts)


def shuffled(place: int, count: int, seed: str) -> int:
    """Where `place` of 0 … count-1 comes to lie in an order of its own for each seed, with no table: four rounds of a
    Feistel network over the next even number of bits, again until the number is one of them (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains")."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, keys = (1 << half) - 1, _round_keys(seed)
    while True:
        left, right = place >> half, place & mask
        for key in keys:
            mixed = (right ^ key) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ (mixed >> 32 & mask)
        place = left << half | right
        if place < count:
            return place


@lru_cache(64)
def _round_keys(seed: str) -> tuple[int, ...]:
    digest = hashlib.sha256(seed.encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8))


# From samples to the batches of updates


@dataclass(frozen=True)
class Rows:
    """The shape of the data of an update: `parts` micro-batches of `rows` rows with `length` tokens."""

    rows: int
    length: int
    parts: int
    pad_id: int

    @property
    def lanes(self) -> int:
        """Into how many streams the samples are dealt; each makes its batches by itself. It depends on nothing that may
        change while a run lasts: neither processes nor workers."""
        return self.parts * -(-16 // self.parts)

    def lane(self, update: int, part: int) -> int:
        return part + self.parts * (update % (self.lanes // self.parts))


class Lane:
    """One stream: samples lane, lane + lanes, …, packed best-fit; what found no room comes first next time.

    state: [the next sample, [[sample, start, stop], …] of what waits]: its place in the data, JSON.
    """

    def __init__(self, mixture: Mixture, rows: Rows, lane: int, state: Sequence[Any] | None = None) -> None:
        self.mixture, self.rows = mixture, rows
        self._next = lane if state is None else int(state[0])
        places = [] if state is None else state[1]
        self._waiting = [((int(n), int(a), int(b)), mixture.sample(int(n)).part(a, b)) for n, a, b in places]

    @property
    def state(self) -> list[Any]:
        return [self._next, [list(place) for place, _ in self._waiting]]

    def batch(self) -> PackedBatch:
        rows = self.rows
        room = rows.rows * rows.length
        wanted = room + max(room // 4, 4 * rows.length)
        have, new = sum(len(sample) for _, sample in self._waiting), []  # type: int, list[Any]
        while have < wanted:
            sample = self.mixture.sample(self._next)
            # What is drawn may be longer than a row, too.
            for start, stop in part_bounds(len(sample), rows.length):
                part = sample if stop - start == len(sample) else sample.part(start, stop)
                new.append(((self._next, start, stop), part))
            have += len(sample)
            self._next += rows.lanes
        first, rest = ([part for _, part in parts] for parts in (self._waiting, new))
        made, left = pack(rest, rows.rows, rows.length, rows.pad_id, first=first)
        kept = {id(sample) for sample in left}
        self._waiting = [item for item in (*self._waiting, *new) if id(item[1]) in kept]
        return made


class Stream:
    """The batches of updates in order, from a place in the data on; for `run.loop`.

    workers: processes that pack ahead, 0: none. process, processes: of those that train together, each of which gets
    its own part of every update. Close it, or leave its `with` block, to end the workers; they also end by themselves
    when this process is gone, and leave Ctrl-C to it.

    Raises UsageError for sources that other processes could not load, and where the processes do not divide the
    micro-batches of an update. What a worker met is raised here.
    """

    def __init__(self, mixture: Mixture, rows: Rows, workers: int = 0, *, process: int = 0, processes: int = 1) -> None:
        if rows.parts % processes:
            raise UsageError(
                f"{rows.parts} micro-batches of an update cannot be dealt to {processes} processes: change "
                f"tokens_per_update or tokens_per_micro_batch so that their number is a multiple of {processes}"
            )
        if workers:
            try:
                pickle.dumps(mixture)
            except Exception as error:
                raise UsageError(
                    f"worker processes cannot load the sources ({error}): draw with functions of a module that can be "
                    "imported, or set workers=0"
                ) from None
        self.mixture, self.rows = mixture, rows
        self._parts = range(process, rows.parts, processes)
        lanes = [lane for lane in range(rows.lanes) if lane % rows.parts in self._parts]
        self._states: dict[int, list[Any]] = {lane: [lane, []] for lane in lanes}
        self._workers = min(workers, len(lanes))
        self._update = 0
        self._lanes: dict[int, Lane] = {}
        self._started: list[tuple[Any, Connection]] = []

    def position(self) -> dict[str, Any]:
        """Behind the last update that was given. JSON; only this process's lanes."""
        return {"update": self._update, "lanes": {str(lane): state for lane, state in self._states.items()}}

    def restore(self, found: Mapping[str, Any]) -> None:
        """Go on behind a position: those of all processes, put together."""
        self.close()
        self._update = int(found["update"])
        self._states = {lane: found["lanes"][str(lane)] for lane in self._states}

    def __call__(self, update: int) -> list[PackedBatch]:
        """This process's micro-batches of an update; one after the other is asked for."""
        if update != self._update:
            raise UsageError(f"update {update} was asked for where {self._update} comes next")
        if self._workers and not self._started:
            self._start()
        batches = [self._next(self.rows.lane(update, part)) for part in self._parts]
        self._update += 1
        return batches

    def _next(self, at: int) -> PackedBatch:
        if not self._workers:
            lane = self._lanes.setdefault(at, Lane(self.mixture, self.rows, at, self._states[at]))
            batch: PackedBatch = lane.batch()
            self._states[at] = lane.state
            return batch
        process, pipe = self._started[list(self._states).index(at) % self._workers]
        try:
            found = pipe.recv()
        except (EOFError, OSError):
            process.join(5)
            raise Qwen3Error(f"a data worker ended with exit code {process.exitcode}") from None
        if isinstance(found, Exception):
            raise found
        batch, self._states[at] = found
        return batch

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for worker in range(self._workers):
            lanes = {lane: state for i, (lane, state) in enumerate(self._states.items()) if i % self._workers == worker}
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(self.mixture, self.rows, self._update, lanes, theirs), daemon=True, name="data"
            )
            process.start()
            theirs.close()  # so that a worker's end is seen here
            self._started.append((process, mine))

    def close(self) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.terminate()
        for process, _ in self._started:
            process.join()
        self._started.clear()
        self._lanes.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _work(mixture: Mixture, rows: Rows, update: int, states: dict[int, list[Any]], pipe: Connection) -> None:
    """Make the batches of some lanes in their order, each when the one before it was taken."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer ends its update and a checkpoint first
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lanes = {lane: Lane(mixture, rows, lane, state) for lane, state in states.items()}
    try:
        while True:
            for lane in (rows.lane(update, part) for part in range(rows.parts)):
                if lane in lanes:
                    pipe.send((lanes[lane].batch(), lanes[lane].state))
            update += 1
    except BrokenPipeError:  # nobody is there to take it
        return
    except Qwen3Error as error:
        pipe.send(type(error)(f"in a data worker: {error}"))
    except Exception:
        pipe.send(Qwen3Error(f"a data worker failed:\n{traceback.format_exc()}"))
