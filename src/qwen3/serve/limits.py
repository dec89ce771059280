"""How much may be under way at once: of all, of one key, and of bodies in memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen3.serve.errors import ApiError
from qwen3.serve.keys import ANONYMOUS, Caller
from qwen3.serve.settings import Settings

BATCH = 1024  # what models run at once where nobody says; their own queues refuse earlier, and know when to try again
GRACE = 0.2  # seconds
BODIES = 8  # as many bodies of the greatest allowed size may be in memory


class Limits:
    """Counts of what is under way; a request that would pass a bound is refused before its body is read."""

    def __init__(self, settings: Settings) -> None:
        self.running = 0
        self.held = 0  # bytes of bodies that no answer has begun for
        self._settings = settings
        self._by_caller: Counter[str] = Counter()

    def _full(self, caller: Caller) -> bool:
        return caller.id != ANONYMOUS.id and self._by_caller[caller.id] >= (caller.limit or self._settings.max_per_key)

    async def turn(self, caller: Caller) -> None:
        """Waits a moment for a caller who has its share: who has read an answer to its end may ask again before it has
        been put away here."""
        end = time.monotonic() + GRACE
        while self._full(caller) and time.monotonic() < end:
            await asyncio.sleep(0.01)

    @contextmanager
    def slot(self, caller: Caller) -> Iterator[None]:
        """While a request runs. Raises ApiError 503 if all are taken, 429 if this caller has its share."""
        if self.running >= self._settings.max_queue + (self._settings.max_batch or BATCH):
            raise ApiError(503, "the server has all the requests it takes", code="overloaded", retry_after=2.0)
        if self._full(caller):
            most = caller.limit or self._settings.max_per_key
            raise ApiError(
                429, f"this key has {most} requests under way, which is its limit", code="concurrency", retry_after=1.0
            )
        self.running += 1
        self._by_caller[caller.id] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._by_caller[caller.id] -= 1
            if not self._by_caller[caller.id]:
                del self._by_caller[caller.id]

    @contextmanager
    def memory(self) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
        """(take, release) of a body's bytes. take raises ApiError 503 where bodies fill what they may."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.held + count > BODIES * self._settings.max_body:
                raise ApiError(503, "too many large requests at once", code="overloaded", retry_after=2.0)
            mine += count
            self.held += count

        def release() -> None:
            nonlocal mine
            self.held, mine = self.held - mine, 0

        try:
            yield take, release
        finally:
            release()
