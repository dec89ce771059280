"""Writing a checkpoint folder in the published layout: official names, safetensors shards, index, config, manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qwen3.checkpoint.folder import INDEX, MANIFEST, SINGLE, read_manifest
from qwen3.checkpoint.fp8 import fp8_weights
from qwen3.checkpoint.journal import JOURNAL, commit, staging
from qwen3.checkpoint.loading import HasConfig
from qwen3.checkpoint.names import official_views
from qwen3.checkpoint.safetensors_io import CHUNK_BYTES, byte_view
from qwen3.checkpoint.values import count_nan_inf
from qwen3.config import DTYPE_BYTES
from qwen3.errors import CorruptFileError, Qwen3Error, UsageError
from qwen3.kernels.fp8 import FP8

_DTYPE_NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", FP8: "F8_E4M3",
    torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32", torch.uint32: "U32", torch.int64: "I64",
}  # fmt: skip
_WEIGHTS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)  # of a model that is not quantized


class SavesItself(Protocol):
    """A tokenizer, as far as this module cares."""

    def save(self, folder: Path) -> Any: ...


@dataclass(frozen=True)
class SaveReport:
    """`files` maps each file written to (bytes, sha256 in hex); `tensors` counts official tensors."""

    folder: Path
    files: dict[str, tuple[int, str]]
    tensors: int


def save_checkpoint(
    folder: str | Path,
    model: HasConfig,
    *,
    tokenizer: SavesItself | None = None,
    generation_config: Mapping[str, Any] | None = None,
    max_shard_bytes: float = 5e9,
    extra_files: Mapping[str, str | bytes] | None = None,
) -> SaveReport:
    """Writes `model` as an official Qwen3 checkpoint that transformers and this package load.

    Files: `model.safetensors`, or shards of at most `max_shard_bytes` with their index; `config.json` with the dtype
    the weights have; `generation_config.json` and the tokenizer's files when given; `extra_files` (name → content);
    last `qwen3.manifest.json` with every file's size and sha256. The weights are streamed, never copied as a whole.
    A kill at any point leaves the old folder or the new one. Same weights, same bytes.

    Raises CorruptFileError naming a tensor that has NaN or infinite values (nothing is written then), UsageError for
    wrong arguments or weights in FP8 or few bits, Qwen3Error when the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder to save into")
    if not max_shard_bytes >= 1:
        raise UsageError(f"max_shard_bytes is {max_shard_bytes}; it must be at least 1")
    if fp8_weights(model):
        raise UsageError(f"{folder}: a model with FP8 weights cannot be saved yet; load it without quantization")
    if any(hasattr(module, "held") for _, module in model.named_modules()):
        raise UsageError(f"{folder}: a model with weights in few bits cannot be saved; load it with a dtype")
    views = official_views(model.config, dict(model.named_parameters()))
    for name, view in views.items():
        if view.is_meta or view.dtype not in _WEIGHTS:
            raise UsageError(f"{name} has {'no values' if view.is_meta else f'dtype {view.dtype}'}; it cannot be saved")
    shards = plan_shards(views, max_shard_bytes)
    total = sum(view.nbytes for view in views.values())
    texts = _text_files(model, shards, total, generation_config, extra_files or {})

    with staging(folder) as stage:
        free = shutil.disk_usage(folder).free
        if total > free:
            raise Qwen3Error(f"{folder}: the weights take {total:,} bytes but the disk has {free:,} free")
        written: dict[str, tuple[int, str]] = {}
        for file_name, names in shards.items():
            written[file_name] = write_shard(stage / file_name, {name: views[name] for name in names})
        if tokenizer is not None:
            tokenizer.save(stage)
            for path in sorted(stage.iterdir()):
                if path.name not in written:
                    if path.name in texts:
                        raise UsageError(f"extra_files[{path.name!r}] is also written by the tokenizer; remove one")
                    written[path.name] = measure(path)
        for file_name, content in texts.items():
            (stage / file_name).write_bytes(content)
            written[file_name] = measure(stage / file_name)
        put_in_place(folder, stage, written)
    return SaveReport(folder, written, len(views))


def put_in_place(folder: Path, stage: Path, written: Mapping[str, tuple[int, str]], about: Any = None) -> None:
    """Writes the manifest and moves the files of `stage`, (bytes, sha256) by name, to where a checkpoint was. about:
    how they were made, JSON."""
    files = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(written.items())}
    manifest = {"format": "qwen3 checkpoint 1", "files": files} | ({} if about is None else {"made": about})
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    # config.json makes a folder a model and the manifest vouches for it: these two come last
    order = [name for name in written if name != "config.json"] + ["config.json", MANIFEST]
    commit(folder, stage, order=order, remove=[name for name in _old_files(folder) if name not in order])


def plan_shards(views: Mapping[str, Tensor], max_shard_bytes: float) -> dict[str, list[str]]:
    """File name → tensor names, filled greedily in name order as transformers does; tensors may be on "meta"."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, view in views.items():
        size = view.nbytes
        if groups[-1] and used + size > max_shard_bytes:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": names for i, names in enumerate(groups, 1)}


def _text_files(
    model: HasConfig,
    shards: dict[str, list[str]],
    total: int,
    generation_config: Mapping[str, Any] | None,
    extra_files: Mapping[str, str | bytes],
) -> dict[str, bytes]:
    dtype = str(dict(model.named_parameters())["embed_tokens.weight"].dtype).removeprefix("torch.")
    if dtype not in DTYPE_BYTES:
        raise UsageError(f"config.json cannot say that weights are {dtype}; convert them to {' or '.join(DTYPE_BYTES)}")
    config = replace(model.config, dtype=dtype, quantization_config=None)
    texts = {"config.json": _json(config.to_dict())}
    if generation_config is not None:
        texts["generation_config.json"] = _json(dict(generation_config))
    if len(shards) > 1:
        texts[INDEX] = index_text(shards, total)
    taken = {*texts, *shards, MANIFEST, JOURNAL, SINGLE, INDEX}
    for name, content in extra_files.items():
        if not name or Path(name).name != name or name.startswith(".") or name in taken:
            raise UsageError(f"extra_files: {name!r} must be a plain file name that the checkpoint does not use itself")
        texts[name] = content if isinstance(content, bytes) else content.encode()
    return texts


def index_text(shards: Mapping[str, list[str]], total: int) -> bytes:
    """The file beside several shards; total: bytes of all tensors."""
    weight_map = {name: file_name for file_name, names in shards.items() for name in names}
    return _json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_shard(path: Path, views: dict[str, Tensor]) -> tuple[int, str]:
    """Writes one safetensors file as the safetensors library lays it out; (bytes, sha256)."""
    header, ordered = shard_header(views)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        pieces: Iterator[bytes | memoryview] = chain([header], *(blocks(name, views[name]) for name in ordered))
        for block in pieces:
            file.write(block)
            digest.update(block)
        return file.tell(), digest.hexdigest()


def shard_header(views: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """(what such a file begins with, name → the byte at which each tensor begins, in that order)."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    ordered = sorted(views.items(), key=lambda item: (-item[1].element_size(), _DTYPE_NAMES[item[1].dtype], item[0]))
    for name, view in ordered:
        end = position + view.nbytes
        table[name] = {"dtype": _DTYPE_NAMES[view.dtype], "shape": list(view.shape), "data_offsets": [position, end]}
        position = end
    header = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    first = 8 + len(header)
    return len(header).to_bytes(8, "little") + header, {
        name: first + table[name]["data_offsets"][0] for name, _ in ordered
    }


def blocks(name: str, view: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes, CorruptFileError for values that are not finite."""
    flat = view.reshape(-1)
    step = CHUNK_BYTES // view.element_size()
    bad, parts = 0, range(0, len(flat), step)
    for start in parts:
        chunk = flat[start : start + step].cpu()
        bad += sum(count_nan_inf(chunk)) if chunk.is_floating_point() else 0
        if bad:
            bad += sum(sum(count_nan_inf(flat[later : later + step])) for later in parts if later > start)
            raise CorruptFileError(f"not saved: {name} has {bad} NaN or infinite values out of {len(flat)}")
        yield byte_view(chunk.contiguous())


def measure(path: Path) -> tuple[int, str]:
    """(bytes, sha256 in hex)."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _old_files(folder: Path) -> set[str]:
    """Files of the checkpoint being replaced: what its manifest lists, and any weights under the official names."""
    try:
        old = set(read_manifest(folder) or {})
    except CorruptFileError:
        old = set()
    patterns = (SINGLE, INDEX, "model-*-of-*.safetensors", MANIFEST)
    return old | {path.name for pattern in patterns for path in folder.glob(pattern)}
