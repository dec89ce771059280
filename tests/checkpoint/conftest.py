"""Small checkpoints, made once per session, and a place for caches that is never the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3.checkpoint import save_checkpoint
from tests.checkpoint.builders import random_model
from tests.checkpoint.fake_hub import FakeHub


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders: dense and moe in one file, sharded (dense) in several."""
    root = tmp_path_factory.mktemp("made")
    generation = {"eos_token_id": [1, 2], "temperature": 0.6}
    save_checkpoint(root / "dense", random_model("dense"), generation_config=generation)
    save_checkpoint(root / "moe", random_model("moe"))
    save_checkpoint(root / "sharded", random_model("dense"), max_shard_bytes=30_000)
    return {name: root / name for name in ("dense", "moe", "sharded")}


@pytest.fixture
def dense(made: dict[str, Path], tmp_path: Path) -> Path:
    """A fresh copy to damage, without the manifest (as a hub's folder has none)."""
    return _copy(made["dense"], tmp_path / "dense")


@pytest.fixture
def sharded(made: dict[str, Path], tmp_path: Path) -> Path:
    return _copy(made["sharded"], tmp_path / "sharded")


def _copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "qwen3.manifest.json").unlink()
    return target


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache of its own, and no setting of the machine's."""
    names = "HF_TOKEN HF_HUB_OFFLINE TRANSFORMERS_OFFLINE QWEN3_HUB QWEN3_HUB_ENDPOINT MODELSCOPE_ENDPOINT HTTP_PROXY"
    for name in (*names.split(), "http_proxy", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("QWEN3_MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("QWEN3_HUB_ENDPOINT", hub.endpoint)
        yield hub
