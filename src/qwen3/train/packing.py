"""Documents of any length into rows of one length, with little room left over and no document seeing another."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qwen3.errors import UsageError
from qwen3.train.samples import TokenSample

IGNORED = -100  # the label of a place whose prediction does not count

_EMPTY = 256  # places of a document that has no tokens


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Rows of documents. All int32 [rows, length] (the official vocabulary has more ids than 16 bits).

    ids: tokens. labels: the next token where its prediction counts, else -100. positions: from 0 in each document.
    documents: 1, 2, … for the documents of a row, 0 where it is empty. streams: float32 [rows, length] or [rows,
    length, k], at the place of the LABEL that they speak of; 0 where a sample has none. routes: int16 [layers, rows,
    length, k], of the place's own token; -1 where unknown.
    """

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    positions: NDArray[np.int32]
    documents: NDArray[np.int32]
    streams: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    routes: NDArray[np.int16] | None = None

    @property
    def trained_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def filled(self) -> float:
        """Share of the places that hold a token of a sample."""
        return float((self.documents > 0).mean())

    def bounds(self) -> NDArray[np.int32]:
        """Where the documents begin in the flattened batch, and its end: what attention over ragged rows wants. The
        empty end of a row is documents, too, which are short: one long one would decide how the whole batch attends."""
        flat = self.documents.reshape(-1)
        start = np.ones(len(flat), dtype=bool)
        start[1:] = flat[1:] != flat[:-1]
        start[:: self.documents.shape[1]] = True
        start[::_EMPTY] |= flat[::_EMPTY] == 0
        return np.append(np.flatnonzero(start), len(flat)).astype(np.int32)


def pack(
    samples: Iterable[TokenSample],
    rows: int,
    length: int,
    pad_id: int,
    *,
    split: bool = False,
    first: Iterable[TokenSample] = (),
) -> tuple[PackedBatch, list[TokenSample]]:
    """Best-fit decreasing: (the batch, the samples that found no room).

    split: cut a sample longer than a row into parts, see `part_bounds`; else it is a UsageError that names its source:
    nothing is cut in silence. first: samples that are placed before the others, because they waited.
    """
    groups = (first, samples)
    parts = [part for group in groups for part in sorted(_fitting(group, length, split), key=len, reverse=True)]
    rooms = [(length, row) for row in range(rows)]
    placed: list[list[TokenSample]] = [[] for _ in range(rows)]
    left: list[TokenSample] = []
    for sample in parts:
        at = bisect.bisect_left(rooms, (len(sample), -1))
        if at == len(rooms):
            left.append(sample)
            continue
        room, row = rooms.pop(at)
        placed[row].append(sample)
        bisect.insort(rooms, (room - len(sample), row))
    return _lay_out(placed, length, pad_id), left


def part_bounds(count: int, length: int) -> list[tuple[int, int]]:
    """Where a document of `count` tokens is cut for rows of `length`. Parts overlap by the token which the next one
    begins with, so every prediction counts once."""
    return [(at, min(at + length, count)) for at in range(0, max(1, count - 1), length - 1)]


def _fitting(samples: Iterable[TokenSample], length: int, split: bool) -> Iterator[TokenSample]:
    for sample in samples:
        if len(sample) <= length:
            yield sample
        elif not split:
            where = f" (source {sample.source})" if sample.source else ""
            raise UsageError(
                f"a sample of {len(sample)} tokens{where} does not fit a row of {length}: take longer rows"
            )
        else:
            for start, stop in part_bounds(len(sample), length):
                yield sample.part(start, stop)


def _lay_out(placed: Sequence[Sequence[TokenSample]], length: int, pad_id: int) -> PackedBatch:
    shape = (len(placed), length)
    ids = np.full(shape, pad_id, dtype=np.int32)
    labels = np.full(shape, IGNORED, dtype=np.int32)
    positions = np.zeros(shape, dtype=np.int32)
    documents = np.zeros(shape, dtype=np.int32)
    streams: dict[str, NDArray[np.float32]] = {}
    routes: NDArray[np.int16] | None = None
    for row, samples in enumerate(placed):
        start = 0
        for number, sample in enumerate(samples, 1):
            end = start + len(sample)
            ids[row, start:end] = sample.ids
            labels[row, start : end - 1] = np.where(sample.trained[1:], sample.ids[1:], IGNORED)
            positions[row, start:end] = np.arange(len(sample))
            documents[row, start:end] = number
            for name, values in sample.streams.items():
                if name not in streams:
                    streams[name] = np.zeros((*shape, *values.shape[1:]), dtype=np.float32)
                if streams[name].shape[2:] != values.shape[1:]:
                    raise UsageError(f"streams[{name!r}] has {values.shape[1:]} and {streams[name].shape[2:]} values")
                streams[name][row, start : end - 1] = values[1:]
            if sample.routes is not None:
                if routes is None:
                    layers, _, k = sample.routes.shape
                    routes = np.full((layers, *shape, k), -1, dtype=np.int16)
                routes[:, row, start:end] = sample.routes
            start = end
    return PackedBatch(ids, labels, positions, documents, streams, routes)
