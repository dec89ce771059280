"""What is packed here, unpacked by the tools themselves: the same numbers, to the last bit.

None of them is needed otherwise, and none is in the extras: `pip install compressed-tensors gptqmodel mlx` (on Linux
`mlx[cpu]`). Without them, `test_formats_out.py` compares with bytes that such tools have written.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qwen3.quantize.formats.awq import Awq
from qwen3.quantize.formats.compressed import Compressed
from qwen3.quantize.formats.gptq import Gptq
from qwen3.quantize.formats.mlx import Mlx
from qwen3.quantize.types import Float8, Grouped, Int8, Rounded
from tests.quantize.test_formats_out import MODULE, random_grouped, read_back


def packed(format: Any, rounded: Rounded) -> dict[str, Tensor]:
    return {k.removeprefix("."): v.contiguous() for k, v in format.tensors(MODULE, rounded).items()}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 32), (4, -1), (8, 32), (8, -1)])
def test_compressed_tensors_packed(bits: int, group: int, zeros: bool) -> None:
    check_compressed(random_grouped(bits, group, zeros=zeros))


@pytest.mark.parametrize("kind", ["int8", "tensor", "channel", "block"])
def test_compressed_tensors_plain(kind: str) -> None:
    scales = {"tensor": (1,), "channel": (256, 1), "block": (2, 3)}
    if kind == "int8":
        check_compressed(Int8(torch.randint(-128, 128, (256, 384), dtype=torch.int8), torch.rand(256, 1) * 0.01 + 1e-3))
    else:
        check_compressed(Float8(torch.randn(256, 384).to(torch.float8_e4m3fn), torch.rand(scales[kind]) * 0.01 + 1e-3))


def check_compressed(rounded: Rounded) -> None:
    peer = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.compressors import BaseCompressor

    told = peer.QuantizationConfig.model_validate(Compressed().config({MODULE: rounded}, []))
    scheme = told.config_groups["group_0"]
    tensors = packed(Compressed(), rounded)
    tensors["weight_scale"] = tensors["weight_scale"].float()  # in which it multiplies
    wide = BaseCompressor.get_value_from_registry(told.format).decompress(tensors, scheme)["weight"]
    assert torch.equal(wide.float(), rounded.dequantize())


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", [{}, {"zeros": True}, {"order": True}, {"zeros": True, "order": True}, {"group": -1}])
@pytest.mark.parametrize("bits", Gptq.bits)
def test_gptqmodel(bits: int, how: dict[str, Any], version: int) -> None:
    torch_linear = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    rounded = random_grouped(bits, **how)
    settings = Gptq(version).config({MODULE: rounded}, [])
    rows, columns = rounded.q.shape
    linear = torch_linear(
        in_features=columns, out_features=rows, **{k: settings[k] for k in ("bits", "group_size", "sym", "desc_act")}
    )
    assert not linear.load_state_dict(packed(Gptq(version), rounded), strict=False).unexpected_keys
    if version == 1:
        convert_gptq_v1_to_v2_format_module(linear, bits=bits, pack_dtype=torch.int32)
    linear.scales = linear.scales.float()
    linear.post_init()
    assert torch.equal(linear.dequantize_weight().t(), rounded.dequantize())


@pytest.mark.parametrize("zeros", [False, True])
def test_awq_by_gptqmodel(zeros: bool) -> None:
    unpack = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils").dequantize_gemm
    rounded = random_grouped(zeros=zeros)
    found = packed(Awq(), rounded)
    wide = unpack(found["qweight"], found["qzeros"], found["scales"].float(), 4, 32)
    assert torch.equal(wide.t(), rounded.dequantize())


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", Mlx.bits)
def test_mlx(bits: int, zeros: bool, tmp_path: Any) -> None:
    """As our reader has it, which `test_formats_out.py` holds to what was rounded."""
    mx: Any = pytest.importorskip("mlx.core")
    rounded: Grouped = random_grouped(bits, 32, zeros=zeros)
    found = packed(Mlx(), rounded)
    words, scales, biases = (mx.array(found[name].numpy()) for name in ("weight", "scales", "biases"))
    wide = mx.dequantize(words, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=bits)
    assert torch.equal(torch.tensor(wide.tolist()), read_back(Mlx(), rounded, tmp_path))
