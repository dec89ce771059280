"""`qwen3 convert --to onnx`. Needs onnx and onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwen3.cli.main import main
from tests.fixtures import random_checkpoint, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("m") / "model", tiny_config(), tokenizer=True)


def test_to_onnx(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    words = ["convert", str(folder), "--to", "onnx", "--out", str(tmp_path / "out"), "--json"]
    assert main([*words, "--type", "int4", "--zero-points", "--block-size", "16", "--plain", "--context", "64"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["type"], result["rounded"], result["kept"], result["context"]) == ("int4", 15, 0, 64)
    assert result["logits_off"] < 1e-4
    assert (tmp_path / "out" / "genai_config.json").is_file()
    assert main(words) == 2
    assert "is not empty" in capsys.readouterr().err


def test_options_of_another_target(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), "--to", "hf", "--out", str(tmp_path / "out"), "--opset", "21"]) == 2
    assert "opset: an option of --to onnx" in capsys.readouterr().err
