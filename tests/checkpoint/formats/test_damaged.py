"""Quantized folders that are damaged or put together wrongly: our exceptions alone, what is wrong is named."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3 import LLM
from qwen3.errors import ConfigError, CorruptFileError, Qwen3Error
from tests.checkpoint.builders import join, split
from tests.checkpoint.formats import build
from tests.checkpoint.formats.test_bad_input import Q, edit
from tests.checkpoint.formats.test_models import HOW, small
from tests.fixtures import tiny_config

sys.path.append(str(Path(__file__).resolve().parents[3] / "tools"))
campaign = pytest.importorskip("mutate_headers")
FORMATS, read = campaign.FOLDERS, campaign.read_folder
MAIN = {"gptq": "qweight", "gptq-desc-act": "qweight", "awq": "qweight", "w4a16-zero": "weight_packed"}
LIMIT = 64 << 20  # bytes of memory that a few kB may take


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: small(tmp_path_factory.mktemp(name), name, "dense")[0] for name in FORMATS}


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[request.param], tmp_path / request.param))


def refused(folder: Path, message: str, error: type[Qwen3Error] = CorruptFileError) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(error, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT >> 10


def packed(folder: Path) -> str:
    """The tensor that holds a query matrix."""
    return f"{Q}.{MAIN.get(folder.name, 'weight')}"


def test_whole_it_is_read(folder: Path) -> None:
    read(folder)


@pytest.mark.parametrize("share", [0.3, 0.9, 1.0])
def test_truncated(folder: Path, share: float) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, int(share * file.stat().st_size) - 1)
    refused(folder, r"model.safetensors: (tensor \S+ lies at bytes|the header claims).*truncated or damaged")


def test_a_header_that_lies(folder: Path) -> None:
    file, name = folder / "model.safetensors", packed(folder)
    header, data = split(file)

    def told(what: str, value: Any, message: str) -> None:
        join(file, json.loads(json.dumps(header)) | {name: header[name] | {what: value}}, data)
        refused(folder, message)

    begin, end = header[name]["data_offsets"]
    told("data_offsets", [begin - 64, end - 64], r"tensor \S+ overlaps tensor|bytes .* belong to no tensor")
    told("data_offsets", [0, end - begin], r"tensor \S+ overlaps")
    told("data_offsets", [2**60, 2**60 + end - begin], f"{name} lies at bytes")
    told("shape", [2**60, *header[name]["shape"][1:]], f"{name} has")
    told("shape", [2**30, 2**30], f"{name} has")
    told("dtype", "I3", f"{name} has the unknown dtype 'I3'")
    told("dtype", "BOOL", f"{name} ")
    rows, *others = header[name]["shape"]
    told("shape", [rows // 2, 2, *others], f"{name} has shape")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gptq", {"group_size": 32}, rf"{Q}.qzeros has shape \[1, 16\] instead of \[4, 16\].*{Q}.scales has shape"),
        ("gptq", {"bits": 8}, rf"{Q}.qweight has shape \[16, 128\] instead of \[32, 128\]"),
        ("awq", {"group_size": 32}, rf"{Q}.qzeros has shape \[2, 16\] instead of \[4, 16\]"),
        ("mlx", {"group_size": 32}, rf"{Q}.scales has shape \[128, 2\] instead of \[128, 4\]"),
        ("mlx", {"bits": 8}, rf"{Q}.weight has shape \[128, 16\] instead of \[128, 32\]"),
    ],
)
def test_sizes_of_another_file(
    name: str, changes: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made[name], tmp_path / name))
    edit(folder, "quantization" if name == "mlx" else "quantization_config", **changes)
    refused(folder, message)


def test_groups_of_compressed_tensors(made: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made["w4a16-zero"], tmp_path / "small"))
    told = json.loads((folder / "config.json").read_text())
    told["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 32
    (folder / "config.json").write_text(json.dumps(told))
    refused(folder, rf"{Q}.weight_scale has shape \[128, 1\] instead of \[128, 4\]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocksize": 2**60}, "blocksize is '1152921504606846976', which is not read"),
        ({"blocksize": 128}, rf"{Q}.weight.absmax has shape \[256\] instead of \[128\]"),
        ({"shape": [2**60, 128]}, "shape is .* which is not read"),
        ({"quant_type": "fp4"}, "quant_type is 'fp4'"),
        ({"sparse": True}, "sparse is 'True', which is not known"),
    ],
)
def test_state_of_bitsandbytes(change: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path) -> None:
    folder, name = Path(shutil.copytree(made["nf4"], tmp_path / "small")), f"{Q}.weight.quant_state.bitsandbytes__nf4"
    tensors = load_file(folder / "model.safetensors")
    state = json.loads(bytes(tensors[name].tolist())) | change
    tensors[name] = torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, message, Qwen3Error)


def test_another_architecture(folder: Path) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(told | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    refused(folder, "model_type 'llama' is not Qwen3", ConfigError)


def sharded(folder: Path, second: dict[str, torch.Tensor]) -> None:
    """Layer 1 comes from `second`, all else from the folder."""
    first = {name: part for name, part in load_file(folder / "model.safetensors").items() if ".layers.1." not in name}
    (folder / "model.safetensors").unlink()
    second = {name: part.clone() for name, part in second.items() if ".layers.1." in name}
    names = {name: f"model-{i:05d}-of-00002.safetensors" for i, part in ((1, first), (2, second)) for name in part}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file(second, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def test_a_shard_of_another_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the right names, but of a wider model."""
    monkeypatch.setitem(build.CONFIGS, "wide", tiny_config(hidden_size=256, intermediate_size=512, head_dim=64))
    other, _ = build.make(tmp_path / "other", "wide", HOW[folder.name][0])
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    sharded(whole, load_file(whole / "model.safetensors"))
    read(whole)
    sharded(folder, load_file(other / "model.safetensors"))
    refused(
        folder, r"the weights do not match config.json: .*model.layers.1.\S+ has shape \[.*\] instead of", Qwen3Error
    )


def test_a_shard_in_another_format(folder: Path, made: dict[str, Path]) -> None:
    other = made["mlx" if folder.name != "mlx" else "awq"]
    sharded(folder, load_file(other / "model.safetensors"))
    refused(folder, r"config.json: .*model.layers.1.self_attn.q_proj", Qwen3Error)


def test_without_a_tokenizer(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer files, and .* do not belong to a vocab_size of 320"):
        LLM(folder, device="cpu")


@pytest.mark.parametrize("offset", ["NaN", "Infinity", "1" + "0" * 400, "1e999", '"0"', "true", "null"])
def test_offsets_of_bitsandbytes(offset: str, made: dict[str, Path], tmp_path: Path) -> None:
    """Nested factors have an offset, which JSON may say to be anything."""
    folder, weight = Path(shutil.copytree(made["nf4"], tmp_path / "small")), f"{Q}.weight"
    tensors = load_file(folder / "model.safetensors")
    name = f"{weight}.quant_state.bitsandbytes__nf4"

    def write(offset: str) -> None:
        state = json.loads(bytes(tensors[name].tolist())) | {"nested_blocksize": 256, "nested_dtype": "float32"}
        text = json.dumps(state)[:-1] + f', "nested_offset": {offset}}}'
        nested = {f"{weight}.absmax": torch.zeros(256, dtype=torch.uint8), f"{weight}.nested_absmax": torch.ones(1)}
        nested |= {f"{weight}.nested_quant_map": torch.ones(256), name: torch.tensor([*text.encode()]).to(torch.uint8)}
        save_file(tensors | nested, folder / "model.safetensors")

    write("0.5")
    read(folder)
    write(offset)
    refused(folder, "nested_offset", Qwen3Error)


def test_bytes_at_random(folder: Path) -> None:
    """A short run of `tools/mutate_headers.py`."""
    outcome = campaign.campaign_of_folder(folder.name, 80, 7, folder)
    assert outcome["refused"] > 40
