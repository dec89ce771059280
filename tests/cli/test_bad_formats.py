"""Files of other models and damaged ones, as a person meets them: one line that names what is wrong, exit code 6."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.formats.test_bad_input import edit
from tests.checkpoint.formats.test_models import small
from tests.checkpoint.gguf.build import build, metadata, tensors
from tests.cli.conftest import Command


@pytest.fixture(scope="module")
def gptq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("gptq"), "gptq", "dense")[0]


VERBS = [("run", "hi"), ("show",), ("verify",), ("show", "--plan", "--memory", "24GB")]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
def test_a_llama(qwen3: Command, verb: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "llama.gguf"
    file.write_bytes(build({"general.architecture": "llama"}, tensors()))
    ran = qwen3(verb[0], file, *verb[1:])
    assert ran.code == 6
    assert "'llama'" in ran.err + ran.out


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb[:2]))
def test_a_file_that_was_cut(qwen3: Command, verb: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(build(metadata(), tensors())[:-200])
    ran = qwen3(verb[0], file, *verb[1:])
    assert ran.code == 6
    assert "tensor blk.0.attn_k_norm.weight lies at bytes" in ran.err + ran.out


def test_groups_of_another_model(qwen3: Command, gptq: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gptq, tmp_path / "other"))
    edit(folder, "quantization_config", group_size=32)
    for verb in VERBS[2:]:
        ran = qwen3(verb[0], folder, *verb[1:])
        assert ran.code == 6
        assert "self_attn.q_proj.scales has shape [1, 128] instead of [4, 128]" in ran.err + ran.out


def test_a_quantized_folder_that_was_cut(qwen3: Command, gptq: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gptq, tmp_path / "cut"))
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size - 100)
    for verb in VERBS[2:]:
        ran = qwen3(verb[0], folder, *verb[1:])
        assert ran.code == 6
        assert "truncated or damaged" in ran.err + ran.out


def test_no_tokenizer(qwen3: Command, gptq: Path, tmp_path: Path) -> None:
    file = tmp_path / "bare.gguf"
    file.write_bytes(build(metadata(), tensors()))
    for path in (gptq, file):
        ran = qwen3("run", path, "hi")
        assert ran.code == 6
        assert "no tokenizer" in ran.error
