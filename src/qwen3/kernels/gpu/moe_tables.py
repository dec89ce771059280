"""Which tiles an expert product uses: measured ones (data/moe_tiles.json), and measuring for shapes without.

Plans map the largest number of tokens they are for to the tiles of the gate/up and of the down product.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources
from triton.testing import do_bench_cudagraph

from qwen3.kernels.gpu import launch


class Tile(NamedTuple):
    """A program's part of a product: bm pairs (0: those of all tokens, 64 at most) × bn weight rows, bk columns a step;
    swap: weights are the left operand."""

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    swap: bool


Pair = tuple[Tile, Tile]
Plans = dict[int, Pair]
Run = Callable[[Tile, Tile], Any]

INVARIANT: Pair = (Tile(64, 128, 64, 4, 4, False), Tile(64, 128, 64, 4, 4, False))
_known: dict[str, Plans] = {}


def _plans(plans: Any) -> Plans:
    return {int(limit): (Tile(*gate), Tile(*low)) for limit, (gate, low) in plans.items()}


@cache
def shipped() -> tuple[dict[str, Plans], list[Plans]]:
    """Plans by "device,h,m,weights" (which may name the entry they are taken from), and those to try for others."""
    data = json.loads((resources.files("qwen3") / "data" / "moe_tiles.json").read_text())
    tiles = data["tiles"]
    plans = {key: _plans(tiles[own] if isinstance(own, str) else own) for key, own in tiles.items()}
    return plans, [_plans(own) for own in data["tried"]]


def choose(device: torch.device, h: int, m: int, kind: str, tokens: int, trial: Callable[[int], Run]) -> Pair:
    """The tiles for `tokens` tokens of hidden size h, experts of width m and `kind` of weights: bf16, fp8 or fp8-128.

    A shape without a table is measured at its first use on a CUDA device outside graph capture (seconds; never with
    QWEN3_TUNE=0): trial(tokens) gives the products to time. Results are kept in QWEN3_CACHE (else ~/.cache/qwen3).
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "H100"
    key = f"{name},{h},{m},{kind},{triton.__version__}"
    if key not in _known:
        tables, _ = shipped()
        default = tables[f"H100,2048,768,{kind}"]
        short = next((part for part in ("H100", "H200") if part in name), name)
        plans = tables.get(f"{short},{h},{m},{kind}") or _read().get(key)
        if plans is None and device.type == "cuda" and os.environ.get("QWEN3_TUNE") != "0":
            if launch._noted is not None or torch.cuda.is_current_stream_capturing():
                return pick(default, tokens)
            plans = _tune(trial)
            _write(_read() | {key: plans})
        _known[key] = plans or default
    return pick(_known[key], tokens)


def pick(plans: Plans, tokens: int) -> Pair:
    """The tiles of the smallest limit that `tokens` keep."""
    return plans[min(limit for limit in plans if tokens <= limit)]


def _tune(trial: Callable[[int], Run]) -> Plans:
    _, tried = shipped()
    runs = {limit: trial(min(limit, 4096)) for limit in tried[0]}
    with launch.collect() as jobs:
        for plans in tried:
            for limit, pair in plans.items():
                runs[limit](*pair)
    with suppress(OutOfResources):
        launch.compile_all(jobs)
    return {limit: min((plans[limit] for plans in tried), key=partial(seconds, run)) for limit, run in runs.items()}


def seconds(run: Run, pair: Pair) -> float:
    """Median GPU time of run(*pair), replayed from a graph; infinity for tiles that need more than the device has."""
    torch.cuda.synchronize()
    try:
        return float(do_bench_cudagraph(lambda: run(*pair), rep=5, return_mode="median")) / 1000
    except OutOfResources:
        return float("inf")


def _file() -> Path:
    return Path(os.environ.get("QWEN3_CACHE") or Path.home() / ".cache" / "qwen3") / "moe_tiles.json"


def _read() -> dict[str, Plans]:
    """The cache file's plans; a file that is not one is reported and measured anew."""
    try:
        return {key: _plans(plans) for key, plans in json.loads(_file().read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        warnings.warn(f"{_file()} is not a table of tiles ({error}): measuring again", stacklevel=2)
        return {}


def _write(plans: dict[str, Plans]) -> None:
    part = _file().with_suffix(f".{os.getpid()}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(plans))
        part.replace(_file())
    except OSError as error:
        warnings.warn(f"measured tiles are not kept for the next start: {error}", stacklevel=2)
