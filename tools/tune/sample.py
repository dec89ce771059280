"""Checks and times the device sampler on a GPU: `PYTHONPATH=src python tools/tune/sample.py [SECTION ...]`.

Sections: check (token for token against the reference, at the family's vocabulary), law (draws against the exact
distribution), machine (states against the Python machine, by graph replay), verify (drafts against plain steps; its
times), times, bind. Tables go to stdout, figures to $OUT/sample.json. Times are medians over replays of a CUDA graph of
eight steps, each on other logits.
"""

from __future__ import annotations

import json
import math
import os
import random
import statistics
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3.engine.device_sampler import DeviceSampler
from qwen3.engine.machine import Machine
from qwen3.engine.params import SamplingParams
from qwen3.engine.sampler import RowSampler, sample
from qwen3.kernels.gpu.launch import collect, compile_all
from qwen3.kernels.gpu.sample import ANY

VOCAB, COLUMNS = 151_669, 151_936
READ = 3.1e12  # bytes a second read from an H100's memory
CUDA = torch.device("cuda")
CHUNKS = (1024, 2048, 4096)


def params(temperature: float, top_p: float = 1, top_k: int = 0, min_p: float = 0, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, **more)


KINDS = {
    "greedy": params(0),
    "plain T 0.6": params(0.6),
    "T .6 k 20 p .95": params(0.6, 0.95, 20),
    "T .7 k 50 p .8 m .05": params(0.7, 0.8, 50, 0.05),
    "T 1 k 96": params(1, 1, 96),
    "T .6 p .95": params(0.6, 0.95),
    "T 1 p .99": params(1, 0.99),
    "T 1 min_p .1": params(1, 1, 0, 0.1),
    "T 1 k 2000 p .9": params(1, 0.9, 2000),
    "k 20, penalties": params(0.6, 0.95, 20, presence_penalty=1.5, repetition_penalty=1.1, frequency_penalty=0.2),
    "plain, logprobs": params(0.6, logprobs=0),
}


def fresh_logits(rows: int, scale: float, seed: int) -> torch.Tensor:
    """bf16 logits as a model has them: a wide bell, a few tokens well above it; padding rows that must not win."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    logits = torch.randn(rows, COLUMNS, device=CUDA, generator=generator) * scale
    best = torch.randint(0, VOCAB, (rows, 40), device=CUDA, generator=generator)
    logits.scatter_add_(1, best, torch.rand(rows, 40, device=CUDA, generator=generator) * 4 * scale)
    logits[:, VOCAB:] = 100
    return logits.bfloat16()


def bind_all(sampler: DeviceSampler, kinds: list[SamplingParams], prompt: list[int]) -> list[RowSampler]:
    rows = []
    for slot, kind in enumerate(kinds, 1):
        rows.append(RowSampler(kind, prompt, sampler.vocab_size, CUDA, index=slot))
        sampler.bind(slot, kind, Machine(), prompt_ids=prompt, stream_key=rows[-1].stream_key)
    return rows


def compile_first(sampler: DeviceSampler, dtype: torch.dtype = torch.bfloat16, columns: int = COLUMNS) -> float:
    logits = torch.zeros(2, columns, dtype=dtype, device=CUDA)
    out, rows = torch.zeros(2, 2, dtype=torch.int32, device=CUDA), torch.zeros(2, dtype=torch.int32, device=CUDA)
    start = time.perf_counter()
    with collect() as jobs:
        sampler.sample(logits, rows, out)
    compile_all(jobs)
    return time.perf_counter() - start


def check() -> dict[str, Any]:
    """Every kind at the full vocabulary, bf16 and float32; biases, masks and bans on top of some rows."""
    rng, report = random.Random(0), {}
    settings = ("bf16 3", 3.0, torch.bfloat16), ("bf16 .5", 0.5, torch.bfloat16), ("f32 1", 1.0, torch.float32)
    for name, scale, dtype in settings:
        kinds = [
            SamplingParams(
                **{**vars(kind), "seed": rng.randrange(2**63),
                   "logit_bias": {rng.randrange(VOCAB): rng.uniform(-9, 9) for _ in range(9)} if i % 5 == 4 else None}
            )
            for i, kind in enumerate(list(KINDS.values()) * 6)
        ]  # fmt: skip
        sampler = DeviceSampler(len(kinds), VOCAB, CUDA, max_len=16)
        report[f"compile {name}"] = compile_first(sampler, dtype)
        prompt = [rng.randrange(VOCAB) for _ in range(500)]
        rows = bind_all(sampler, kinds, prompt)
        slots = torch.arange(1, len(kinds) + 1, dtype=torch.int32, device=CUDA)
        forbidden: list[list[int]] = [[] for _ in kinds]
        for i in range(0, len(kinds), 7):
            words = torch.randint(-(2**31), 2**31 - 1, (-(-VOCAB // 32),), dtype=torch.int32)
            sampler.set_mask(i + 1, words)
            bits = (words.unsqueeze(1) >> torch.arange(32)) & 1
            forbidden[i] = (bits.flatten()[:VOCAB] == 0).nonzero().flatten().tolist()
        wrong: Counter[str] = Counter()
        for step in range(4):
            logits = fresh_logits(len(kinds), scale, step).to(dtype)
            given = logits.clone()
            out = torch.full((len(kinds), 2), -9, dtype=torch.int32, device=CUDA)
            sampler.sample(logits, slots, out)
            assert torch.equal(logits, given), "the logits were changed"
            expected = sample(logits, rows, [step] * len(rows), forbidden)
            for i, (token, want) in enumerate(zip(out.tolist(), expected, strict=True)):
                assert token[1] == 0, token
                wrong[list(KINDS)[i % len(KINDS)]] += token[0] != want
                rows[i].record(token[0])
            raw = torch.log_softmax(logits.float(), 1)
            for i in range(len(KINDS) - 1, len(kinds), len(KINDS)):
                found = -abs(sampler.snapshots([i + 1])[0].logprobs[step])
                assert abs(found - raw[i, out[i, 0]].item()) < 2e-4, (found, raw[i, out[i, 0]].item())
        report[name] = {"draws": 4 * len(kinds), "different": {k: v for k, v in wrong.items() if v}}
        print(f"check {name}: {4 * len(kinds)} draws, different from the reference: {report[name]['different']}")
    for kind in ("plain T 0.6", "greedy", "T .6 k 20 p .95", "T .6 p .95"):  # NaN: -1; nothing allowed: -2
        sampler = DeviceSampler(3, VOCAB, CUDA, max_len=16)
        bind_all(sampler, [KINDS[kind]] * 3, [1])
        sampler.set_mask(2, torch.zeros(-(-VOCAB // 32), dtype=torch.int32))
        logits = fresh_logits(3, 1.0, 9)
        logits[0, 100_000] = float("nan")
        logits[2, VOCAB + 1] = float("nan")
        out = torch.empty(3, 2, dtype=torch.int32, device=CUDA)
        sampler.sample(logits, torch.arange(1, 4, dtype=torch.int32, device=CUDA), out)
        assert out[:2].tolist() == [[-1, 3], [-2, 3]], (kind, out)
        assert out[2, 1] == 0, (kind, out)
    print("check damaged and empty rows: as they should be")
    return report


def law() -> dict[str, Any]:
    """Chi-square of 25,600 draws over samples and steps, against probabilities in float64."""
    report = {}
    logits = torch.full((1, COLUMNS), -60.0)
    ids = torch.randperm(VOCAB)[:60]
    logits[0, ids] = (torch.randn(60) * 1.5).bfloat16().float()
    kinds = {"plain": params(1), "k p": params(0.7, 0.9, 20), "p": params(1, 0.8), "min_p": params(1, 1, 0, 0.05)}
    for name, kind in kinds.items():
        sampler = DeviceSampler(256, VOCAB, CUDA, max_len=128)
        bind_all(sampler, [kind] * 256, [1])
        slots = torch.arange(1, 257, dtype=torch.int32, device=CUDA)
        out = torch.empty(256, 2, dtype=torch.int32, device=CUDA)
        given = logits.bfloat16().expand(256, -1).contiguous().to(CUDA)
        for _ in range(100):
            sampler.sample(given, slots, out)
        counts = torch.bincount(sampler.history[1:, :100].flatten().long(), minlength=COLUMNS).cpu().double()
        z = logits[0].double() / (kind.temperature or 1)
        if kind.top_k:
            z[z < z.topk(kind.top_k).values[-1]] = -torch.inf
        p = z.softmax(0)
        order = p.sort(descending=True)
        inside = order.values.cumsum(0) - order.values < (kind.top_p or 1)
        p[p < order.values[inside.nonzero()[-1]]] = 0
        p[p < (kind.min_p or 0) * p.max()] = 0
        p = p / p.sum() * 25_600
        cells = p >= 5
        value = ((counts[cells] - p[cells]) ** 2 / p[cells]).sum().item()
        freedom = int(cells.sum()) - 1
        assert counts[p == 0].sum() == 0, "a token outside the filters was drawn"
        assert value < freedom + 4.5 * math.sqrt(2 * freedom) + 6, (name, value, freedom)
        report[name] = {"chi_square": value, "freedom": freedom}
        print(f"law {name}: chi-square {value:.1f} of {freedom}")
    return report


def machine() -> dict[str, Any]:
    """128 samples with random rules over 64 steps of one captured graph; the reference draws the same tokens."""
    rng, vocab, count = random.Random(0), 64, 128
    sampler = DeviceSampler(count, vocab, CUDA, max_len=64)
    line = [
        sum((rng.randrange(3) | rng.choice([0, 0, 1]) << 2) << 4 * state for state in range(3)) for _ in range(vocab)
    ]
    pace = np.array([entry | (rng.random() < 0.3) << 12 for entry in line], np.uint16)
    machines, rows, output = [], [], []
    for slot in range(1, count + 1):
        tags = rng.sample(range(vocab), 8)
        rules = Machine(
            phase=rng.choice(["start", "thinking", "thinking", "answer"]), budget=rng.choice([None, None, 0, 1, 5, 20]),
            max_steps=rng.choice([0, 0, 2]), margin=rng.choice([0, 9]), gap=rng.choice([0, 1]), pace=pace,
            ban_think=rng.random() < 0.3, close_at=rng.choice([-1, -1, 7]),
            queue=deque(rng.choice([[], [tags[0], 3], [tags[0], 3, tags[1]]])), early_stop=(5, 6, tags[1], 7),
            close_think=(6, tags[1], 7), think=tags[0], end_think=tags[1], tool_call=tags[2], end_tool_call=tags[3],
            eos=frozenset(tags[4:5]), stop_ids=frozenset(rng.choice([[], tags[5:7]])), min_tokens=rng.choice([0, 9]),
            max_tokens=rng.choice([7, 50, 64]),
        )  # fmt: skip
        kind = params(rng.choice([0, 1]), seed=slot, presence_penalty=rng.choice([0, 1]))
        row = RowSampler(kind, [1, 2], vocab, torch.device("cpu"))
        sampler.bind(slot, kind, rules, prompt_ids=[1, 2], stream_key=row.stream_key)
        machines.append(rules)
        rows.append(row)
        output.append([])
    slots = torch.randperm(count).to(torch.int32) + 1
    logits, out = torch.zeros(count, vocab, device=CUDA), torch.empty(count, 2, dtype=torch.int32, device=CUDA)
    on_device = slots.to(CUDA)
    compile_first(sampler, torch.float32, vocab)
    sampler.sample(logits, torch.zeros_like(on_device), out)  # warm: padding rows only
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampler.sample(logits, on_device, out)
    for step in range(64):
        values = torch.randn(count, vocab, generator=torch.Generator().manual_seed(step))
        logits.copy_(values)
        for slot in rng.sample(range(1, count + 1), 3):
            machines[slot - 1].close_at = step + rng.randrange(4)
            sampler.close(slot, machines[slot - 1].close_at)
        graph.replay()
        for i, (slot, (token, code)) in enumerate(zip(slots.tolist(), out.tolist(), strict=True)):
            it, said = machines[slot - 1], output[slot - 1]
            if it.done:
                continue
            want = it.forced()
            if want is None:
                want = sample(values[i : i + 1], [rows[slot - 1]], [len(said)], [sorted(it.banned())])[0]
            want = it.push(want)
            said.append(want)
            rows[slot - 1].record(want)
            code_of_end = {None: 0, "stop": 1, "length": 2}[it.done]
            assert (token, code & 3) == (want, code_of_end), (step, slot, token, code, it)
    for slot, (it, said) in enumerate(zip(machines, output, strict=True), 1):
        told = sampler.snapshots([slot])[0]
        ids, found = told.ids, told.machine
        assert ids == said, slot
        assert it.done or found == it, (found, it)
    print(f"machine: {sum(map(len, output))} tokens of {count} samples as in Python")
    return {"tokens": sum(map(len, output))}


def verify() -> dict[str, Any]:
    """Four drafts a row: against plain steps of another sampler, then times; accepted: none, all."""
    rows, places, report = 24, 5, {}
    kinds = [replace(list(KINDS.values())[i % len(KINDS)], seed=i) for i in range(rows)]
    slow, fast = (DeviceSampler(rows, VOCAB, CUDA, max_len=64) for _ in range(2))
    compile_first(slow)
    bind_all(slow, kinds, [1, 2, 3])
    bind_all(fast, kinds, [1, 2, 3])
    slots = torch.arange(1, rows + 1, dtype=torch.int32, device=CUDA)
    right = slots.long() % places  # drafts that will be right
    for step in range(3):
        logits = torch.stack([fresh_logits(rows, 3.0, 9 * step + i) for i in range(places)], 1)
        wanted = torch.zeros(rows, places, 2, dtype=torch.int32, device=CUDA)
        wanted[:, :, 0] = -1
        drafts = torch.full((rows, places - 1), -1, dtype=torch.int32, device=CUDA)
        for place in range(places):
            one = torch.empty(rows, 2, dtype=torch.int32, device=CUDA)
            live = right >= place
            slow.sample(logits[:, place], torch.where(live, slots, 0), one)
            wanted[live, place] = one[live]
            if place < places - 1:
                drafts[:, place] = torch.where(right > place, one[:, 0], -1)
        out = torch.empty_like(wanted)
        fast.verify(logits, slots, drafts, out)
        assert torch.equal(out, wanted), (step, (out != wanted).nonzero().tolist())
        assert torch.equal(fast.history, slow.history)
        assert torch.equal(fast.count, slow.count)
    print(f"verify: {int(fast.count.sum())} tokens as by plain steps")
    for rows in (1, 8):
        steps = [torch.stack([fresh_logits(rows, 3.0, places * i + j) for j in range(places)], 1) for i in range(8)]
        for name in ("greedy", "plain T 0.6", "T .6 k 20 p .95"):
            line = {}
            for said in ("none", "all"):
                sampler = DeviceSampler(rows, VOCAB, CUDA, max_len=4096)
                bind_all(sampler, [KINDS[name]] * rows, [1, 2, 3])
                line[said] = timed(sampler, steps, rows, accept=said == "all")
            report[f"{name} R={rows}"] = line
            print(f"verify R {rows} {name:16s} K 4, accepted none {line['none']:.1f} us, all {line['all']:.1f} us")
    return report


def times() -> dict[str, Any]:
    """Both kernels, by kind, rows and chunk."""
    report: dict[str, Any] = {}
    for scale in (0.64, 1.0, 3.0):  # 0.64: of random weights, as `qwen3 bench` has them
        for rows in (1, 8, 32, 128, 256):
            if (scale == 1 and rows not in (1, 256)) or (scale == 0.64 and rows < 32):
                continue
            steps = [fresh_logits(rows, scale, i) for i in range(8 if rows < 256 else 4)]
            steps = (steps * 2)[:8]
            floor = rows * COLUMNS * 2 / READ * 1e6
            for name, kind in KINDS.items():
                line = {}
                for chunk in CHUNKS if name in ("greedy", "plain T 0.6", "T .6 k 20 p .95") else CHUNKS[1:2]:
                    sampler = DeviceSampler(rows, VOCAB, CUDA, max_len=4096, chunk=chunk)
                    compile_first(sampler)
                    bind_all(sampler, [kind] * rows, [1, 2, 3])
                    line[chunk] = timed(sampler, steps, rows)
                report[f"{name} R={rows} s={scale:g}"] = line
                text = "  ".join(f"{chunk}: {us:7.1f}" for chunk, us in line.items())
                print(f"s {scale:g} R {rows:3d} {name:22s} {text}   floor {floor:.1f} us", flush=True)
    return report


def timed(sampler: DeviceSampler, steps: list[torch.Tensor], rows: int, accept: bool | None = None) -> float:
    """us of one step, or of one verification in which all drafts are right, or none."""
    slots = torch.arange(1, rows + 1, dtype=torch.int32, device=CUDA)
    out = torch.empty(*steps[0].shape[:-1], 2, dtype=torch.int32, device=CUDA)
    places = 1 if accept is None else steps[0].shape[1]
    drafts = torch.full((rows, places - 1), ANY.value if accept else -1, dtype=torch.int32, device=CUDA)

    def draw(logits: torch.Tensor) -> None:
        if accept is None:
            sampler.sample(logits, slots, out)
        else:
            sampler.verify(logits, slots, drafts, out)

    draw(steps[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for logits in steps:
            draw(logits)
    found = []
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(12):
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i > 1:
            found.append(start.elapsed_time(end) * 1000 / len(steps))
    return statistics.median(found)


def bind() -> dict[str, Any]:
    """Host time of one bind."""
    report = {}
    sampler = DeviceSampler(256, VOCAB, CUDA, max_len=4096)
    for name in ("T .6 k 20 p .95", "k 20, penalties"):
        bind_all(sampler, [KINDS[name]] * 256, list(range(1000)))
        rows = RowSampler(KINDS[name], [1], VOCAB, CUDA)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for slot in range(1, 257):
            sampler.bind(slot, KINDS[name], Machine(), prompt_ids=[1, 2, 3], stream_key=rows.stream_key)
        report[name] = (time.perf_counter() - start) / 256 * 1e6
        print(f"bind {name}: {report[name]:.0f} us")
    return report


def main() -> None:
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "check": check, "law": law, "machine": machine, "verify": verify, "bind": bind, "times": times,
    }  # fmt: skip
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in sys.argv[1:] or list(sections):
        start = time.perf_counter()
        try:
            results[name] = sections[name]()
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            traceback.print_exc()
        print(f"-- {name}: {time.perf_counter() - start:.1f} s", flush=True)
    Path(os.environ.get("OUT", "."), "sample.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
