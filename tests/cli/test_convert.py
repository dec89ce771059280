"""`qwen3 convert`: containers changed, numbers not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen3.checkpoint import read_config
from qwen3.checkpoint.gguf.files import open_gguf
from tests.cli.conftest import Command


def test_to_gguf_and_back_changes_no_number(qwen3: Command, model: Path, tmp_path: Path) -> None:
    found = qwen3("convert", model, "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert found.code == 0, found.err
    assert "agreement  KL 0, same next token 100.0 %" in found.out
    assert f"Run it:    qwen3 run {tmp_path / 'm.gguf'}" in found.out
    found = qwen3("convert", tmp_path / "m.gguf", "--to", "hf", "--out", tmp_path / "back", "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert (told["to"], told["type"], told["rounded"], told["agreement"]["kl"]) == ("hf", "float32", {}, 0)
    assert told["bytes"] == (tmp_path / "back" / "model.safetensors").stat().st_size
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "back"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        assert (model / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name
    template = json.loads((model / "tokenizer_config.json").read_text())["chat_template"]
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == template
    assert read_config(tmp_path / "back").eos_token_id == read_config(model).eos_token_id
    answers = [qwen3("run", path, "Hi", "--temp=0", "-n", "8").out for path in (model, tmp_path / "back")]
    assert answers[0] == answers[1]


def test_types(qwen3: Command, model: Path, tmp_path: Path) -> None:
    found = qwen3("convert", model, "--to=gguf", "--type=f16", "-o", tmp_path, "--json")
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["files"] == [str(tmp_path / "tiny-F16.gguf")]
    assert set(told["kinds"]) == {"F16", "F32"}
    found = qwen3("convert", model, "--to=hf", "--type=bf16", "-o", tmp_path / "half", "--json")
    assert "tensors are rounded to bfloat16, most" in found.err
    assert json.loads(found.out)["rounded"]
    assert read_config(tmp_path / "half").dtype == "bfloat16"


def test_a_quantized_file_is_widened(qwen3: Command, model: Path, tmp_path: Path) -> None:
    assert qwen3("quantize", model, "gguf", "--type", "q8_0", "--out", tmp_path / "q.gguf").code == 0
    found = qwen3("convert", tmp_path / "q.gguf", "--to=hf", "--type=f32", "-o", tmp_path / "wide", "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)["agreement"]["kl"] < 1e-9
    found = qwen3("convert", tmp_path / "q.gguf", "--to=hf", "-o", tmp_path / "half", "--json")
    assert json.loads(found.out)["type"] == "bfloat16"


def test_split(qwen3: Command, model: Path, tmp_path: Path) -> None:
    found = qwen3("convert", model, "--to=gguf", "-o", tmp_path / "m.gguf", "--split-size", "200KB", "--json")
    assert found.code == 0, found.err
    files = [Path(file) for file in json.loads(found.out)["files"]]
    assert len(files) > 1
    assert sorted(tmp_path.glob("*.gguf")) == files
    assert len(open_gguf(files[0]).headers) == len(files)
    assert qwen3("convert", files[1], "--to=hf", "-o", tmp_path / "back").code == 0


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (("--to=mlx", "-o", "x"), 2, "--to mlx is none of gguf, hf, onnx"),
        (("--to=gguf", "-o", "x.gguf", "--type=q4_k_m"), 2, "--type q4_k_m is none of bf16, f16, f32; for fewer bits:"),
        (("--to=gguf", "-o", "x.gguf", "--split-size=lots"), 2, "--split-size 'lots' is no size"),
        (("--to=gguf", "-o", "x.bin"), 2, "must end in .gguf"),
        (("--to=onnx", "-o", "x", "--split-size=1GB"), 2, "--split-size: an ONNX model"),
    ],
)
def test_what_is_refused(
    qwen3: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int,
    error: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = qwen3("convert", model, *args)
    assert found.code == code
    assert error in found.error
    assert not [path for path in tmp_path.iterdir() if path.name != "hf"]


def test_nothing_is_overwritten_unasked(qwen3: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    assert qwen3("convert", model, "--to=gguf", "-o", out).code == 0
    found = qwen3("convert", model, "--to=gguf", "-o", out)
    assert (found.code, found.error) == (2, f"{out} exists; give another name, or --force to replace it")
    assert qwen3("convert", model, "--to=gguf", "-o", out, "--force").code == 0
    found = qwen3("convert", out, "--to=hf", "-o", model)
    assert found.code == 2
    assert "is not empty" in found.error or "exists already" in found.error
