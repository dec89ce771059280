"""One model in one GGUF file, or in the several that `llama-gguf-split` makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qwen3.checkpoint.gguf.reader import GgufHeader, GgufTensor, read_gguf
from qwen3.checkpoint.header import stamp
from qwen3.errors import CorruptFileError, ModelNotFoundError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True)
class Gguf:
    """A whole model: its files in order, the first one's metadata, all tensors by name."""

    path: Path
    headers: tuple[GgufHeader, ...]
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(header.size for header in self.headers)


def part_names(name: str) -> list[str]:
    """Names of all files of the model that the file `name` belongs to, in order; [name] if it is not split."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}" for i in range(1, count + 1)]


def stem(name: str) -> str:
    """A file's name without its folder, its part's number and `.gguf`."""
    name = name.rpartition("/")[2]
    match = _PART.fullmatch(name)
    return match["stem"] if match else name[: -len(".gguf")]


def open_gguf(path: Path) -> Gguf:
    """The model that `path`, a file or any part of a split one, belongs to; the last one read is kept in memory.

    Raises ModelNotFoundError naming a part that is not there, CorruptFileError as `read_gguf`, and where the parts do
    not belong together.
    """
    files = tuple(path.with_name(name) for name in part_names(path.name))
    missing = next((file for file in files if not file.exists()), None)
    if missing is None:
        return _open(files, tuple(stamp(file.stat()) for file in files))
    if len(files) == 1:
        raise ModelNotFoundError(f"{missing}: no such file")
    raise ModelNotFoundError(f"{path.parent}: of {len(files)} parts of the model {missing.name} is not there")


@lru_cache(maxsize=1)
def _open(files: tuple[Path, ...], _version: tuple[tuple[int, ...], ...]) -> Gguf:
    path = files[0]
    headers = tuple(read_gguf(file) for file in files)
    tensors: dict[str, GgufTensor] = {}
    for number, header in enumerate(headers):
        _check_part(header, number, headers)
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise CorruptFileError(f"tensor {name} is in both {tensors[name].file} and {header.file}")
            tensors[name] = tensor
    total = headers[0].metadata.get("split.tensors.count", len(tensors)) if len(files) > 1 else len(tensors)
    if total != len(tensors):
        raise CorruptFileError(f"{path}: split.tensors.count is {total}, but its parts hold {len(tensors)} tensors")
    return Gguf(path, headers, headers[0].metadata, tensors)


def _check_part(header: GgufHeader, number: int, headers: tuple[GgufHeader, ...]) -> None:
    """Against the part's own word on which one it is, and against the first part on whose it is."""
    count, own = header.metadata.get("split.count", 0), header.metadata.get("split.no", 0)
    if len(headers) == 1 and count in (0, 1):
        return
    if len(headers) == 1:
        raise CorruptFileError(
            f"{header.file}: it is part {own + 1 if isinstance(own, int) else own} of {count}, but its name does not "
            f"end in -{1:05d}-of-{count if isinstance(count, int) else 0:05d}.gguf: rename the parts as they were"
        )
    if count != len(headers) or own != number:
        raise CorruptFileError(
            f"{header.file}: by its name it is part {number + 1} of {len(headers)}, but split.no is {own} (from 0) and "
            f"split.count {count}; a part of another model?"
        )
    for key in ("general.architecture", "general.name", "split.tensors.count"):
        first = headers[0].metadata.get(key)
        if header.metadata.get(key, first) != first:
            raise CorruptFileError(f"{header.file}: {key} is another one than in {headers[0].file}: not the same model")
