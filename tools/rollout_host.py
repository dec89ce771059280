"""What the host alone can do of rollouts: an engine whose device costs nothing, on a machine without a GPU. With its
profile.

    python tools/rollout_host.py --out benchmarks/2026-11-23-rollout-host-cpu.json

The engine plans, launches, hears and ends as on a GPU, with the device's own sampler on its side of the wire; forwards,
captured graphs and draws are left out: a sample ends after as many steps as it was given at random when it was bound.
Seconds are the process's own time, so that other work on the machine does not count (what it does to caches does).
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from rollout_bench import host

from qwen3.chat import encode
from qwen3.engine import engine as engine_module
from qwen3.engine.engine import Engine
from qwen3.engine.pickers import DevicePicked, Sample
from qwen3.evaluate.machine import commit, describe
from qwen3.tokenizer import Tokenizer
from qwen3.train.rollout import Prompt, rollouts
from tests.engine.overlapped import InterpretedPicker, _Done, overlapped
from tests.fixtures import random_model, tiny_config


class Outcome(DevicePicked):
    """Codes that the host has at once."""

    def __init__(self, out: Any, count: int) -> None:
        self._out, self._count, self._host, self.done = out, count, torch.from_numpy(out), _Done()  # type: ignore[assignment]


class Free(InterpretedPicker):
    """Slots are bound as ever; each has a number of steps after which its sample ends."""

    def __init__(self, slots: int, vocab_size: int, max_len: int, mean: int, most: int) -> None:
        super().__init__(slots, vocab_size, max_len)
        self.rng, self.mean, self.most = np.random.default_rng(0), mean, most
        self.seen, self.ends = np.zeros(slots + 1, int), np.zeros(slots + 1, int)

    def bind(self, items: Sequence[Sample]) -> list[tuple[Sample, Exception]]:
        slots = [item.row.slot for item in items]
        self.seen[slots] = 0
        self.ends[slots] = self.rng.normal(self.mean, self.mean / 2, len(slots)).clip(10, self.most)
        return super().bind(items)

    def step(self, slots: Sequence[int]) -> np.ndarray:
        places = np.array(slots, int)
        self.seen[places] += 1
        codes = np.zeros((len(places), 2), np.int32)
        codes[:, 1] = self.seen[places] >= self.ends[places]
        return codes

    def pick(self, logits: torch.Tensor, samples: Sequence[Sample]) -> Any:
        return Outcome(self.step([item.row.slot for item in samples]), len(samples))

    def fetch(self, items: Sequence[Sample], picked: Any) -> Any:
        slots = [item.row.slot for item in items]
        places = torch.tensor(slots)
        self.sampler.count.index_copy_(0, places, torch.tensor(self.ends[slots], dtype=torch.int32))
        self.sampler._state[self.sampler._kernel.DONE.value].index_fill_(0, places, 1)
        return self.sampler.snapshots(slots)

    def replay(self, slots: Sequence[int], chunk: Any = None, last: bool = False, longest: int | None = None) -> Any:
        return SimpleNamespace(out=self.step([*slots, *([chunk.slot] if last else [])]), logits=None)


def engine_of(rows: int, mean: int, most: int) -> tuple[Engine, Tokenizer]:
    tokenizer = Tokenizer.from_pretrained().prefix(608)
    blocks = rows * (-(-most // 16) + 4) + 2
    engine = overlapped(random_model(tiny_config()), tokenizer, max_batch=rows, max_len=most + 64, blocks=blocks)
    picker = Free(engine.max_batch, engine.vocab_size, engine.max_len, mean, most)
    engine.picker, engine.graphs = picker, picker  # type: ignore[assignment]
    runner: Any = engine.runner
    runner.forward = lambda slots, fed, *_, **__: torch.zeros(len(slots) + sum(len(f.ids) for f in fed), 1)
    runner.logits = lambda hidden: hidden
    engine_module.DevicePicked = Outcome  # type: ignore[misc]
    return engine, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="samples that run at once")
    parser.add_argument("--answers", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=16, help="answers to a prompt")
    parser.add_argument("--mean", type=int, default=90, help="tokens of an answer")
    parser.add_argument("--most", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engine, tokenizer = engine_of(args.rows, args.mean, args.most)
    ids = encode([{"role": "user", "content": "x" * 40}], tokenizer=tokenizer, enable_thinking=True).ids
    prompts = [Prompt([*ids[:-2], i % 500, *ids[-2:]], True) for i in range(args.answers // args.samples)]

    def work() -> int:
        found = rollouts(engine, prompts, args.samples, "s", max_tokens=args.most)
        return sum(len(one) for group in found for one in group)

    gc.collect()
    gc.freeze()
    rounds = []
    for _ in range(args.rounds):
        began = time.process_time()
        tokens = work()
        seconds = time.process_time() - began
        rounds.append({"tokens": tokens, "seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds)})
    profile = host(work)
    speeds = [one["tokens_per_second"] for one in rounds]
    report = {
        "name": "rollouts on a device that costs nothing: the host's part alone",
        "machine": describe(torch.device("cpu")), "commit": commit(),
        "command": " ".join(["python", *sys.argv]), "rows": args.rows, "answers": args.answers,
        "samples": args.samples, "mean": args.mean, "most": args.most, "best": max(speeds),
        "median": statistics.median(speeds), "rounds": rounds,
    }  # fmt: skip
    print(*profile, json.dumps(report, indent=1), sep="\n")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
