#!/usr/bin/env python3
"""Hours of mixed requests on the embedded model: does memory grow, do blocks come back, does a count ever break?

    python tools/soak.py --minutes 60            # writes benchmarks/DATE-soak.json; half a gigabyte and one core

Rounds follow each other: a counting round (tokens checked one by one, 30 % cancelled, a pool small enough for
preemptions) and a round of requests of every kind. Between rounds nothing runs, so every block must be free or cached,
and the process's resident memory is sampled. After the first fifth (warm-up: caches fill, the allocator settles) a line
through the samples gives the growth per hour.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]


def resident() -> int:
    """Bytes of this process in memory now."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("error: /proc/self/status has no VmRSS here; run this on Linux")


def growth(samples: list[tuple[float, int]]) -> float:
    """Bytes an hour: the slope of the least-squares line through (seconds, bytes)."""
    count = len(samples)
    mean_x = sum(x for x, _ in samples) / count
    mean_y = sum(y for _, y in samples) / count
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def soak(seconds: float, device: str, requests: int) -> dict[str, Any]:
    from qwen3.engine import Engine
    from tests.engine.stress import Counter, check_empty, counting, mixed

    counter = Counter(device, variety=500)
    engine = Engine(counter.model, counter.tokenizer, max_batch=24, max_len=512, blocks=110)
    start, samples, rounds = time.monotonic(), [], 0
    totals = {"requests": 0, "cancelled": 0, "preempted": 0, "cached_tokens": 0, "tokens": 0, "broken": 0}
    while not rounds or time.monotonic() - start < seconds:
        found = counting(engine, counter, requests, seed=rounds, most=16, crowd=40)
        reasons = mixed(engine, requests, seed=rounds, crowd=40, longest=24)
        check_empty(engine)
        for key in totals:
            value = getattr(found, key)
            totals[key] += len(value) if isinstance(value, list) else value
        totals["requests"] += sum(reasons.values())
        totals["cancelled"] += reasons.get("cancelled", 0)
        rounds += 1
        gc.collect()
        samples.append((time.monotonic() - start, resident()))
        print(f"{samples[-1][0]:7.0f} s  {totals}  {samples[-1][1] / 1e6:.1f} MB", file=sys.stderr, flush=True)
    settled = samples[len(samples) // 5 :]
    return {
        "seconds": samples[-1][0],
        "rounds": rounds,
        **totals,
        "resident_bytes": {"first": samples[0][1], "settled": settled[0][1], "last": samples[-1][1]},
        "growth_bytes_per_hour": growth(settled) if len(settled) > 2 else None,
        "samples": [[round(x, 1), y] for x, y in samples],
    }


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--minutes", type=float, default=60)
    options.add_argument("--device", default="cpu")
    options.add_argument("--requests", type=int, default=300, help="of each half of a round")
    options.add_argument("--out", type=Path, help="file; none: benchmarks/DATE-soak.json")
    chosen = options.parse_args()
    import torch

    from qwen3.evaluate.machine import commit, describe

    today = datetime.datetime.now(datetime.UTC)
    found = soak(chosen.minutes * 60, chosen.device, chosen.requests)
    result = {
        "what": "soak: mixed requests on the embedded model, memory and blocks watched",
        "command": " ".join(["python", "tools/soak.py", *sys.argv[1:]]),
        "date": today.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": describe(torch.device(chosen.device)),
        **found,
    }
    path = chosen.out or ROOT / "benchmarks" / f"{today:%Y-%m-%d}-soak.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
