"""The packaged tokenizer, loaded once, and the oracle: `transformers` on the files that we save."""

from __future__ import annotations

import pytest

from qwen3.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tok() -> Tokenizer:
    return Tokenizer.from_pretrained()


@pytest.fixture(scope="session")
def saved(tok, tmp_path_factory):
    """Folder with the packaged tokenizer's files."""
    folder = tmp_path_factory.mktemp("official")
    tok.save(folder)
    return folder


@pytest.fixture(scope="session")
def oracle(saved):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(saved)
