"""`qwen3 run --adapter DIR`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3.checkpoint.adapter import Adapter, write_adapter
from qwen3.config import ModelConfig
from tests.adapting import random_adapter
from tests.cli.conftest import EMBEDDED, Command

RUN = ("run", "-p", "What is 27 * 14?", "--no-think", "--temp=0", "-n", "8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ModelConfig.from_pretrained(EMBEDDED)
    write_adapter(tmp_path / "out", Adapter(random_adapter(config, 4, gain=0.6).parts, base="embedded"), config)
    return tmp_path / "out"


def test_the_answer_is_the_adapters(qwen3: Command, folder: Path) -> None:
    plain, found = qwen3(*RUN), qwen3(*RUN, "--adapter", folder)
    assert (plain.code, found.code) == (0, 0)
    assert plain.out != found.out
    assert f"adapter: {folder} (rank 4, 42 matrices, made for embedded)" in found.err
    told = json.loads(qwen3(*RUN, "--adapter", folder, "--json").out)
    assert (told["adapter"], told["content"]) == (str(folder), found.out.rstrip("\n"))
    assert json.loads(qwen3(*RUN, "--json").out)["adapter"] is None
    raw: Any = ("run", "--raw", "-p", "What is", "--temp=0", "-n", "8")
    assert qwen3(*raw).out != qwen3(*raw, "--adapter", folder).out


def test_what_is_no_adapter_is_said(qwen3: Command, folder: Path) -> None:
    found = qwen3(*RUN, "--adapter", "/nowhere")
    assert (found.code, found.error) == (3, "/nowhere: no such folder")
    found = qwen3(*RUN, "--adapter", EMBEDDED)
    assert found.code == 3
    assert "is a model, not an adapter" in found.error
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    found = qwen3(*RUN, "--adapter", folder)
    assert found.code == 6
    assert "a pickle that can run code and is never opened" in found.error
