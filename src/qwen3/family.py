"""The published Qwen3 models as data: the eight sizes, their Base and 2507 siblings, quantized repositories, sampling.

Source: Qwen3 Technical Report (arXiv 2505.09388) and the models' own `config.json` files. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from qwen3.config import ModelConfig

Mode = Literal["hybrid", "thinking", "instruct", "base"]
ENDOFTEXT, IM_END = 151643, 151645


@dataclass(frozen=True)
class SamplingDefaults:
    """Published sampling values. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0


SAMPLING: dict[str, SamplingDefaults] = {
    "thinking": SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20),
    "non-thinking": SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20),
    "instruct": SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20),
    "thinking-2507": SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20),
    "base": SamplingDefaults(temperature=0.0, top_p=1.0, top_k=0),
}


TEMPLATE_OF: dict[Mode, str] = {
    "hybrid": "qwen3",
    "base": "qwen3",
    "thinking": "thinking-2507",
    "instruct": "instruct-2507",
}
"""Mode -> the chat template's name in `qwen3.chat`."""


def sampling_key(mode: Mode, thinking: bool = True) -> str:
    """The key of SAMPLING for a model of this mode; `thinking` matters for hybrid models only."""
    if mode == "hybrid":
        return "thinking" if thinking else "non-thinking"
    return "thinking-2507" if mode == "thinking" else mode


def sampling_defaults(mode: Mode, thinking: bool = True) -> SamplingDefaults:
    """What Qwen recommends for a model of this mode."""
    return SAMPLING[sampling_key(mode, thinking)]


@dataclass(frozen=True)
class FamilyMember:
    """One published model.

    `context` is `max_position_embeddings` in tokens (for the hybrid models 32,768 of output plus 8,192 of prompt);
    `yarn_context` what static YaRN ×4 was validated for, 0 where none is published. `params` and `active_params` count
    weights, embedding and head included, a tied head once. `variants` maps "fp8", "awq", "gptq-int4", "gptq-int8" and
    "gguf" to the hub repository that holds the same weights quantized.
    """

    name: str
    repo: str
    tag: str
    mode: Mode
    config: ModelConfig
    yarn_context: int = 0
    variants: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def context(self) -> int:
        return self.config.max_position_embeddings

    @property
    def params(self) -> int:
        return self.config.num_parameters()

    @property
    def active_params(self) -> int:
        return self.config.num_parameters(active=True)

    @property
    def template(self) -> str:
        """The chat template's name in `qwen3.chat`."""
        return TEMPLATE_OF[self.mode]


def _dense(hidden: int, layers: int, heads: int, intermediate: int, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        vocab_size=151936,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        intermediate_size=intermediate,
        tie_word_embeddings=tied,
    )


def _moe(hidden: int, layers: int, heads: int, intermediate: int, moe_intermediate: int) -> ModelConfig:
    return replace(
        _dense(hidden, layers, heads, intermediate),
        num_key_value_heads=4,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=moe_intermediate,
    )


_SIZES: dict[str, ModelConfig] = {
    "0.6B": _dense(1024, 28, 16, 3072, tied=True),
    "1.7B": _dense(2048, 28, 16, 6144, tied=True),
    "4B": _dense(2560, 36, 32, 9728, tied=True),
    "8B": _dense(4096, 36, 32, 12288),
    "14B": _dense(5120, 40, 40, 17408),
    "32B": _dense(5120, 64, 64, 25600),
    "30B-A3B": _moe(2048, 48, 32, 6144, 768),
    "235B-A22B": _moe(4096, 94, 64, 12288, 1536),
}
_BASE = ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B")  # 32B-Base and 235B-A22B-Base were never released
_THETA_2507 = {"4B": 5_000_000.0, "30B-A3B": 10_000_000.0, "235B-A22B": 5_000_000.0}
_QUANTIZED = {
    "0.6B": ("FP8", "GPTQ-Int8", "GGUF"),
    "1.7B": ("FP8", "GPTQ-Int8", "GGUF"),
    "4B": ("FP8", "AWQ", "GGUF"),
    "8B": ("FP8", "AWQ", "GGUF"),
    "14B": ("FP8", "AWQ", "GGUF"),
    "32B": ("FP8", "AWQ", "GGUF"),
    "30B-A3B": ("FP8", "GPTQ-Int4", "GGUF"),
    "235B-A22B": ("FP8", "GPTQ-Int4", "GGUF"),
}
_ALIASES = {"30b": "30b-a3b", "235b": "235b-a22b"}


def _member(name: str, mode: Mode, config: ModelConfig, formats: tuple[str, ...], yarn: int = 0) -> FamilyMember:
    repo = f"Qwen/{name}"
    return FamilyMember(
        name=name,
        repo=repo,
        tag="qwen3:" + name.removeprefix("Qwen3-").lower(),
        mode=mode,
        config=config,
        yarn_context=yarn,
        variants={form.lower(): f"{repo}-{form}" for form in formats},
    )


def _build() -> dict[str, FamilyMember]:
    members = []
    for size, config in _SIZES.items():
        yarn = 0 if size in ("0.6B", "1.7B") else 131072
        members.append(_member(f"Qwen3-{size}", "hybrid", config, _QUANTIZED[size], yarn))
    for size in _BASE:
        base = replace(_SIZES[size], max_position_embeddings=32768, eos_token_id=ENDOFTEXT)
        members.append(_member(f"Qwen3-{size}-Base", "base", base, ()))
    for size, theta in _THETA_2507.items():
        config = replace(_SIZES[size], max_position_embeddings=262144, rope_theta=theta)
        members.append(_member(f"Qwen3-{size}-Instruct-2507", "instruct", config, ("FP8",)))
        members.append(_member(f"Qwen3-{size}-Thinking-2507", "thinking", config, ("FP8",)))
    return {member.name: member for member in members}


MODELS: dict[str, FamilyMember] = _build()
_BY_TAG = {member.tag: member for member in MODELS.values()}
_BY_REPO = {member.repo.lower(): (member, None) for member in MODELS.values()} | {
    repo.lower(): (member, form) for member in MODELS.values() for form, repo in member.variants.items()
}


def resolve_tag(tag: str) -> FamilyMember | None:
    """The member a tag like `qwen3:8b` or `qwen3:4b-instruct-2507` names, in any case; None if no such tag.

    `qwen3:30b` and `qwen3:235b` (with any suffix) are short for `30b-a3b` and `235b-a22b`.
    """
    family, _, rest = tag.lower().partition(":")
    if family != "qwen3":
        return None
    size, dash, suffix = rest.partition("-")
    if size in _ALIASES and not suffix.startswith("a"):
        rest = _ALIASES[size] + dash + suffix
    return _BY_TAG.get(f"qwen3:{rest}")


def look_up(name: str) -> tuple[FamilyMember | None, str | None]:
    """(member, quantized form) that a tag or a repository names, `@REVISION` or not; (None, None) for all else."""
    plain = name.partition("@")[0]
    return resolve_repo(plain) or (resolve_tag(plain), None)


def find(name: str) -> FamilyMember | None:
    """As `look_up`, for what can be run: None for quantized forms."""
    member, form = look_up(name)
    return None if form else member


def resolve_repo(repo: str) -> tuple[FamilyMember, str | None] | None:
    """(member, quantized form or None) for a repository such as `Qwen/Qwen3-8B-FP8`; None if it is not one of these."""
    return _BY_REPO.get(repo.lower())
