"""Idle work in a thread of its own: done when nobody wants the engine, out of the way when somebody does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings

import pytest

from qwen3.engine.idle import IdleWork


class Work:
    """Stands in for an engine: each expected prompt takes as many steps as it has tokens."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.left: list[tuple[list[int], int]] = []
        self.steps = 0
        self.busy = False  # somebody else's work

    def prefill_ahead(self, ids: list[int], *, experts: int = 0, adapter: str | None = None) -> None:
        self.left.append((ids, experts))

    @property
    def has_idle_work(self) -> bool:
        return bool(self.left) and not self.busy

    def advance(self) -> None:
        self.steps += 1
        time.sleep(self.seconds)
        ids, experts = self.left[0]
        self.left[:1] = [(ids[1:], experts)] if len(ids) > 1 else []


def idle(work: Work) -> tuple[IdleWork, threading.Lock]:
    lock = threading.Lock()
    return IdleWork(work, lock), lock  # type: ignore[arg-type]


def until(condition: object, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def test_what_is_expected_is_computed_and_the_thread_goes() -> None:
    work = Work()
    worker, _ = idle(work)
    worker.expect(lambda: [1, 2, 3], 4)
    worker.expect(list)
    worker.expect(lambda: [5])
    until(lambda: work.steps == 4)
    thread = worker._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
    worker.expect(lambda: [6])
    until(lambda: work.steps == 5)


def test_who_comes_waits_for_one_step_at_most() -> None:
    work = Work(seconds=0.02)
    worker, lock = idle(work)
    worker.expect(lambda: list(range(1000)))
    until(lambda: work.steps > 2)
    for _ in range(5):
        with worker.kept_off():
            before = work.steps
            with lock:
                assert work.steps <= before + 1
                steps = work.steps
        time.sleep(0.06)
        assert work.steps == steps  # it has gone; what is left waits for the next occasion
        worker.expect(list)
        until(lambda steps=steps: work.steps > steps)
    worker.close()
    steps = work.steps
    worker.expect(lambda: [1])
    time.sleep(0.05)
    assert work.steps == steps


def test_nothing_is_done_beside_other_work() -> None:
    work = Work()
    work.busy = True
    worker, _ = idle(work)
    worker.expect(lambda: [1, 2])
    worker.rest()
    until(lambda: not worker._runs)
    assert work.steps == 0
    work.busy = False
    worker.expect(list)
    until(lambda: work.steps == 2)


def test_rest_ends_though_the_lock_is_held() -> None:
    worker, lock = idle(Work())
    with lock:
        worker.expect(lambda: [1])
        time.sleep(0.05)
        worker.rest()
    assert not worker._runs
    assert len(worker._jobs) == 1  # nothing is lost


def test_a_broken_job_is_said_and_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: said.append(args.exc_type))
    work = Work()
    worker, _ = idle(work)

    def broken() -> list[int]:
        raise ZeroDivisionError

    worker.expect(broken)
    until(lambda: said == [ZeroDivisionError])
    worker.expect(lambda: [1])
    until(lambda: work.steps == 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_no_thread_is_there_when_the_process_forks() -> None:
    work = Work(seconds=0.02)
    worker, lock = idle(work)
    worker.expect(lambda: list(range(1000)))
    until(lambda: work.steps > 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if lock.acquire(timeout=1) and threading.active_count() == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    worker.close()


END = """
import time
from qwen3 import LLM, SamplingParams, ThinkingPolicy
llm = LLM({folder!r}, device="cpu")
slow = llm.engine.advance
llm._engine.advance = lambda: (slow(), time.sleep(0.05))
answer = llm.chat("Hi" * 200, ThinkingPolicy("off"), SamplingParams(seed=1), regex="[a-z]{{40}}")
assert answer.finish_reason == "stop"
time.sleep({pause})
print("ok", llm._idle._runs)
"""


@pytest.mark.parametrize("pause", [0.0, 0.04])
def test_a_process_ends_cleanly_in_the_middle_of_it(tmp_path_factory: pytest.TempPathFactory, pause: float) -> None:
    from tests.fixtures import random_checkpoint, tiny_config

    folder = random_checkpoint(tmp_path_factory.mktemp("idle") / "tiny", tiny_config(), tokenizer=True)
    program = END.format(folder=str(folder), pause=pause)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == "ok True\n"
