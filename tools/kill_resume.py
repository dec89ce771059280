"""A pretraining run that is killed at random moments ends as the one that nobody killed: bit for bit.

    python tools/kill_resume.py --kills 20 --out benchmarks/2026-11-22-train-kill-resume-cpu.json

Two stages of a tiny mixture of experts over shards and a drawn source, a checkpoint every second update, evaluations.
In the second stage every fifth start has a worker process that prepares data, the others none. The run is started,
gets SIGKILL after a random time (every third one while a checkpoint is being written, when its unfinished folder is
seen) and is started again. Compared: the weights of the result and of what lies between the stages, masters, moments
and generators of the last checkpoints, the place in the data, and every number of the log but the clock's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3.tokenizer import Tokenizer
from qwen3.train.corpus.shards import write_shards
from qwen3.train.mixture import Source
from qwen3.train.pretrain import Pretrain
from qwen3.train.recipe import Recipe
from qwen3.train.samples import TokenSample
from qwen3.train.start import train

CLOCK = {"seconds", "tokens_per_second", "mfu", "memory"}
STAGES = ("first", "second")


def draw(rng: random.Random) -> TokenSample:
    size = rng.randint(8, 60)
    return TokenSample(np.array([rng.randrange(40) for _ in range(size)], np.int32), np.arange(size) > 0)


def recipe_of(folder: Path, data: Path, updates: int, workers: int) -> Recipe:
    shape = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 640, "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "intermediate_size": 128, "max_position_embeddings": 128, "rope_theta": 10_000.0, "tie_word_embeddings": True,
        "bos_token_id": 512, "eos_token_id": 512, "torch_dtype": "float32", "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "norm_topk_prob": True,
    }  # fmt: skip
    common: dict[str, Any] = {
        "sources": (Source("shards", 2.0, str(data), 4), Source("drawn", 1.0, draw)), "updates": updates,
        "tokens_per_update": 512, "tokens_per_micro_batch": 256, "save_every": 2, "balance": 0.01,
        "evaluate_every": 5, "evaluate_tokens": 512, "samples": 1,
    }  # fmt: skip
    stages = (
        Pretrain(STAGES[0], length=64, decay=0.0, workers=0, **common),
        Pretrain(STAGES[1], length=128, rope_theta=1e6, warmup=0.0, decay=1.0, workers=workers, **common),
    )
    return Recipe("killed", shape, stages, out=str(folder), device="cpu", seed=3)


def make_data(folder: Path) -> None:
    rng = random.Random(0)
    documents = [[rng.randrange(512) for _ in range(rng.randint(5, 200))] for _ in range(300)]
    write_shards(folder, documents, Tokenizer.from_pretrained().prefix(512), shard_tokens=8192)


def work(folder: Path, data: Path, updates: int, workers: int) -> None:
    torch.set_num_threads(1)
    found = train(recipe_of(folder, data, updates, workers), say=lambda line: None)
    sys.exit(0 if found["finished"] else 1)


def start(args: argparse.Namespace, folder: Path) -> Any:
    """A process forked from one that has imported everything, so that most of its life is training."""
    args.starts += 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qwen3.train.pretrain", "qwen3.train.start"])
    process = context.Process(target=work, args=(folder, args.data, args.updates, int(args.starts % 5 == 3)))
    process.start()
    return process


def lines(folder: Path) -> int:
    try:
        return (folder / "log.jsonl").read_text(encoding="utf-8").count('"norm"')
    except FileNotFoundError:
        return 0


def saving(folder: Path) -> bool:
    return any(any((folder / stage).glob(".step-*")) for stage in STAGES)


def kill_once(args: argparse.Namespace, folder: Path, rng: random.Random, within_save: bool) -> dict[str, Any] | None:
    """Start, wait, kill: where it was. None where the run ended before that."""
    process, began = start(args, folder), time.monotonic()
    wanted = lines(folder) + rng.randint(0, max(1, 2 * args.updates // args.kills))
    while process.is_alive() and lines(folder) < wanted:
        time.sleep(0.005)
    if within_save:
        while process.is_alive() and not saving(folder):
            time.sleep(0.0002)  # the folder is there for some milliseconds
    else:
        time.sleep(rng.random() * 0.1)
    caught = saving(folder)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        ended(process)
        return None
    return {"lines": lines(folder), "within_save": caught, "seconds": round(time.monotonic() - began, 2)}


def finish(args: argparse.Namespace, folder: Path) -> None:
    process = start(args, folder)
    process.join()
    ended(process)


def ended(process: Any) -> None:
    if process.exitcode:
        raise SystemExit(f"the run ended with {process.exitcode}")


def result(folder: Path) -> dict[str, Any]:
    """All that must be equal."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [
        {k: v for k, v in line.items() if k not in CLOCK} for line in log if "update" in line and "of" not in line
    ]
    found: dict[str, Any] = {"log": numbers}
    for stage in STAGES:
        last = sorted((folder / stage).glob("step-*"))[-1]
        manifest = json.loads((last / "manifest.json").read_text())
        found[f"{stage}: masters, moments, generators"] = manifest["state.safetensors"]["sha256"]
        found[f"{stage}: place in the data"] = json.loads((last / "state.json").read_text())["state"]["position"]
    for name in (f"after-{STAGES[0]}", "model"):
        found[f"weights of {name}"] = json.loads((folder / name / "qwen3.manifest.json").read_text())
    return found


def compare(args: argparse.Namespace, root: Path) -> dict[str, Any]:
    args.data = root / "data"
    make_data(args.data)
    rng, kills, ended_early = random.Random(args.seed), [], 0
    finish(args, root / "whole")
    killed, again = root / "killed", 0
    while len(kills) < args.kills:
        found = kill_once(args, killed, rng, within_save=len(kills) % 3 == 2)
        if found is None:  # it was over: the next kills are of another run, which must end the same
            finish(args, killed)
            ended_early += 1
            if differing := differences(result(root / "whole"), result(killed)):
                return {"equal": False, "differing": differing, "kills": kills}
            again += 1
            killed = root / f"killed-{again}"
        else:
            kills.append(found)
    finish(args, killed)
    differing = differences(result(root / "whole"), result(killed))
    return {
        "equal": not differing, "differing": differing, "kills": kills, "runs": again + 1,
        "within_a_save": sum(kill["within_save"] for kill in kills), "updates": 2 * args.updates,
        "compared": [*result(killed)],
    }  # fmt: skip


def differences(whole: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in whole if whole[name] != other[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--updates", type=int, default=60, help="of each of the two stages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.starts = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = compare(args, Path(folder))
    words, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    report = {
        "name": "a killed pretraining run equals the whole one", "command": " ".join(["python", *sys.argv]),
        "machine": "2 shared EPYC cores", "commit": commit.stdout.strip(), **found,
        "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    sys.exit(0 if found["equal"] else 1)


if __name__ == "__main__":
    main()
