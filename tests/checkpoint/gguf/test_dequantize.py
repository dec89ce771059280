"""Every tensor type against the dequantizers of the `gguf` package, bit for bit, on random bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qwen3.checkpoint.gguf.dequantize import PLAIN, dequantize
from qwen3.checkpoint.gguf.types import NOT_READ, TYPES

gguf = pytest.importorskip("gguf")
BLOCKED = {number: kind for number, kind in TYPES.items() if not kind.plain}


@pytest.mark.parametrize(
    "number", [n for n, kind in BLOCKED.items() if kind.name != "Q8_K"], ids=lambda n: TYPES[n].name
)
def test_same_bits_as_the_package(number: int) -> None:
    kind, rows = TYPES[number], 7
    raw = np.random.default_rng(number).integers(0, 256, (rows, 40 * kind.size), dtype=np.uint8)
    out = torch.empty(rows, 40 * kind.block)
    dequantize(torch.from_numpy(raw).view(-1), kind, out)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType(number))
    nan = np.isnan(expected)
    np.testing.assert_array_equal(nan, np.isnan(out.numpy()))
    assert nan.mean() < 0.2
    np.testing.assert_array_equal(expected.view(np.uint32)[~nan], out.numpy().view(np.uint32)[~nan])


def test_q8_k() -> None:
    """The package has no dequantizer for it: d (float32), 256 int8, 16 sums that are for products only."""
    q = np.random.default_rng(0).integers(-127, 128, (5, 256), dtype=np.int8)
    d = np.array([[0.5], [-1.25], [3e-5], [0], [7]], dtype=np.float32)
    raw = np.concatenate([d.view(np.uint8), q.view(np.uint8), np.full((5, 32), 99, np.uint8)], axis=1)
    out = torch.empty(5, 256)
    dequantize(torch.from_numpy(raw).view(-1), TYPES[15], out)
    np.testing.assert_array_equal(out.numpy(), d * q)


@pytest.mark.parametrize("number", [n for n, kind in TYPES.items() if kind.plain], ids=lambda n: TYPES[n].name)
def test_plain_types(number: int) -> None:
    values = torch.tensor([0, 1, 2, 100], dtype=PLAIN[TYPES[number].name])
    out = torch.empty(4, dtype=torch.bfloat16)
    dequantize(values.view(torch.uint8), TYPES[number], out)
    assert out.tolist() == [0, 1, 2, 100]


def test_rounded_once() -> None:
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 256, 18 * 64, dtype=np.uint8).reshape(64, 18).copy())
    raw[:, 1] &= 0x3F  # finite scales
    wide, narrow = torch.empty(64, 32), torch.empty(64, 32, dtype=torch.bfloat16)
    dequantize(raw.view(-1), TYPES[2], wide)
    dequantize(raw.view(-1), TYPES[2], narrow)
    assert torch.equal(narrow, wide.bfloat16())


def test_the_table_of_types_is_the_packages() -> None:
    ours = {number: (kind.name, kind.block, kind.size) for number, kind in TYPES.items()}
    theirs = {
        int(kind): (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items() if int(kind) not in NOT_READ
    }
    ours_but = {number: entry for number, entry in ours.items() if entry[0] != "Q8_K"}
    assert ours_but == {number: entry for number, entry in theirs.items() if number != 15}
    assert ours[15] == ("Q8_K", 256, 4 + 256 + 16 * 2)
