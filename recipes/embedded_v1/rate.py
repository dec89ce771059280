"""How fast one core makes the training data: python -m recipes.embedded_v1.rate --out FILE.json

CPU seconds of one process, packing included; a stage has as many processes as `Size.workers`.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch

from qwen3.evaluate.machine import commit, describe
from qwen3.train.mixture import Lane, Mixture, Rows
from recipes.embedded_v1.evaluate import write
from recipes.embedded_v1.mixture import DRAWS, LENGTH, TASTES, sources, tokenizer, trained_share
from recipes.embedded_v1.stages import FULL, NEXT_TOKEN


def stage_rate(name: str, shards: str | None, batches: int = 3) -> dict[str, float]:
    """Of whole batches, one of them before the clock starts."""
    rows = Rows(FULL.tokens_per_update // LENGTH, LENGTH, 1, tokenizer().control.endoftext)
    lane = Lane(Mixture(sources(name, shards), LENGTH, f"0/{name}"), rows, 0)
    lane.batch()
    began, tokens, trained = time.process_time(), 0, 0
    for _ in range(batches):
        batch = lane.batch()
        tokens += int((batch.documents > 0).sum())
        trained += batch.trained_tokens
    seconds = time.process_time() - began
    return {"tokens_per_second": round(tokens / seconds), "trained_share": round(trained / tokens, 3)}


def draw_rate(name: str, draws: int = 500) -> dict[str, float]:
    for i in range(20):
        DRAWS[name](random.Random(-i), TASTES["cold"])
    began = time.process_time()
    found = [DRAWS[name](random.Random(i), TASTES["cold"]) for i in range(draws)]
    seconds, tokens = time.process_time() - began, sum(map(len, found))
    return {
        "draws_per_second": round(draws / seconds),
        "tokens_per_second": round(tokens / seconds),
        "tokens": round(tokens / draws, 1),
        "trained_share": round(trained_share(found), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", default="runs/shards", help="folder that text.py wrote")
    args = parser.parse_args()
    found: dict[str, Any] = {
        "what": "data of embedded_v1, one core", "date": time.strftime("%Y-%m-%d"), "commit": commit(),
        "command": "python -m recipes.embedded_v1.rate", "machine": describe(torch.device("cpu")),
        "note": "2 shared EPYC cores, busy: CPU seconds of one process",
        "stages": {name: stage_rate(name, args.shards) for name in NEXT_TOKEN},
        "draws": {name: draw_rate(name) for name in DRAWS},
    }  # fmt: skip
    write(args.out, found)
    for name, row in (found["stages"] | found["draws"]).items():
        print(f"{name:10} {row}")


if __name__ == "__main__":
    main()
