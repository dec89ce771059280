"""What does not fit is named, before anything is allocated; nothing is guessed."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import verify
from qwen3.checkpoint.folder import stored_format
from qwen3.errors import ConfigError, CorruptFileError, Qwen3Error
from qwen3.model import load_model
from tests.checkpoint.builders import join, split
from tests.checkpoint.formats.test_models import HOW, small

Q = "model.layers.0.self_attn.q_proj"


def loaded(folder: Path) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return load_model(folder, "cpu", "float32")


def edit(folder: Path, key: str, **changes: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    told[key] |= changes
    (folder / "config.json").write_text(json.dumps(told))


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "bits": 5}, r"quantization_config.bits is '5', which is not read \(only 2, 3, 4, 8\)"),
    ({"quant_method": "gptq", "bits": True}, "bits is 'True', which is not read"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 100}, "group_size is '100', which is not read"),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
        "checkpoint_format is 'marlin'",
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "rotation": "hadamard"},
        "rotation is 'hadamard', which is not",
    ),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"(a+)+": {}}},
        r"'\(a\+\)\+' may take for ever",
    ),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"((": {}}}, r"'\(\(' is no regular expression"),
    ({"quant_method": "awq", "bits": 8, "group_size": 128}, "bits is '8', which is not read"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "version is 'gemv'"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": False}, "zero_point is 'False'"),
    ({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": "a"}, "must be a list of names"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "is not in 4 bits, which alone is read"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "af4"}, "quant_type is 'af4'"),
    ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'"),
    (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "transform_config": {"a": 1}},
        "transform_config",
    ),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups is missing"),
    ({"quant_method": "hqq"}, "says 'hqq'; what is read is fp8, gptq, awq, compressed-tensors, bitsandbytes and MLX"),
    ({"quant_method": ["gptq"]}, "what is read is fp8"),
]


@pytest.mark.parametrize(("told", "message"), CONFIGS)
def test_settings_that_are_not_read(told: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": told}))
    with pytest.raises(ConfigError, match=message):
        stored_format(tmp_path)


@pytest.mark.parametrize("change", [{"num_bits": 3}, {"type": "float"}, {"strategy": "block"}, {"dynamic": True},
    {"group_size": 0}, {"actorder": "maybe"}, {"sparsity": 2}])  # fmt: skip
def test_schemes_that_are_not_read(change: dict[str, Any], tmp_path: Path) -> None:
    told = json.loads(json.dumps(HOW["w4a16"][0][1]))
    told["config_groups"]["group_0"]["weights"] |= change
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": told}))
    with pytest.raises(ConfigError, match=r"config_groups.group_0.weights.*" + next(iter(change))):
        stored_format(tmp_path)


def test_mlx_settings(tmp_path: Path) -> None:
    def refused(told: Any, message: str, **more: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"quantization": told, **more}))
        with pytest.raises(ConfigError, match=message):
            stored_format(tmp_path)

    four = {"bits": 4, "group_size": 64}
    refused(four | {"mode": "mxfp4"}, r"quantization.mode is 'mxfp4'.*only 'affine'")
    refused(four | {"bits": 7}, "quantization.bits is '7'")
    refused(four | {"bias": 1}, "quantization.bias is '1', which is not known")
    refused(four | {"lm.head": {"bits": 4}}, "quantization.lm.head.group_size is missing")
    refused(four, "contradict each other", quantization_config=four | {"bits": 8})


# (format, what happens to its tensors by name, the message)
SPOILED: list[tuple[str, dict[str, Callable[[torch.Tensor], torch.Tensor] | None], str]] = [
    ("gptq", {f"{Q}.scales": None}, rf"missing {Q}.scales \[1, 128\]"),
    ("gptq", {f"{Q}.qweight": None}, rf"missing {Q}.qweight \[16, 128\]"),
    ("gptq", {f"{Q}.qzeros": lambda t: t[:, :-1]}, rf"{Q}.qzeros has shape \[1, 15\] instead of \[1, 16\]"),
    ("gptq", {f"{Q}.scales": lambda t: t.repeat(2, 1)}, rf"{Q}.scales has shape \[2, 128\] instead of \[1, 128\]"),
    ("gptq", {f"{Q}.scales": lambda t: t.to(torch.int32)}, rf"{Q}.scales is stored as I32, but it must be F16, BF16"),
    ("gptq-desc-act", {f"{Q}.g_idx": None}, rf"missing {Q}.g_idx \[128\]"),
    ("gptq-desc-act", {f"{Q}.g_idx": lambda t: t + 1}, rf"{Q}.g_idx names groups from 1 to 2, but there are 2"),
    ("gptq-desc-act", {f"{Q}.g_idx": lambda t: t - 2**31 + 1}, rf"{Q}.g_idx names groups from -"),
    ("gptq", {f"{Q}.extra": lambda t: torch.ones(3)}, rf"unexpected {Q}.extra \[3\]"),
    ("gptq", {f"{Q}.bias": lambda t: torch.ones(128)}, rf"{Q}.bias is not zero, but Qwen3's projections have no bias"),
    ("awq", {f"{Q}.qzeros": None}, rf"missing {Q}.qzeros \[2, 16\]"),
    ("awq", {f"{Q}.qweight": lambda t: t.t()}, rf"{Q}.qweight has shape \[16, 128\] instead of \[128, 16\]"),
    ("w4a16", {f"{Q}.weight_scale": None}, rf"missing {Q}.weight_scale \[128, 1\]"),
    ("w4a16", {f"{Q}.weight_shape": lambda t: t + 8}, rf"{Q}.weight_shape is \[136, 136\], but the matrix has shape"),
    ("w4a16-zero", {f"{Q}.weight_zero_point": None}, rf"missing {Q}.weight_zero_point \[128, 1\]"),
    ("w4a16-order", {f"{Q}.weight_g_idx": lambda t: t - 1}, rf"{Q}.weight_g_idx names groups from -1"),
    ("w8a8", {f"{Q}.weight": lambda t: t.float()}, rf"{Q}.weight is stored as F32, but it must be I8"),
    ("fp8", {f"{Q}.weight_scale": lambda t: t.view(-1)}, rf"{Q}.weight_scale has shape \[128\] instead of \[128, 1\]"),
    ("nf4", {f"{Q}.weight.absmax": None}, rf"missing {Q}.weight.absmax"),
    ("nf4", {f"{Q}.weight.absmax": lambda t: t[1:]}, rf"{Q}.weight.absmax has shape \[255\] instead of \[256\]"),
    ("nf4", {f"{Q}.weight.quant_state.bitsandbytes__nf4": None}, rf"missing {Q}.weight.quant_state.bitsandbytes__nf4"),
    ("nf4", {f"{Q}.weight.quant_state.bitsandbytes__nf4": lambda t: t[:-3]}, "bitsandbytes__nf4 is not valid JSON"),
    ("nf4", {f"{Q}.weight.quant_map": lambda t: t[:4]}, rf"{Q}.weight.quant_map has shape \[4\] instead of \[16\]"),
    ("mlx", {f"{Q}.biases": None}, rf"missing {Q}.biases \[128, 2\]"),
    ("mlx", {f"{Q}.scales": lambda t: t.repeat(1, 2)}, rf"{Q}.scales has shape \[128, 4\] instead of \[128, 2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "message"), SPOILED)
def test_tensors_that_do_not_fit(name: str, changes: Any, message: str, tmp_path: Path) -> None:
    folder, _ = small(tmp_path, name, "dense")
    tensors = load_file(folder / "model.safetensors")
    for key, change in changes.items():
        tensors[key] = None if change is None else change(tensors.get(key)).contiguous().clone()  # type: ignore[assignment]
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptFileError, match=message):
        loaded(folder)


def test_group_sizes_that_do_not_fit(tmp_path: Path) -> None:
    folder, _ = small(tmp_path, "gptq", "dense")
    edit(folder, "quantization_config", group_size=64)
    with pytest.raises(CorruptFileError, match=rf"{Q}.scales has shape \[1, 128\] instead of \[2, 128\]"):
        loaded(folder)
    edit(folder, "quantization_config", group_size=512)
    with pytest.raises(ConfigError, match=r"group_size 512 does not divide the \d+ columns of model.layers.0"):
        loaded(folder)
    errors = [finding.message for finding in verify(folder).findings if finding.severity == "error"]
    assert any("group_size 512 does not divide" in error for error in errors)


def test_ignored_modules_must_be_plain(tmp_path: Path) -> None:
    folder, _ = small(tmp_path, "w4a16", "dense")
    edit(folder, "quantization_config", ignore=["re:.*q_proj"])
    with pytest.raises(CorruptFileError, match=rf"missing {Q}.weight \[128, 128\].*unexpected {Q}.weight_packed"):
        loaded(folder)


def test_truncated(tmp_path: Path) -> None:
    folder, _ = small(tmp_path, "mlx", "moe")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[:-100])
    with pytest.raises(CorruptFileError, match="truncated or damaged"):
        loaded(folder)


@pytest.mark.parametrize("name", ["gptq", "awq", "w4a16-zero", "nf4", "mlx"])
def test_mutations_raise_one_type(name: str, tmp_path: Path) -> None:
    """Headers and settings with one thing changed: loaded, or refused with our exception; nothing else."""
    folder, _ = small(tmp_path, name, "moe")
    config, file = (folder / "config.json").read_text(), folder / "model.safetensors"
    header, data = split(file)
    draw = random.Random(name)
    values: list[Any] = [0, 1, -1, 3, 2**31, 2**60, None, True, "", "x", [], {}, [2**60, 1], 0.5]
    refused = 0
    for _ in range(60):
        told, changed = json.loads(config), json.loads(json.dumps(header))
        key = draw.choice(list(changed))
        if draw.random() < 0.5:
            section = told.get("quantization") or told["quantization_config"]
            section[draw.choice(list(section))] = draw.choice(values)
        elif key != "__metadata__":
            place = changed[key]
            what = draw.choice(["shape", "dtype", "name", "one"])
            if what == "name":
                changed[key[:-1]] = changed.pop(key)
            elif what == "one":
                place["shape"][draw.randrange(len(place["shape"]))] = draw.choice(values)
            else:
                place[what] = draw.choice([["F32", "I32", "U8", "I64", "BF16"], values][what == "shape"])
        (folder / "config.json").write_text(json.dumps(told))
        join(file, changed, data)
        try:
            loaded(folder)
        except Qwen3Error:
            refused += 1
    assert refused > 20
