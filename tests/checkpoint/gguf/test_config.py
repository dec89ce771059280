"""Metadata to configuration, tensor names to official ones: what is read, and what is refused by name."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from qwen3.checkpoint import read_config
from qwen3.checkpoint.gguf.files import open_gguf
from qwen3.checkpoint.gguf.names import find_parts
from qwen3.config import ModelConfig, RopeScaling
from qwen3.errors import ConfigError, CorruptFileError, Qwen3Error
from tests.checkpoint.gguf.build import I32, build, metadata, tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def config(file: Path, meta: dict[str, Any], infos: dict[str, Any] | None = None) -> ModelConfig:
    file.write_bytes(build(meta, tensors() if infos is None else infos))
    return read_config(file)


def test_dense(file: Path) -> None:
    found = config(file, metadata() | {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.padding_token_id": 9})
    assert found == ModelConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=32,
        head_dim=32,
        max_position_embeddings=64,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=7,
        pad_token_id=9,
    )
    assert not config(file, metadata(), tensors() | {"output.weight": ((32, 320), 0)}).tie_word_embeddings
    assert config(file, metadata(), {n: (shape, 0) for n, (shape, _) in tensors().items()}).dtype == "float32"
    assert config(file, metadata(feed_forward_length=[32])).intermediate_size == 32


def test_yarn(file: Path) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    found = config(file, metadata(**yarn, rope__scaling__original_context_length=16))
    assert found.rope_scaling == RopeScaling(4.0, 16)
    assert found.context_length == 64


def moe_infos(stacked: bool | None) -> dict[str, Any]:
    """stacked None: gate and up in one tensor."""
    out = {name: item for name, item in tensors().items() if "ffn_" not in name or "norm" in name}
    out["blk.0.ffn_gate_inp.weight"] = ((32, 4), 0)
    if stacked is False:
        return out | {f"blk.0.ffn_{w}.{e}.weight": ((32, 32), 2) for w in ("gate", "up", "down") for e in range(4)}
    out["blk.0.ffn_down_exps.weight"] = ((32, 32, 4), 2)
    if stacked is None:
        return out | {"blk.0.ffn_gate_up_exps.weight": ((32, 64, 4), 2)}
    return out | {f"blk.0.ffn_{what}_exps.weight": ((32, 32, 4), 2) for what in ("gate", "up")}


def moe_meta() -> dict[str, Any]:
    more = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    dense = metadata() | {f"qwen3.{key}": value for key, value in more.items()}
    return {key.replace("qwen3.", "qwen3moe."): value for key, value in dense.items()} | {
        "general.architecture": "qwen3moe"
    }


@pytest.mark.parametrize("stacked", [True, False, None])
def test_mixture_of_experts(file: Path, stacked: bool | None) -> None:
    found = config(file, moe_meta(), moe_infos(stacked))
    assert (found.num_experts, found.num_experts_per_tok, found.moe_intermediate_size) == (4, 2, 32)
    assert found.norm_topk_prob
    parts = find_parts(open_gguf(file), found)
    up = parts["model.layers.0.mlp.experts.2.up_proj.weight"]
    name, first = {
        True: ("blk.0.ffn_up_exps.weight", 64),
        False: ("blk.0.ffn_up.2.weight", 0),
        None: ("blk.0.ffn_gate_up_exps.weight", 2 * 64 + 32),
    }[stacked]
    assert (up.tensor.name, up.first, up.shape) == (name, first, (32, 32))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"general.architecture": "llama"}, "its architecture is 'llama', but only Qwen3's are run here"),
        ({"general.architecture": "clip"}, "vision part of a model"),
        ({"general.architecture": 3}, "general.architecture must be a string"),
        ({"general.architecture": "qwen3", "general.type": "adapter"}, "it holds 'adapter', not a model"),
        ({}, "no general.architecture"),
        (metadata(block_count=None), "metadata key qwen3.block_count is missing"),
        (metadata(block_count=0), "num_hidden_layers is 0"),
        (metadata(block_count="many"), "qwen3.block_count must be a whole number, not 'many'"),
        (metadata(rope__freq_base=None), "qwen3.rope.freq_base is missing"),
        (metadata(feed_forward_length=[32, 64]), "feed_forward_length must be one whole number, not an array"),
        (metadata(attention__value_length=16), "qwen3.attention.value_length must be 32"),
        (metadata(rope__dimension_count=16), "qwen3.rope.dimension_count must be 32"),
        (metadata(vocab_size=10), "qwen3.vocab_size contradicts token_embd.weight, which has 320 rows"),
        (metadata(rope__scaling__type="longrope"), "rope.scaling.type is 'longrope'"),
        (metadata(attention__sliding_window=128), "attention.sliding_window is 128, which asks for a network"),
        (metadata(attention__causal=False), "attention.causal is False"),
        (metadata(something__new=1), "qwen3.something.new is 1"),
        (metadata() | {"tokenizer.ggml.eos_token_id": 320}, "tokenizer.ggml.eos_token_id is 320, no token"),
        (metadata(block_count=10**6), "at most 1000"),
    ],
)
def test_metadata_is_refused(file: Path, meta: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config(file, meta)
    assert str(file) in str(caught.value)
    assert caught.value.exit_code == 6


def test_llama_says_what_to_do(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"take a Qwen3 file such as Qwen/Qwen3-8B-GGUF:Q4_K_M"):
        config(file, {"general.architecture": "llama"})


def test_experts_that_are_not_there(file: Path) -> None:
    """The count is checked before anything is done for each of them."""
    many = moe_meta() | {"qwen3moe.expert_count": 2**31 - 1}
    with pytest.raises(ConfigError, match=r"expert_count is 2147483647, but blk.0.ffn_gate_inp.weight has 4 rows"):
        config(file, many, moe_infos(True))
    with pytest.raises(ConfigError, match="but there is no router"):
        config(file, many, tensors())


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (tensors(blk__0__attn_q=None), r"missing blk.0.attn_q.weight \[32, 32\]"),
        (tensors(blk__0__attn_q=((32, 64), 2)), r"blk.0.attn_q.weight has shape \[64, 32\] instead of \[32, 32\]"),
        (
            tensors(blk__0__attn_norm=((32,), 26)),
            "blk.0.attn_norm.weight is stored as I32: whole numbers are no weights",
        ),
        (tensors() | {"blk.0.attn_q.bias": ((32,), 0)}, r"unexpected blk.0.attn_q.bias \[32\]"),
        (tensors() | {"blk.1.attn_q.weight": ((32, 32), 2)}, "unexpected blk.1.attn_q.weight"),
        (tensors() | {"rope_freqs.weight": ((16,), 0)}, "unexpected rope_freqs.weight"),
    ],
)
def test_tensors_are_refused(file: Path, infos: dict[str, Any], message: str) -> None:
    found = config(file, metadata(), infos)
    with pytest.raises(CorruptFileError, match=message):
        find_parts(open_gguf(file), found)


def test_a_negative_token_is_refused(file: Path) -> None:
    meta = metadata() | {"tokenizer.ggml.bos_token_id": (I32, struct.pack("<i", -1))}
    with pytest.raises(Qwen3Error, match=re.escape("tokenizer.ggml.bos_token_id is -1, no token")):
        config(file, meta)
