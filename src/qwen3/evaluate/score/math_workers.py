"""Comparisons of expressions in processes of their own, which are killed where one takes too long or too much memory:
10^{10^{10}} is an answer that a model may well write. What is compared is `math_same.equivalent`, nothing else."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from queue import LifoQueue
from typing import NamedTuple

from qwen3.errors import UsageError
from qwen3.evaluate.score.math_same import equivalent, need, quick

SECONDS = 10.0
MEMORY = 1 << 30  # bytes of address space; sympy itself takes about 200 MB
_START = 120.0  # seconds that a worker may take to import sympy on a busy machine


class Compared(NamedTuple):
    """Whether two answers are the same, and why that could not be told where it could not."""

    same: bool
    note: str = ""


class Worker:
    """One process, started at the first question and after each that it did not live through. Not for two threads."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self.memory = seconds, memory
        self.process: subprocess.Popen[str] | None = None

    def compare(self, gold: str, found: str) -> Compared:
        """Raises UsageError where a worker cannot start."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        line, late = self._ask(json.dumps([gold, found]), self.seconds)
        if line:
            return Compared(*json.loads(line))
        self.close()
        why = f"took longer than {self.seconds:g} s" if late else "needed too much memory"
        return Compared(False, f"the comparison {why}")

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe:
                    pipe.close()
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        self.close()
        # A hash seed, so that sympy's sets have one order; this package, wherever it is.
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "PYTHONPATH": path},
        )
        line, _ = self._ask(None, _START)
        if line != "ready\n":
            self.close()
            raise UsageError("the process that compares expressions does not start: does `import math_verify` work?")

    def _ask(self, question: str | None, seconds: float) -> tuple[str, bool]:
        """(the answer's line, "" where the process ended; whether that was for its time)."""
        process, late = self.process, threading.Event()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            if question is not None:
                process.stdin.write(question + "\n")
                process.stdin.flush()
            return process.stdout.readline(), late.is_set()
        except OSError:
            return "", late.is_set()
        finally:
            timer.cancel()


@cache
def _workers() -> LifoQueue[Worker]:
    """The last one that was used comes first: a run that asks one by one has one process."""
    workers: LifoQueue[Worker] = LifoQueue()
    for _ in range(min(4, os.cpu_count() or 1)):
        worker = Worker()
        atexit.register(worker.close)
        workers.put(worker)
    return workers


def same(gold: str, found: str) -> Compared:
    """Whether `found` is the answer `gold`, by `equivalent`: at once where that is clear, else in a worker. From any
    thread. Raises UsageError where math-verify is needed and not installed."""
    if (clear := quick(gold, found)) is not None:
        return Compared(clear)
    need()
    workers = _workers()
    worker = workers.get()
    try:
        return worker.compare(gold, found)
    finally:
        workers.put(worker)


def _serve(memory: int) -> None:
    """Answers lines [gold, found] with lines [same, note] until its input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError):
        pass  # Windows has none, macOS does not keep it: time is the bound there
    equivalent("x+1", "1+x")  # imports what it needs
    answers, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            result = Compared(equivalent(*json.loads(line)))
        except MemoryError:
            os._exit(1)
        except (Exception, RecursionError) as error:  # whatever sympy raises of an answer, it is no equal one
            result = Compared(False, f"the comparison failed: {type(error).__name__}")
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
