"""The safetensors header, read without trusting it.

Format (huggingface/safetensors): 8 bytes little-endian length, that many bytes of JSON, then the data. Each JSON entry
gives dtype, shape and two offsets into the data; the spans must cover the data exactly, without gap or overlap.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from qwen3.errors import CorruptFileError, ModelNotFoundError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
# bits of one element of every dtype the format knows
_NAMES_BY_BITS = {
    4: "F4",
    6: "F6_E2M3 F6_E3M2",
    8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
    16: "I16 U16 F16 BF16",
    32: "I32 U32 F32",
    64: "I64 U64 F64 C64",
}
DTYPE_BITS = {name: bits for bits, names in _NAMES_BY_BITS.items() for name in names.split()}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `begin` and `end` are absolute byte positions in `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A file's tensors by name, in the file's order, its metadata strings, size in bytes and identity (see `stamp`)."""

    file: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    size: int
    stamp: tuple[int, ...]


def stamp(status: os.stat_result) -> tuple[int, ...]:
    """What tells one version of a file from another: device, inode, size, time of the last write."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_header(file: Path) -> Header:
    """Reads and checks the header of one `.safetensors` file; nothing of the data.

    Raises ModelNotFoundError if there is no such file, CorruptFileError naming file and tensor for anything wrong.
    """
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            _fail(file, "not a regular file")
        with file.open("rb") as handle:
            status = os.fstat(handle.fileno())
            size = status.st_size
            first = handle.read(8)
            if size == 0:
                _fail(file, "empty file; download or copy it again")
            if first == b"version ":
                _fail(file, "a Git LFS pointer, not the weights; run `git lfs pull`, or download the file itself")
            if len(first) < 8:
                _fail(file, f"{size} bytes is too short for a safetensors file")
            length = int.from_bytes(first, "little")
            if length > size - 8:
                _fail(file, f"the header claims {length} bytes but the file has {size}; it is truncated or damaged")
            if length > MAX_HEADER_BYTES:
                _fail(file, f"the header claims {length} bytes, above the limit of {MAX_HEADER_BYTES}")
            raw = handle.read(length)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise CorruptFileError(f"{file}: cannot be read ({error.strerror})") from None
    return _parse(file, raw, 8 + length, status)


def read_json(file: Path, limit: int = MAX_HEADER_BYTES) -> Any:
    """A JSON file of at most `limit` bytes; CorruptFileError for anything else, ModelNotFoundError when absent."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            _fail(file, "not a regular file")
        if file.stat().st_size > limit:
            _fail(file, f"{file.stat().st_size} bytes is above the limit of {limit} for this kind of file")
        return json.loads(file.read_bytes().decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFoundError(f"{file}: no such file") from None
    except OSError as error:
        raise CorruptFileError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{file}: not valid JSON ({error})") from None


def _parse(file: Path, raw: bytes, data_start: int, status: os.stat_result) -> Header:
    size = status.st_size
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except _DuplicateKeyError as error:
        _fail(file, f"the header names {error} twice")
    except (ValueError, RecursionError) as error:
        _fail(file, f"the header is not valid JSON ({error})")
    if not isinstance(table, dict):
        _fail(file, "the header is not a JSON object")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _fail(file, "__metadata__ in the header must map strings to strings")
    tensors = [_entry(file, name, value, data_start, size) for name, value in table.items()]
    tensors.sort(key=lambda entry: (entry.begin, entry.end))
    end, previous = data_start, "the header"
    for entry in tensors:
        if entry.begin < end:
            _fail(file, f"tensor {entry.name} overlaps {previous}")
        if entry.begin > end:
            _fail(file, f"{entry.begin - end} bytes between {previous} and tensor {entry.name} belong to no tensor")
        end, previous = entry.end, f"tensor {entry.name}"
    if end != size:
        _fail(file, f"{size - end} bytes after {previous} belong to no tensor")
    return Header(file, {entry.name: entry for entry in tensors}, metadata, size, stamp(status))


def _entry(file: Path, name: str, value: Any, data_start: int, size: int) -> TensorEntry:
    if not name.isprintable() or not 0 < len(name) <= 512:
        _fail(file, f"the header has a tensor with the unusable name {name[:80]!r}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _fail(file, f"tensor {name} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _fail(file, f"tensor {name} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        _fail(file, f"tensor {name} has an impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        _fail(file, f"tensor {name} has impossible data_offsets {str(offsets)[:80]}")
    begin, end = data_start + offsets[0], data_start + offsets[1]
    if end < begin or end > size:
        _fail(
            file, f"tensor {name} lies at bytes {begin} to {end}, but the file has {size}; it is truncated or damaged"
        )
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (end - begin) * 8 != bits:
        _fail(file, f"tensor {name} has {end - begin} bytes, but {dtype} {shape} takes {bits / 8:g}")
    if offsets[0] % max(1, DTYPE_BITS[dtype] // 8):
        _fail(file, f"tensor {name} starts at byte {offsets[0]} of the data, which is misaligned for {dtype}")
    return TensorEntry(name, file, dtype, tuple(shape), begin, end)


class _DuplicateKeyError(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _DuplicateKeyError(repr(key))
        out[key] = value
    return out


def _fail(file: Path, message: str) -> NoReturn:
    raise CorruptFileError(f"{file}: {message}")
