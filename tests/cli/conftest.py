"""The command run in this process, on a tiny random model."""

from __future__ import annotations

import io
import os
import select
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen3.checkpoint import save_checkpoint
from qwen3.cli.main import main
from tests.fixtures import random_checkpoint, random_model, tiny_config, tiny_tokenizer

EMBEDDED = Path(__file__).parents[2] / "src" / "qwen3" / "data" / "embedded"


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line an error may have; fails the test if there are others, or a traceback."""
        assert "Traceback" not in self.out + self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0].removeprefix("error: ")


Command = Callable[..., Ran]


class Piped(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def qwen3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """`qwen3("run", "hi", stdin=b"…")` in a home without models and with no way to a hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("QWEN3_HUB", "QWEN3_DEBUG", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", Piped(stdin))
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny hybrid model with its tokenizer; what it says is noise, but always the same for a seed."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = tiny_config(max_position_embeddings=512)
    save_checkpoint(folder, random_model(config), tokenizer=tiny_tokenizer(config))
    return folder


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kind, without a manifest: nobody recorded its hashes."""
    return random_checkpoint(tmp_path_factory.mktemp("models") / "plain", tiny_config(), tokenizer=True)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """A copy of `model` to damage."""
    return Path(shutil.copytree(model, tmp_path / "copy"))


@pytest.fixture
def plain_copy(plain_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_model, tmp_path / "plain"))


def terminal_until(terminal: int, text: str) -> str:
    """What a program writes to its terminal, of which we have the other end, up to the part with `text`."""
    seen = b""
    end = time.monotonic() + 200  # a start under load takes a minute
    while text.encode() not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096)
    return seen.decode(errors="replace")
