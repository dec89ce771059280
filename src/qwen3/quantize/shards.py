"""Safetensors files whose tensors come in any order: what will be in them is known, so each has its place at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from torch import Tensor

from qwen3.checkpoint.folder import INDEX
from qwen3.checkpoint.save import blocks, index_text, measure, plan_shards, shard_header
from qwen3.errors import CorruptFileError, Qwen3Error


class Shards:
    """Written into an empty folder. planned: name → tensor without values. To be closed (`with`), whatever happens.

    Raises OSError where the disk is full.
    """

    def __init__(self, folder: Path, planned: Mapping[str, Tensor], max_shard_bytes: float = 5e9) -> None:
        self.folder, self.planned = folder, planned
        self.files = plan_shards(planned, max_shard_bytes)
        self._where: dict[str, tuple[int, int]] = {}  # name → (descriptor, byte)
        self._missing = {name: tensor.nbytes for name, tensor in planned.items()}
        with ExitStack() as stack:
            for file, names in self.files.items():
                header, begins = shard_header({name: planned[name] for name in names})
                fd = stack.enter_context((folder / file).open("wb", buffering=0)).fileno()
                os.write(fd, header)
                os.truncate(fd, max(len(header), *(begins[n] + planned[n].nbytes for n in names)))
                self._where |= {name: (fd, begin) for name, begin in begins.items()}
            self._open = stack.pop_all()

    def write(self, name: str, tensor: Tensor, row: int | None = None) -> None:
        """row: of the tensor's first dimension, which `tensor` fills. Raises CorruptFileError for values that are not
        finite, Qwen3Error for a tensor that was not planned so."""
        planned = self.planned.get(name)
        shape = None if planned is None else planned.shape if row is None else planned.shape[1:]
        if planned is None or tensor.shape != shape or tensor.dtype != planned.dtype:
            raise Qwen3Error(f"{name} is {list(tensor.shape)}, {tensor.dtype}, which was not planned so")
        (fd, position), size = self._where[name], tensor.nbytes
        position += 0 if row is None else row * size
        self._missing[name] -= size
        for block in blocks(name, tensor):
            while block:
                count = os.pwrite(fd, block, position)
                block, position = block[count:], position + count

    def finish(self) -> dict[str, tuple[int, str]]:
        """File → (bytes, sha256), the index among them. Raises CorruptFileError if a tensor never came, or twice."""
        wrong = [name for name, count in self._missing.items() if count]
        if wrong:
            raise CorruptFileError(f"not saved: {wrong[0]} and {len(wrong) - 1} more were not written once, and whole")
        if len(self.files) > 1:
            total = sum(tensor.nbytes for tensor in self.planned.values())
            (self.folder / INDEX).write_bytes(index_text(self.files, total))
        names = [*self.files, *([INDEX] if len(self.files) > 1 else [])]
        return {name: measure(self.folder / name) for name in names}

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
