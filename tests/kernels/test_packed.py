"""Weights of 4 and 8 bits: their layout, the compiled product against its plain twin, and models that are held so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from qwen3 import LLM, SamplingParams
from qwen3.errors import UsageError
from qwen3.kernels import dispatch, native, packed
from qwen3.kernels.packed import PackedWeight
from qwen3.model.pack import pack_model
from tests.fixtures import random_model, tiny_config

COMPILED = native.library()
needs_compiler = pytest.mark.skipif(COMPILED is None, reason=f"no compiled kernels: {native.state()}")


def some(bits: int, group: int, rows: int, columns: int, mins: bool = False) -> PackedWeight:
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = (torch.rand(rows, columns // group) * 0.1 - 0.02).half()
    return packed.pack(q, scale, (torch.randn(rows, columns // group) * 0.3).half() if mins else None, bits)


@pytest.mark.parametrize("mins", [False, True])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_layout(bits: int, group: int, mins: bool) -> None:
    rows, columns = 37, 256
    q = torch.randint(0, 1 << bits, (rows, columns), dtype=torch.uint8)
    scale = torch.randn(rows, columns // group).half()
    least = torch.randn(rows, columns // group).half() if mins else None
    weight = packed.pack(q, scale, least, bits)
    assert torch.equal(packed.unpack(weight.data, bits)[:rows], q)
    wide = q.double().unflatten(1, (-1, group))
    plain = wide * scale.double().unsqueeze(-1) + least.double().unsqueeze(-1) if least is not None else (
        (wide - (1 << (bits - 1))) * scale.double().unsqueeze(-1)
    )  # fmt: skip
    assert torch.allclose(weight.dequantize(torch.float64), plain.flatten(1), rtol=1e-6, atol=1e-6)
    ids = torch.tensor([[0, 36], [17, 17]])
    looked_up: Any = F.embedding
    assert torch.equal(looked_up(ids, weight), weight.dequantize()[ids])
    assert weight.shape == (rows, columns)
    assert weight.nbytes < rows * columns * (bits / 8) * 1.6 + 16 * columns


@needs_compiler
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 19])
@pytest.mark.parametrize("bits", [4, 8])
def test_compiled_against_plain(bits: int, rows: int) -> None:
    for group, mins, outputs in ((32, False, 48), (128, True, 70), (64, False, 96)):
        weight = some(bits, group, outputs, 256, mins)
        x, norm, residual = torch.randn(rows, 256), torch.rand(256) + 0.5, torch.randn(rows, outputs)
        for how in (
            {}, {"norm": norm, "eps": 1e-6}, {"residual": residual}, {"silu": True},
            {"silu": True, "residual": torch.randn(rows, outputs // 2)},
        ):  # fmt: skip
            found, plain = packed.compiled_linear(x, weight, **how), packed.linear(x, weight, **how)
            # a norm's last bit may round an activation to the next of its 255 steps
            assert (found - plain).norm() <= (2e-3 if "norm" in how else 2e-6) * plain.norm(), (group, mins, how.keys())


@needs_compiler
def test_rows_do_not_depend_on_the_batch_or_the_threads() -> None:
    weight, x = some(4, 32, 160, 512), torch.randn(21, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = packed.compiled_linear(x, weight)
        torch.set_num_threads(2)
        assert torch.equal(packed.compiled_linear(x, weight), whole)
    finally:
        torch.set_num_threads(before)
    for i, row in enumerate(x.split(1)):
        assert torch.equal(packed.compiled_linear(row, weight)[0], whole[i])


@needs_compiler
def test_what_is_not_finite_stays_so() -> None:
    weight, x = some(8, 32, 32, 64), torch.randn(3, 64)
    x[1, 40] = torch.nan
    found = packed.compiled_linear(x, weight)
    assert found[1].isnan().all()
    assert found[0].isfinite().all()
    assert torch.equal(packed.compiled_linear(torch.zeros(1, 64), weight), torch.zeros(1, 32))
    assert packed.compiled_linear(torch.empty(0, 64), weight).shape == (0, 32)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.008), (4, 0.12)])
def test_rounding_error(bits: int, most: float) -> None:
    weight = torch.randn(64, 256)
    held = packed.quantize_rtn(weight, bits, 128)
    assert (held.dequantize() - weight).norm() < most * weight.norm()
    again = packed.quantize_rtn(held.dequantize(), bits, 128)
    assert (again.dequantize() - held.dequantize()).norm() < 1e-3 * weight.norm()
    assert torch.equal(packed.quantize_rtn(torch.zeros(16, 64), bits, 32).dequantize(), torch.zeros(16, 64))


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="NaN or infinite"):
        packed.quantize_rtn(torch.full((16, 64), torch.nan), 4, 32)
    with pytest.raises(UsageError, match="groups of 16"):
        packed.pack(torch.zeros(16, 64, dtype=torch.uint8), torch.zeros(16, 4), None, 4)
    with pytest.raises(UsageError, match="weights='int5' is not supported"):
        LLM(weights="int5")
    if COMPILED is not None:
        with pytest.raises(UsageError, match="64 columns"):
            packed.compiled_linear(torch.zeros(1, 64), some(4, 32, 16, 128))


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("moe", [False, True])
def test_a_network_that_is_held_so(kind: str, moe: bool) -> None:
    """Both forwards, dense and with experts, against the network of the dequantized weights."""
    model = random_model(tiny_config(moe))
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    pack_model(model, kind)
    with torch.inference_mode():
        found = model(ids)
        with dispatch.use("reference"):
            plain = model(ids)
    assert (found - plain).norm() < 0.01 * plain.norm()


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_embedded_model_still_solves(kind: str) -> None:
    with LLM(device="cpu", weights=kind) as llm:
        answer = llm.chat([{"role": "user", "content": "What is 27 * 14?"}], sampling=SamplingParams(temperature=0))
        assert "378" in answer.content
        alone = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
        crowd = llm.generate([[5, 6, 7], [9] * 40], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
        assert alone.text == crowd.text


def test_without_a_compiler(tmp_path: Path) -> None:
    """Nothing fails; what runs instead is said."""
    script = "from qwen3.kernels import native; print(native.library() is None, native.state())"
    for change, said in (({"QWEN3_NATIVE": "0"}, "QWEN3_NATIVE=0"), ({"CC": "/nowhere/cc"}, "/nowhere/cc failed")):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | change
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert done.stdout.startswith("True none: "), done.stderr
        assert said in done.stdout
