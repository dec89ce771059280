"""Checkpoint folders with a tokenizer that is made once: cutting it out of the official one takes a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from qwen3.config import ModelConfig
from tests.fixtures import random_checkpoint, tiny_config, tiny_tokenizer


@cache
def _tokenizer(rows: int) -> Any:
    return tiny_tokenizer(tiny_config(vocab_size=rows))


def checkpoint(folder: Path, config: ModelConfig) -> Path:
    """`random_checkpoint` with a tokenizer."""
    random_checkpoint(folder, config)
    _tokenizer(config.vocab_size).save(folder)
    return folder
