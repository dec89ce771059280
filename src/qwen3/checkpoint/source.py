"""Where weights come from: one seam for every format, so that a network is filled from all of them alike.

A format is a `Source`: it says which official tensors it has and hands each out as a `Stored`, which reads rows of it
as numbers. Nothing is read before it is asked for, so filling a network peaks at its weights and a few chunks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3.checkpoint.forms import Form
from qwen3.checkpoint.fp8 import convert
from qwen3.checkpoint.gguf.reader import is_gguf_path
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError
from qwen3.kernels.fp8 import Fp8Weight
from qwen3.kernels.packed import TABLE

CHUNK_BYTES = 4 << 20  # of the widened rows that one thread holds


class Stored(Protocol):
    """One official tensor in a file. `kind`: how it is stored ("BF16", "Q4_K"); `nbytes`: its bytes there, scales and
    the like included. `fp8_rows`: an Fp8Weight with a scale per row takes it as it is."""

    shape: tuple[int, ...]
    kind: str
    nbytes: int
    fp8_rows: bool = False

    @property
    def form(self) -> Form | None:
        """How a `kernels.packed.PackedWeight` holds exactly these numbers; None if it cannot."""
        return None

    @property
    def location(self) -> tuple[int, int] | None:
        """File descriptor and position of a tensor whose rows lie there one after the other in `nbytes` as they are
        (GGUF's blocks); None for others."""
        return None

    def packed(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None] | tuple[Tensor, Tensor, Any, Any]:
        """Of a tensor with a `form`: (q uint8 [rows, K], scales, minima float16 [rows, K/group]), as `packed.pack`
        takes them; the integer scales behind them if there are any."""
        raise TypeError(f"{self.kind} has no packed form")

    @property
    def group_form(self) -> Form | None:
        """How a `kernels.grouped.GroupWeight` holds exactly these numbers (bits, group and minima; but for the last
        bits of float32 where scales have two levels); None if it cannot."""
        form = self.form
        return form and Form(8 if form.bits > 4 or form.table else 4, form.fine or form.group, form.mins)

    def grouped(self, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of a tensor with a `group_form`: (q uint8 [rows, K], scales, minima [rows, K/group]), for `grouped.pack`."""
        form, group_form = self.form, self.group_form
        assert form is not None
        assert group_form is not None
        q, scale, mins, *marks = self.packed(rows)
        if form.table:
            q = torch.tensor([value + 128 for value in TABLE], dtype=torch.uint8)[q.int()]
        elif mins is None:
            q = q + ((1 << group_form.bits - 1) - (1 << form.bits - 1))  # their zero is in the middle
        if marks and marks[0] is not None:
            times, *sunk = marks[0].float().chunk(1 if mins is None else 2, dim=-1)
            more = form.group // form.fine
            scale = scale.float().repeat_interleave(more, -1) * times
            mins = None if mins is None else mins.float().repeat_interleave(more, -1) * sunk[0]
        return q, scale, mins

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some rows (elements, if it has one dimension only) on the CPU, rounded once to a floating-point `dtype`.

        Threads may read at the same time. Raises CorruptFileError naming the tensor if the file does not have them.
        """

    def fill(self, place: Tensor, weight: Fp8Weight | None = None) -> None:
        """Writes the whole tensor to `place`, a contiguous view of its shape on any device, in chunks. `weight`: what
        is kept in FP8, if `place` is part of its data."""
        if len(self.shape) == 1:
            place.copy_(self.read(slice(None), place.dtype))
            return
        dtype = torch.float32 if weight is not None else place.dtype
        convert(self._chunks(dtype), None, place, weight)

    def _chunks(self, dtype: torch.dtype) -> Iterator[Tensor]:
        count, width = self.shape
        step = max(128, CHUNK_BYTES // (width * dtype.itemsize) // 128 * 128)  # blocks of FP8 have 128 rows
        for first in range(0, count, step):
            yield self.read(slice(first, min(count, first + step)), dtype)


class Source(Protocol):
    """A checkpoint that was opened and found complete. `stored`: by official names in the order of the files, a copied
    tied head left out.

    `compressed`: kinds that no kernel here multiplies as they are. `tensors`, `nbytes`: how many the files hold, and
    their bytes. `kinds`: of all of them.
    """

    path: Path
    files: tuple[Path, ...]
    kinds: tuple[str, ...]
    compressed: tuple[str, ...]
    tensors: int
    nbytes: int

    @property
    def stored(self) -> Mapping[str, Stored]: ...

    def tied_copy(self) -> bool:
        """Whether a tied model's files store the head as well. Raises CorruptFileError if it is not the embedding."""

    def check_unchanged(self) -> None:
        """Raises CorruptFileError if a file was replaced or written to since its header was read."""

    def close(self) -> None:
        """Releases the files."""


def open_source(path: str | Path, config: ModelConfig) -> Source:
    """Opens the checkpoint at `path`, a folder or a GGUF file, and checks it against `config` (names, shapes, kinds).

    Raises CorruptFileError listing every missing, extra, misshapen or non-float tensor; ConfigError for a quantization
    that cannot be read; UnsafeFileError, ModelNotFoundError as `find_weight_files`.
    """
    path = Path(path)
    if is_gguf_path(path):
        from qwen3.checkpoint.gguf.source import GgufSource

        return GgufSource(path, config)
    from qwen3.checkpoint.safetensors_io import SafetensorsSource

    return SafetensorsSource(path, config)


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, writable."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_into(fd: int, target: Tensor, position: int, file: Path, name: str) -> None:
    """Fills a contiguous CPU tensor with the file's bytes from `position`; CorruptFileError naming tensor `name`."""
    memory = byte_view(target)
    while memory:
        try:
            count = os.preadv(fd, [memory], position)
        except OSError as error:
            raise CorruptFileError(f"{file}: tensor {name} cannot be read ({error.strerror})") from None
        if count == 0:
            raise CorruptFileError(f"{file}: tensor {name} ends at byte {position}; the file was truncated")
        memory, position = memory[count:], position + count
