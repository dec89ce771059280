"""Safetensors checkpoints as a `Source`: official ones, FP8, and those of other tools (`formats`).

Every byte goes from the file into its final place by `pread` (through a chunk buffer only where the dtype or the device
differs). Nothing is mapped: a file that shrinks is an error, not SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from qwen3.checkpoint.folder import Fp8Format, read_headers, stored_format
from qwen3.checkpoint.formats.detect import find_layout
from qwen3.checkpoint.formats.layout import Layout, Piece, find_quantized
from qwen3.checkpoint.formats.stacked import unstack
from qwen3.checkpoint.fp8 import SCALE, convert, fp8_names, scale_shape, scales_of
from qwen3.checkpoint.header import Header, TensorEntry, stamp
from qwen3.checkpoint.journal import finish_interrupted_save
from qwen3.checkpoint.names import EMBED, HEAD, official_shapes
from qwen3.checkpoint.source import Stored, byte_view, read_into
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError
from qwen3.kernels.fp8 import FP8, Fp8Weight

_PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
TORCH_DTYPES = {**_PLAIN, "F8_E4M3": FP8}
CHUNK_BYTES = 4 << 20


class SafetensorsTensor(Stored):
    """One official tensor, with its scales where it is FP8."""

    def __init__(self, entry: TensorEntry, fd: int, scale: tuple[TensorEntry, int] | None) -> None:
        self.entry, self.fd, self.scale = entry, fd, scale
        self.shape, self.kind = entry.shape, entry.dtype
        self.nbytes = entry.end - entry.begin + (scale[0].end - scale[0].begin if scale else 0)

    def read(self, rows: slice, dtype: torch.dtype) -> Tensor:
        first, last, step = rows.indices(self.shape[0])
        assert step == 1, "rows that follow each other"
        last = max(first, last)
        aligned = first // 128 * 128 if self.scale is not None else first
        out = torch.empty(last - aligned, *self.shape[1:], dtype=TORCH_DTYPES[self.entry.dtype], device="cpu")
        row = (self.entry.end - self.entry.begin) // self.shape[0]
        read_into(self.fd, out, self.entry.begin + aligned * row, self.entry.file, self.entry.name)
        if self.scale is None:
            return out.to(dtype)
        scale = self._scales()[aligned // 128 : -(-last // 128)]
        return Fp8Weight(out, scale, 128).dequantize(dtype)[first - aligned :]

    def fill(self, place: Tensor, weight: Fp8Weight | None = None) -> None:
        """As they are wherever that is possible, straight into their place."""
        if weight is None and self.scale is None:
            _fill(self.fd, self.entry, place)
        elif weight is not None and self.scale is not None and weight.block == 128:
            _fill(self.fd, self.entry, place)
            _fill(self.scale[1], self.scale[0], scales_of(weight, place))
        else:
            bytes_of_rows = 128 * place.shape[1] * TORCH_DTYPES[self.entry.dtype].itemsize
            step = max(1, CHUNK_BYTES // bytes_of_rows) * bytes_of_rows
            convert(read_chunks(self.fd, self.entry, step), self._scales() if self.scale else None, place, weight)

    def _scales(self) -> Tensor:
        assert self.scale is not None
        out = torch.empty(self.scale[0].shape, dtype=torch.float32, device="cpu")
        _fill(self.scale[1], self.scale[0], out)
        return out


class SafetensorsSource:
    """The weights of a folder as a `Source`; see `open_source` for what it raises."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        finish_interrupted_save(folder)
        stored, layout = stored_format(folder), find_layout(folder)
        self.path, self.config, self.headers = folder, config, read_headers(folder)
        everything = official_entries(self.headers, config)  # which refuses a configuration out of all proportion
        shapes = official_shapes(config)
        self.entries, quantized = check_complete(folder, everything, shapes, config, stored, layout)
        with ExitStack() as stack:
            self._fds = {h.file: stack.enter_context(h.file.open("rb")).fileno() for h in self.headers}
            self._open = stack.pop_all()
        self.files = tuple(self._fds)
        first = {name: min((e.file, e.begin) for e in parts.values()) for name, parts in quantized.items()}
        first |= {name: (entry.file, entry.begin) for name, entry in self.entries.items()}
        self.stored: dict[str, Stored] = {}
        try:
            for name in sorted(shapes, key=first.__getitem__):
                if name in quantized and layout is not None:
                    pieces = {suffix: Piece(e, self._fds[e.file]) for suffix, e in quantized[name].items()}
                    self.stored[name] = layout.tensor(name.removesuffix(".weight"), shapes[name], pieces)
                else:
                    self.stored[name] = self._tensor(name)
        except BaseException:
            self._open.close()
            raise
        # FP8 as Qwen publishes it has kernels, and a warning of its own where it has not
        self.compressed = tuple(sorted({self.stored[name].kind for name in quantized}))
        self.kinds = tuple(sorted({entry.dtype for entry in self.entries.values()}.union(self.compressed)))
        self.tensors = sum(len(header.tensors) for header in self.headers)
        self.nbytes = sum(entry.end - entry.begin for header in self.headers for entry in header.tensors.values())

    def _tensor(self, name: str) -> SafetensorsTensor:
        entry, scale = self.entries[name], self.entries.get(name + SCALE)
        found = None if scale is None else (scale, self._fds[scale.file])
        return SafetensorsTensor(entry, self._fds[entry.file], found)

    def tied_copy(self) -> bool:
        return check_tied_copy(self.entries, self.config)

    def check_unchanged(self) -> None:
        for header in self.headers:
            if not header.stamp == stamp(os.fstat(self._fds[header.file])) == stamp(header.file.stat()):
                raise CorruptFileError(f"{header.file} was replaced or written to while it was read; load it again")

    def close(self) -> None:
        self._open.close()


def official_entries(headers: Sequence[Header], config: ModelConfig) -> dict[str, TensorEntry]:
    """Official name → tensor of a checkpoint. Qwen3-Embedding's files leave out "model." and the head: there the
    embedding stands for it. Raises CorruptFileError for far too few, before anything is done for each expert."""
    entries = {name: entry for header in headers for name, entry in header.tensors.items()}
    if config.num_experts > len(entries):
        where = headers[0].file.parent
        raise CorruptFileError(f"{where}: num_experts is {config.num_experts}, but there are {len(entries)} tensors")
    if config.is_moe:
        entries = unstack(entries, config.num_experts)
    if EMBED in entries or EMBED.removeprefix("model.") not in entries:
        return entries
    found = {name if name == HEAD else f"model.{name}": entry for name, entry in entries.items()}
    return found if config.tie_word_embeddings else {HEAD: found[EMBED], **found}


def check_complete(
    folder: Path,
    entries: dict[str, TensorEntry],
    wanted: dict[str, tuple[int, ...]],
    config: ModelConfig,
    stored: Fp8Format | None = None,
    layout: Layout | None = None,
) -> tuple[dict[str, TensorEntry], dict[str, dict[str, TensorEntry]]]:
    """Compares a checkpoint's tensors with `wanted` (official name → shape); CorruptFileError lists all differences.

    stored: what config.json says of FP8 weights; their scales are wanted then too. layout: or of another format; what
    stands for its matrices is the second that is returned (see `find_quantized`), the first all other tensors.
    """
    quantized: dict[str, dict[str, TensorEntry]] = {}
    if layout is not None:
        quantized, entries = find_quantized(folder, layout, entries, wanted)
        wanted = {name: shape for name, shape in wanted.items() if name not in quantized}
    in_fp8 = set() if stored is None else fp8_names(config, stored)
    wanted_here = dict(wanted)
    if stored is not None:
        wanted_here |= {name + SCALE: scale_shape(wanted[name], stored) for name in sorted(in_fp8)}
    if config.tie_word_embeddings and HEAD in entries and EMBED in wanted:
        wanted_here[HEAD] = wanted[EMBED]  # the official 0.6B stores a copy
    problems = [f"missing {name} {list(shape)}" for name, shape in wanted_here.items() if name not in entries]
    problems += [f"unexpected {name} {list(entries[name].shape)}" for name in entries if name not in wanted_here]
    for name, shape in wanted_here.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if entry.shape != shape:
            problems.append(f"{name} has shape {list(entry.shape)} instead of {list(shape)}")
        allowed = ("F8_E4M3",) if name in in_fp8 else tuple(_PLAIN)
        if entry.dtype not in allowed:
            problems.append(f"{name} is stored as {entry.dtype}, but it must be {', '.join(allowed)}")
    if problems:
        raise CorruptFileError(f"{folder}: the weights do not match config.json: {'; '.join(problems)}")
    return entries, quantized


def read_chunks(fd: int, entry: TensorEntry, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """A tensor's elements as flat CPU tensors in its stored dtype; each is valid until the next one is asked for."""
    buffer = torch.empty(min(chunk_bytes, max(1, entry.end - entry.begin)), dtype=torch.uint8)
    position = entry.begin
    while position < entry.end:
        part = buffer[: min(len(buffer), entry.end - position)]
        read_into(fd, part, position, entry.file, entry.name)
        yield part.view(TORCH_DTYPES[entry.dtype])
        position += len(part)


def _fill(fd: int, entry: TensorEntry, view: Tensor) -> None:
    flat = view.view(-1)
    if view.device.type == "cpu" and view.dtype == TORCH_DTYPES[entry.dtype]:
        read_into(fd, flat, entry.begin, entry.file, entry.name)
        return
    done = 0
    for chunk in read_chunks(fd, entry):
        flat[done : done + len(chunk)].copy_(chunk)
        done += len(chunk)


def check_tied_copy(entries: dict[str, TensorEntry], config: ModelConfig) -> bool:
    """Whether a tied model's files store the head as well; CorruptFileError if that copy is not the embedding.

    Comparing bytes in chunks costs one more read of the two: 0.2 s for the official 0.6B.
    """
    if not config.tie_word_embeddings or HEAD not in entries:
        return False
    embed, head = entries[EMBED], entries[HEAD]
    with embed.file.open("rb") as a, head.file.open("rb") as b:
        pairs = zip(read_chunks(a.fileno(), embed), read_chunks(b.fileno(), head), strict=True)
        same = embed.dtype == head.dtype and all(byte_view(x) == byte_view(y) for x, y in pairs)
    if not same:
        raise CorruptFileError(
            f"{head.file}: {HEAD} differs from {EMBED}, but config.json has tie_word_embeddings true; "
            "one of the two is wrong (an untied model needs tie_word_embeddings false)"
        )
    return True
