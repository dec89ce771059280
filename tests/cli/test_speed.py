"""How long starting takes: `qwen3 version` under 0.3 s, `from qwen3 import LLM` under 2 s on an idle machine.

Bounds here are twice that: test machines are noisy. Of several tries the fastest counts. `make bench` measures.
"""

from __future__ import annotations

import subprocess
import sys
import time

import pytest


def seconds(*command: str, tries: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        return time.perf_counter() - start

    return min(once() for _ in range(tries))


def test_version_is_quick() -> None:
    assert seconds("-m", "qwen3.cli.main", "version", tries=3) < 0.6


def test_llm_imports_quickly() -> None:
    assert seconds("-c", "from qwen3 import LLM", tries=3) < 4.0


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import qwen3", ("torch", "numpy", "tokenizers", "typer")),
        ("from qwen3 import ModelConfig, SamplingParams, ThinkingPolicy, family", ("torch", "typer")),
        ("import qwen3.chat, qwen3.tokenizer", ("torch", "typer", "transformers")),
        ("from qwen3 import LLM", ("typer", "rich", "huggingface_hub", "transformers")),
        ("import qwen3.cli.main; qwen3.cli.main.main(['version'])", ("torch", "typer", "rich")),
        ("import qwen3.cli.main; qwen3.cli.main.main(['show', 'qwen3:8b'])", ("torch", "numpy", "transformers")),
    ],
)
def test_nothing_is_imported_before_its_time(statement: str, absent: tuple[str, ...]) -> None:
    check = f"{statement}\nimport sys\nassert not (found := [m for m in {absent!r} if m in sys.modules]), found"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
