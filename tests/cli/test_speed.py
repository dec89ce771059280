"""How long starting takes: `qwen3 version` under 0.3 s, `from qwen3 import LLM` under 2 s on an idle machine.

`make bench` measures that. Here, on machines that do other things too, processor time is taken instead of the clock's,
the bounds are twice those, and one good try of several is enough.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest


def within(limit: float, *command: str, tries: int = 5) -> bool:
    """Whether a Python process with these arguments needs at most `limit` seconds of processor time."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    for _ in range(tries):
        before = spent()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        if spent() - before <= limit:
            return True
    return False


def test_version_is_quick() -> None:
    assert within(0.6, "-m", "qwen3.cli.main", "version")


def test_llm_imports_quickly() -> None:
    assert within(4.0, "-c", "from qwen3 import LLM")


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
