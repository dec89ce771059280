"""Checks and times steps of many short prompts on a GPU: `PYTHONPATH=src python tools/tune/prompts.py`, a minute.

Candidates: the kernel over the paged cache, the one over the step's own keys (tiles and registers), cuDNN with ragged
rows and, where all prompts have one length, as a dense batch. First each is checked against float32 on fresh random
input, then timed in graphs: TFLOP/s of the causal half, what the first call of a shape costs cuDNN, and what a call
costs the host. All figures go to $OUT/prompts.json.
"""

from __future__ import annotations

import json
import os
import random
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention import BF16, FP8, Case, D, compiled, error, timed
from torch import Tensor

from qwen3.kernels.gpu import prefill

PAGED: list[prefill.Tiles] = [(128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 2)]
OWN: list[tuple[prefill.Tiles, int | None]] = [
    ((128, 64, 8, 2), 128), ((128, 64, 8, 2), None), ((128, 64, 8, 3), None), ((256, 64, 16, 2), 128),
    ((256, 64, 16, 3), 128), ((128, 128, 8, 2), None), ((64, 64, 4, 2), 168), ((64, 64, 4, 3), None),
    ((64, 128, 4, 2), None), ((128, 32, 8, 4), 128),
]  # fmt: skip
figures: dict[str, Any] = {}
MODELS = ("0.6B", "8B", "30B-A3B")
say = partial(print, flush=True)


class Prompts(Case):
    """A step of whole prompts: their keys in the cache, and as RoPE and the product leave them."""

    def __init__(self, model: str, lengths: list[int]) -> None:
        super().__init__(model, [], [(n, n) for n in lengths])
        self.lengths, self.starts = lengths, self.plan.starts.tolist()
        self.q = torch.randn(self.tokens, self.heads, D, device="cuda").to(BF16)
        self.own = torch.randn(self.tokens, self.kv_heads, D, device="cuda").to(BF16)
        self.values = self.qkv[:, -self.kv_heads * D :].unflatten(1, (self.kv_heads, D))
        rows = torch.repeat_interleave(torch.arange(len(lengths), device="cuda"), torch.tensor(lengths).cuda())
        slots = self.plan.tables[rows, self.plan.positions // 16] * 16 + self.plan.positions % 16
        for cache, new in ((self.k, self.own), (self.v, self.values)):
            cache[0].view(-1, self.kv_heads, D)[slots.long()] = new
        self.out = self.out.view(self.tokens, self.heads, D)

    def ways(self, library: bool) -> dict[str, Callable[[], Tensor]]:
        """Each candidate's name and call, which returns [N, H, D]: cuDNN's or ours."""
        found: dict[str, Callable[[], Tensor]] = {}
        if library:
            found["cuDNN ragged"] = self.ragged
            if len(set(self.lengths)) == 1:
                found["cuDNN dense"] = self.dense
            return found
        for tiles in PAGED:
            found["paged " + "/".join(map(str, tiles))] = partial(self.paged, tiles)
        for tiles, registers in OWN:
            found["own " + "/".join(map(str, (*tiles, registers)))] = partial(self.prompts, tiles, registers)
        return found

    def paged(self, tiles: prefill.Tiles) -> Tensor:
        prefill.chunks(self.q, self.plan, self.k[0], self.v[0], self.out, tiles=tiles, splits=1)
        return self.out

    def prompts(self, tiles: prefill.Tiles, registers: int | None) -> Tensor:
        prefill.prompts(self.q, self.own, self.values, self.plan, self.out, tiles=tiles, registers=registers)
        return self.out

    def ragged(self) -> Tensor:
        """With the copy of the values that cuDNN's ragged offsets ask for."""
        longest = max(self.lengths)
        return torch.ops.aten._cudnn_attention_forward(
            self.q, self.own, self.values.contiguous(), None, self.plan.starts, self.plan.starts, longest, longest,
            False, 0.0, True, False,
        )[0]  # fmt: skip

    def dense(self) -> Tensor:
        parts = (x.unflatten(0, (-1, self.lengths[0])).transpose(1, 2) for x in (self.q, self.own, self.values))
        out = torch.ops.aten._scaled_dot_product_cudnn_attention(*parts, None, False, 0.0, True, False)[0]
        return out.transpose(1, 2).flatten(0, 1)

    def exact(self) -> Tensor:
        """[N, H, D] in float32."""
        out = []
        for a, b in pairwise(self.starts):
            q, k, v = (x[a:b].float().transpose(0, 1).unsqueeze(0) for x in (self.q, self.own, self.values))
            out.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
        return torch.cat(out)


def replayed(call: Callable[[], Any], times: int) -> float:
    """Seconds of one call in a graph of so many."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return timed(graph.replay) / times


def mixed(total: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    found = [draw.randint(100, 1024) for _ in range(total // 562)]
    return [*found, total - sum(found)] if 0 < total - sum(found) <= 1024 else found


def check(library: bool) -> set[str]:
    """The candidates that are wrong for groups of 2, 4 or 8 heads."""
    bad: set[str] = set()
    worst: dict[str, float] = {}
    for model in MODELS:
        for lengths in ([1, 2, 63, 64, 65, 127, 128, 129, 1000, 300, 16, 17, 1500, 31], [200] * 3):
            case = Prompts(model, lengths)
            expected = case.exact()
            for name, call in case.ways(library).items():
                case.out.fill_(float("nan"))
                try:
                    found = error(call(), expected)
                except Exception as exc:
                    say(f"FAILS {model} {name}: {exc!r}"[:300])
                    found = float("nan")
                worst[name] = max(worst.get(name, 0.0), found)
                if not found < 1e-2:
                    bad.add(name)
                    say(f"WRONG {model} {name}: {found}")
    say("check: largest errors " + ", ".join(f"{name}: {value:.5f}" for name, value in worst.items()))
    figures["check cuDNN" if library else "check"] = worst
    return bad


def check_steps(steps: dict[str, Case]) -> None:
    """`attend` with all kinds of rows in one step."""
    for name, step in steps.items():
        found = error(step.attend(), step.expected()[0])
        right = found < (5e-2 if "float8" in name else 1e-2)
        say(f"check: attend {name} {found:.5f} {'' if right else 'WRONG'}")


def time_them(library: bool, bad: set[str]) -> None:
    for model in MODELS:
        for label, lengths in (
            ("32x1024", [1024] * 32), ("mixed", mixed(32768, 1)), ("1x1024", [1024]), ("8x4096", [4096] * 8),
        ):  # fmt: skip
            case = Prompts(model, lengths)
            title = f"{model} {label} ({len(lengths)} prompts, {case.tokens} tokens)"
            found: dict[str, float] = {}
            for name, call in case.ways(library).items():
                if name in bad:
                    continue
                try:
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    call()
                    torch.cuda.synchronize()
                    if library:
                        figures[f"first {title} {name}"] = first = time.perf_counter() - began
                        say(f"first call {model} {label} {name}: {first * 1e3:.1f} ms")
                    found[name] = replayed(call, 40 if label == "1x1024" else 4)
                except Exception as exc:
                    say(f"FAILS {model} {label} {name}: {exc!r}"[:200])
            figures.setdefault(title, {}).update({name: seconds * 1e6 for name, seconds in found.items()})
            say(title)
            for name, seconds in sorted(found.items(), key=lambda item: item[1]):
                say(f"   {name:22} {case.flops / seconds / 1e12:6.1f} TFLOP/s {seconds * 1e6:8.1f} us")


def host() -> None:
    case = Prompts("0.6B", [64])
    ways = case.ways(False) | case.ways(True)
    for name in ("paged 128/64/8/3", "own 128/64/8/2/128", "cuDNN ragged", "cuDNN dense"):
        ways[name]()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(200):
            ways[name]()
        say(f"host: {name} {(time.perf_counter() - began) / 200 * 1e6:.1f} us a call")
        torch.cuda.synchronize()


def main() -> None:
    torch.manual_seed(int(time.time()))
    began = time.perf_counter()
    chunks = [(1, 1), (700, 700), (300, 2000), (65, 65), (1, 33), (1500, 1500), (200, 201)]
    steps = {
        f"{model} {kv}": Case(model, [5, 900], chunks, kv=kv, poison=True)
        for model in ("0.6B", "14B", "30B-A3B", "embedded") for kv in (BF16, FP8)
    }  # fmt: skip
    small = [call for model in MODELS for call in Prompts(model, [64, 64]).ways(False).values()]
    compiled(*small, *(step.attend for step in steps.values()))
    bad: dict[bool, set[str]] = {}
    for section in (
        lambda: bad.update({False: check(False)}), lambda: check_steps(steps), lambda: time_them(False, bad[False]),
        lambda: bad.update({True: check(True)}), lambda: time_them(True, bad[True]), host,
    ):  # fmt: skip
        say(f"-- at {time.perf_counter() - began:.1f} s")
        try:
            section()
        except Exception:
            say(f"FAILED {traceback.format_exc()[-900:]}")
    say(f"-- done at {time.perf_counter() - began:.1f} s")
    (Path(os.environ.get("OUT", ".")) / "prompts.json").write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
