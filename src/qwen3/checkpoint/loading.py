"""A checkpoint of any format into the fused parameters of a network; peak memory is its weights and a few chunks."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qwen3.checkpoint.fp8 import fp8_weights
from qwen3.checkpoint.gguf import direct
from qwen3.checkpoint.memory import check_fits, gigabytes
from qwen3.checkpoint.names import fused_name, official_views
from qwen3.checkpoint.packed import Packing, hold, packings
from qwen3.checkpoint.source import Source, open_source
from qwen3.config import ModelConfig
from qwen3.kernels import native

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

    `folder`: that, or the GGUF file. `tied_copy` is True when the file stores `lm_head.weight` although the embeddings
    are tied (it was compared).
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
    pack: str | None = None,
    grouped: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> LoadReport:
    """Fills `model`'s parameters from a checkpoint folder or GGUF file; those on the meta device are allocated now.

    `device`, `dtype`: where and as what; None keeps the parameter's own (for meta parameters: the CPU, their dtype).
    Floating-point tensors of another dtype are converted chunk by chunk. All headers, names and shapes, and whether it
    all fits into memory, are checked before the first allocation, so that a refused checkpoint leaves the model as it
    was. Peak memory is the weights plus a few 4 MB chunks. Where the model holds Fp8Weights, they take over FP8 weights
    as they are and quantize others; where it does not, FP8 weights are dequantized.

    pack: "int4" or "int8" rounds the matrices, "kept" leaves those in few bits as they are, on a CPU where there are
    compiled kernels; both for a network without weights yet (see `packed`). grouped: as a GPU multiplies them. Weights
    in other blocks are widened, with a warning that says what that costs. meanwhile: called once nothing is left to do
    but to read, which holds Python's lock for little of its time.

    Raises what `open_source` raises, and OutOfMemoryError with the numbers.
    """
    started, folder = time.perf_counter(), Path(folder)
    with closing(open_source(folder, model.config)) as source:
        place = _device(device or "cpu") if grouped else None
        kind = None if pack == "kept" else pack
        packed = {} if pack is None else packings(source, model.config, kind, place, dtype or torch.bfloat16)
        if pack == "kept" and packed and not grouped and native.library() is None:
            packed = {}  # they would be multiplied slower than what is widened
        if packed and not grouped:
            dtype = torch.float32  # of the activations, and of what is not packed
        places = _allocate(model, source, device, dtype, packed)
        held = fp8_weights(model)
        jobs = [(source.stored[name], place, held.get(fused_name(name))) for name, place in places.items()]
        with ThreadPoolExecutor(_READERS) as pool:
            work: list[Future[Any]] = [pool.submit(stored.fill, place, weight) for stored, place, weight in jobs]
            tied = pool.submit(source.tied_copy)
            try:
                made, stretches = direct.prepare({} if grouped else packed)
                if made:  # then the rest is little, and would wait for Python's lock beside what begins now
                    wait(work)
                if meanwhile is not None:
                    meanwhile()
                if made and direct.read(stretches):
                    for name, weight in made.items():
                        hold(model, name, weight)
                    packed = {name: packing for name, packing in packed.items() if name not in made}
                work += [pool.submit(_pack, model, name, packing) for name, packing in packed.items()]
                for job in work:
                    job.result()
                tied_copy = tied.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        source.check_unchanged()
    return LoadReport(
        folder=folder,
        files=source.files,
        tensors=source.tensors,
        bytes=source.nbytes,
        seconds=time.perf_counter() - started,
        stored_dtypes=source.kinds,
        dtype=next(iter(places.values())).dtype,
        tied_copy=tied_copy,
    )


def _pack(model: HasConfig, name: str, packing: Packing) -> None:
    hold(model, name, packing.build())


def _allocate(
    model: HasConfig, source: Source, device: str | torch.device | None, dtype: torch.dtype | None,
    packed: Mapping[str, Packing],
) -> dict[str, Tensor]:  # fmt: skip
    """Gives each parameter its memory, but those that are packed; official name → the view that is to be filled, in the
    order of `source`."""
    params, held = dict(model.named_parameters()), fp8_weights(model)
    target = None if device is None else _device(device)

    def must_move(p: Tensor) -> bool:
        return p.is_meta or target not in (None, p.device) or dtype not in (None, p.dtype)

    new = [name for name, p in params.items() if must_move(p) and name not in packed]
    if new:
        first, small = params[new[0]], sum(weight.data.numel() for weight in held.values())
        kind, where = dtype or first.dtype, target or _home(first)
        saved = sum(math.prod(p.shape) * kind.itemsize - p.nbytes for p in packed.values())
        as_it_is = {id(part) for p in packed.values() for row in p.parts for part in row}
        as_it_is |= {id(s) for name, s in source.stored.items() if s.fp8_rows and fused_name(name) in held}
        wide = [s for s in source.stored.values() if s.kind in source.compressed and id(s) not in as_it_is]
        if wide:
            need = sum(math.prod(part.shape) for part in wide) * (1 if small else kind.itemsize)
            kinds = ", ".join(sorted({part.kind for part in wide}))
            stored = f"{gigabytes(sum(part.nbytes for part in wide))} in {kinds}"
            about = f"{source.path} ({stored}), once widened,"
            check_fits(model.config, kind, where, fp8=small, saved=saved, name=about)
            warnings.warn(
                f"{source.path.name}: its {stored} become {gigabytes(need)} in "
                f"{'FP8' if small else str(kind).removeprefix('torch.')}: "
                f"nothing here multiplies them as they are on {where.type}",
                stacklevel=3,
            )
        else:
            check_fits(model.config, kind, where, fp8=small, saved=saved, name=str(source.path))
        for name in new:
            old = params[name]
            fresh = torch.empty(old.shape, dtype=dtype or old.dtype, device=target or _home(old))
            path, _, leaf = name.rpartition(".")
            params[name] = nn.Parameter(fresh, requires_grad=old.requires_grad)
            setattr(model.get_submodule(path), leaf, params[name])
    for weight in held.values():
        if weight.data.is_meta or target not in (None, weight.device):
            weight.to_empty(device=target or _home(weight.data))
    views = official_views(model.config, params | {name: weight.data for name, weight in held.items()})
    return {name: views[name] for name in source.stored if fused_name(name) not in packed}


def _home(parameter: Tensor) -> torch.device:
    return torch.device("cpu") if parameter.is_meta else parameter.device


def _device(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
