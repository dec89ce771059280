"""The large tests' bodies (tests/engine/stress.py), small and on the CPU; test_gpu_engine.py has their real size."""

from __future__ import annotations

import pytest
import torch

from qwen3.checkpoint.fp8 import fp8_weights
from qwen3.engine import Engine
from qwen3.model.load import quantize_model
from tests.engine.stress import (
    Counter,
    check_empty,
    containment,
    counting,
    invariance,
    mixed,
    random_network,
    transformers_twin,
)  # fmt: skip
from tests.fixtures import tiny_config

pytest.importorskip("transformers")


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_the_engine_says_what_transformers_says(moe: bool) -> None:
    """In float32 nothing but a near tie can differ."""
    model = random_network(tiny_config(moe, tie_word_embeddings=False), "cpu", torch.float32, seed=1)
    found = containment(Engine(model, max_batch=24), transformers_twin(model), prompts=24, tokens=24, longest=60)
    assert found.worst <= 2
    assert found.differing <= 1
    assert found.logprob_error < 1e-3


def test_a_wrong_kv_cache_is_seen() -> None:
    """The comparison can fail: an engine on other weights is not contained."""
    model, other = (
        random_network(tiny_config(tie_word_embeddings=False), "cpu", torch.float32, seed=seed) for seed in (1, 2)
    )
    found = containment(Engine(model, max_batch=8), transformers_twin(other), prompts=8, tokens=8, longest=20)
    assert found.differing == 8
    assert found.worst > 5


def test_counting_survives_cancels_preemptions_and_prefix_hits() -> None:
    counter = Counter("cpu", variety=30)
    engine = Engine(counter.model, counter.tokenizer, max_batch=24, max_len=512, blocks=64)
    found = counting(engine, counter, 300, most=12, crowd=40)
    assert found.broken == []
    assert found.requests == 300
    assert found.cancelled > 30
    assert found.preempted > 0
    assert found.cached_tokens > 1000
    check_empty(engine)


def test_blocks_come_back_after_mixed_requests() -> None:
    model = random_network(tiny_config(), "cpu", torch.float32, seed=3)
    engine = Engine(model, max_batch=16, max_len=256, blocks=60)
    reasons = mixed(engine, 250, longest=30)
    assert sum(reasons.values()) == 250
    assert reasons["cancelled"] > 20
    assert set(reasons) <= {"cancelled", "stop", "length"}
    check_empty(engine)


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_batch_invariance_is_bitwise(moe: bool) -> None:
    model = random_network(tiny_config(moe, tie_word_embeddings=False), "cpu", torch.float32, seed=4)
    found = invariance(model, crowd=5, tokens=12)
    assert found == dict.fromkeys(found, True)
    assert len(found) == 6


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "moe"])
def test_fp8_weights_say_what_the_same_weights_say_in_transformers(moe: bool) -> None:
    """Against the dequantized weights: on a CPU activations are not quantized, so only near ties differ."""
    model = random_network(tiny_config(moe, tie_word_embeddings=False), "cpu", torch.float32, seed=5)
    quantize_model(model)
    plain = {name: weight.dequantize(torch.float32) for name, weight in fp8_weights(model).items()}
    assert plain
    found = containment(Engine(model, max_batch=8), transformers_twin(model, plain), prompts=8, tokens=16, longest=40)
    assert found.worst <= 2
    assert found.differing <= 1
    assert found.logprob_error < 1e-3
