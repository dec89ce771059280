"""Tiny checkpoints, dense and with experts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures import random_checkpoint, tiny_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    dense = random_checkpoint(root / "dense", tiny_config(), tokenizer=True)
    sparse = shutil.copytree(dense, root / "moe")  # a tokenizer takes seconds to make
    return {"dense": dense, "moe": random_checkpoint(sparse, tiny_config(moe=True))}


@pytest.fixture(params=["dense", "moe"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]
