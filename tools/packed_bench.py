#!/usr/bin/env python3
"""How fast the compiled CPU product reads weights of every form, in GB/s of what it reads, for 1 and 8 rows.

    python tools/packed_bench.py --rounds 15 --out benchmarks/DATE-packed-forms.json

Weights larger than the last cache (`--rows` × `--columns` numbers), forms turn about, the best round counts; the
bandwidth this machine reads with is measured in the same run. Under each form: GGUF's types that are such.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src")]
TYPES = {
    (4, 0, False, False): "Q4_0", (4, 0, False, True): "Q4_1", (5, 0, False, False): "Q5_0",
    (5, 0, False, True): "Q5_1", (8, 0, False, False): "Q8_0", (4, 0, True, False): "IQ4_NL",
    (4, 32, True, False): "IQ4_XS", (2, 16, False, True): "Q2_K", (3, 16, False, False): "Q3_K",
    (4, 32, False, True): "Q4_K", (5, 32, False, True): "Q5_K", (6, 16, False, False): "Q6_K",
}  # fmt: skip


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--rows", type=int, default=65536)
    options.add_argument("--columns", type=int, default=1024)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    from qwen3.evaluate.machine import commit, describe, measure_ceilings
    from qwen3.kernels import native, packed

    library = native.library()
    if library is None:
        raise SystemExit(f"no compiled kernels: {native.state()}")
    torch.set_num_threads(chosen.threads)
    shape = (chosen.rows, chosen.columns)
    weights = {name: packed.sample(form, shape, 256 if form[1] else 32) for form, name in TYPES.items()}
    inputs = {count: torch.randn(count, chosen.columns) for count in (1, 8)}
    best: dict[tuple[str, int], float] = {}
    for _ in range(chosen.rounds):
        for name, weight in weights.items():
            for count, x in inputs.items():
                start = time.perf_counter()
                packed.run(library, x, weight)
                spent = time.perf_counter() - start
                best[name, count] = min(best.get((name, count), spent), spent)
    table = {
        name: {"bytes_per_weight": weight.nbytes / (shape[0] * shape[1])}
        | {f"gb_s_rows_{count}": round(weight.nbytes / best[name, count] / 1e9, 2) for count in inputs}
        for name, weight in weights.items()
    }  # fmt: skip
    device = torch.device("cpu")
    result = {
        "what": "the compiled CPU product over weights of every form, beyond the caches; best of the rounds",
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "path": native.state(),
        "command": " ".join(["python tools/packed_bench.py", *sys.argv[1:]]), "threads": chosen.threads,
        "load": os.getloadavg()[0], "machine": describe(device), "ceilings": measure_ceilings(device).__dict__,
        "forms": table,
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
