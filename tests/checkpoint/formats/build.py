"""Tiny quantized checkpoints, written from the formats' descriptions alone, and the same weights widened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3.checkpoint import save_checkpoint
from qwen3.model import Qwen3, load_model
from tests.checkpoint.builders import DENSE, MOE

SIZES: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
CONFIGS = {
    "dense": replace(DENSE, **SIZES),
    "moe": replace(MOE, **SIZES, moe_intermediate_size=128, num_experts=4),
}
Encoded = tuple[dict[str, Tensor], Tensor]  # tensors by suffix, and what they stand for


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """[rows, n] of numbers from 0 -> int32 [rows, n·bits/32], bit after bit."""
    stream = (values.numpy().astype(np.uint8)[..., None] >> np.arange(bits)) & 1
    words = np.packbits(stream.reshape(len(values), -1).astype(np.uint8), axis=-1, bitorder="little")
    return torch.from_numpy(words.view("<i4").copy())


def rounded(weight: Tensor, bits: int, group: int, symmetric: bool, index: Tensor | None = None) -> tuple[Tensor, ...]:
    """(q from 0, zeros, scales in half, wide); index: group of each column."""
    columns = weight.shape[1]
    size = columns if group == -1 else group
    index = torch.arange(columns) // size if index is None else index
    count, top = columns // size, (1 << bits) - 1
    highest = torch.stack([weight[:, index == g].amax(1) for g in range(count)], 1)
    lowest = torch.stack([weight[:, index == g].amin(1) for g in range(count)], 1)
    if symmetric:
        scale = (torch.maximum(highest, -lowest) / (top // 2)).half()
        zero = torch.full(scale.shape, float(1 << bits - 1))
    else:
        scale = ((highest - lowest) / top).half()
        zero = (-lowest / scale.float()).round().clamp(1, top)
    q = (weight / scale.float()[:, index] + zero[:, index]).round().clamp(0, top)
    return q, zero, scale, (q - zero[:, index]) * scale.float()[:, index]


def gptq(bits: int = 4, group: int = 128, symmetric: bool = True, order: bool = False, version: int = 1) -> Any:
    def encode(name: str, weight: Tensor) -> Encoded:
        columns = weight.shape[1]
        index = torch.arange(columns) // (columns if group == -1 else group)
        if order:
            index = index[torch.randperm(columns, generator=torch.Generator().manual_seed(1))]
        q, zero, scale, wide = rounded(weight, bits, group, symmetric, index)
        held = {"qweight": pack_bits(q, bits).t(), "qzeros": pack_bits(zero.t() - (2 - version), bits)}
        return {f".{k}": v for k, v in held.items()} | {".scales": scale.t(), ".g_idx": index.int()}, wide

    told = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": order}
    told |= {"lm_head": False, "damp_percent": 0.01, "true_sequential": True, "static_groups": False}
    return encode, told | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})


def awq(group: int = 64) -> Any:
    def encode(name: str, weight: Tensor) -> Encoded:
        q, zero, scale, wide = rounded(weight, 4, group, False)
        places = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
        q, zero = (part.t().unflatten(1, (-1, 8))[..., places].flatten(1) for part in (q, zero))
        return {".qweight": pack_bits(q, 4), ".qzeros": pack_bits(zero, 4), ".scales": scale.t()}, wide

    told = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return encode, told | {"modules_to_not_convert": None}


def compressed(format: str = "pack-quantized", **weights: Any) -> Any:
    bits, symmetric = weights["num_bits"], weights.get("symmetric", True)
    group = weights.get("group_size") or -1

    def encode(name: str, weight: Tensor) -> Encoded:
        if format == "float-quantized":
            if weights["strategy"] == "block":
                scale = (torch.rand(-(-weight.shape[0] // 128), weight.shape[1] // 128) * 0.001 + 0.0005).bfloat16()
                wide = scale.float().repeat_interleave(128, 0)[: len(weight)].repeat_interleave(128, 1)
                data = (weight / wide).to(torch.float8_e4m3fn)
                return {".weight": data, ".weight_scale": scale}, data.float() * wide
            count = 1 if weights["strategy"] == "tensor" else weight.shape[0]
            scale = (weight.view(count, -1).abs().amax(1, keepdim=True) / 448).bfloat16()
            data = (weight / scale.float()).to(torch.float8_e4m3fn)
            return {".weight": data, ".weight_scale": scale.view(-1) if count == 1 else scale}, data.float() * scale
        columns = weight.shape[1]
        index = torch.arange(columns) // (columns if group == -1 else group)
        if weights.get("actorder") == "group":
            index = index[torch.randperm(columns, generator=torch.Generator().manual_seed(1))]
        q, zero, scale, wide = rounded(weight, bits, group, symmetric, index)
        held = {".weight_scale": scale}
        if format == "pack-quantized":
            held |= {".weight_packed": pack_bits(q, bits), ".weight_shape": torch.tensor(weight.shape)}
            held |= {".weight_g_idx": index.int()} if weights.get("actorder") == "group" else {}
            held |= {} if symmetric else {".weight_zero_point": pack_bits(zero.t(), bits).t()}
        else:
            held[".weight"] = (q - 128).to(torch.int8)
        return held, wide

    acts = {"num_bits": 8, "dynamic": True} if format != "pack-quantized" else None
    told = {"targets": ["Linear"], "weights": {"type": "int", **weights}, "input_activations": acts}
    return encode, {
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp.gate$"], "config_groups": {"group_0": told}, "kv_cache_scheme": None,
    }  # fmt: skip


def nf4() -> Any:
    def encode(name: str, weight: Tensor) -> Encoded:
        grid = torch.linspace(-1, 1, 16) ** 3
        flat = weight.reshape(-1, 64)
        absmax = flat.abs().amax(1)
        code = (flat / absmax[:, None]).unsqueeze(-1).sub(grid).abs().argmin(-1)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(weight.shape)}
        packed = (code.view(-1)[::2] << 4 | code.view(-1)[1::2]).to(torch.uint8).view(-1, 1)
        held = {"": packed, ".absmax": absmax, ".quant_map": grid}
        held[".quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return {".weight" + k: v for k, v in held.items()}, (grid[code] * absmax[:, None]).view(weight.shape)

    told = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
    return encode, told | {"bnb_4bit_compute_dtype": "bfloat16", "llm_int8_skip_modules": None}


def mlx(bits: int = 4, group: int = 64, **own: Any) -> Any:
    def encode(name: str, weight: Tensor) -> Encoded:
        spans = weight.unflatten(1, (-1, group))
        low, high = spans.amin(-1), spans.amax(-1)
        scale, bias = ((high - low) / ((1 << bits) - 1)).half(), low.half()
        q = ((spans - bias[..., None]) / scale[..., None]).round().clamp(0, (1 << bits) - 1)
        wide = (q * scale.float()[..., None] + bias.float()[..., None]).flatten(1)
        words = pack_bits(q.flatten(1), bits).view(torch.uint32)
        return {".weight": words, ".scales": scale, ".biases": bias}, wide

    return encode, {"group_size": group, "bits": bits, **own}


def make(folder: Path, kind: str, how: Any, takes: str = r"_proj\.weight") -> tuple[Path, Qwen3]:
    """(checkpoint of the config of this kind, its weights widened by us, in float32). takes: what is quantized."""
    encode: Callable[[str, Tensor], Encoded] = how[0]
    config = CONFIGS[kind]
    model = Qwen3(config, "cpu", torch.float32)
    with torch.no_grad():
        for parameter, other in zip(model.parameters(), _normal(config), strict=True):
            parameter.copy_(other)
    save_checkpoint(folder / "wide", model)
    plain = load_file(folder / "wide" / "model.safetensors")
    held: dict[str, Tensor] = {}
    for name, weight in sorted(plain.items()):
        if re.search(takes, name):
            tensors, plain[name] = encode(name, weight)
            held |= {name.removesuffix(".weight") + suffix: tensor for suffix, tensor in tensors.items()}
        else:
            held[name] = weight
    save_file({name: part.contiguous() for name, part in plain.items()}, folder / "wide" / "model.safetensors")
    is_mlx = "quant_method" not in how[1]
    out = folder / "small"
    out.mkdir()
    told = json.loads((folder / "wide" / "config.json").read_text())
    told["quantization" if is_mlx else "quantization_config"] = how[1]
    (out / "config.json").write_text(json.dumps(told))
    if is_mlx:
        held = stacked(held, config.num_experts)
    save_file({name: part.contiguous().clone() for name, part in held.items()}, out / "model.safetensors")
    return out, load_model(folder / "wide", "cpu", "float32")


def stacked(tensors: dict[str, Tensor], experts: int) -> dict[str, Tensor]:
    """MLX's names: each projection of all experts in one tensor."""
    out: dict[str, Tensor] = {}
    found: dict[str, dict[int, Tensor]] = {}
    for name, part in tensors.items():
        hit = re.fullmatch(r"(.*\.mlp)\.experts\.(\d+)\.(\w+\.\w+)", name)
        if hit:
            found.setdefault(f"{hit[1]}.switch_mlp.{hit[3]}", {})[int(hit[2])] = part
        else:
            out[name] = part
    return out | {name: torch.stack([parts[i] for i in range(experts)]) for name, parts in found.items()}


def _normal(config: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(p.shape, generator=generator) * 0.05 for p in Qwen3(config, "meta").parameters()]
