"""The weights of a GGUF file as a `Source`."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from qwen3.checkpoint.forms import FORMS, Form
from qwen3.checkpoint.gguf.blocks import Taken, packed_rows
from qwen3.checkpoint.gguf.dequantize import PLAIN, dequantize
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.gguf.names import Part, find_parts
from qwen3.checkpoint.header import stamp
from qwen3.checkpoint.source import Stored, read_into
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError


class GgufTensorRows(Stored):
    """One official tensor: all of a GGUF tensor, or some of its rows (an expert)."""

    def __init__(self, part: Part, fd: int) -> None:
        self.part, self.fd = part, fd
        self.type = part.tensor.type
        self.shape, self.kind = part.shape, self.type.name
        self.row_bytes = part.shape[-1] // self.type.block * self.type.size
        self.nbytes = math.prod(part.shape[:-1]) * self.row_bytes

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        if len(self.shape) == 1:
            return self._rows(0, 1, dtype)[0][rows]
        first, last, step = rows.indices(self.shape[0])
        assert step == 1, "rows that follow each other"
        return self._rows(self.part.first + first, self.part.first + max(first, last), dtype)

    def raw(self, rows: slice) -> Tensor:
        """uint8 [rows, bytes of a row] as they lie in the file."""
        first, last, _ = rows.indices(self.shape[0])
        out = torch.empty(last - first, self.row_bytes, dtype=torch.uint8, device="cpu")
        tensor, begin = self.part.tensor, self.part.first + first
        read_into(self.fd, out, tensor.begin + begin * self.row_bytes, tensor.file, tensor.name)
        return out

    @property
    def form(self) -> Form | None:
        return FORMS.get(self.kind)

    @property
    def location(self) -> tuple[int, int]:
        return self.fd, self.part.tensor.begin + self.part.first * self.row_bytes

    def packed(self, rows: slice) -> Taken:
        return packed_rows(self.kind, self.raw(rows), self.type.size)

    def _rows(self, first: int, last: int, dtype: torch.dtype) -> Tensor:
        """Rows of the whole GGUF tensor."""
        out = torch.empty(last - first, self.shape[-1], dtype=dtype, device="cpu")
        tensor = self.part.tensor
        begin = tensor.begin + first * self.row_bytes
        if PLAIN.get(self.kind) == dtype:
            read_into(self.fd, out, begin, tensor.file, tensor.name)
        elif out.numel():
            data = torch.empty((last - first) * self.row_bytes, dtype=torch.uint8, device="cpu")
            read_into(self.fd, data, begin, tensor.file, tensor.name)
            dequantize(data, self.type, out)
        return out


class GgufSource:
    """See `Source`. Raises what `open_gguf` and `find_parts` raise."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.model = open_gguf(path)
        parts = find_parts(self.model, config)
        self.path = self.model.path
        self.files = tuple(header.file for header in self.model.headers)
        with ExitStack() as stack:
            fds = {file: stack.enter_context(file.open("rb", buffering=0)).fileno() for file in self.files}
            self._open = stack.pop_all()
        self._fds = fds
        order = sorted(parts.items(), key=lambda item: (item[1].tensor.file, item[1].tensor.begin, item[1].first))
        self.stored = {name: GgufTensorRows(part, fds[part.tensor.file]) for name, part in order}
        types = {tensor.type for tensor in self.model.tensors.values()}
        self.kinds = tuple(sorted(kind.name for kind in types))
        self.compressed = tuple(sorted(kind.name for kind in types if not kind.plain))
        self.tensors = len(self.model.tensors)
        self.nbytes = sum(tensor.end - tensor.begin for tensor in self.model.tensors.values())

    def tied_copy(self) -> bool:
        """GGUF leaves a tied head out: one that is stored is a head of its own."""
        return False

    def check_unchanged(self) -> None:
        for header in self.model.headers:
            try:
                same = header.stamp == stamp(os.fstat(self._fds[header.file])) == stamp(header.file.stat())
            except OSError:
                same = False
            if not same:
                raise CorruptFileError(f"{header.file} was replaced or written to while it was read; load it again")

    def close(self) -> None:
        self._open.close()
