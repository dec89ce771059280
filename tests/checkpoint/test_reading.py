"""Reading weights: right where the file is right, one clear error where it is not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwen3.checkpoint import load_weights, official_views
from qwen3.checkpoint.folder import find_weight_files
from qwen3.checkpoint.header import read_header
from qwen3.errors import (
    ConfigError,
    CorruptFileError,
    ModelNotFoundError,
    OutOfMemoryError,
    Qwen3Error,
    UnsafeFileError,
)
from qwen3.model import Qwen3, load_model
from tests import fixtures
from tests.checkpoint.builders import DENSE, join, meta_model, random_model, rewrite, split


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_loads_what_others_wrote(tmp_path: Path, moe: bool, shards: int, dtype: torch.dtype | None) -> None:
    config = fixtures.tiny_config(moe=moe)
    folder = fixtures.random_checkpoint(tmp_path / "model", config, shards=shards, store_tied_head=True)
    model = Qwen3(config, "meta", torch.float32)
    report = load_weights(model, folder, dtype=dtype)
    want = fixtures.random_model(config, dtype=dtype or torch.float32)
    for (name, a), b in zip(model.named_parameters(), want.parameters(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
    assert (len(report.files), report.stored_dtypes, report.dtype) == (shards, ("F32",), dtype or torch.float32)
    assert report.tied_copy is not moe
    assert report.bytes == sum(t.nbytes for file in report.files for t in load_file(file).values())


def test_fills_existing_parameters_in_place(dense: Path) -> None:
    model = random_model(seed=5)
    model.requires_grad_(False)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    load_weights(model, dense)
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), random_model().parameters(), strict=True))
    assert not any(p.requires_grad for p in model.parameters())


def test_header_agrees_with_the_safetensors_library(made: dict[str, Path]) -> None:
    for folder in made.values():
        for file in find_weight_files(folder):
            header = read_header(file)
            with safe_open(file, "pt") as theirs:
                assert set(header.tensors) == set(theirs.keys())
                assert header.metadata == theirs.metadata() == {"format": "pt"}
                for name, entry in header.tensors.items():
                    assert list(entry.shape) == theirs.get_slice(name).get_shape()
                    assert entry.dtype == theirs.get_slice(name).get_dtype()


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        header["model.norm.weight"][key] = value

    return apply


def shift(by: int) -> Callable[[dict[str, Any]], None]:
    def apply(header: dict[str, Any]) -> None:
        header["model.norm.weight"]["data_offsets"] = [n + by for n in header["model.norm.weight"]["data_offsets"]]

    return apply


def swap_in_bytes(header: dict[str, Any]) -> None:
    """One odd-sized tensor in front puts all others at odd offsets, which no writer does."""
    for entry in header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [n + 1 for n in entry["data_offsets"]]
    header["odd"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (change("dtype", "BF17"), "model.norm.weight has the unknown dtype 'BF17'"),
        (change("dtype", "F32"), "model.norm.weight has 96 bytes, but F32 [48] takes 192"),
        (change("dtype", None), "unknown dtype None"),
        (change("shape", [47]), "model.norm.weight has 96 bytes, but BF16 [47] takes 94"),
        (change("shape", [-48]), "model.norm.weight has an impossible shape"),
        (change("shape", [2**70]), "model.norm.weight has an impossible shape"),
        (change("shape", [48.0]), "model.norm.weight has an impossible shape"),
        (change("shape", [True] * 3), "model.norm.weight has an impossible shape"),
        (change("shape", "48"), "model.norm.weight has an impossible shape"),
        (change("data_offsets", [0]), "model.norm.weight has impossible data_offsets"),
        (change("data_offsets", [-96, 0]), "model.norm.weight has impossible data_offsets"),
        (change("data_offsets", [2**62, 2**62 + 96]), "model.norm.weight lies at bytes"),
        (change("data_offsets", [96, 0]), "model.norm.weight lies at bytes"),
        (change("extra", 1), "model.norm.weight must have exactly dtype, shape and data_offsets"),
        (shift(-2), "overlaps"),
        (shift(2), "lies at bytes"),
        (lambda header: header.pop("model.norm.weight"), "96 bytes after tensor .* belong to no tensor"),
        (lambda header: header.pop("model.layers.0.input_layernorm.weight"), "bytes between .* belong to no tensor"),
        (swap_in_bytes, "misaligned for BF16"),
        (lambda header: header.update(__metadata__={"a": 1}), "__metadata__ in the header must map strings to strings"),
        (lambda header: header.update({"bad\nname": header["model.norm.weight"]}), "unusable name"),
    ],
)
def test_bad_header(dense: Path, apply: Callable[[dict[str, Any]], None], message: str) -> None:
    file = dense / "model.safetensors"
    header, data = split(file)
    apply(header)
    join(file, header, b"\0" + data if "odd" in header else data)
    refused(dense, rf"{file}: .*" + message.replace("[", r"\["))


def refused(folder: Path, message: str, error: type[Qwen3Error] = CorruptFileError) -> None:
    model = meta_model()
    with pytest.raises(error, match=message) as caught:
        load_weights(model, folder)
    assert "\n" not in str(caught.value)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"1234567", "7 bytes is too short"),
        (struct.pack("<Q", 2**60) + b"{}", f"the header claims {2**60} bytes but the file has 10"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "the header claims"),
        (struct.pack("<Q", 2) + b"[]", "the header is not a JSON object"),
        (struct.pack("<Q", 9) + b"not json!", "the header is not valid JSON"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "the header is not valid JSON"),
        (struct.pack("<Q", 20000) + b"[" * 20000, "the header is not valid JSON"),
        (struct.pack("<Q", 15) + b'{"a":1,"a":2}  ', "the header names 'a' twice"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:f47f\nsize 1503300328\n", "Git LFS pointer"),
        (b"\x80\x04\x95pickle", "too short|claims"),
    ],
)
def test_not_a_safetensors_file(dense: Path, content: bytes, message: str) -> None:
    (dense / "model.safetensors").write_bytes(content)
    refused(dense, rf"model\.safetensors: .*({message})")


@pytest.mark.parametrize("keep", [8, 500, 5000, -1])
def test_truncated(dense: Path, keep: int) -> None:
    file = dense / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(dense, "truncated")


def test_extra_bytes_at_the_end(dense: Path) -> None:
    with (dense / "model.safetensors").open("ab") as file:
        file.write(b"tail")
    refused(dense, "4 bytes after tensor .* belong to no tensor")


def test_thousand_byte_flips_never_surprise(dense: Path) -> None:
    """Whatever a flipped byte of the header says: weights are loaded, or one of our errors is raised."""
    file, rng = dense / "model.safetensors", random.Random(0)
    good = file.read_bytes()
    header_end = 8 + int.from_bytes(good[:8], "little")
    refusals = lines = 0
    for _ in range(1000):
        bad = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            bad[rng.randrange(header_end)] = rng.randrange(256)
        file.write_bytes(bad)
        try:
            load_weights(meta_model(), dense)
        except CorruptFileError as error:
            refusals += 1
            lines += str(error).count("\n")
    assert lines == 0
    assert refusals > 900


def test_every_difference_is_listed(dense: Path) -> None:
    rewrite(
        dense / "model.safetensors",
        model__norm__weight=None,
        model__layers__1__mlp__up_proj__weight=torch.zeros(80, 47, dtype=torch.bfloat16),
        model__layers__0__self_attn__q_norm__weight=torch.zeros(16, dtype=torch.int8),
        model__layers__0__self_attn__q_proj__bias=torch.zeros(64),
        model__layers__7__input_layernorm__weight=torch.zeros(48),
    )
    refused(dense, "the weights do not match config.json: missing model.norm.weight \\[48\\]; unexpected ")
    with pytest.raises(CorruptFileError) as caught:
        load_weights(meta_model(), dense)
    for part in (
        "unexpected model.layers.0.self_attn.q_proj.bias [64]",
        "unexpected model.layers.7.input_layernorm.weight [48]",
        "model.layers.1.mlp.up_proj.weight has shape [80, 47] instead of [80, 48]",
        "model.layers.0.self_attn.q_norm.weight is stored as I8",
    ):
        assert part in str(caught.value)


def test_stored_head_of_a_tied_model(dense: Path) -> None:
    embedding = random_model().embed_tokens.weight.detach().clone()
    rewrite(dense / "model.safetensors", lm_head__weight=embedding)
    assert load_weights(meta_model(), dense).tied_copy is True
    embedding[-1, -1] += 1
    rewrite(dense / "model.safetensors", lm_head__weight=embedding)
    with pytest.raises(CorruptFileError, match=r"lm_head.weight differs from model.embed_tokens.weight.*tie_word_emb"):
        load_weights(meta_model(), dense)
    rewrite(dense / "model.safetensors", lm_head__weight=embedding[:-1])
    refused(dense, r"lm_head.weight has shape \[319, 48\] instead of \[320, 48\]")


def index_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "model.safetensors.index.json").read_text()))


def write_index(folder: Path, index: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_index_and_shards_disagree(sharded: Path) -> None:
    shard, second = sharded / "model-00002-of-00005.safetensors", sharded / "model-00003-of-00005.safetensors"
    index = index_of(sharded)
    first_name = next(iter(read_header(shard).tensors))
    listed = dict(index["weight_map"])

    write_index(sharded, {"weight_map": {n: f for n, f in listed.items() if n != first_name}})
    refused(sharded, f"{first_name} is in {shard.name} but not listed")
    write_index(sharded, {"weight_map": listed | {"ghost": second.name}})
    refused(sharded, f"ghost is listed in {second.name}, which does not hold it")
    write_index(sharded, {"weight_map": listed | {first_name: second.name}})
    refused(sharded, f"{first_name} is listed in {second.name} but is in {shard.name}")
    write_index(sharded, index)

    tensors = load_file(second)
    save_file(tensors | {first_name: load_file(shard)[first_name]}, second)
    refused(sharded, rf"tensor {first_name} is in both .*{shard.name} and .*{second.name}")
    second.unlink()
    refused(sharded, f"names the shard {second.name}, which is not there")


@pytest.mark.parametrize(
    "index",
    [[], {}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../../model.safetensors"}},
     {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": "pytorch_model.bin"}}],
)  # fmt: skip
def test_bad_index(sharded: Path, index: Any) -> None:
    write_index(sharded, index)
    refused(sharded, "index.json")


def test_ambiguous_and_incomplete_folders(sharded: Path, dense: Path, tmp_path: Path) -> None:
    shutil.copy(dense / "model.safetensors", sharded)
    refused(sharded, "holds both model.safetensors and model.safetensors.index.json")
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").unlink()
    refused(sharded, "model-00001-of-00005.safetensors but neither model.safetensors nor")
    refused(tmp_path / "absent", "no such folder", ModelNotFoundError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no weights", ModelNotFoundError)
    (tmp_path / "empty" / "a.gguf").write_bytes(b"GGUF")
    refused(tmp_path / "empty", "GGUF", ModelNotFoundError)
    refused(tmp_path / "empty" / "a.gguf", "the version ends at byte 8, but the file has 4; it is truncated")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "model.pkl"])
def test_pickle_is_never_opened(dense: Path, tmp_path: Path, name: str) -> None:
    (dense / "model.safetensors").unlink()
    trap = tmp_path / "ran"
    code = f"cos\nsystem\n(S'touch {trap}'\ntR."  # what unpickling would run
    (dense / name).write_text(code)
    refused(dense, f"holds only {name}, a pickle .* never opened", UnsafeFileError)
    assert not trap.exists()


def test_quantized(dense: Path) -> None:
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq", "bits": 4}
    (dense / "config.json").write_text(json.dumps(config))
    refused(dense, "says 'hqq'; what is read is fp8, gptq", ConfigError)
    with pytest.raises(ConfigError, match="hqq"):
        load_model(dense)


def test_not_a_regular_file(dense: Path) -> None:
    (dense / "model.safetensors").unlink()
    os.mkfifo(dense / "model.safetensors")
    refused(dense, "not a regular file")


def test_file_that_changes_while_it_is_read(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3.checkpoint import safetensors_io

    other = dense / "other"
    shutil.copy(dense / "model.safetensors", other)
    fill = safetensors_io._fill

    def fill_and_replace(*args: Any) -> None:
        fill(*args)
        with contextlib.suppress(FileNotFoundError):  # another reading thread has done it
            os.replace(other, dense / "model.safetensors")

    monkeypatch.setattr(safetensors_io, "_fill", fill_and_replace)
    with pytest.raises(CorruptFileError, match="replaced or written to while it was read"):
        load_weights(meta_model(), dense)


def test_file_that_shrinks_while_it_is_read(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3.checkpoint import safetensors_io

    fill = safetensors_io._fill

    def cut_and_fill(*args: Any) -> None:
        os.truncate(dense / "model.safetensors", 9000)
        fill(*args)

    monkeypatch.setattr(safetensors_io, "_fill", cut_and_fill)
    with pytest.raises(CorruptFileError, match=r"tensor \S+ ends at byte \d+; the file was truncated"):
        load_weights(meta_model(), dense)


def test_too_large_for_memory_is_said_before_loading(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3.checkpoint.memory.available_bytes", lambda device=None: 50_000)
    need = DENSE.num_parameters() * 2
    refused(dense, rf"{dense} needs {need:,} bytes .* cpu has 50,000 free", OutOfMemoryError)


def test_peak_memory(tmp_path: Path) -> None:
    """Loading 221 MB, tied head stored, in a fresh process: at most 1.1 × the weights, mapped pages included."""
    config = fixtures.tiny_config(vocab_size=16000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=3)
    folder = fixtures.random_checkpoint(tmp_path / "big", config, store_tied_head=True)
    peak = measure_peak(folder)
    weights = config.num_parameters() * 4
    assert weights > 200e6
    assert peak <= 1.1 * weights, f"{peak / weights:.3f} × the weights"


def measure_peak(folder: Path, after: str = "") -> int:
    """Bytes by which the high-water mark of a child process rises when it loads `folder` in its own dtype."""
    code = f"""
import torch
from qwen3.config import ModelConfig
from qwen3.model import Qwen3
from qwen3.checkpoint import load_weights
def mark(key):
    return int(next(line for line in open('/proc/self/status') if line.startswith(key)).split()[1]) * 1024
folder = {str(folder)!r}
config = ModelConfig.from_pretrained(folder)
model = Qwen3(config, 'meta')
torch.ones(8).bfloat16().float().sum()
before = mark('VmRSS')
load_weights(model, folder, device='cpu')
print(mark('VmHWM') - before)
{after}
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[0])


def test_official_views_of_a_loaded_model(made: dict[str, Path]) -> None:
    model = meta_model("moe")
    load_weights(model, made["moe"])
    on_disk = load_file(made["moe"] / "model.safetensors")
    views = official_views(model.config, dict(model.named_parameters()))
    assert list(views) == sorted(on_disk)
    assert all(torch.equal(view, on_disk[name]) for name, view in views.items())
