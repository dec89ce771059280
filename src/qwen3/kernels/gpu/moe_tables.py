"""Which tiles an expert product uses: measured tables, and measuring for shapes they lack.

A plan is (largest number of tokens it is for, tile of the gate/up product, tile of the down product).
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from qwen3.kernels.gpu import launch

DENSE_TOKENS = 64
"""Up to here every token is a column of every expert's product; beyond, pairs are listed by expert (`moe._list`)."""


class One(NamedTuple):
    """Matrix-vector products for one token: weight rows of a program, columns of a step, warps, steps loaded ahead."""

    bn: int
    bk: int
    warps: int
    ahead: int


class Tile(NamedTuple):
    """bm pairs (0: all tokens) × bn weight rows, bk columns a step; swap: weights are the left operand."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    swap: bool


Pair = tuple[One | Tile, One | Tile]
Run = Callable[[One | Tile, One | Tile], Any]

INVARIANT: Pair = (Tile(64, 128, 64, 4, 4, False), Tile(64, 128, 64, 4, 4, False))

_ANY = 1 << 30
_HOPPER: dict[str, dict[int, Pair]] = {
    "bf16": {
        1: (One(4, 512, 4, 3), One(4, 256, 4, 24)),
        DENSE_TOKENS: (Tile(0, 64, 128, 4, 4, True), Tile(0, 64, 128, 4, 4, True)),
        512: (Tile(64, 128, 64, 4, 4, False), Tile(64, 128, 64, 4, 4, False)),
        _ANY: (Tile(128, 256, 64, 8, 3, False), Tile(128, 128, 64, 4, 3, False)),
    },
    "fp8": {
        1: (One(4, 512, 4, 3), One(4, 256, 4, 24)),
        DENSE_TOKENS: (Tile(0, 64, 128, 4, 4, True), Tile(0, 64, 128, 4, 4, True)),
        512: (Tile(32, 64, 128, 4, 4, True), Tile(32, 64, 128, 4, 4, True)),
        _ANY: (Tile(128, 128, 64, 8, 3, True), Tile(128, 128, 64, 8, 3, True)),
    },
}
# H200 has H100's rows: the same chip with faster memory, not measured apart.
_TABLES = {(name, h, m): _HOPPER for name in ("H100", "H200") for h, m in ((2048, 768), (4096, 1536))}

CANDIDATES: dict[int, tuple[Pair, ...]] = {
    1: tuple((One(*a), One(*b)) for a, b in (
        ((4, 512, 4, 3), (4, 256, 4, 24)), ((4, 1024, 4, 2), (2, 256, 2, 24)), ((8, 512, 8, 2), (8, 256, 8, 8)),
    )),
    DENSE_TOKENS: tuple((Tile(0, *a), Tile(0, *a)) for a in (
        (64, 128, 4, 4, True), (128, 64, 4, 5, True), (32, 256, 4, 3, False), (64, 64, 4, 6, True),
    )),
    512: tuple((Tile(*a), Tile(*a)) for a in (
        (64, 128, 64, 4, 4, False), (64, 64, 128, 4, 3, False), (32, 64, 128, 4, 4, True),
    )),
    _ANY: tuple((Tile(*a), Tile(*b)) for a, b in (
        ((128, 256, 64, 8, 3, False), (128, 128, 64, 4, 3, False)), ((64, 256, 64, 4, 3, False),) * 2,
        ((128, 128, 64, 4, 3, False),) * 2, ((128, 128, 64, 8, 3, True),) * 2,
    )),
}  # fmt: skip
"""What is tried for a shape without a table, by regime."""
_TUNE_AT = {1: 1, DENSE_TOKENS: 32, 512: 256, _ANY: 4096}

_known: dict[str, dict[int, Pair]] = {}


def choose(
    device: torch.device, shape: tuple[int, int, int, int, str], tokens: int, trial: Callable[[int], Run]
) -> Pair:
    """The tiles for `tokens` tokens of shape (h, m, experts, top_k, kind of weights).

    A shape without a table is measured at its first use on a CUDA device outside graph capture (seconds; never with
    QWEN3_TUNE=0): trial(tokens) gives the products to time. Results are kept in QWEN3_CACHE (else ~/.cache/qwen3).
    """
    plans = _known.get(key := "|".join((_name(device), triton.__version__, *map(str, shape))))
    if plans is None:
        default = _HOPPER[shape[4].partition("-")[0]]
        own = [table for (part, *size), table in _TABLES.items() if part in key and tuple(size) == shape[:2]]
        if own or device.type != "cuda":
            plans = default
        elif (plans := _read().get(key)) is None:
            if (
                launch._noted is not None
                or torch.cuda.is_current_stream_capturing()
                or os.environ.get("QWEN3_TUNE") == "0"
            ):
                return _pick(default, tokens)
            plans = _tune(trial)
            _write(_read() | {key: plans})
        _known[key] = plans
    return _pick(plans, tokens)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _pick(plans: dict[int, Pair], tokens: int) -> Pair:
    return plans[min(limit for limit in plans if tokens <= limit)]


def _tune(trial: Callable[[int], Run]) -> dict[int, Pair]:
    runs = {limit: trial(_TUNE_AT[limit]) for limit in CANDIDATES}
    with launch.collect() as jobs:
        for limit, pairs in CANDIDATES.items():
            for pair in pairs:
                runs[limit](*pair)
    launch.compile_all(jobs)
    return {limit: min(pairs, key=lambda pair: seconds(runs[limit], pair)) for limit, pairs in CANDIDATES.items()}


def seconds(run: Run, pair: Pair, rounds: int = 5, calls: int = 4) -> float:
    """Median GPU time of a call, replayed from a graph; infinity for tiles that need more than the device has."""
    try:
        run(*pair)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run(*pair)
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000 / calls)
    return sorted(times)[rounds // 2]


def _file() -> Path:
    return Path(os.environ.get("QWEN3_CACHE") or Path.home() / ".cache" / "qwen3") / "moe_tiles.json"


def _read() -> dict[str, dict[int, Pair]]:
    """The cache file's plans; a file that is not one is reported and measured anew."""
    try:
        kinds = {len(One._fields): One, len(Tile._fields): Tile}
        return {
            key: {int(limit): tuple(kinds[len(tile)](*tile) for tile in pair) for limit, pair in plans.items()}
            for key, plans in json.loads(_file().read_text()).items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        warnings.warn(f"{_file()} is not a table of tiles ({error}): measuring again", stacklevel=2)
        return {}


def _write(plans: dict[str, dict[int, Pair]]) -> None:
    _file().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=_file().parent, delete=False) as out:
        json.dump(plans, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(out.name, _file())
