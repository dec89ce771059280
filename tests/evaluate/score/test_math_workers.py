"""Comparisons in processes: the same verdicts as in this one, and nothing that hangs or eats memory."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score import math_workers
from qwen3.evaluate.score.math import extract
from qwen3.evaluate.score.math_same import equivalent, quick
from qwen3.evaluate.score.math_workers import Worker, same
from tests.evaluate.score.math_forms import cases, references

# math-verify (with sympy, latex2sympy2_extended and antlr4: pure Python) is what the processes run.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(seconds=1.5)
    yield made
    made.close()


def test_agrees_with_the_direct_call(worker: Worker) -> None:
    pairs = [(str(case.gold), extract(case.text) or "") for case in cases(references(3, 60), 4, 1)]
    pairs = [pair for pair in pairs if quick(*pair) is None]
    assert len(pairs) > 20
    assert [worker.compare(*pair) for pair in pairs] == [(equivalent(*pair), "") for pair in pairs]


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process is bounded on Linux")
def test_pathological_answers_end_in_time_and_the_next_is_compared(worker: Worker) -> None:
    assert worker.compare("x+1", "1+x").same  # starts it
    for bad in (r"10^{10^{10}}", r"\sum_{n=1}^{99999999} \frac{1}{n^n}"):
        began = time.perf_counter()
        same, note = worker.compare("5", bad)
        assert not same
        assert time.perf_counter() - began < 20, bad
        assert not note or "took longer" in note or "memory" in note or "failed" in note
    assert worker.compare("2k+2", "2(k+1)") == (True, "")


def test_a_worker_that_was_killed_is_started_again(worker: Worker) -> None:
    assert worker.compare("x+1", "1+x").same
    first = worker.process
    assert first is not None
    first.kill()
    first.wait()
    assert worker.compare("x+1", "1+x").same
    assert worker.process is not first


def test_text_is_only_text(worker: Worker) -> None:
    """Lines, quotes and code in an answer end up compared, not run."""
    for text in ("x\ny", '"]\n["x', "__import__('os').system('echo hi')", "\x00", "\\" * 300, "日本 + 1"):
        assert not worker.compare("x+1", text).same
    assert worker.compare("x+1", "1+x").same


def test_from_many_threads() -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda k=k: found.append(same(f"{k}x+1", f"1+{k}x").same)) for k in range(2, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 12


def test_says_why_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_workers.sys, "executable", "/bin/true")
    with pytest.raises(UsageError, match="does not start"):
        Worker().compare("x+1", "1+x")
