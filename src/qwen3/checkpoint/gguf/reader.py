"""The header of one GGUF file, read without trusting it: metadata and the table of tensors.

Format (docs/gguf.md of ggml-org/ggml): magic, version, two counts, key-value pairs, tensor infos, padding, data. Every
count and length is compared with what is left of the file before anything is read or allocated, and the header is read
piece by piece, so that memory stays within a small multiple of the bytes that are really there. Nothing is mapped: a
file that shrinks is an error, not SIGBUS.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qwen3.checkpoint.gguf.types import NOT_READ, TYPES, TensorType
from qwen3.checkpoint.header import stamp
from qwen3.errors import CorruptFileError, ModelNotFoundError

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20  # the official vocabulary takes 6 MB
_PIECE = 1 << 20
_MAX_DIMS, _MAX_SIZE = 4, 2**63 - 1
_MAX_NAME, _MAX_KEY = 256, 1 << 16
# metadata value types: their number -> the format of one for struct and memoryview
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Strings:
    """An array of strings, decoded when they are asked for. `data`: each with its length (8 bytes) before it."""

    key: str
    file: Path
    count: int
    data: bytes

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Raises CorruptFileError for what is no UTF-8."""
        at, data = 0, self.data
        try:
            for _ in range(self.count):
                end = at + 8 + int.from_bytes(data[at : at + 8], "little")
                yield data[at + 8 : end].decode()
                at = end
        except UnicodeDecodeError:
            raise CorruptFileError(f"{self.file}: {self.key} holds a string that is not UTF-8") from None


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: `shape` outermost dimension first (the file has them the other way round), `begin` and `end`
    absolute byte positions in `file`."""

    name: str
    file: Path
    type: TensorType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """What one file says. `metadata` values: int, float, bool, str, `Strings`, or a memoryview of numbers. `size` in
    bytes and `stamp` as `checkpoint.header.Header` has them."""

    file: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    size: int
    stamp: tuple[int, ...]


def is_gguf(file: Path) -> bool:
    """Whether a file begins as one."""
    try:
        with file.open("rb") as handle:
            return handle.read(4) == MAGIC
    except OSError:
        return False


def is_gguf_path(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name or by how it begins."""
    return path.suffix.lower() == ".gguf" or (path.is_file() and is_gguf(path))


def read_gguf(file: Path) -> GgufHeader:
    """Reads and checks the header of one file; nothing of the data.

    Raises ModelNotFoundError if there is no such file, CorruptFileError naming key or tensor for anything wrong.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            _fail(file, "not a regular file")
        with file.open("rb", buffering=0) as handle:
            return _Reader(file, handle.fileno()).read()
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise CorruptFileError(f"{file}: cannot be read ({error.strerror})") from None


class _Reader:
    def __init__(self, file: Path, fd: int) -> None:
        self.file, self.fd = file, fd
        status = os.fstat(fd)
        self.size, self.stamp = status.st_size, stamp(status)
        self.data = bytearray()  # the header as far as it was read
        self.at = 0

    def fail(self, message: str) -> NoReturn:
        _fail(self.file, message)

    def need(self, count: int, what: str) -> int:
        """Makes the next `count` bytes available, steps over them; where they begin."""
        begin, end = self.at, self.at + count
        if end > len(self.data):
            self._read(end, what)
        self.at = end
        return begin

    def _read(self, end: int, what: str) -> None:
        if end > self.size:
            self.fail(f"{what} ends at byte {end}, but the file has {self.size}; it is truncated or damaged")
        if end > MAX_HEADER_BYTES:
            self.fail(f"{what} ends at byte {end}: headers above {MAX_HEADER_BYTES} bytes are not read")
        while len(self.data) < end:
            piece = os.pread(self.fd, max(_PIECE, end - len(self.data)), len(self.data))
            if not piece:
                self.fail(f"it ends at byte {len(self.data)} within {what}; the file was truncated")
            self.data += piece

    def number(self, form: str, what: str) -> Any:
        return struct.unpack_from("<" + form, self.data, self.need(struct.calcsize("<" + form), what))[0]

    def text(self, what: str, limit: int) -> str:
        length = self.number("Q", what)
        if length > limit:
            self.fail(f"{what} claims {length} bytes, above the limit of {limit}")
        begin = self.need(length, what)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not UTF-8")

    def count(self, smallest: int, what: str) -> int:
        """A number of things that take at least `smallest` bytes each."""
        count: int = self.number("Q", what)
        if count * smallest > self.size - self.at:
            self.fail(f"{what} is {count}, more than {self.size - self.at} bytes can hold; it is truncated or damaged")
        return count

    def read(self) -> GgufHeader:
        self.version()
        tensors = self.count(32, "the number of tensors")
        pairs = self.count(13, "the number of metadata pairs")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.text("a metadata key", _MAX_KEY)
            if not key or not key.isprintable():
                self.fail(f"it has the unusable metadata key {key[:80]!r}")
            if key in metadata:
                self.fail(f"metadata key {key} stands there twice")
            metadata[key] = self.value(key, self.number("I", f"the type of {key}"))
        found: dict[str, GgufTensor] = {}
        infos = [self.info() for _ in range(tensors)]
        start = self.at + -self.at % self.alignment(metadata)
        for name, kind, shape, offset in infos:
            if name in found:
                self.fail(f"tensor {name} stands there twice")
            found[name] = self.tensor(name, kind, shape, start, offset, self.alignment(metadata))
        self.check_layout(start, found, self.alignment(metadata))
        return GgufHeader(self.file, self.format, metadata, found, self.size, self.stamp)

    def version(self) -> None:
        if self.size == 0:
            self.fail("empty file; download or copy it again")
        magic = bytes(self.data[: self.need(4, "the magic number") + 4])
        if magic == MAGIC[::-1]:
            self.fail("a big-endian GGUF file; only little-endian ones are read: convert it with gguf-convert-endian")
        if magic == b"vers":
            self.fail("a Git LFS pointer, not the weights; run `git lfs pull`, or download the file itself")
        if magic != MAGIC:
            self.fail("not a GGUF file, it does not begin with GGUF")
        self.format: int = self.number("I", "the version")
        if self.format & 0xFFFF == 0 and self.format:
            self.fail("a big-endian GGUF file; only little-endian ones are read: convert it with gguf-convert-endian")
        if self.format not in (2, 3):
            self.fail(f"GGUF version {self.format} is not supported, only 2 and 3; get a newer conversion of the model")

    def value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self.text(f"the value of {key}", MAX_HEADER_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            self.fail(f"the value of {key} has the unknown type {kind}")
        if kind == 7:
            value = self.number("B", f"the value of {key}")
            if value > 1:
                self.fail(f"the value of {key} is {value}, neither true nor false")
            return bool(value)
        return self.number(_SCALARS[kind], f"the value of {key}")

    def array(self, key: str) -> Any:
        what = f"the array {key}"
        kind = self.number("I", f"the type of {key}")
        if kind == _STRING:
            count = self.count(8, f"the length of {what}")
            begin = self.at
            self.skip_strings(count, what)
            return Strings(key, self.file, count, bytes(self.data[begin : self.at]))
        if kind not in _SCALARS:
            self.fail(
                f"the array {key} holds values of the {'unsupported' if kind == _ARRAY else 'unknown'} type {kind}"
            )
        form = "B" if kind == 7 else _SCALARS[kind]
        width = struct.calcsize("<" + form)
        begin = self.need(self.count(width, f"the length of {what}") * width, what)
        return memoryview(bytes(self.data[begin : self.at])).cast(form)  # type: ignore[call-overload]

    def skip_strings(self, count: int, what: str) -> None:
        # the vocabulary has 300,000 of them, so this is the loop that costs
        data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > len(data):
                self._read(at + 8, what)
            at += 8 + length(data, at)[0]
            if at > len(data):
                self._read(at, what)
        self.at = at

    def info(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        name = self.text("a tensor's name", _MAX_NAME)
        if not name or not name.isprintable():
            self.fail(f"it has a tensor with the unusable name {name[:80]!r}")
        what = f"the entry of tensor {name}"
        dims = self.number("I", what)
        if not 1 <= dims <= _MAX_DIMS:
            self.fail(f"tensor {name} has {dims} dimensions; there may be 1 to {_MAX_DIMS}")
        shape = struct.unpack_from(f"<{dims}Q", self.data, self.need(8 * dims, what))
        if not all(1 <= size <= _MAX_SIZE for size in shape) or math.prod(shape) > _MAX_SIZE:
            self.fail(f"tensor {name} has the impossible shape {list(shape)}")
        number = self.number("I", what)
        if number not in TYPES:
            meant = f", {NOT_READ[number]}," if number in NOT_READ else " (unknown)"
            self.fail(f"tensor {name} has type {number}{meant} and cannot be read; take another quantization")
        kind = TYPES[number]
        if shape[0] % kind.block:
            self.fail(f"tensor {name} is {kind.name} with rows of {shape[0]}, no multiple of its block of {kind.block}")
        return name, kind, tuple(reversed(shape)), self.number("Q", what)

    def alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", 32)
        if type(value) is not int or not 1 <= value <= 1 << 20 or value & (value - 1):
            self.fail(f"general.alignment is {str(value)[:40]}; it must be a power of two up to {1 << 20}")
        return value

    def tensor(
        self, name: str, kind: TensorType, shape: tuple[int, ...], start: int, offset: int, alignment: int
    ) -> GgufTensor:
        if offset % alignment:
            self.fail(f"tensor {name} starts at byte {offset} of the data, no multiple of the alignment {alignment}")
        begin = start + offset
        end = begin + math.prod(shape) // kind.block * kind.size
        if end > self.size:
            self.fail(
                f"tensor {name} lies at bytes {begin} to {end}, but the file has {self.size}: truncated or damaged"
            )
        return GgufTensor(name, self.file, kind, shape, begin, end)

    def check_layout(self, start: int, tensors: dict[str, GgufTensor], alignment: int) -> None:
        """No two tensors overlap, and nothing but padding lies between and behind them."""
        end, previous = start, "the header"
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
            if tensor.begin < end:
                self.fail(f"tensor {tensor.name} overlaps {previous}")
            if tensor.begin - end >= alignment:
                self.fail(f"{tensor.begin - end} bytes between {previous} and tensor {tensor.name} belong to no tensor")
            end, previous = tensor.end, f"tensor {tensor.name}"
        if self.size - end >= alignment:
            self.fail(f"{self.size - end} bytes after {previous} belong to no tensor")


def _fail(file: Path, message: str) -> NoReturn:
    raise CorruptFileError(f"{file}: {message}")
