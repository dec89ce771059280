#!/usr/bin/env python3
"""What starting and answering cost here: a dated JSON file in benchmarks/, with machine, commit and floors.

    python tools/bench_start.py            # `make bench`; about a minute

Times are the best and the median of several runs, in seconds. Beside decoding speed stands its floor: the bytes of the
weights, as they are read for a token, over the bandwidth that a plain copy reaches here.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TRIES = 5


def repeated(work: Callable[[], float], tries: int = TRIES) -> dict[str, float]:
    values = [work() for _ in range(tries)]
    return {"best": min(values), "median": statistics.median(values)}


def process(*arguments: str) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        return time.perf_counter() - start

    return once


def copy_bandwidth() -> float:
    """Bytes per second that a large copy reads and writes, the best of five."""
    import torch

    source = torch.ones(64 << 20)
    target = torch.empty_like(source)

    def once() -> float:
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start

    return 2 * source.nbytes / repeated(once)["best"]


def packed_bytes() -> int:
    """Of the copies of the weights that a CPU reads instead of these; 0: it reads the weights."""
    from qwen3.kernels import cpu

    return cpu.packed_bytes


def answers() -> dict[str, Any]:
    """Speed of the embedded model on one fixed request."""
    from qwen3 import LLM, SamplingParams, ThinkingPolicy

    start = time.perf_counter()
    llm = LLM()
    loading = time.perf_counter() - start
    runs = [
        llm.chat(
            "What is 27 * 14?", ThinkingPolicy(mode="on"), SamplingParams(seed=seed, ignore_eos=True, max_tokens=256)
        )
        for seed in range(TRIES)
    ]
    weights = packed_bytes() or sum(parameter.nbytes for parameter in llm.model.parameters())
    bandwidth = copy_bandwidth()
    decode = max(run.timing.decode_tokens_per_second for run in runs)
    return {
        "load_s": loading,
        "dtype": str(llm.dtype).removeprefix("torch."),
        "device": str(llm.device),
        "first_token_s": min(run.timing.first_token for run in runs),
        "decode_tokens_per_s": decode,
        "weight_bytes": weights,
        "copy_bytes_per_s": bandwidth,
        "floor_decode_tokens_per_s": bandwidth / weights,
        "share_of_floor": decode * weights / bandwidth,
    }


def machine() -> dict[str, Any]:
    import torch

    models = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    ran = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return ran.stdout.strip() or "unknown"


def main() -> None:
    today = datetime.datetime.now(datetime.UTC)
    result = {
        "what": "start-up and the embedded model",
        "command": "python tools/bench_start.py",
        "date": today.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "version_s": repeated(process("-m", "qwen3.cli.main", "version")),
        "import_torch_s": repeated(process("-c", "import torch")),
        "import_llm_s": repeated(process("-c", "from qwen3 import LLM")),
        "embedded": answers(),
    }
    path = ROOT / "benchmarks" / f"{today:%Y-%m-%d}-start.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    print(f"written to {path.relative_to(ROOT)}", file=sys.stderr)


if __name__ == "__main__":
    main()
