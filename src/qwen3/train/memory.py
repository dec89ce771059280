"""What training takes in memory, by arithmetic, with room for what that leaves out: said before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qwen3.checkpoint import available_bytes
from qwen3.config import ModelConfig
from qwen3.errors import OutOfMemoryError
from qwen3.train.forward import Checkpointing
from qwen3.train.optim import OptimConfig

# A compiled layer keeps less than an eager one: 0.70 and 0.56 of the formula's bytes were left on an H100 for
# Qwen3-0.6B and the embedded model's shape (benchmarks/2026-11-22-train-*-h100.json).
_COMPILED = 0.7
_LOGITS = {"cpu": 1e9, "cuda": 2.5e9}  # see `losses.chunk_for`
_BESIDE = 0.05  # allocator's gaps, buffers of the data, what a kernel needs for a moment


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by what they are for."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        named = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.parts.items())
        return f"{self.total / 1e9:.2f} GB of memory: {named}"


def plan_memory(
    config: ModelConfig,
    optim: OptimConfig,
    tokens: int,
    device: str,
    *,
    checkpointing: Checkpointing = "none",
    processes: int = 1,
) -> MemoryPlan:
    """tokens: computed at once. device: "cpu" or "cuda". processes: over which all parameters are sharded."""
    element = 2 if device == "cuda" else 4
    count = -(-config.num_parameters() // processes)
    embedded = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    hidden = count - -(-embedded // processes)
    moments = 2 * count - (hidden if optim.kind == "muon" else 0)
    chunk = min(tokens, int(_LOGITS[device] / (element * config.vocab_size)) + 256)
    parts = {
        "parameters and gradients": 2 * element * count,
        "masters and sums of gradients": 8 * count,
        "moments": 4 * moments,
        "activations": int(
            tokens * element * activations(config, checkpointing) * (_COMPILED if device == "cuda" else 1)
        ),
        # Logits, their gradient and, uncompiled, what lies between; the gradients of the states and of the head.
        "head": chunk * config.vocab_size * (2 * element + (4 if device == "cpu" else 0))
        + config.hidden_size * (tokens * element + 4 * config.vocab_size),
    }
    if device == "cpu":
        parts["copy for checkpoints"] = 4 * (count + moments)
    return MemoryPlan(parts | {"beside": int(_BESIDE * sum(parts.values()))})


def activations(config: ModelConfig, checkpointing: Checkpointing) -> float:
    """Numbers that a token's forward pass keeps for its way back, head apart."""
    h, m, top_k = config.hidden_size, config.moe_intermediate_size, config.num_experts_per_tok
    heads = (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    attention, dense, sparse = 5 * h + 4 * heads, h + 4 * config.intermediate_size, 2 * h + top_k * (h + 5 * m + 4)
    layers = [attention + (sparse if config.is_sparse_layer(i) else dense) for i in range(config.num_hidden_layers)]
    if checkpointing == "none":
        return sum(layers) + 3 * h
    kept = h + (config.num_attention_heads * config.head_dim if checkpointing == "attention" else 0)
    return kept * len(layers) + max(layers) + 3 * h


def check_memory(plan: MemoryPlan, device: torch.device, tokens: int) -> str:
    """What is said before the first step. Raises OutOfMemoryError with the numbers where it cannot fit."""
    free = available_bytes(device)
    if free is None:
        return str(plan)
    if plan.total > free:
        fixed = sum(size for name, size in plan.parts.items() if name not in ("activations", "head", "beside"))
        fits = int(tokens * (free / (1 + _BESIDE) - fixed) / (plan.parts["activations"] + plan.parts["head"]))
        help = f"tokens_per_micro_batch={fits // 128 * 128} would, or checkpointing=layers" if fits >= 128 else (
            "no micro-batch would: take a smaller model, or sharded=true over several devices"
        )  # fmt: skip
        raise OutOfMemoryError(f"training needs {plan}, but {free / 1e9:.2f} GB are free on {device}: {help}")
    return f"{plan}; {free / 1e9:.2f} GB are free"
