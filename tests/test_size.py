"""Small is a feature: the engine and what is below it stay within a number of lines of code."""

from __future__ import annotations

import pytest

from tests.test_floors import CHECKOUT, ROOT

LIMIT = 6300  # of the engine itself; the plan wanted 6,000
FOLDERS = ("engine", "model", "kernels")  # and llm.py
THINKING = {  # what obeys: grammars, trials, time limits, guesses, idle work
    "constraint.py", "deadline.py", "draft.py", "idle.py", "json_schema.py", "rounds.py", "speculate.py",
    "speculation.py", "steering.py", "trial.py",
}  # fmt: skip
ADAPTERS = {"adapters.py", "frozen.py", "lora.py"}  # what serves LoRA adapters, and the modules that train them
# kernels that are compiled where they run, and the weights of few bits that they multiply
COMPILED = {"build.py", "calling.py", "cpu_attend.py", "pack.py", "packed.py"}
SOURCE = '''"""Of a module,
on two lines."""

import os  # a comment

LIMIT = 3
"""Of a constant."""


def f(a,
      b):
    """Of a function."""
    return """a text
of two lines"""
'''


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(CHECKOUT / "tools"))
    return pytest.importorskip("count_lines")


def test_what_counts_as_a_line(counter) -> None:  # type: ignore[no-untyped-def]
    assert counter.code_lines(SOURCE) == 6


def test_the_engine_stays_small(counter) -> None:  # type: ignore[no-untyped-def]
    folders = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    files = [*folders, ROOT / "llm.py"]
    lines = {path: counter.code_lines(path.read_text(encoding="utf-8")) for path in files}
    thinking = sum(n for path, n in lines.items() if path.name in THINKING)
    adapters = sum(n for path, n in lines.items() if path.name in ADAPTERS)
    compiled = sum(n for path, n in lines.items() if path.name in COMPILED)
    assert compiled < 560, compiled
    assert thinking < 1450, thinking
    assert adapters < 400, adapters
    rest = sum(lines.values()) - thinking - adapters - compiled
    assert rest < LIMIT, rest
