"""FP8 checkpoints: kept, dequantized, refused; and weights quantized while they are loaded."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen3 import kernels
from qwen3.checkpoint import check_fits, load_weights, save_checkpoint, verify
from qwen3.checkpoint.folder import Fp8Format, stored_format
from qwen3.checkpoint.fp8 import fp8_names, fp8_weights, parameters_to_hold, scale_shape
from qwen3.checkpoint.names import fused_name, fused_shapes, official_shapes
from qwen3.config import ModelConfig
from qwen3.errors import ConfigError, CorruptFileError, OutOfMemoryError, UsageError
from qwen3.family import MODELS
from qwen3.kernels.fp8 import FP8, quantize_fp8
from qwen3.model import Qwen3, load_model
from qwen3.model.load import quantize_model
from tests.fixtures import fused_tensors, official_tensors, tiny_config

OFFICIAL = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
SKIP = ["lm_head", "model.layers.0.mlp.gate", "model.layers.0.input_layernorm"]


def config_of(moe: bool = False, **changes: Any) -> ModelConfig:
    """Rows in whole blocks; the hidden size is a block and a half."""
    sizes = {"hidden_size": 192, "head_dim": 64, "intermediate_size": 256, "dtype": "bfloat16"}
    return tiny_config(moe, **sizes | ({"moe_intermediate_size": 128, "num_experts": 4} if moe else {}) | changes)


def write(folder: Path, config: ModelConfig, how: dict[str, Any], *, scales: torch.dtype = torch.bfloat16) -> Path:
    """Folders `fp8` and `twin`, the same weights dequantized; scales and weights in different shards."""
    tensors = official_tensors(config, dtype=torch.bfloat16)
    skip = how.get("modules_to_not_convert") or []
    small: dict[str, Tensor] = {}
    twin, large = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") and not any(name.startswith(module + ".") for module in skip):
            weight = quantize_fp8(tensor, 128)
            weight.scale = weight.scale.to(scales).float()
            large[name], small[name + "_scale_inv"] = weight.data, weight.scale.to(scales)
            twin[name] = weight.dequantize(torch.float32)
    for place in (folder / "fp8", folder / "twin"):
        place.mkdir(parents=True)
    data = config.to_dict()
    (folder / "twin" / "config.json").write_text(json.dumps(data))
    (folder / "fp8" / "config.json").write_text(json.dumps(data | {"quantization_config": how}))
    save_file(twin, folder / "twin" / "model.safetensors", metadata={"format": "pt"})
    parts = {"model-00001-of-00002.safetensors": large, "model-00002-of-00002.safetensors": small}
    for file, part in parts.items():
        save_file(part, folder / "fp8" / file, metadata={"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "fp8" / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def logits(model: Qwen3) -> Tensor:
    ids = torch.arange(12).view(2, 6) * 37 % 600
    with torch.inference_mode(), kernels.use("reference"):
        return model(ids)


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dequantized_where_fp8_cannot_run(tmp_path: Path, moe: bool, dtype: str) -> None:
    write(tmp_path, config_of(moe), OFFICIAL | ({"modules_to_not_convert": SKIP} if moe else {}))
    with pytest.warns(UserWarning, match=f"the weights are FP8, which cpu cannot multiply; they become torch.{dtype}"):
        model = load_model(tmp_path / "fp8", "cpu", dtype)
    twin = load_model(tmp_path / "twin", "cpu", dtype)
    assert not fp8_weights(model)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(logits(model), logits(twin))


@pytest.mark.parametrize("moe", [False, True])
def test_kept(tmp_path: Path, moe: bool) -> None:
    config = config_of(moe)
    write(tmp_path, config, OFFICIAL, scales=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(tmp_path / "fp8", "cpu", "float32", quantization="fp8")
    held = fp8_weights(model)
    assert set(held) == parameters_to_hold(config, Fp8Format())[0]
    assert len(held) == 8
    assert {weight.block for weight in held.values()} == {128}
    assert model.dtype == torch.float32
    twin = dict(load_model(tmp_path / "twin", "cpu", "float32").named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, twin[name])
    for name, weight in held.items():
        assert torch.equal(weight.dequantize(torch.float32), twin[name]), name
    assert torch.equal(logits(model), logits(load_model(tmp_path / "twin", "cpu", "float32")))
    # again, into the same memory
    places = {name: (weight.data.data_ptr(), weight.scale.data_ptr()) for name, weight in held.items()}
    for weight in held.values():
        weight.scale.zero_()
    load_weights(model, tmp_path / "fp8")
    assert places == {name: (weight.data.data_ptr(), weight.scale.data_ptr()) for name, weight in held.items()}
    assert all(torch.equal(weight.dequantize(torch.float32), twin[name]) for name, weight in held.items())
    with pytest.raises(UsageError, match="FP8 weights cannot be saved yet"):
        save_checkpoint(tmp_path / "saved", model)


def test_parts_that_are_no_whole_blocks(tmp_path: Path) -> None:
    config = config_of(head_dim=32, intermediate_size=192)
    how = OFFICIAL | {"modules_to_not_convert": ["model.layers.1.mlp.down_proj"]}
    write(tmp_path, config, how)
    with pytest.warns(
        UserWarning, match=r"parts of layers.0.mlp.gate_up_proj.weight and of 3 more are no whole blocks"
    ):
        model = load_model(tmp_path / "fp8", "cpu", "float32", quantization="fp8")
    held = {"layers.0.mlp.down_proj.weight", "layers.0.self_attn.o_proj.weight", "layers.1.self_attn.o_proj.weight"}
    assert set(fp8_weights(model)) == held
    assert torch.equal(logits(model), logits(load_model(tmp_path / "twin", "cpu", "float32")))


@pytest.mark.parametrize("moe", [False, True])
def test_quantized_while_loading(tmp_path: Path, moe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3.checkpoint.safetensors_io.CHUNK_BYTES", 1)  # so that a matrix comes in several parts
    config = tiny_config(moe, dtype="bfloat16", intermediate_size=200)
    tensors = official_tensors(config, dtype=torch.bfloat16)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path, "cpu", "bfloat16", quantization="fp8")
    fused, held = fused_tensors(config, tensors), fp8_weights(model)
    assert len(held) == 8
    for name, weight in held.items():
        wanted = quantize_fp8(fused[name])
        assert (weight.block, weight.data.dtype) == (0, FP8)
        assert torch.equal(weight.scale, wanted.scale)
        assert torch.equal(weight.dequantize(), wanted.dequantize()), name
    other = quantize_model(load_model(tmp_path, "cpu", "bfloat16"))
    assert quantize_model(other) is other
    for name, weight in fp8_weights(other).items():
        assert torch.equal(weight.dequantize(), held[name].dequantize())
    plain = logits(load_model(tmp_path, "cpu", "bfloat16")).float()
    assert 0 < ((logits(model).float() - plain).norm() / plain.norm()).item() < 0.25


def spoil(folder: Path, file: int, name: str, tensor: Tensor | None) -> None:
    path = folder / f"model-0000{file}-of-00002.safetensors"
    content = load_file(path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    if tensor is None:
        del content[name], index["weight_map"][name]
    else:
        content[name], index["weight_map"][name] = tensor, path.name
    save_file(content, path, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def errors(folder: Path) -> list[str]:
    """What `verify` finds, the tokenizer that these folders lack apart."""
    return [f.message for f in verify(folder).findings if f.severity == "error" and f.check != "tokenizer"]


Q = "model.layers.0.self_attn.q_proj.weight"
WRONG = [
    (2, Q + "_scale_inv", None, r"missing .*q_proj.weight_scale_inv \[2, 2\]"),
    (2, Q + "_scale_inv", torch.ones(2, 3), r"q_proj.weight_scale_inv has shape \[2, 3\] instead of \[2, 2\]"),
    (2, Q + "_scale_inv", torch.ones(2, 2, dtype=torch.uint8), "q_proj.weight_scale_inv is stored as U8"),
    (2, "model.norm.weight_scale_inv", torch.ones(1, 1), "unexpected model.norm.weight_scale_inv"),
    (1, Q, torch.ones(256, 192, dtype=torch.bfloat16), "q_proj.weight is stored as BF16, but it must be F8_E4M3"),
    (1, "model.norm.weight", torch.ones(192).to(FP8), "model.norm.weight is stored as F8_E4M3, but it must be BF16"),
]


@pytest.mark.parametrize(("file", "name", "tensor", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_does_not_fit_together(tmp_path: Path, file: int, name: str, tensor: Tensor | None, message: str) -> None:
    write(tmp_path, config_of(), OFFICIAL)
    spoil(tmp_path / "fp8", file, name, tensor)
    with pytest.raises(CorruptFileError, match=message), warnings.catch_warnings(action="ignore"):
        load_model(tmp_path / "fp8", "cpu")
    assert len(errors(tmp_path / "fp8")) == 1


CONFIGS = [
    ({"quant_method": "hqq", "bits": 4}, "quantization_config says 'hqq'"),
    (OFFICIAL | {"weight_block_size": [64, 64]}, r"weight_block_size is '\[64, 64\]', only \[128, 128\] is supported"),
    (OFFICIAL | {"fmt": "e5m2"}, "quantization_config.fmt is 'e5m2', only 'e4m3'"),
    (OFFICIAL | {"activation_scheme": "static"}, "activation_scheme is 'static'"),
    (OFFICIAL | {"rotation": True}, "quantization_config.rotation is 'True', which is not known"),
    (OFFICIAL | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list"),
    (
        OFFICIAL | {"modules_to_not_convert": ["model.layers.0.mlp.gate"]},
        "'model.layers.0.mlp.gate', which is no module",
    ),
]


@pytest.mark.parametrize(("how", "message"), CONFIGS)
def test_formats_that_are_not_read(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    write(tmp_path, config_of(), how)
    with pytest.raises(ConfigError, match=message), warnings.catch_warnings(action="ignore"):
        load_model(tmp_path / "fp8", "cpu")
    assert len(errors(tmp_path / "fp8")) == 1


def test_verify(tmp_path: Path) -> None:
    write(tmp_path, config_of(moe=True), OFFICIAL | {"modules_to_not_convert": SKIP})
    assert errors(tmp_path / "fp8") == []
    data = torch.ones(256, 192).to(FP8)
    data.view(torch.uint8)[3, 5] = 0x7F
    spoil(tmp_path / "fp8", 1, Q, data)
    spoil(tmp_path / "fp8", 2, Q + "_scale_inv", torch.full((2, 2), torch.inf))
    first, second = errors(tmp_path / "fp8")
    assert "q_proj.weight has 1 NaN and 0 infinite" in first
    assert "q_proj.weight_scale_inv has 0 NaN and 4 infinite" in second


def test_names_and_formats(tmp_path: Path) -> None:
    for config in (config_of(), config_of(moe=True), config_of(tie_word_embeddings=False)):
        assert {fused_name(name) for name in official_shapes(config)} == set(fused_shapes(config))
    assert stored_format(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    assert stored_format(tmp_path) == Fp8Format((), 128)


# GB of Qwen's FP8 repositories, a tied head counted once
PUBLISHED = {"0.6B": 0.75, "1.7B": 2.03, "4B": 4.41, "8B": 9.44, "14B": 16.33, "32B": 34.32, "30B-A3B": 31.17}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_official_shapes_keep_every_projection(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, stored = MODELS[f"Qwen3-{size}"].config, Fp8Format()
    names, uneven = parameters_to_hold(config, stored)
    assert names == parameters_to_hold(config, None)[0]
    assert not uneven
    shapes = official_shapes(config)
    kept = sum(shapes[name][0] * shapes[name][1] for name in fp8_names(config, stored))
    grids = [scale_shape(shapes[name], stored) for name in fp8_names(config, stored)]
    size_on_disk = 2 * config.num_parameters() - kept + 2 * sum(rows * columns for rows, columns in grids)
    assert size_on_disk / 1e9 == pytest.approx(PUBLISHED[size], abs=0.006)
    need = 2 * config.num_parameters() - kept
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device: need)
    check_fits(config, fp8=kept)
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device: need - 1)
    with pytest.raises(OutOfMemoryError, match=rf"needs {need:,} bytes .* in bfloat16, {kept:,} of them in FP8"):
        check_fits(config, fp8=kept)
    assert replace(config, quantization_config=OFFICIAL).num_parameters() == config.num_parameters()
