"""An adapter on Qwen3-8B's shape, ours beside Transformers and PEFT: `PYTHONPATH=src python tools/lora_peer.py`.

The same work in one process, one after the other: section lora8b of tools/train_bench.py, and the peer at rank 16 on
all seven linear modules of a layer, random bfloat16 weights, the same tokens, one document of 8,192 in a row, loss by
labels, gradients clipped at norm 1, torch's fused AdamW. The peer is tried in several ways; its best row is what ours
is set against. Its adapter and moments are bfloat16, so that nothing is cast, but in the way that says otherwise; ours
are float32.
Writes `$OUT/lora_peer.json` after each row. --tiny runs it all on a CPU in seconds, to show that it works. Needs
`transformers` and `peft`; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import train_bench
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_bench import DENSE_8B, DEVICE, DTYPE

from qwen3.model.lora import LoraConfig

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WARM_UP_LIMIT = 60.0  # seconds


class Way(NamedTuple):
    """One way to run the peer."""

    checkpointing: bool = False
    compiled: bool = False
    attention: SDPBackend = SDPBackend.FLASH_ATTENTION
    wide: bool = False  # a float32 adapter under autocast, as Transformers' Trainer runs it with bf16=True

    @property
    def room(self) -> float:
        """Seconds to try it, about, at the most."""
        return WARM_UP_LIMIT + 15 if self.compiled else 20

    def __str__(self) -> str:
        parts = ["checkpointing" if self.checkpointing else "without checkpointing"]
        parts += ["layers compiled"] * self.compiled
        parts += ["attention of cuDNN"] * (self.attention == SDPBackend.CUDNN_ATTENTION)
        parts += ["float32 adapter under autocast"] * self.wide
        return ", ".join(parts)


WAYS = (Way(checkpointing=True), Way(), Way(checkpointing=True, compiled=True))
# tried last, while there is time
MORE = (
    Way(compiled=True),
    Way(checkpointing=True, attention=SDPBackend.CUDNN_ATTENTION),
    Way(checkpointing=True, wide=True),
)


class TooLong(BaseException):
    """A warm-up past its limit. No Exception: the compiler catches those and goes on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooLong in the block once it has taken this long (as soon as Python runs in the main thread)."""

    def stop(*_: Any) -> None:
        raise TooLong(f"warm-up took over {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)  # again, where a callback has lost the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peer_model(rank: int, way: Way) -> Any:
    """Transformers' network at the shape that ours has, on DEVICE, with a fresh adapter."""
    shape = train_bench.config(DENSE_8B)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
        "bos_token_id", "eos_token_id",
    )  # fmt: skip
    config = transformers.Qwen3Config(
        **{name: getattr(shape, name) for name in names},
        rope_parameters={"rope_type": "default", "rope_theta": float(shape.rope_theta)},
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(DEVICE):
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa")
    asked = peft.LoraConfig(r=rank, lora_alpha=int(LoraConfig().alpha), target_modules=TARGETS, task_type="CAUSAL_LM")
    # PEFT would make it float32, and then its products are in float32 too, unless autocast is on
    model = peft.get_peft_model(base, asked, autocast_adapter_dtype=way.wide)
    if way.checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    if way.compiled:
        for layer in base.model.layers:
            layer.compile()
    return model.train()


def peer(way: Way) -> dict[str, Any]:
    """One update after the other, timed as `train_bench.measure` times ours. Raises torch.OutOfMemoryError,
    TooLong for a warm-up that takes too long, and what the libraries raise."""
    count, length, rank = (2, 128, 4) if train_bench.TINY else (1, 8192, 16)
    batches = [train_bench.batch_of(count, length, [length] * count, 600, i) for i in range(2)]
    rows = [torch.as_tensor(batch.ids, dtype=torch.int64).to(DEVICE) for batch in batches]
    begin = time.perf_counter()
    model = peer_model(rank, way)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    done = 0

    def update() -> torch.Tensor:
        nonlocal done
        ids = rows[done % len(rows)]
        done += 1
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=way.wide):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    with sdpa_kernel(way.attention) if DEVICE.type == "cuda" else nullcontext():
        with time_limit(WARM_UP_LIMIT):
            first = float(update())
            start = time.perf_counter() - begin
            update()
            train_bench.wait()
        per_update = train_bench.seconds_of(update, train_bench.OPTIONS["seconds"])
        last = float(update())
    found = {"tok/s": count * length / per_update, "ms/update": per_update * 1e3, "tokens/update": count * length}
    memory = torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0
    found |= {"GB": memory, "start s": start, "loss": first, "loss later": last}
    if way.compiled:
        # many graphs would mean that layers were compiled one by one, or not at all past dynamo's limit
        found["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return found | {"trained parameters": sum(p.numel() for p in trained)}


def clean() -> None:
    """Give back what the last row held, and count memory from here."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def tried(way: Way) -> dict[str, Any]:
    """The row of one way: what was measured, or why there is nothing."""
    row: dict[str, Any] = {"who": "transformers and peft", "what": str(way)}
    try:
        row |= peer(way)
    except TooLong as error:
        row["note"] = str(error)
    except Exception as error:
        # also where a compiler wraps it
        short = "out of memory" in str(error).lower()
        row["note"] = "out of memory" if short else f"{type(error).__name__}: {error}"[:300]
    clean()
    return row


def ours() -> dict[str, Any]:
    row = {"who": "ours"} | train_bench.lora8b()[0]
    clean()
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder of lora_peer.json")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measured updates in each row")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds in all: the last ways are left out beyond")
    args = parser.parse_args()
    train_bench.TINY = args.tiny
    train_bench.OPTIONS.update(
        seconds=0.05 if args.tiny else args.seconds,
        compiling="layers" if DEVICE.type == "cuda" else "none",
        profile=False,
    )
    torch.backends.cuda.matmul.allow_tf32 = False
    args.out.mkdir(parents=True, exist_ok=True)
    on_gpu = DEVICE.type == "cuda"
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "name": "LoRA on 8B beside transformers and peft",
        "command": f"python tools/lora_peer.py --seconds {args.seconds:g}" + " --tiny" * args.tiny,
        "machine": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "peft": version("peft"),
        "tiny": args.tiny,
        "rows": rows,
        "ratio": None,
    }
    begin = time.perf_counter()
    for way in (*WAYS, None, *MORE):
        if way in MORE and time.perf_counter() - begin > args.limit - way.room:
            row: dict[str, Any] = {"who": "transformers and peft", "what": str(way), "note": "not tried, for time"}
        else:
            row = tried(way) if way else ours()
        rows.append(row)
        mine, theirs = (
            max((r["tok/s"] for r in rows if "tok/s" in r and (r["who"] == "ours") == own), default=0.0)
            for own in (True, False)
        )
        result["ratio"] = mine / theirs if mine and theirs else None
        result["seconds"] = time.perf_counter() - begin
        shown = (f"{k} {v:.5g}" if isinstance(v, float) else str(v) for k, v in row.items())
        print("  ".join(shown), flush=True)
        (args.out / "lora_peer.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"ours over the peer's best: {result['ratio']}, in {result['seconds']:.0f} s")
    return 0 if result["ratio"] else 1


if __name__ == "__main__":
    sys.exit(main())
