"""How much each column of a matrix matters: the mean square of the activations it is multiplied with.

The error that rounding a weight by e adds to a layer's output is e² times that, so quantizers weigh by it. It is
collected by running text through the model, or read from llama.cpp's `imatrix` files: GGUF ones (since 2025) and the
older .dat (tools/imatrix of ggml-org/llama.cpp). Experts have importance of their own, from the tokens that reach them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from qwen3.checkpoint.gguf.names import places_of
from qwen3.checkpoint.gguf.reader import Strings, is_gguf, read_gguf
from qwen3.checkpoint.journal import write_atomic
from qwen3.checkpoint.names import official_shapes
from qwen3.checkpoint.source import byte_view, read_into
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError, UsageError
from qwen3.quantize.calibration import Calibration
from qwen3.quantize.gguf.file import Entry, header
from qwen3.quantize.layers import Walk

_SUMS, _COUNTS = ".in_sum2", ".counts"
_LEAST = 1e-3  # of the mean: what a column counts that calibration text never touched
_MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Imatrix:
    """means: GGUF name of a matrix → float32 [matrices, columns], one row, or one per expert; counts: the tokens that
    each row was taken over, [matrices], 0: none. dataset: what was read; chunks of `length` tokens (0: unknown)."""

    means: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    dataset: str
    chunks: int
    length: int = 0

    def of(self, name: str, expert: int) -> Tensor | None:
        """float32 [columns], 1 on average; None where nothing is known."""
        means = self.means.get(name)
        if means is None:
            return None
        number = expert if len(means) > 1 else 0
        row = means[number]
        mean = row.mean()
        if self.counts[name][number] == 0 or not mean > 0:
            return None
        return (row / mean).clamp_min(_LEAST)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ConfigError where it is of another model than that with tensors of these shapes."""
        for name, means in self.means.items():
            shape = shapes.get(name)
            if shape is None:
                raise ConfigError(f"the imatrix knows {name}, which the model does not have: it is of another model")
            rows = shape[0] if len(shape) == 3 else 1
            if tuple(means.shape) not in ((rows, shape[-1]), (1, shape[-1])):
                found = " x ".join(map(str, means.shape))
                raise ConfigError(
                    f"the imatrix has {found} numbers for {name}, not {rows} x {shape[-1]}: another model"
                )

    def warnings(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """What it does not say of the matrices of layers."""
        out = []
        layers = [n for n, shape in shapes.items() if n.startswith("blk.") and len(shape) > 1 and "_inp." not in n]
        missing = [name for name in layers if name not in self.means]
        if missing:
            out.append(f"the imatrix says nothing of {len(missing)} of {len(layers)} matrices, such as {missing[0]}")
        unreached = {name: int((self.counts[name] == 0).sum()) for name in self.means if len(self.means[name]) > 1}
        total = sum(len(self.means[name]) for name in unreached)
        if lost := sum(unreached.values()):
            out.append(f"{lost} of {total} experts' matrices were reached by no token: rounded without importance")
        return out

    def metadata(self) -> dict[str, Any]:
        """What a quantized file says of it, under llama.cpp's keys."""
        about = {"dataset": self.dataset, "entries_count": len(self.means), "chunks_count": self.chunks}
        return {f"quantize.imatrix.{key}": value for key, value in about.items()}

    def save(self, file: str | Path) -> None:
        """As llama.cpp's GGUF imatrix; a name that ends in .dat, in the older form. Raises OSError."""
        file = Path(file)
        write_atomic(file, self._dat() if file.suffix == ".dat" else self._gguf())

    def _gguf(self) -> list[bytes]:
        about = {
            "general.type": "imatrix",
            "imatrix.datasets": [self.dataset],
            "imatrix.chunk_count": self.chunks,
            "imatrix.chunk_size": self.length,
        }
        entries, data = [], []
        for name, means in sorted(self.means.items()):
            counts = self.counts[name].float().unsqueeze(1)
            for ending, tensor in ((_SUMS, means * counts), (_COUNTS, counts)):
                entries.append(Entry(name + ending, "F32", tuple(tensor.shape)))
                data += [bytes(byte_view(tensor.contiguous())), bytes(entries[-1].padding)]
        return [header(about, entries), *data]

    def _dat(self) -> list[bytes]:
        calls = max(1, self.chunks)
        out = [struct.pack("<i", len(self.means))]
        for name, means in sorted(self.means.items()):
            text = name.encode()
            out += [struct.pack("<i", len(text)), text, struct.pack("<ii", calls, means.numel())]
            out.append(bytes(byte_view((means * (self.counts[name] > 0).unsqueeze(1) * calls).contiguous())))
        text = self.dataset.encode()
        return [*out, struct.pack("<ii", calls, len(text)), text]


def read_imatrix(file: str | Path, config: ModelConfig) -> Imatrix:
    """llama.cpp's file of either form, for a model of this configuration.

    Raises ModelNotFoundError where there is none, CorruptFileError for anything else than such a file.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelNotFoundError(f"{file}: no such imatrix file")
    if file.stat().st_size > _MAX_BYTES:
        _fail(file, f"{file.stat().st_size} bytes are no imatrix")
    return _read_gguf(file) if is_gguf(file) else _read_dat(file, config)


def _read_gguf(file: Path) -> Imatrix:
    found = read_gguf(file)
    if found.metadata.get("general.type") != "imatrix":
        _fail(file, "a GGUF file, but no imatrix (general.type says otherwise)")
    means, counts = {}, {}
    with file.open("rb", buffering=0) as handle:
        for name, tensor in found.tensors.items():
            if not name.endswith(_SUMS):
                continue
            base = name.removesuffix(_SUMS)
            count = found.tensors.get(base + _COUNTS)
            if count is None or tensor.type.name != "F32" or count.type.name != "F32":
                _fail(file, f"{name} has no counts beside it, or is not of float32")
            sums, n = torch.empty(tensor.shape), torch.empty(count.shape)
            read_into(handle.fileno(), sums, tensor.begin, file, name)
            read_into(handle.fileno(), n, count.begin, file, count.name)
            sums, n = sums.view(-1, tensor.shape[-1]), n.flatten()
            if len(n) != len(sums):
                _fail(file, f"{name} has {len(sums)} rows but {len(n)} counts")
            _check_values(file, base, sums, n)
            means[base], counts[base] = sums / n.clamp_min(1).unsqueeze(1), n
    datasets = found.metadata.get("imatrix.datasets")
    named = ", ".join(datasets) if isinstance(datasets, Strings) else file.name
    chunks, length = (found.metadata.get(f"imatrix.chunk_{key}", 0) for key in ("count", "size"))
    if not means or type(chunks) is not int or type(length) is not int:
        _fail(file, "it holds no sums, or no counts of chunks")
    return Imatrix(means, counts, named, chunks, length)


def _read_dat(file: Path, config: ModelConfig) -> Imatrix:
    data, at = file.read_bytes(), 0

    def take(size: int) -> bytes:
        nonlocal at
        if size < 0 or at + size > len(data):
            _fail(file, "not an imatrix, or a truncated one")
        at += size
        return data[at - size : at]

    def number() -> int:
        return int.from_bytes(take(4), "little", signed=True)

    experts = {}
    for official, shape in official_shapes(config).items():
        name, _, whole = places_of(official, shape, config.num_experts)[0]
        experts[name] = whole[0] if len(whole) == 3 else 1
    means, counts = {}, {}
    entries = number()
    if not 0 < entries <= 100_000:
        _fail(file, f"not an imatrix: it would have {entries} entries")
    for _ in range(entries):
        name = take(number()).decode("utf-8", "replace")
        calls, size = number(), number()
        values = torch.frombuffer(bytearray(take(4 * size)), dtype=torch.float32) if size > 0 else torch.empty(0)
        rows = experts.get(name, 1)
        if calls < 1 or not size or size % rows:
            _fail(file, f"{name[:80]} has {size} numbers of {calls} calls")
        means[name] = (values / calls).view(rows, -1)
        counts[name] = torch.where(means[name].amax(1) > 0, float(calls), 0.0)
        _check_values(file, name, means[name], counts[name])
    chunks, dataset = 0, file.name
    if at + 8 <= len(data):  # files of 2024 and later say what they were made of
        chunks = max(0, number())
        dataset = take(number()).decode("utf-8", "replace")
    return Imatrix(means, counts, dataset, chunks)


def _check_values(file: Path, name: str, sums: Tensor, counts: Tensor) -> None:
    if not torch.isfinite(sums).all() or bool((sums < 0).any()) or not bool((counts >= 0).all()):
        _fail(file, f"{name} has sums that are negative, NaN or infinite")


def _fail(file: Path, message: str) -> NoReturn:
    raise CorruptFileError(f"{file}: {message}")


def collect_imatrix(
    path: str | os.PathLike[str], data: Calibration, progress: Callable[[int, int], None] | None = None
) -> Imatrix:
    """Runs calibration text through the checkpoint at `path`, one layer in memory at a time. progress: layers done, of
    so many. Raises UsageError for activations that are not finite, and as `Walk`."""
    sums: dict[str, dict[int, tuple[Tensor, int]]] = {}
    with Walk(Path(path), data) as walk, torch.no_grad():
        shapes = official_shapes(walk.config)
        for _ in walk.ends():
            pass  # from the embedding, activations begin
        for opened in walk.layers():
            for stage in walk.stages(opened, advance=True):
                assert stage.inputs is not None
                total, tokens = torch.zeros(opened.weight(stage.modules[0]).shape[1]), 0
                for x in stage.inputs():
                    total += x.square().sum(0).cpu()
                    tokens += len(x)
                if not torch.isfinite(total).all():
                    raise UsageError(f"activations before {stage.modules[0]} are NaN or infinite: a broken checkpoint")
                for module in stage.modules:
                    official = f"{module}.weight"
                    name = places_of(official, shapes[official], walk.config.num_experts)[0][0]
                    sums.setdefault(name, {})[stage.expert or 0] = (total, tokens)
            if progress is not None:
                progress(opened.index + 1, walk.config.num_hidden_layers)
    rows = {name: [found[i] for i in range(len(found))] for name, found in sums.items()}
    return Imatrix(
        {name: torch.stack([total / max(1, n) for total, n in found]) for name, found in rows.items()},
        {name: torch.tensor([float(n) for _, n in found]) for name, found in rows.items()},
        str(data), len(data.ids), data.ids.shape[1],
    )  # fmt: skip
