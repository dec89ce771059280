"""Does balancing experts over the global batch even their load, and does it help? A mixture of experts of at most 6M
parameters is pretrained with and without it: the same data, seeds, updates and therefore FLOPs.

    python tools/moe_balance.py runs/moe --minutes 8
    python tools/moe_balance.py runs/moe --experts 32 --top-k 2 --hidden 64 --layers 2 --weight 0.1 \
        --tokens 16384 --at-once 4096 --updates 500 --out benchmarks/2026-11-23-moe-balance-sparse-cpu.json

Every run goes on where it stopped when the tool is started again. Texts are the standard library's Python files, unless
--data says otherwise. What is reported: held-out bits per byte; the most and the least loaded expert of each layer over
the mean, on held-out text, on text drawn as in training, and in the last tenth of the updates one by one; the
difference of the losses, paired by seed, with its 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from qwen3.model import Qwen3, load_model
from qwen3.model.load import best_device
from qwen3.tokenizer import Tokenizer
from qwen3.train.bits_per_byte import bits_per_byte
from qwen3.train.corpus.shards import Shards
from qwen3.train.forward import Forward, to_tensors
from qwen3.train.mixture import Mixture, Source, kept_out
from qwen3.train.moe import added, load_statistics, router_sums
from qwen3.train.packing import pack
from qwen3.train.pretrain import Pretrain, as_shards, some_texts
from qwen3.train.recipe import Recipe
from qwen3.train.run import Run
from qwen3.train.samples import TokenSample, completion_sample
from qwen3.train.start import Job, train

ARMS = ("balanced", "unbalanced")
LENGTH = 256
SHAPE: dict[str, Any] = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 2176, "hidden_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
    "intermediate_size": 256, "max_position_embeddings": LENGTH, "rope_theta": 10_000.0, "tie_word_embeddings": True,
    "bos_token_id": 2048, "eos_token_id": 2048, "torch_dtype": "bfloat16", "norm_topk_prob": True,
}  # fmt: skip
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}  # by degrees of freedom
_KEPT, _TOKENS = 64, 262_144  # documents that are left out; tokens that are measured on


def shape_of(args: argparse.Namespace) -> dict[str, Any]:
    """Of any number of experts the same parameters, the router's apart."""
    return SHAPE | {
        "num_experts": args.experts, "num_experts_per_tok": args.top_k or args.experts // 8,
        "moe_intermediate_size": 1024 // args.experts, "hidden_size": args.hidden, "num_hidden_layers": args.layers,
        "num_attention_heads": args.hidden // 64,
    }  # fmt: skip


def source_of(shards: Path) -> Source:
    return Source("text", 1.0, str(shards), _KEPT)


def stage_of(arm: str, args: argparse.Namespace) -> Pretrain:
    return Pretrain(
        sources=(source_of(args.folder / "shards"),), length=LENGTH,
        balance=args.weight if arm == "balanced" else 0.0,
        updates=args.updates, tokens_per_update=args.tokens, tokens_per_micro_batch=min(args.tokens, args.at_once),
        evaluate_every=0, save_every=max(10, args.updates // 20),
    )  # fmt: skip


def shards_of(args: argparse.Namespace) -> Shards:
    folder = args.folder / "shards"
    if not folder.exists():
        tokenizer = Tokenizer.from_pretrained().prefix(2048)
        job = Job(None, tokenizer, Run(args.folder), 0, "base", "qwen3", "", {})  # type: ignore[arg-type]
        as_shards(args.data, job).folder.rename(folder)
    return Shards(folder)


@torch.no_grad()
def measure(folder: Path, shards: Shards) -> dict[str, Any]:
    """On the documents that no run trains on; the load also on some of the others."""
    device = best_device()
    model = load_model(folder, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    texts = some_texts(shards, kept_out(shards, _KEPT), Tokenizer.from_pretrained(folder), _TOKENS)
    found = bits_per_byte(model, texts, length=LENGTH, rows=16)
    drawn = Mixture((source_of(shards.folder),), LENGTH, "measured")
    trained = load_of(model, list(drawn.feed(0, _TOKENS // LENGTH)))
    held_out = load_of(model, [completion_sample([], text.ids.tolist()) for text in texts])
    return {
        "bits_per_byte": found["bits_per_byte"], "nats_per_token": found["nats_per_token"], **held_out,
        "load_max_of_trained": trained["load_max"], "load_min_of_trained": trained["load_min"],
    }  # fmt: skip


def load_of(model: Qwen3, left: list[TokenSample]) -> dict[str, Any]:
    """`load_statistics` over all tokens, and the most and the least loaded expert of each layer."""
    sums, forward = [], Forward(model)
    while left:
        batch, left = pack(left, 16, LENGTH, 0, split=True)
        tensors = to_tensors(batch, model.device)
        sums.append(router_sums(forward(tensors)[1], tensors.documents))
    counts = added(sums).counts
    shares = counts / counts.mean(-1, keepdim=True)
    return {
        **{name: float(value) for name, value in load_statistics(counts).items()},
        "most_by_layer": [round(float(x), 3) for x in shares.amax(-1)],
        "least_by_layer": [round(float(x), 3) for x in shares.amin(-1)],
    }  # fmt: skip


def run_one(arm: str, seed: int, shards: Shards, args: argparse.Namespace, end: float) -> dict[str, Any] | None:
    """The measured numbers, None where the time was up first."""
    out = args.folder / f"{arm}-{seed}"
    done = out / "measured.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    left = None if math.isinf(end) else max(0.01, (end - time.monotonic()) / 60)
    found = train(
        Recipe(f"moe-{arm}", shape_of(args), (stage_of(arm, args),), out=str(out), seed=seed, max_minutes=left)
    )
    if not found["finished"]:
        return None
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    loads = [line for line in lines if "load_max" in line][-max(1, args.updates // 10) :]
    measured = measure(out / "model", shards) | {
        "arm": arm, "seed": seed, "training_loss": loads[-1]["loss"],
        "load_max_in_training": statistics.fmean(line["load_max"] for line in loads),
        "load_min_in_training": statistics.fmean(line["load_min"] for line in loads),
    }  # fmt: skip
    done.write_text(json.dumps(measured))
    return measured


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means by arm; balanced minus unbalanced in bits per byte, paired by seed."""
    by = {(run["arm"], run["seed"]): run for run in runs}
    found: dict[str, Any] = {}
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        if own:
            names = [name for name in own[0] if name == "bits_per_byte" or name.startswith(("load_m", "training_loss"))]
            found[arm] = {name: round(statistics.fmean(run[name] for run in own), 4) for name in names}
    seeds = [seed for arm, seed in by if arm == "balanced" and ("unbalanced", seed) in by]
    apart = [by["balanced", s]["bits_per_byte"] - by["unbalanced", s]["bits_per_byte"] for s in seeds]
    if len(apart) > 1:
        middle = statistics.fmean(apart)
        half = T_95[len(apart) - 1] * statistics.stdev(apart) / math.sqrt(len(apart))
        found["difference"] = {"bits_per_byte": middle, "interval": [middle - half, middle + half], "seeds": seeds}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many; started again, it goes on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=32_768, help="of an update")
    parser.add_argument(
        "--at-once", type=int, default=8192, help="tokens of a micro-batch: the global batch is several"
    )
    parser.add_argument("--experts", type=int, default=16, choices=(16, 32, 64))
    parser.add_argument("--top-k", type=int, help="experts of a token; none: an eighth of all")
    parser.add_argument("--hidden", type=int, default=128, choices=(64, 128))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="the first seed: several calls may share the work")
    parser.add_argument("--weight", type=float, default=0.01, help="of the global-batch loss")
    parser.add_argument("--data", default="package:python", help="texts")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    begin = time.monotonic()
    args.folder.mkdir(parents=True, exist_ok=True)
    shards, runs, whole = shards_of(args), [], True
    for seed in range(args.first, args.first + args.seeds):
        for arm in ARMS:
            if (found := run_one(arm, seed, shards, args, begin + 60 * args.minutes)) is None:
                whole = False
                break
            runs.append(found)
        if not whole:
            break
    words, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False)
    device = best_device()
    report = {
        "name": "global-batch balance of experts, with and without", "command": " ".join(["python", *sys.argv]),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else "2 shared EPYC cores",
        "commit": commit.stdout.strip(), "finished": whole, "updates": args.updates, "tokens_per_update": args.tokens,
        "micro_batches": args.tokens // min(args.tokens, args.at_once), "weight": args.weight, "shape": shape_of(args),
        "summary": summary(runs), "runs": runs, "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    sys.exit(0 if whole else 3)


if __name__ == "__main__":
    main()
