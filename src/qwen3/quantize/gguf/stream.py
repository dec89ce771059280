"""Tensors on their way from a checkpoint into a GGUF file, a piece per core at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor

from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.checkpoint.source import Source, byte_view
from qwen3.errors import CorruptFileError
from qwen3.quantize.gguf.encode import BY_NAME, encode
from qwen3.quantize.gguf.file import Entry, header
from qwen3.quantize.gguf.recipe import Choice

if TYPE_CHECKING:
    from qwen3.quantize.imatrix import Imatrix

_PIECE = 1 << 22  # weights that a thread works on
Progress = Callable[[str, float], None]
"""What is being done, and which share of it is."""


@dataclass(frozen=True)
class Tensored:
    """What a tensor became. wanted: the type that recipe or rule said, where the width did not allow it. error: the
    root of Σ(x - x')² / Σx²."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    error: float
    wanted: str | None = None


class Stream:
    """Tensors from a source to files, a piece per core at a time."""

    def __init__(
        self, source: Source, pieces: Mapping[str, tuple[tuple[int, ...], list[str]]], choices: Mapping[str, Choice],
        imatrix: Imatrix | None, total: int, say: Progress,
    ) -> None:  # fmt: skip
        self.source, self.pieces, self.choices, self.imatrix = source, pieces, choices, imatrix
        self.total, self.say, self.done = total, say, 0

    def write(self, file: Path, metadata: Mapping[str, Any], entries: Sequence[Entry]) -> list[Tensored]:
        threads = torch.get_num_threads()
        out = []
        try:
            with (
                file.open("wb") as handle,
                ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            ):
                handle.write(header(metadata, entries))
                for entry in entries:
                    out.append(self._tensor(handle, entry, pool, threads))
                handle.flush()
                os.fsync(handle.fileno())
        finally:
            torch.set_num_threads(threads)  # new threads would get the one that those of the pool have
        return out

    def _tensor(self, handle: BinaryIO, entry: Entry, pool: ThreadPoolExecutor, ahead: int) -> Tensored:
        wrong, whole, largest = 0.0, 0.0, 0.0
        for piece in _in_order(pool, self._jobs(entry), ahead):
            wrong, whole, largest = wrong + piece.wrong, whole + piece.whole, max(largest, piece.largest)
            handle.write(byte_view(piece.data))
        if largest == 0:
            raise CorruptFileError(f"not saved: {entry.name} holds nothing but zeros (as {entry.kind})")
        handle.write(bytes(entry.padding))
        self.done += entry.nbytes
        self.say(entry.name, self.done / self.total)
        wanted = self.choices[entry.name].wanted
        error = (wrong / whole) ** 0.5 if whole else 0.0
        return Tensored(entry.name, entry.kind, entry.shape, entry.nbytes, error, wanted)

    def _jobs(self, entry: Entry) -> Iterator[Callable[[], _Piece]]:
        for expert, official in enumerate(self.pieces[entry.name][1]):
            stored: Any = self.source.stored[official]
            if getattr(stored, "by_column", False):
                stored = stored.whole()
            importance = None if self.imatrix is None else self.imatrix.of(entry.name, expert)
            if len(stored.shape) == 1:
                yield partial(_piece, entry, stored, slice(None), None)
                continue
            count, width = stored.shape
            step = max(128, _PIECE // width // 128 * 128)  # blocks of FP8 have 128 rows
            for first in range(0, count, step):
                rows = slice(first, min(first + step, count))
                yield partial(_piece, entry, stored, rows, importance)


@dataclass(frozen=True)
class _Piece:
    """Bytes of some rows, Σ(x - x')², Σx², and the largest |x'|."""

    data: Tensor
    wrong: float
    whole: float
    largest: float


def _piece(entry: Entry, stored: Any, rows: slice, importance: Tensor | None) -> _Piece:
    """Raises CorruptFileError for values that are not finite, before or after."""
    x = stored.read(rows, torch.float32).view(-1, entry.shape[-1])
    whole = float(x.square().sum(dtype=torch.float64))
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).sum())
        raise CorruptFileError(f"not saved: {entry.name} has {bad} NaN or infinite values in a piece of {x.numel()}")
    data = encode(entry.kind, x, importance)
    back = torch.empty_like(x)
    dequantize(data.view(-1), BY_NAME[entry.kind][1], back)
    largest = float(back.abs().max())
    if not largest < float("inf"):
        most = float(x.abs().max())
        raise CorruptFileError(
            f"not saved: {entry.name} has values up to {most:.3g}, beyond what {entry.kind} can hold"
        )
    return _Piece(data, float(back.sub_(x).square().sum(dtype=torch.float64)), whole, largest)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[Callable[[], _Piece]], ahead: int) -> Iterator[_Piece]:
    """Results in the order of the jobs, of which a few more than there are threads are begun."""
    waiting: deque[Future[_Piece]] = deque()
    for job in jobs:
        waiting.append(pool.submit(job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
