"""Claims that need no run: what the configurations and the planner's sums say of them, computed when asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

from qwen3.checkpoint.sizes import FORMATS, sizes
from qwen3.config import ModelConfig
from qwen3.family import MODELS
from qwen3.plan import Machine

Found = tuple[bool, str]
"""(whether it is so, the sum behind it)."""
GB = 1e9
A100_BYTES_S, H20_BYTES_S = 2.04e12, 4.0e12
"""Memory bandwidth as NVIDIA's data sheets give it (A100 80GB SXM; H20)."""
HYBRID = [member for member in MODELS.values() if member.mode == "hybrid"]


def config_of(size: str) -> ModelConfig:
    return MODELS[f"Qwen3-{size}"].config


def weights(size: str, format: str) -> float:
    """Bytes of a model's weights in a file: the least that an engine can hold without widening them."""
    return sizes(config_of(size), FORMATS[format], "cuda").file


def fits(size: str, format: str, card: int, count: int = 1, context: int = 4096) -> bool:
    """Whether weights as small as their file and 16-bit keys and values of one context go on cards of so many GB."""
    needed = weights(size, format) + context * config_of(size).kv_bytes_per_token(2)
    return needed < count * Machine.gpu(card).free


def knobs() -> list[Found]:
    names = {field.name for field in fields(ModelConfig)}
    wanted = [name for name in names if "step" in name or "active" in name or "seconds" in name]
    actives = ", ".join(f"{m.active_params / GB:.1f}" for m in HYBRID)
    return [
        (
            set(wanted) > {"decoder_sparse_step"},
            "no field of a configuration sets reasoning steps, active parameters or response time "
            f"(decoder_sparse_step places MoE layers); active billions are fixed per model: {actives}",
        )
    ]


def active_share() -> list[Found]:
    shares = {member.name.removeprefix("Qwen3-"): member.active_params / member.params for member in HYBRID}
    sparse = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share < 1)
    return [
        (
            min(shares.values()) <= 0.03,
            f"dense models use all of their weights for every token, {sparse}; nothing in a configuration depends on "
            "the mode, which is a matter of the prompt",
        )
    ]


def experts() -> list[Found]:
    c, m = config_of("235B-A22B"), MODELS["Qwen3-235B-A22B"]
    share, active, whole = m.active_params / m.params, m.active_params / GB, m.params / GB
    right = (c.num_experts, c.num_experts_per_tok, round(active), round(100 * share)) == (128, 8, 22, 9)
    counts = f"{c.num_experts} experts, {c.num_experts_per_tok} a token"
    return [(right, f"{counts}, {active:.1f} of {whole:.1f} billion parameters: {share:.1%}")]


def memory_of_3b() -> list[Found]:
    m = MODELS["Qwen3-30B-A3B"]
    held, read = weights("30B-A3B", "bf16") / GB, 2 * m.active_params / GB
    return [
        (held < 10, f"weights: all {m.params / GB:.1f} billion must be held, {held:.0f} GB in bfloat16"),
        (read < 8, f"traffic: a token reads {read:.1f} GB of them, as a {m.active_params / GB:.1f}B model's would"),
    ]


def four_bit() -> list[Found]:
    asked = [("8B", "Q4_K_M", 24, 32768), ("30B-A3B", "Q4_K_M", 16, 4096), ("30B-A3B", "Q3_K_M", 16, 4096)]
    return [
        (fits(size, form, card, context=long), f"{size} {form}, {weights(size, form) / GB:.1f} GB, on {card} GB")
        for size, form, card, long in asked
    ]


def servers() -> list[Found]:
    dense = config_of("32B")
    read = 2 * (dense.num_parameters() - dense.vocab_size * dense.hidden_size)
    bf16 = 2 * A100_BYTES_S / read
    h20 = 4 * H20_BYTES_S / MODELS["Qwen3-235B-A22B"].active_params
    whole, smallest = weights("235B-A22B", "fp8") / GB, weights("235B-A22B", "Q2_K") / GB
    dual = "32B on 2 × A100 at 78 tok/s: one stream in bfloat16 cannot pass"
    return [
        (fits("235B-A22B", "fp8", 96, 4, 32768), f"235B in FP8, {whole:.0f} GB, on four H20 of 96 GB"),
        (smallest < 64, f"235B in 64 GB together: even Q2_K takes {smallest:.0f} GB"),
        (h20 > 45, f"45 tok/s of it: memory bandwidth allows up to {h20:.0f}"),
        (bf16 > 78, f"{dual} {bf16:.0f} tok/s by memory bandwidth, in 8 bits {2 * bf16:.0f}"),
        (fits("4B", "Q4_K_M", 6), f"4B Q4_K_M, {weights('4B', 'Q4_K_M') / GB:.1f} GB, with 4,096 tokens on 6 GB"),
    ]


def context() -> list[Found]:
    without = [m.name.removeprefix("Qwen3-") for m in HYBRID if m.yarn_context < 131072]
    native = sorted({m.context for m in HYBRID})
    return [
        (not without, f"as configured {', '.join(f'{n:,}' for n in native)} tokens; 131,072 only with YaRN, and for "
                      f"{', '.join(without)} not at all"),
    ]  # fmt: skip


def math_model() -> list[Found]:
    named = any("math" in name.lower() for name in MODELS)
    return [(named, f"none of the {len(MODELS)} published models is so called; Qwen2.5-Math is an older family")]


SETTLED: dict[str, Callable[[], list[Found]]] = {
    function.__name__: function
    for function in (knobs, active_share, experts, memory_of_3b, four_bit, servers, context, math_model)
}
