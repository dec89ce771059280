"""All layers in one call: bit for bit what the same kernels give one by one, and packing in C what PyTorch packs."""

from __future__ import annotations

import pytest
import torch

from qwen3.kernels import BLOCK, StepPlan, cpu, cpu_attend, dispatch, native, packed
from qwen3.kernels.packed_layers import PackedLayers
from qwen3.model.pack import pack_model
from qwen3.model.step import Stepper
from tests.fixtures import random_model, tiny_config

pytestmark = pytest.mark.skipif(native.library() is None, reason=f"no compiled kernels: {native.state()}")


def decode_plan(lengths: list[int], stepper: Stepper) -> StepPlan:
    """A step in which each row has one token behind `length - 1` keys."""
    longest = max(lengths)
    wide = -(-longest // BLOCK)
    tables = (1 + torch.randperm(len(lengths) * wide, dtype=torch.int32)).view(len(lengths), wide)
    positions = torch.tensor(lengths, dtype=torch.int32) - 1
    rows = torch.arange(len(lengths))
    slots = tables[rows, positions // BLOCK] * BLOCK + positions % BLOCK
    starts = torch.arange(len(lengths) + 1, dtype=torch.int32)
    cos_sin = stepper.cos_sin(longest)
    return StepPlan(positions, slots, tables, starts, positions + 1, cos_sin, len(lengths), 0, longest)


@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("lengths", [[1], [40], [3, 17, 16, 64, 1], [30] * 9])
def test_bit_for_bit(kind: str, lengths: list[int], dtype: torch.dtype) -> None:
    if dtype == torch.float16 and not cpu_attend.has_half():
        pytest.skip("no float16 on this processor")
    config = tiny_config(head_dim=32)
    stepper = Stepper(pack_model(random_model(config), kind))
    assert isinstance(stepper.at_once, PackedLayers)
    plan = decode_plan(lengths, stepper)
    shape = (config.num_hidden_layers, 1 + plan.tables.numel(), BLOCK, config.num_key_value_heads, config.head_dim)
    caches = [torch.randn(shape).to(dtype) for _ in range(2)]
    copies = [cache.clone() for cache in caches]
    ids = torch.randint(0, config.vocab_size, (len(lengths),))
    with torch.inference_mode():
        with dispatch.use("reference"):  # nothing compiled
            plain = stepper.hidden(ids, plan, *(cache.clone() for cache in caches))
        found = stepper.hidden(ids, plan, *caches)
        stepper.at_once = None
        single = stepper.hidden(ids, plan, *copies)
    assert torch.equal(found, single)
    assert all(torch.equal(a, b) for a, b in zip(caches, copies, strict=True))
    assert (found - plain).norm() < 0.01 * plain.norm()


def test_what_it_leaves_to_others() -> None:
    """Experts, weights that are not packed, prompts, caches of 16 bits."""
    config = tiny_config(head_dim=32)
    assert Stepper(random_model(config)).at_once is None
    assert Stepper(pack_model(random_model(tiny_config(moe=True)), "int8")).at_once is None
    stepper = Stepper(pack_model(random_model(config), "int8"))
    layers = stepper.at_once
    assert layers is not None
    plan = decode_plan([5, 9], stepper)
    shape = (config.num_hidden_layers, 1 + plan.tables.numel(), BLOCK, config.num_key_value_heads, config.head_dim)
    x, cache = torch.randn(2, config.hidden_size), torch.zeros(shape)
    assert layers.run(x, plan, cache, cache.clone()) is not None
    assert layers.run(x, plan, cache.bfloat16(), cache.bfloat16()) is None
    starts, lengths = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([9], dtype=torch.int32)
    prompt = StepPlan(plan.positions, plan.slots, plan.tables, starts, lengths, plan.cos_sin, 0, 2, 9)
    assert layers.run(x, prompt, cache, cache) is None


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 128), (5, 1, 128), (3, 3, 48), (2, 1, 256)])
@pytest.mark.parametrize(("before", "count"), [(0, 1), (0, 16), (0, 70), (61, 40), (130, 5), (3, 200)])
def test_a_chunk_in_float16(heads: int, kv_heads: int, dim: int, before: int, count: int) -> None:
    """Against PyTorch on what the cache then holds; beyond float16's range its largest number is kept."""
    if not cpu_attend.has_half():
        pytest.skip("no float16 on this processor")
    length, wide = before + count, -(-(before + count) // BLOCK)
    tables = (1 + torch.randperm(wide, dtype=torch.int32)).view(1, wide)
    positions = torch.arange(before, length, dtype=torch.int32)
    slots = tables[0, positions // BLOCK] * BLOCK + positions % BLOCK
    starts, lengths = torch.tensor([0, count], dtype=torch.int32), torch.tensor([length], dtype=torch.int32)
    angles = torch.randn(length, dim // 2)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    plan = StepPlan(positions, slots, tables, starts, lengths, cos_sin, int(count == 1), count, length)
    caches = [torch.randn(1 + wide, BLOCK, kv_heads, dim).half() for _ in range(2)]
    qkv, weights = torch.randn(count, (heads + 2 * kv_heads) * dim), [torch.rand(dim) + 0.5 for _ in range(2)]
    qkv[-1, -1] = 1e6  # of the last value
    found = cpu.compiled_attend(qkv, heads, kv_heads, *weights, 1e-6, plan, *caches)
    assert float(caches[1].flatten(0, 1)[slots[-1], -1, -1]) == 65504
    wider = [cache.float() for cache in caches]
    plain = cpu.attend(qkv.clamp(max=65504), heads, kv_heads, *weights, 1e-6, plan, *wider)
    assert (found - plain).norm() <= 1e-3 * plain.norm()


@pytest.mark.parametrize("bits", sorted(packed.PLANES))
def test_packing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randint(0, 1 << bits, (2, 48, 96), dtype=torch.uint8)
    compiled = packed._data(numbers, bits)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(compiled, packed._data(numbers, bits))
    assert torch.equal(packed.unpack(compiled, bits), numbers)
