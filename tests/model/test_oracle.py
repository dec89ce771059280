"""Logits against transformers with identical random weights. `pytest -s` prints the measured figures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from qwen3.config import ModelConfig
from qwen3.family import MODELS
from tests.fixtures import random_model
from tests.model.oracle import distance, oracle, oracle_logits

EIGHT = [name for name, member in MODELS.items() if member.mode == "hybrid"]
FACTOR = 16
VOCAB = 512


def scaled_down(name: str) -> ModelConfig:
    """Width, depth, heads and experts of a published model divided by one factor (depth: at least 2); head_dim kept."""
    full = MODELS[name].config
    kv = 2 if full.num_key_value_heads == 8 else 1
    small = replace(
        full,
        vocab_size=VOCAB,
        hidden_size=full.hidden_size // FACTOR,
        intermediate_size=full.intermediate_size // FACTOR,
        num_hidden_layers=max(2, full.num_hidden_layers // FACTOR),
        num_attention_heads=full.num_attention_heads // full.num_key_value_heads * kv,
        num_key_value_heads=kv,
        bos_token_id=None,
        eos_token_id=None,
    )
    if full.is_moe:
        small = replace(small, moe_intermediate_size=full.moe_intermediate_size // FACTOR)
    return small


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def report(what: str, **figures: float) -> None:
    print(f"\n{what}: " + "  ".join(f"{name} {value:.2e}" for name, value in figures.items()), end="")


@pytest.mark.parametrize("name", EIGHT)
def test_float32_and_bfloat16_logits(name: str) -> None:
    config = scaled_down(name)
    ids = tokens(2, 33)
    with torch.inference_mode():
        wanted = oracle_logits(oracle(config), ids)
        ours = random_model(config)(ids)
        rounded_weights = random_model(config, dtype=torch.bfloat16)
        ours16 = rounded_weights(ids)
        # Both bfloat16 models against float32 arithmetic on the same, rounded, weights.
        exact = rounded_weights.float()(ids)
        theirs16 = oracle_logits(oracle(config, dtype=torch.bfloat16), ids)
    error = distance(ours, wanted)
    error16, their_error16 = distance(ours16, exact), distance(theirs16, exact)
    report(name, float32=error, bfloat16=error16, transformers_bfloat16=their_error16)
    assert 1 < wanted.std() < 10
    assert error <= 1e-5
    assert error16 <= 1.25 * their_error16


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-4B-Instruct-2507"])
@pytest.mark.parametrize("offset", [0, 1000, 32_768, 40_920])
def test_position_offsets(name: str, offset: int) -> None:
    config = scaled_down(name)
    ids = tokens(1, 24)
    positions = torch.arange(24).unsqueeze(0) + offset
    with torch.inference_mode():
        wanted = oracle_logits(oracle(config), ids, positions)
        error = distance(random_model(config)(ids, positions=positions), wanted)
    report(f"{name} at {offset}", float32=error)
    assert error <= 1e-5


@pytest.mark.parametrize("name", ["Qwen3-8B", "Qwen3-235B-A22B"])
@pytest.mark.parametrize("offset", [0, 100_000])
def test_yarn(name: str, offset: int) -> None:
    config = scaled_down(name).with_yarn(4.0)
    ids = tokens(1, 24)
    positions = torch.arange(24).unsqueeze(0) + offset
    with torch.inference_mode():
        wanted = oracle_logits(oracle(config), ids, positions)
        model = random_model(config)
        error = distance(model(ids, positions=positions), wanted)
        without = distance(random_model(replace(config, rope_scaling=None))(ids, positions=positions), wanted)
    report(f"{name} YaRN at {offset}", float32=error)
    assert error <= 1e-5
    assert without > 1e-3  # it makes a difference


def test_layers_without_experts() -> None:
    config = replace(
        scaled_down("Qwen3-30B-A3B"),
        num_hidden_layers=5,
        decoder_sparse_step=2,
        mlp_only_layers=(3,),
        norm_topk_prob=False,
    )
    ids = tokens(2, 17)
    with torch.inference_mode():
        error = distance(random_model(config)(ids), oracle_logits(oracle(config), ids))
    assert error <= 1e-5


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("yarn", [False, True])
def test_config_through_transformers(name: str, yarn: bool) -> None:
    """What transformers 5 makes of our config.json, in its own spelling, is read as the same config."""
    import transformers

    config = MODELS[name].config.with_yarn(4.0) if yarn else MODELS[name].config
    kind = transformers.Qwen3MoeConfig if config.is_moe else transformers.Qwen3Config
    theirs = json.loads(kind.from_dict(config.to_dict()).to_json_string(use_diff=False))
    assert "rope_parameters" in theirs
    assert ModelConfig.from_dict(theirs) == config


def true_shape(layers: int) -> ModelConfig:
    return replace(MODELS["Qwen3-0.6B"].config, num_hidden_layers=layers)


def compare_true_shape(layers: int) -> None:
    """The published width, heads and vocabulary, float32 and bfloat16."""
    config = true_shape(layers)
    ids = torch.randint(0, 151_669, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        theirs = oracle(config)
        wanted = oracle_logits(theirs, ids)
        theirs16 = oracle_logits(theirs.to(torch.bfloat16), ids)
        del theirs
        model = random_model(config)
        error = distance(model(ids), wanted)
        ours16 = model.bfloat16()(ids)
        exact = model.float()(ids)
    error16, their_error16 = distance(ours16, exact), distance(theirs16, exact)
    report(f"0.6B, {layers} layers", float32=error, bfloat16=error16, transformers_bfloat16=their_error16)
    assert error <= 1e-5
    assert error16 <= 1.25 * their_error16


def test_true_width_of_0_6b_in_two_layers() -> None:
    compare_true_shape(2)


@pytest.mark.slow
def test_true_shape_of_0_6b() -> None:
    compare_true_shape(28)
