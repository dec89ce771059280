"""What a quantized format answers: which tensors stand for a matrix, and how its rows are read from them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from qwen3.checkpoint.header import TensorEntry
from qwen3.checkpoint.source import Stored, read_into
from qwen3.errors import CorruptFileError
from qwen3.kernels.fp8 import FP8

FLOATS = ("F16", "BF16", "F32")
_DTYPES = {
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": FP8, "U8": torch.uint8,
    "I8": torch.int8, "I32": torch.int32, "U32": torch.int32, "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Want:
    """A tensor beside others. shape None: what it must be is known only once another was read."""

    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    needed: bool = True


class Piece:
    """One tensor of a file, in its stored dtype (U32 as int32); `data` if it is in memory already."""

    def __init__(self, entry: TensorEntry, fd: int, data: Tensor | None = None) -> None:
        self.entry, self.fd, self.data = entry, fd, data
        self.shape, self.name = entry.shape, entry.name
        self.nbytes = entry.end - entry.begin

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Rows from `first` to before `last`; all of it by default."""
        if self.data is not None:
            return self.data[first:last]
        if last is None:
            shape, row = self.shape, 0
        else:
            shape, row = (last - first, *self.shape[1:]), self.nbytes // max(1, self.shape[0])
        out = torch.empty(shape, dtype=_DTYPES[self.entry.dtype], device="cpu")
        if out.numel():
            read_into(self.fd, out, self.entry.begin + first * row, self.entry.file, self.name)
        return out

    def refuse(self, why: str) -> CorruptFileError:
        return CorruptFileError(f"{self.entry.file}: {self.name} {why}")


class Quantized(Stored):
    """A matrix made of `pieces`. by_column: some run along its rows, and are read once for all chunks."""

    by_column = False

    def __init__(self, shape: tuple[int, ...], kind: str, pieces: Mapping[str, Piece]) -> None:
        self.shape, self.kind, self.pieces = shape, kind, dict(pieces)
        self.nbytes = sum(piece.nbytes for piece in pieces.values())

    def _chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        return Stored._chunks(self.whole() if self.by_column else self, dtype)

    def whole(self) -> Self:
        """The same with its pieces in memory."""
        found = copy.copy(self)
        found.pieces = {name: Piece(p.entry, p.fd, p.read()) for name, p in self.pieces.items()}
        return found

    def span(self, rows: slice) -> tuple[int, int]:
        first, last, step = rows.indices(self.shape[0])
        assert step == 1, "rows that follow each other"
        return first, max(first, last)


class Layout(Protocol):
    """A format as a config.json describes it."""

    def wants(
        self, module: str, shape: tuple[int, ...], entries: Mapping[str, TensorEntry]
    ) -> Mapping[str, Want] | None:
        """Suffix → tensor, of all that stand for the matrix of this module; None if it is stored as it is.

        Raises ConfigError for sizes that do not go together.
        """

    def tensor(self, module: str, shape: tuple[int, ...], pieces: Mapping[str, Piece]) -> Quantized:
        """Raises CorruptFileError for what only a look into the pieces shows."""


def find_quantized(
    folder: Path, layout: Layout, entries: Mapping[str, TensorEntry], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, TensorEntry]]:
    """(official name of a quantized matrix → suffix → its tensor, all the other tensors).

    Raises CorruptFileError listing every tensor that is missing, misshapen or of another type.
    """
    found: dict[str, dict[str, TensorEntry]] = {}
    problems = []
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        wanted = layout.wants(module, shape, entries) if len(shape) == 2 else None
        if wanted is None:
            continue
        found[name] = {}
        for suffix, want in wanted.items():
            entry = entries.get(module + suffix)
            if entry is None:
                if want.needed:
                    problems.append(
                        f"missing {module}{suffix} {'' if want.shape is None else list(want.shape)}".strip()
                    )
                continue
            found[name][suffix] = entry
            if want.shape is not None and entry.shape != want.shape:
                problems.append(f"{entry.name} has shape {list(entry.shape)} instead of {list(want.shape)}")
            if entry.dtype not in want.dtypes:
                problems.append(f"{entry.name} is stored as {entry.dtype}, but it must be {', '.join(want.dtypes)}")
    if problems:
        shown = "; ".join(problems[:50]) + (f"; and {len(problems) - 50} more" if len(problems) > 50 else "")
        raise CorruptFileError(f"{folder}: the weights do not match config.json: {shown}")
    used = {entry.name for parts in found.values() for entry in parts.values()}
    return found, {name: entry for name, entry in entries.items() if name not in used and entry.name not in used}
