"""An engine's idle work (`Engine.prefill_ahead`) in a thread of its own, while nobody needs the engine.

The thread lives only as long as there is such work, and leaves as soon as anybody wants the engine: who comes waits for
one step at most. It never outlives the process's good order: it is gone before a fork and before Python ends.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen3.engine.engine import Engine

_GRACE = 0.02  # seconds; who asks again at once is not made to wait for a step
_MOST_JOBS = 64
Job = tuple[Callable[[], list[int]], int, str | None]


class IdleWork:
    """lock: held by whoever moves `engine`."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        self._engine: Engine | None = engine
        self._lock = lock
        self._jobs: deque[Job] = deque(maxlen=_MOST_JOBS)
        self._wanted: list[None] = []  # one for each who wants the engine; a list, because these operations are atomic
        self._own = threading.Lock()  # of what follows; never held for long
        self._runs = False
        self._thread: threading.Thread | None = None  # the last there was
        _all.add(self)

    def expect(self, make: Callable[[], list[int]], experts: int = 0, adapter: str | None = None) -> None:
        """A prompt that begins with the ids that `make` gives will come, to be run with so many experts per token and
        this adapter."""
        self._jobs.append((make, experts, adapter))
        with self._own:
            if not self._runs and self._engine is not None:
                self._thread = threading.Thread(target=self._run, name="qwen3-idle", daemon=True)
                self._thread.start()
                self._runs = True  # it looks at this under the same lock

    @contextmanager
    def kept_off(self) -> Iterator[None]:
        """Within the block no step begins."""
        self._wanted.append(None)
        try:
            yield
        finally:
            self._wanted.pop()

    def rest(self) -> None:
        """Returns when no thread of ours runs; what is left to do stays for the next one."""
        with self.kept_off():
            thread = self._thread
            if thread is not None and thread is not threading.current_thread():
                thread.join()

    def close(self) -> None:
        self._engine = None
        self.rest()
        self._jobs.clear()

    def _run(self) -> None:
        time.sleep(_GRACE)
        more = True
        try:
            while self._goes_on(more):
                job = self._jobs.popleft() if self._jobs else None
                ids = job[0]() if job is not None else []
                if self._lock.acquire(timeout=0.05):  # who holds it may be waiting for our end
                    try:
                        more = self._step(ids, *(job[1:] if job is not None else ()))
                    finally:
                        self._lock.release()
                elif job is not None:
                    self._jobs.appendleft(job)
        except BaseException:
            self._runs = False
            raise

    def _goes_on(self, more: bool) -> bool:
        with self._own:
            self._runs = not self._wanted and self._engine is not None and (more or bool(self._jobs))
            return self._runs

    def _step(self, ids: list[int], experts: int = 0, adapter: str | None = None) -> bool:
        """What is expected is handed over, and one step made; whether there is more to do."""
        engine = self._engine
        if engine is None:
            return False
        if ids:
            engine.prefill_ahead(ids, experts=experts, adapter=adapter)
        if engine.has_idle_work and not self._wanted:
            engine.advance()
        return engine.has_idle_work


_all: weakref.WeakSet[IdleWork] = weakref.WeakSet()


def _rest_all() -> None:
    for work in list(_all):
        work.rest()


atexit.register(_rest_all)  # a thread inside PyTorch while Python takes itself apart ends the process with an abort
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_rest_all)  # a child has no such thread, but would have its locks
