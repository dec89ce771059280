"""Reading official safetensors checkpoints straight into the fused parameters.

Every byte goes from the file into its final place by `pread` (through a chunk buffer only where the dtype or the device
differs), so loading peaks at the size of the weights. Nothing is mapped: a file that shrinks is an error, not SIGBUS.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qwen3.checkpoint.folder import Fp8Format, read_headers, stored_format
from qwen3.checkpoint.fp8 import SCALE, convert, fp8_names, fp8_weights, scale_shape, scales_of
from qwen3.checkpoint.header import Header, TensorEntry, stamp
from qwen3.checkpoint.journal import finish_interrupted_save
from qwen3.checkpoint.memory import check_fits
from qwen3.checkpoint.names import EMBED, HEAD, fused_name, official_views
from qwen3.config import ModelConfig
from qwen3.errors import CorruptFileError
from qwen3.kernels.fp8 import FP8, Fp8Weight

_PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
TORCH_DTYPES = {**_PLAIN, "F8_E4M3": FP8}
CHUNK_BYTES = 4 << 20
# several reads in flight fill a fast disk; each thread holds at most one chunk
_READERS = min(4, os.cpu_count() or 1)


class HasConfig(Protocol):
    """A model this module can fill: parameters named as `names.fused_shapes` says, and its configuration."""

    config: ModelConfig

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

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
    was. Peak memory is the weights plus a few 4 MB chunks. Where the model holds Fp8Weights, they take over FP8 weights
    as they are and quantize others; where it does not, FP8 weights are dequantized.

    Raises CorruptFileError listing every missing, extra, misshapen or non-float tensor; ConfigError for checkpoints in
    another quantization; UnsafeFileError, ModelNotFoundError as `find_weight_files`; OutOfMemoryError with the numbers.
    """
    started, folder = time.perf_counter(), Path(folder)
    if folder.suffix == ".gguf":
        raise CorruptFileError(f"{folder} is a GGUF file, which this release does not read yet; use safetensors")
    finish_interrupted_save(folder)
    stored = stored_format(folder)
    headers = read_headers(folder)
    entries = official_entries(headers, model.config)
    params, held = dict(model.named_parameters()), fp8_weights(model)

    def all_views() -> dict[str, Tensor]:
        return official_views(model.config, params | {name: weight.data for name, weight in held.items()})

    views = all_views()
    check_complete(folder, entries, {name: tuple(view.shape) for name, view in views.items()}, model.config, stored)

    target = None if device is None else _device(device)

    def must_move(p: Tensor) -> bool:
        return p.is_meta or target not in (None, p.device) or dtype not in (None, p.dtype)

    new = [name for name, p in params.items() if must_move(p)]
    if new:
        first, small = params[new[0]], sum(weight.data.numel() for weight in held.values())
        check_fits(model.config, dtype or first.dtype, target or _home(first), fp8=small, name=str(folder))
        for name in new:
            old = params[name]
            fresh = torch.empty(old.shape, dtype=dtype or old.dtype, device=target or _home(old))
            path, _, leaf = name.rpartition(".")
            params[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)
            setattr(model.get_submodule(path), leaf, params[name])
    for weight in held.values():
        if weight.data.is_meta or target not in (None, weight.device):
            weight.to_empty(device=target or _home(weight.data))
    views = all_views()

    with ExitStack() as stack:
        files = {header.file: stack.enter_context(header.file.open("rb")).fileno() for header in headers}
        jobs = sorted((entries[name].file, entries[name].begin, name) for name in views)
        with ThreadPoolExecutor(_READERS) as pool:
            weights = {name: held.get(fused_name(name)) for name in views}
            work = [pool.submit(_load, files, entries, name, views[name], weights[name]) for _, _, name in jobs]
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


def official_entries(headers: Sequence[Header], config: ModelConfig) -> dict[str, TensorEntry]:
    """Official name → tensor of a checkpoint. Qwen3-Embedding's files leave out "model." and the head: there the
    embedding stands for it."""
    entries = {name: entry for header in headers for name, entry in header.tensors.items()}
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
) -> None:
    """Compares a checkpoint's tensors with `wanted` (official name → shape); CorruptFileError lists all differences.

    stored: what config.json says of FP8 weights; their scales are wanted then too.
    """
    in_fp8 = set() if stored is None else fp8_names(config, stored)
    wanted_here = dict(wanted)
    if stored is not None:
        wanted_here |= {name + SCALE: scale_shape(wanted[name], stored) for name in sorted(in_fp8)}
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
        allowed = ("F8_E4M3",) if name in in_fp8 else tuple(_PLAIN)
        if entry.dtype not in allowed:
            problems.append(f"{name} is stored as {entry.dtype}, but it must be {', '.join(allowed)}")
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


def _load(
    files: dict[Path, int], entries: dict[str, TensorEntry], name: str, view: Tensor, weight: Fp8Weight | None
) -> None:
    """One official tensor, with its scales if it has any, into its place; `weight`: whose data that is part of."""
    entry, scale_entry = entries[name], entries.get(name + SCALE)
    fd = files[entry.file]
    if weight is None and scale_entry is None:
        _fill(fd, entry, view)
    elif weight is not None and scale_entry is not None and weight.block == 128:
        _fill(fd, entry, view)
        _fill(files[scale_entry.file], scale_entry, scales_of(weight, view))
    else:
        scale = None
        if scale_entry is not None:
            scale = torch.empty(scale_entry.shape, dtype=torch.float32, device="cpu")
            _fill(files[scale_entry.file], scale_entry, scale)
        bytes_of_rows = 128 * view.shape[1] * TORCH_DTYPES[entry.dtype].itemsize
        convert(read_chunks(fd, entry, max(1, CHUNK_BYTES // bytes_of_rows) * bytes_of_rows), scale, view, weight)


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
