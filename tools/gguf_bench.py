"""How fast GGUF's tensor types become float32 here, and whether llama.cpp computes the same logits from the same file.

    python tools/gguf_bench.py [--peer PYTHON FILE.gguf ...] [--json FILE]

Speed: one thread, 1 M random weights of each type, the best of 30; beside it the floor, a copy of the float32 result.
PYTHON: one that has llama-cpp-python. Its logits for a few tokens are compared with ours in float32; it rounds
activations to 8 bits for quantized weights and keeps its KV cache in float16, so they agree to about 2 %.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from qwen3.checkpoint.gguf.dequantize import dequantize
from qwen3.checkpoint.gguf.types import TYPES

WEIGHTS = 1 << 20
IDS = [5, 900, 77, 300, 8, 1200, 44, 2000, 17, 301]
_PEER = """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1], n_ctx=64, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
ids = json.loads(sys.argv[2])
model.eval(ids)
print(json.dumps(model.scores[: len(ids)].tolist()))
"""


def best_of(function: Any, times: int = 30) -> float:
    found = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        found.append(time.perf_counter() - started)
    return min(found)


def speeds() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    out, twin = torch.empty(WEIGHTS), torch.empty(WEIGHTS)
    copy = best_of(lambda: twin.copy_(out))
    results = {"copy of float32": {"gigaweights_per_second": round(WEIGHTS / copy / 1e9, 2)}}
    for kind in TYPES.values():
        data = torch.randint(0, 256, (WEIGHTS // kind.block * kind.size,), dtype=torch.uint8, generator=generator)
        seconds = best_of(lambda data=data, kind=kind: dequantize(data, kind, out))
        results[kind.name] = {
            "gigaweights_per_second": round(WEIGHTS / seconds / 1e9, 2),
            "gigabytes_written_per_second": round(WEIGHTS * 4 / seconds / 1e9, 2),
            "gigabytes_read_per_second": round(len(data) / seconds / 1e9, 2),
        }
    return results


def against(python: str, file: Path) -> dict[str, float]:
    """‖ours - theirs‖ / ‖theirs‖ over all logits, and at how many positions both have the same first choice."""
    from qwen3.model import load_model

    done = subprocess.run([python, "-c", _PEER, str(file), json.dumps(IDS)], capture_output=True, text=True, check=True)
    theirs = torch.tensor(json.loads(done.stdout))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = load_model(file, "cpu", "float32")(torch.tensor([IDS]))[0]
    return {
        "relative_difference": round(float((ours - theirs).norm() / theirs.norm()), 6),
        "same_first_choice": round(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report: dict[str, Any] = {
        "name": "gguf",
        "date": f"{datetime.date.today()}",
        "commit": commit.stdout.strip(),
        "command": "python tools/gguf_bench.py" + (" --peer PYTHON FILE..." if args.peer else ""),
        "machine": "2 shared EPYC cores",
        "torch": torch.__version__,
        "dequantize_one_thread": speeds(),
    }
    if args.peer:
        report["llama_cpp"] = {file.name: against(args.peer, file) for file in args.files}
    text = json.dumps(report, indent=2) + "\n"
    if args.json:
        args.json.write_text(text)
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
