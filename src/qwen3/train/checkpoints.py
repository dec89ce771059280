"""Checkpoints of a training run: written while training goes on, whole or not at all, checked before they are used.

A folder `step-00000120` holds `state.safetensors` (masters, moments, generators of random numbers), `state.json` (step,
position in the data, anything JSON) and, written last, `manifest.json` with the size and SHA-256 of both. It is made
under another name and renamed when all of it is on the disk: a kill at any point leaves the checkpoints before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qwen3.checkpoint.journal import fsync, write_atomic
from qwen3.checkpoint.safetensors_io import byte_view
from qwen3.errors import CorruptFileError, Qwen3Error

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", "state.safetensors"
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}
_CHUNK = 16 << 20


class Checkpoints:
    """The newest `keep` checkpoints of one folder. One is written at a time, by a thread of its own."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder
        self.keep = keep
        self._copy: dict[str, Tensor] = {}  # of the tensors, on the CPU, used again by every save
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        """Copy the tensors (on a GPU: begin to) and write the copy while the caller goes on changing them.

        state, config: JSON. Waits for the save before this one, and raises what that one met: Qwen3Error for a disk
        that is full or a folder that cannot be written.
        """
        self.finish()
        done = self._snapshot(tensors)
        # State is turned to text now: the caller may go on changing what it holds.
        text = json.dumps({"step": step, "state": state, "config": config}, sort_keys=True)
        self._thread = threading.Thread(target=self._write, args=(step, text, done), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait for the save that is under way; raises what it met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if isinstance(error, OSError):
                raise Qwen3Error(f"{self.folder}: the checkpoint could not be written ({error.strerror})") from error
            raise error

    def load(self, config: Mapping[str, Any] | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """(tensors, state) of the newest checkpoint that is whole; None where there is none at all. A damaged one is
        passed over with a warning. Raises CorruptFileError when all are damaged, and for a checkpoint whose config
        differs, naming the field (None: any config will do)."""
        self.finish()
        folders = self.folders()
        for folder in reversed(folders):
            try:
                text, tensors = _read(folder)
            except CorruptFileError as error:
                warnings.warn(f"{error}; going back to the checkpoint before it", stacklevel=3)
                continue
            if config is not None:
                _compare(folder, text["config"], json.loads(json.dumps(config)))
            return tensors, text["state"]
        if folders:
            raise CorruptFileError(
                f"{self.folder}: all {len(folders)} checkpoints are damaged; delete them to begin anew"
            )
        return None

    def folders(self) -> list[Path]:
        """The checkpoints that were finished, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def _snapshot(self, tensors: Mapping[str, Tensor]) -> torch.cuda.Event | None:
        """Copies into `_copy`; returns when that is done, for copies from a GPU."""
        mine = {name: (t.shape, t.dtype) for name, t in self._copy.items()}
        if mine != {name: (t.shape, t.dtype) for name, t in tensors.items()}:
            self._copy = {
                name: torch.empty(t.shape, dtype=t.dtype, device="cpu", pin_memory=t.is_cuda)
                for name, t in tensors.items()
            }
        for name, tensor in tensors.items():
            self._copy[name].copy_(tensor, non_blocking=True)
        if not any(t.is_cuda for t in tensors.values()):
            return None
        done = torch.cuda.Event()
        done.record()
        return done

    def _write(self, step: int, text: str, done: torch.cuda.Event | None) -> None:
        try:
            if done is not None:
                done.synchronize()
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".step-*"):  # of a killed run
                shutil.rmtree(left, ignore_errors=True)
            stage = self.folder / f".step-{step:08d}"
            stage.mkdir()
            files = {TENSORS: _write_file(stage / TENSORS, _safetensors(self._copy))}
            files[STATE] = _write_file(stage / STATE, iter([text.encode()]))
            manifest = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}
            _write_file(stage / MANIFEST, iter([json.dumps(manifest).encode()]))
            fsync(stage)
            os.replace(stage, self._free_name(step))
            fsync(self.folder)
            for old in self.folders()[: -self.keep]:
                shutil.rmtree(old, ignore_errors=True)
        except BaseException as error:
            self._error = error

    def _free_name(self, step: int) -> Path:
        """A step that is saved again, after going back, comes after the one that is there."""
        name, again = self.folder / f"step-{step:08d}", 0
        while name.exists():
            again += 1
            name = self.folder / f"step-{step:08d}-{again:03d}"
        return name


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file in pieces: length of the header, the header, the tensors' bytes."""
    header, at = {}, 0
    for name, t in tensors.items():
        size = t.numel() * t.element_size()
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for t in tensors.values():
        view = byte_view(t)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def _write_file(path: Path, parts: Iterator[bytes | memoryview]) -> tuple[int, str]:
    """Writes and waits for the disk; returns (bytes, SHA-256)."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Raises CorruptFileError for anything that is not as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name in (TENSORS, STATE):
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != manifest[name]["sha256"]:
                raise CorruptFileError(f"{folder / name}: its SHA-256 is not the manifest's")
        return json.loads((folder / STATE).read_text()), load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptFileError(f"{folder}: no whole checkpoint ({type(error).__name__}: {error})") from None


def _compare(folder: Path, stored: Any, mine: Any, where: str = "") -> None:
    """CorruptFileError naming the first field in which two configs differ."""
    if isinstance(stored, dict) and isinstance(mine, dict):
        for key in sorted(stored.keys() | mine.keys()):
            _compare(folder, stored.get(key), mine.get(key), f"{where}.{key}" if where else key)
    elif stored != mine:
        raise CorruptFileError(
            f"{folder}: this checkpoint is of another run: {where} was {stored!r}, now it is {mine!r}; "
            "set it back, or give another folder"
        )


def random_state(device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(JSON, tensors) of all generators: Python's, numpy's, torch's on the CPU and on the device."""
    kind, keys, at, has_gauss, gauss = np.random.get_state(legacy=True)
    numbers = {"python": random.getstate(), "numpy": [kind, [int(k) for k in keys], at, has_gauss, gauss]}
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return numbers, tensors


def restore_random(device: torch.device, numbers: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """The inverse. A checkpoint of another kind of device leaves this device's generator as it is."""
    version, keys, gauss = numbers["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, at, has_gauss, spare = numbers["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), at, has_gauss, spare))
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def rewind(log: Path, updates: int, stage: str | None = None) -> None:
    """Drop the lines of a JSONL log whose "update" is above `updates`, of this "stage" where one is given, and a last
    line that was cut off: a resumed run writes them again. Replaced atomically; a log that is not there is left so."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            fields = json.loads(line)
            if fields.get("update", 0) <= updates or fields.get("stage") != (stage or fields.get("stage")):
                kept.append(line + "\n")
    write_atomic(log, (line.encode() for line in kept))
