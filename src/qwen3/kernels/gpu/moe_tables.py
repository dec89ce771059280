"""Which tiles an expert product uses: measured ones (data/moe_tiles.json), and measuring for shapes without.

Plans map the largest number of tokens they are for to the tiles of the gate/up and of the down product.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from qwen3.kernels.gpu import launch


class Tile(NamedTuple):
    """A program's part of a product: bm pairs × bn weight rows, bk columns a step; swap: weights are the left operand.

    bm 0: the pairs of all tokens (64 at most); 1: one token, as a matrix-vector product (stages and swap unused).
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int = 0
    swap: bool = False


Pair = tuple[Tile, Tile]
Plans = dict[int, Pair]
Run = Callable[[Tile, Tile], Any]

INVARIANT: Pair = (Tile(64, 128, 64, 4, 4, False), Tile(64, 128, 64, 4, 4, False))
_known: dict[str, Plans] = {}


def _plans(plans: Any) -> Plans:
    return {int(limit): (Tile(*gate), Tile(*low)) for limit, (gate, low) in plans.items()}


@cache
def shipped() -> tuple[dict[str, Plans], list[Plans]]:
    """Plans by "device,h,m,weights", and those worth trying for another shape."""
    data = json.loads((resources.files("qwen3") / "data" / "moe_tiles.json").read_text())
    return {key: _plans(plans) for key, plans in data["tiles"].items()}, [_plans(plans) for plans in data["tried"]]


def choose(device: torch.device, h: int, m: int, kind: str, tokens: int, trial: Callable[[int], Run]) -> Pair:
    """The tiles for `tokens` tokens of hidden size h, experts of width m and `kind` of weights: bf16 or fp8.

    A shape without a table is measured at its first use on a CUDA device outside graph capture (seconds; never with
    QWEN3_TUNE=0): trial(tokens) gives the products to time. Results are kept in QWEN3_CACHE (else ~/.cache/qwen3).
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "H100"
    plans = _known.get(key := f"{name},{h},{m},{kind},{triton.__version__}")
    if plans is None:
        tables, _ = shipped()
        short = next((part for part in ("H100", "H200") if part in name), name)
        plans = tables.get(f"{short},{h},{m},{kind}") or (_read().get(key) if device.type == "cuda" else None)
        if plans is None:
            plans = tables[f"H100,2048,768,{kind}"]
            if device.type == "cuda" and os.environ.get("QWEN3_TUNE") != "0":
                if launch._noted is not None or torch.cuda.is_current_stream_capturing():
                    return _pick(plans, tokens)
                plans = _tune(trial)
                _write(_read() | {key: plans})
        _known[key] = plans
    return _pick(plans, tokens)


def _pick(plans: Plans, tokens: int) -> Pair:
    return plans[min(limit for limit in plans if tokens <= limit)]


def _tune(trial: Callable[[int], Run]) -> Plans:
    _, tried = shipped()
    runs = {limit: trial(min(limit, 4096)) for limit in tried[0]}
    with launch.collect() as jobs:
        for plans in tried:
            for limit, pair in plans.items():
                runs[limit](*pair)
    launch.compile_all(jobs)
    return {
        limit: min((plans[limit] for plans in tried if limit in plans), key=lambda pair: seconds(run, pair))
        for limit, run in runs.items()
    }


def seconds(run: Run, pair: Any, rounds: int = 5, calls: int = 4) -> float:
    """Median GPU time of run(*pair), replayed from a graph; infinity for tiles that need more than the device has."""
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


def _read() -> dict[str, Plans]:
    """The cache file's plans; a file that is not one is reported and measured anew."""
    try:
        return {key: _plans(plans) for key, plans in json.loads(_file().read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{_file()} is not a table of tiles ({error}): measuring again", stacklevel=2)
        return {}


def _write(plans: dict[str, Plans]) -> None:
    _file().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=_file().parent, delete=False) as out:
        json.dump(plans, out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(out.name, _file())
