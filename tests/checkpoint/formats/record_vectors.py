# mypy: ignore-errors
"""Writes `vectors.safetensors`: small random matrices in each format as the tools themselves write and read them.

    pip install torch numpy safetensors bitsandbytes compressed-tensors "mlx[cpu]"
    python record_vectors.py AUTO_GPTQ AUTO_AWQ vectors.safetensors

with the unpacked archives of auto-gptq 0.7.1 (it packs) and autoawq 0.2.9 (it unpacks). The tests need none of these.
Of what a tool reads, the first row and the SHA-256 of the whole float32 matrix are kept.
"""

import hashlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

N, K = 16, 64
TENSORS: dict[str, torch.Tensor] = {}
CASES: dict[str, str] = {}


def add(name: str, config: dict, tensors: dict[str, torch.Tensor], wide: torch.Tensor) -> None:
    wide = wide.float().contiguous() + 0.0  # no -0
    digest = hashlib.sha256(wide.numpy().tobytes()).hexdigest()
    TENSORS.update({name + suffix: tensor.contiguous().clone() for suffix, tensor in tensors.items()})
    TENSORS[f"{name}:first"] = wide[0].clone()
    CASES[name] = json.dumps({"config": config, "shape": list(wide.shape), "sha256": digest})


def source(file: Path, name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gptq(folder: Path) -> None:
    class Never:
        pass

    utils = types.SimpleNamespace(Conv1D=Never)
    sys.modules["transformers"] = types.SimpleNamespace(pytorch_utils=utils)
    sys.modules["transformers.pytorch_utils"] = utils
    QuantLinear = source(folder / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py", "qlinear_cuda").QuantLinear
    del sys.modules["transformers"], sys.modules["transformers.pytorch_utils"]
    for bits, group, order, symmetric in (
        (4, 32, True, False), (4, -1, False, True), (8, 32, False, False), (3, 32, True, True)
    ):  # fmt: skip
        columns, rows = K, 32  # this tool packs zeros of 32 rows
        size = columns if group == -1 else group
        q = torch.randint(0, 1 << bits, (rows, columns))
        scales = (torch.rand(rows, columns // size) * 0.02 + 0.001).half().float()
        middle = 1 << bits - 1
        zeros = (torch.full(scales.shape, middle) if symmetric else torch.randint(1, 1 << bits, scales.shape)).float()
        index = torch.arange(columns) // size
        index = index[torch.randperm(columns)] if order else index
        wide = (q - zeros[:, index]) * scales[:, index]
        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = wide
        made = QuantLinear.__new__(QuantLinear)
        torch.nn.Module.__init__(made)
        made.bits, made.infeatures, made.outfeatures, made.group_size = bits, columns, rows, size
        for name in ("scales", "g_idx", "qweight", "qzeros"):
            setattr(made, name, None)
        QuantLinear.pack(made, linear, scales.clone(), zeros.clone(), index.int())
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": symmetric}
        held = {".qweight": made.qweight, ".qzeros": made.qzeros, ".scales": scales.t().half(), ".g_idx": index.int()}
        add(f"gptq{bits}" + ("_all" if group == -1 else ""), config, held, wide)


def awq(folder: Path) -> None:
    tool = source(folder / "awq/utils/packing_utils.py", "packing_utils")
    qweight = torch.randint(-(2**31), 2**31, (K, N // 8)).int()
    qzeros = torch.randint(-(2**31), 2**31, (K // 32, N // 8)).int()
    scales = (torch.rand(K // 32, N) * 0.02 + 0.001).half()
    wide = tool.dequantize_gemm(qweight, qzeros, scales.float(), 4, 32).t()
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    add("awq", config, {".qweight": qweight, ".qzeros": qzeros, ".scales": scales}, wide)


def compressed() -> None:
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor as Packed
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize

    def save(name: str, format: str, told: dict, scale: torch.Tensor, zero: torch.Tensor | None, pack: bool) -> None:
        args = QuantizationArgs(**told)
        weight = torch.randn(N, K) * 0.05
        kept = None if zero is None else zero.to(torch.int8)
        if pack:
            scheme = QuantizationScheme(targets=["Linear"], weights=args)
            state = {"weight": weight, "weight_scale": scale} | ({} if kept is None else {"weight_zero_point": kept})
            tensors = Packed.compress(state, scheme)
            wide = Packed.decompress(dict(tensors), scheme)["weight"]
        else:
            dtype = torch.float8_e4m3fn if told.get("type") == "float" else torch.int8
            q = quantize(weight, scale, kept, args, dtype=dtype)
            tensors = {"weight": q, "weight_scale": scale} | ({} if kept is None else {"weight_zero_point": kept})
            wide = dequantize(q, scale, kept, args, dtype=torch.float32)
        group = {"targets": ["Linear"], "weights": told, "input_activations": None}
        config = {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group}}
        add(name, config, {"." + key: value for key, value in tensors.items()}, wide)

    grouped = (torch.rand(N, K // 32) * 0.02 + 0.01).bfloat16().float()
    channel = (torch.rand(N, 1) * 0.001 + 0.001).bfloat16().float()
    w4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    save("ct4", "pack-quantized", w4, grouped, None, True)
    save("ct4_zero", "pack-quantized", w4 | {"symmetric": False}, grouped, torch.randint(-8, 8, grouped.shape), True)
    w8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    save("ct8", "pack-quantized", w8, channel, None, True)
    save("ct_int8", "int-quantized", w8, channel, None, False)
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    save("ct_fp8", "float-quantized", fp8, channel, None, False)
    save("ct_fp8_tensor", "float-quantized", fp8 | {"strategy": "tensor"}, channel[0], None, False)


def bitsandbytes() -> None:
    import bitsandbytes.functional as F

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            weight = torch.randn(N, K) * 0.05
            q, state = F.quantize_4bit(weight, quant_type=kind, compress_statistics=nested, blocksize=64)
            wide = F.dequantize_4bit(q, state)
            config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
            held = {".weight": q} | {f".weight.{key}": value for key, value in state.as_dict(packed=True).items()}
            add(f"{kind}{'_nested' if nested else ''}", config, held, wide)


def mlx() -> None:
    import mlx.core as mx

    for bits in (2, 3, 4, 5, 6, 8):
        weight = mx.array((np.random.default_rng(bits).standard_normal((N, K)) * 0.05).astype(np.float32))
        words, *marks = mx.quantize(weight.astype(mx.bfloat16), group_size=32, bits=bits)
        scales, biases = (part.astype(mx.float32) for part in marks)
        wide = torch.tensor(np.array(mx.dequantize(words, scales, biases, group_size=32, bits=bits)))
        tensors = {".weight": torch.from_numpy(np.array(words))}
        tensors |= {".scales": torch.tensor(np.array(scales)).bfloat16()}
        tensors |= {".biases": torch.tensor(np.array(biases)).bfloat16()}
        add(f"mlx{bits}", {"bits": bits, "group_size": 32}, tensors, wide)


if __name__ == "__main__":
    torch.manual_seed(0)
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[2]))
    compressed()
    bitsandbytes()
    mlx()
    save_file(TENSORS, sys.argv[3], metadata=CASES)
    print(f"{len(CASES)} cases, {Path(sys.argv[3]).stat().st_size} bytes")
