"""Which type each tensor gets: llama.cpp's own choices, rules, fallbacks."""

from __future__ import annotations

from typing import Any

import pytest

from qwen3.config import ModelConfig
from qwen3.errors import UsageError
from qwen3.quantize.gguf.encode import WRITTEN
from qwen3.quantize.gguf.recipe import FALLBACK, RECIPES, Choice, choose, recipe_named
from qwen3.quantize.gguf.write import tensor_pieces
from tests.fixtures import tiny_config

WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "num_hidden_layers": 16}
# by llama_model_quantize of llama-cpp-python 0.3.36 (build of llama.cpp of 2025), for 16 layers with two query heads to
# a key head and a head of its own: the type of most, then layers of attn_v, ffn_down, attn_output with other types
THEIRS = {
    "q2_k": ("Q2_K", {"attn_v": "Q3_K " * 16, "ffn_down": "Q3_K " * 16, "attn_output": "Q3_K " * 16}),
    "q3_k_s": ("Q3_K", {}),
    "q3_k_m": ("Q3_K", {"attn_v": "Q5_K " * 2 + "Q4_K " * 14, "ffn_down": "Q5_K " + "Q4_K " * 15,
                        "attn_output": "Q4_K " * 16}),
    "q3_k_l": ("Q3_K", dict.fromkeys(("attn_v", "ffn_down", "attn_output"), "Q5_K " * 16)),
    "q4_k_s": ("Q4_K", {"attn_v": "Q5_K " * 4 + "Q4_K " * 12, "ffn_down": "Q5_K " * 2 + "Q4_K " * 14}),
    "q4_k_m": ("Q4_K", dict.fromkeys(("attn_v", "ffn_down"), "Q6_K Q6_K " + "Q4_K Q4_K Q6_K " * 4 + "Q6_K Q6_K ")),
    "q5_k_m": ("Q5_K", dict.fromkeys(("attn_v", "ffn_down"), "Q6_K Q6_K " + "Q5_K Q5_K Q6_K " * 4 + "Q6_K Q6_K ")),
    "q5_k_s": ("Q5_K", {}),
    "q6_k": ("Q6_K", {}),
    "iq4_xs": ("IQ4_XS", {"ffn_down": "Q5_K " * 2 + "IQ4_XS " * 14}),
}  # fmt: skip


def chosen(name: str, config: ModelConfig, *rules: str, guided: bool = False) -> dict[str, Choice]:
    shapes = {tensor: shape for tensor, (shape, _) in tensor_pieces(config).items()}
    return choose(recipe_named(name), shapes, config, rules, guided)


@pytest.mark.parametrize("name", THEIRS)
def test_recipes_are_the_published_ones(name: str) -> None:
    base, special = THEIRS[name]
    found = chosen(name, tiny_config(tie_word_embeddings=False, **WIDE))
    assert all(choice.wanted is None for choice in found.values())
    assert found["output.weight"].kind == "Q6_K"
    assert found["token_embd.weight"].kind == base
    for kind in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        expected = special.get(kind, f"{base} " * 16).split()
        assert [found[f"blk.{i}.{kind}.weight"].kind for i in range(16)] == expected, kind


def test_a_tied_embedding_is_the_head() -> None:
    assert chosen("q4_k_m", tiny_config(**WIDE))["token_embd.weight"].kind == "Q6_K"
    assert "output.weight" not in chosen("q4_k_m", tiny_config(**WIDE))


def test_four_query_heads_to_a_key_head_make_values_dearer() -> None:
    config = tiny_config(num_attention_heads=8, num_key_value_heads=2, **WIDE)
    assert chosen("q2_k", config)["blk.3.attn_v.weight"].kind == "Q4_K"
    assert chosen("iq4_xs", config)["blk.3.attn_v.weight"].kind == "Q5_K"


def test_vectors_and_routers_stay_float32() -> None:
    found = chosen("q4_k_m", tiny_config(moe=True, moe_intermediate_size=256, hidden_size=256), "*=q8_0")
    plain = {name for name, choice in found.items() if choice.kind == "F32"}
    assert plain == {name for name in found if "norm" in name or "ffn_gate_inp" in name}
    assert {choice.kind for name, choice in found.items() if name not in plain} == {"Q8_0"}


def test_experts_alone_become_mxfp4() -> None:
    found = chosen("mxfp4_moe", tiny_config(moe=True))
    assert {n for n, choice in found.items() if choice.kind == "MXFP4"} == {n for n in found if "_exps." in n}
    with pytest.raises(UsageError, match="mxfp4_moe is for experts"):
        chosen("mxfp4_moe", tiny_config())


def test_widths_that_do_not_divide_fall_back_and_say_so() -> None:
    found = chosen("q4_k_m", tiny_config(hidden_size=96, head_dim=16, intermediate_size=256))
    assert found["blk.0.attn_q.weight"] == Choice("Q5_0", "Q4_K")
    assert found["token_embd.weight"] == Choice("Q8_0", "Q6_K")
    assert found["blk.1.ffn_down.weight"] == Choice("Q6_K")
    assert chosen("q4_k_m", tiny_config(hidden_size=72))["blk.0.attn_q.weight"] == Choice("F16", "Q4_K")
    assert {*FALLBACK, *FALLBACK.values()} <= set(WRITTEN)


def test_rules_come_over_the_recipe_and_the_last_counts() -> None:
    found = chosen("q4_k_m", tiny_config(**WIDE), "blk.*=q5_k", "blk.0.attn_?.weight=Q8_0", "token_embd.weight=f16")
    assert found["blk.1.ffn_up.weight"].kind == "Q5_K"
    assert {found[f"blk.0.attn_{x}.weight"].kind for x in "qkv"} == {"Q8_0"}
    assert found["token_embd.weight"].kind == "F16"


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("q4_k", "", "--type q4_k is unknown; there are"),
        ("q4_k_m", "blk.0", r"--rule blk.0: must be PATTERN=TYPE"),
        ("q4_k_m", "blk.*=iq2_xs", "must be PATTERN=TYPE"),
        ("q4_k_m", "blk.99.*=q8_0", "no matrix is called so"),
        ("q4_k_m", "*norm.weight=q8_0", "no matrix is called so"),
    ],
)
def test_what_is_refused(name: str, rule: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(name, tiny_config(**WIDE), *([rule] if rule else []))


def test_every_recipe_writes_types_that_can_be_written() -> None:
    for name, recipe in RECIPES.items():
        if name == "mxfp4_moe":
            continue
        for config in (tiny_config(**WIDE), tiny_config(moe=True, hidden_size=256, moe_intermediate_size=256)):
            for guided in (True, False):
                assert {choice.kind for choice in chosen(name, config, guided=guided).values()} <= set(WRITTEN), recipe
