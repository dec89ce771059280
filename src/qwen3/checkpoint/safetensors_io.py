"""Reading official safetensors checkpoints straight into the fused parameters.

Every byte goes from the file into its final place by `pread` (through a chunk buffer only where the dtype or the device
differs), so loading peaks at the size of the weights. Nothing is mapped: a file that shrinks is an error, not SIGBUS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qwen3.checkpoint.folder import check_not_quantized, read_headers
from qwen3.checkpoint.header import TensorEntry, stamp
from qwen3.checkpoint.journal import finish_interrupted_save
from qwen3.checkpoint.memory import check_fits
from qwen3.checkpoint.names import EMBED, HEAD, official_views
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
CHUNK_BYTES = 4 << 20
# several reads in flight fill a fast disk; each thread holds at most one chunk
_READERS = min(4, os.cpu_count() or 1)


class HasConfig(Protocol):
    """A model this module can fill: parameters named as `names.fused_shapes` says, and its configuration."""

    config: ModelConfig

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def get_submodule(self, target: str) -> nn.Module: ...


@dataclass(frozen=True)
class LoadReport:
    """What was read: files in order, number of tensors, their bytes on disk, seconds, dtypes on disk and in memory.

    `tied_copy` is True when the file stores `lm_head.weight` although the embeddings are tied (it was compared).
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: int
    bytes: int
    seconds: float
    stored_dtypes: tuple[str, ...]
    dtype: torch.dtype
    tied_copy: bool


def load_weights(
    model: HasConfig,
    folder: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> LoadReport:
    """Fills `model`'s parameters from the checkpoint folder; those on the meta device are allocated now.

    `device`, `dtype`: where and as what; None keeps the parameter's own (for meta parameters: the CPU, their dtype).
    Floating-point tensors of another dtype are converted chunk by chunk. All headers, names and shapes, and whether it
    all fits into memory, are checked before the first allocation, so that a refused checkpoint leaves the model as it
    was. Peak memory is the weights plus a few 4 MB chunks.

    Raises CorruptFileError listing every missing, extra, misshapen or non-float tensor; ConfigError for a quantized
    checkpoint; UnsafeFileError, ModelNotFoundError as `find_weight_files`; OutOfMemoryError with the numbers.
    """
    started, folder = time.perf_counter(), Path(folder)
    if folder.suffix == ".gguf":
        raise CorruptFileError(f"{folder} is a GGUF file, which this release does not read yet; use safetensors")
    finish_interrupted_save(folder)
    check_not_quantized(folder)
    headers = read_headers(folder)
    entries = {name: entry for header in headers for name, entry in header.tensors.items()}
    params = dict(model.named_parameters())
    views = official_views(model.config, params)
    check_complete(folder, entries, {name: tuple(view.shape) for name, view in views.items()}, model.config)

    target = None if device is None else _device(device)

    def must_move(p: Tensor) -> bool:
        return p.is_meta or target not in (None, p.device) or dtype not in (None, p.dtype)

    new = [name for name, p in params.items() if must_move(p)]
    if new:
        first = params[new[0]]
        check_fits(model.config, dtype or first.dtype, target or _home(first), name=str(folder))
        for name in new:
            old = params[name]
            fresh = torch.empty(old.shape, dtype=dtype or old.dtype, device=target or _home(old))
            path, _, leaf = name.rpartition(".")
            params[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)
            setattr(model.get_submodule(path), leaf, params[name])
        views = official_views(model.config, params)

    with ExitStack() as stack:
        files = {header.file: stack.enter_context(header.file.open("rb")).fileno() for header in headers}
        jobs = sorted((entries[name].file, entries[name].begin, name) for name in views)
        with ThreadPoolExecutor(_READERS) as pool:
            work = [pool.submit(_fill, files[file], entries[name], views[name]) for file, _, name in jobs]
            tied = pool.submit(check_tied_copy, entries, model.config)
            try:
                for job in work:
                    job.result()
                tied_copy = tied.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        for header in headers:
            if not header.stamp == stamp(os.fstat(files[header.file])) == stamp(header.file.stat()):
                raise CorruptFileError(f"{header.file} was replaced or written to while it was read; load it again")
    return LoadReport(
        folder=folder,
        files=tuple(files),
        tensors=len(entries),
        bytes=sum(entry.end - entry.begin for entry in entries.values()),
        seconds=time.perf_counter() - started,
        stored_dtypes=tuple(sorted({entry.dtype for entry in entries.values()})),
        dtype=next(iter(views.values())).dtype,
        tied_copy=tied_copy,
    )


def check_complete(
    folder: Path, entries: dict[str, TensorEntry], wanted: dict[str, tuple[int, ...]], config: ModelConfig
) -> None:
    """Compares a checkpoint's tensors with `wanted` (official name → shape); CorruptFileError lists all differences."""
    wanted_here = dict(wanted)
    if config.tie_word_embeddings and HEAD in entries:
        wanted_here[HEAD] = wanted[EMBED]  # the official 0.6B stores a copy
    problems = [f"missing {name} {list(shape)}" for name, shape in wanted_here.items() if name not in entries]
    problems += [f"unexpected {name} {list(entries[name].shape)}" for name in entries if name not in wanted_here]
    for name, shape in wanted_here.items():
        entry = entries.get(name)
        if entry is None:
            continue
        if entry.shape != shape:
            problems.append(f"{name} has shape {list(entry.shape)} instead of {list(shape)}")
        if entry.dtype not in TORCH_DTYPES:
            problems.append(f"{name} is stored as {entry.dtype}, but weights must be {', '.join(TORCH_DTYPES)}")
    if problems:
        raise CorruptFileError(f"{folder}: the weights do not match config.json: {'; '.join(problems)}")


def read_chunks(fd: int, entry: TensorEntry, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """A tensor's elements as flat CPU tensors in its stored dtype; each is valid until the next one is asked for."""
    buffer = torch.empty(min(chunk_bytes, max(1, entry.end - entry.begin)), dtype=torch.uint8)
    position = entry.begin
    while position < entry.end:
        part = buffer[: min(len(buffer), entry.end - position)]
        _read_into(fd, part, position, entry)
        yield part.view(TORCH_DTYPES[entry.dtype])
        position += len(part)


def _fill(fd: int, entry: TensorEntry, view: Tensor) -> None:
    flat = view.view(-1)
    if view.device.type == "cpu" and view.dtype == TORCH_DTYPES[entry.dtype]:
        _read_into(fd, flat, entry.begin, entry)
        return
    done = 0
    for chunk in read_chunks(fd, entry):
        flat[done : done + len(chunk)].copy_(chunk)
        done += len(chunk)


def _read_into(fd: int, target: Tensor, position: int, entry: TensorEntry) -> None:
    memory = byte_view(target)
    while memory:
        try:
            count = os.preadv(fd, [memory], position)
        except OSError as error:
            raise CorruptFileError(f"{entry.file}: tensor {entry.name} cannot be read ({error.strerror})") from None
        if count == 0:
            raise CorruptFileError(f"{entry.file}: tensor {entry.name} ends at byte {position}; the file was truncated")
        memory, position = memory[count:], position + count


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor as bytes, writable."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


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


def _home(parameter: Tensor) -> torch.device:
    return torch.device("cpu") if parameter.is_meta else parameter.device


def _device(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
