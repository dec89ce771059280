"""Small is a feature: the engine and what is below it stay within a number of lines of code."""

from __future__ import annotations

import pytest

from tests.test_floors import CHECKOUT, ROOT

LIMIT = 6000
PARTS = ("engine", "model", "kernels", "llm.py", "asking.py", "options.py")
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


@pytest.mark.xfail(strict=True, reason="the GPU kernels have grown by some 300 lines since the limit was last met")
def test_the_engine_stays_small(counter) -> None:  # type: ignore[no-untyped-def]
    lines = {path.name: found for path, found in counter.count([ROOT / part for part in PARTS]).items()}
    assert sum(lines.values()) < LIMIT, lines
