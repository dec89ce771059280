"""Train the embedded model, on one H100, in two phases of about 8 and 6 minutes:

    python -m recipes.embedded_v0.train general --steps 6000 --stop-at 4500 --out runs/general
    python -m recipes.embedded_v0.train final --steps 4200 --start-from runs/general/model --out runs/final

The second starts at the learning rate where the first stopped and takes it to zero. The shape makes every linear's
input a multiple of 256, so that every quantization format applies to it.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from pathlib import Path
from typing import Any

import torch

from qwen3.checkpoint import load_weights, save_checkpoint
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.tasks import FAMILIES
from qwen3.train.conversation import turn_sample
from qwen3.train.data import BatchPlan, stream_batches
from qwen3.train.loop import TrainConfig, document_mask, init_weights, packed_hidden, train
from qwen3.train.optim import OptimConfig
from qwen3.train.probe import exact_share
from recipes.embedded_v0.mixture import LENGTH, PHASES, VOCAB_RANKS, build, solved, tokenizer

CONTROL = VOCAB_RANKS  # the control tokens follow the ranks; the first is <|endoftext|>, the third <|im_end|>
CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 8320,  # 8,192 ranks + 26 control tokens + rows that are never sampled
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 1024,
    "hidden_act": "silu",
    "max_position_embeddings": LENGTH,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": CONTROL,
    "eos_token_id": CONTROL + 2,
    "torch_dtype": "bfloat16",
}
GENERATION = {
    "bos_token_id": CONTROL,
    "pad_token_id": CONTROL,
    "eos_token_id": [CONTROL + 2, CONTROL],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}


def held_out(per_family: int) -> dict[str, Any]:
    """Samples of the evaluation split, by family and mode."""
    rng = random.Random("probe")
    groups: dict[str, Any] = {}
    for name, task in FAMILIES.items():
        problems = [task.sample(rng, split="eval") for _ in range(per_family)]
        groups[f"{name} thinking"] = [turn_sample(solved(p), thinking=True) for p in problems]
        groups[f"{name} direct"] = [turn_sample(solved(p), thinking=False) for p in problems]
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=tuple(PHASES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--text", default="runs/text", help="folder that fetch_text.py wrote")
    parser.add_argument("--steps", type=int, default=6000, help="of the whole schedule")
    parser.add_argument("--stop-at", type=int, help="end there, in the middle of the schedule")
    parser.add_argument("--rows", type=int, default=32, help=f"rows of {LENGTH} tokens in a batch")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=500)
    parser.add_argument("--probe", type=int, default=96, help="held-out problems a family and mode")
    parser.add_argument("--start-from", type=Path, help="checkpoint folder to go on from instead of random weights")
    args = parser.parse_args()

    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Qwen3(ModelConfig.from_dict(CONFIG), device=device, dtype=torch.bfloat16 if device.type == "cuda" else None)
    if args.start_from:
        load_weights(model, args.start_from)
    else:
        init_weights(model, args.seed)
    if args.phase == "general":
        config = TrainConfig(args.steps, stop_at=args.stop_at)
    else:
        optim = OptimConfig(matrix_lr=0.011, vector_lr=0.00165)
        config = TrainConfig(args.steps, stop_at=args.stop_at, warmup=50, decay=0.95, optim=optim)
    tok = tokenizer()
    plan = BatchPlan(args.rows, LENGTH, args.seed)
    make = functools.partial(build, args.phase, args.steps, args.text)
    groups = held_out(args.probe)
    fast = device.type == "cuda"
    hidden = torch.compile(packed_hidden) if fast else packed_hidden

    @torch.no_grad()
    def predict(ids: torch.Tensor, positions: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        mask = document_mask(documents) if fast else None
        return model.head(hidden(model, ids, positions, documents, mask)).argmax(-1)

    def evaluate(step: int) -> dict[str, Any]:
        save_checkpoint(args.out / "model", model, tokenizer=tok, generation_config=GENERATION)
        shares = exact_share(predict, tok, groups, rows=args.rows, length=LENGTH, device=device)
        thinking = [v for k, v in shares.items() if k.endswith("thinking")]
        print(f"exact at {step}: {json.dumps(shares)}; thinking {sum(thinking) / len(thinking):.3f}", flush=True)
        return {"exact": shares}

    train(
        model,
        lambda first: stream_batches(make, plan, range(first, args.steps), args.workers),
        config,
        args.out,
        evaluate=evaluate,
        evaluate_every=args.evaluate_every,
    )
    print(f"all: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
