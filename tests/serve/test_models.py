"""Models by name: which is meant, when it is loaded, and which goes for another."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from qwen3.errors import ModelNotFoundError, OutOfMemoryError
from qwen3.serve.backend import Backend
from qwen3.serve.calls import Call
from qwen3.serve.errors import ApiError
from qwen3.serve.models import Models
from qwen3.serve.settings import Settings

HELLO = Call([{"role": "user", "content": "What is 27 * 14?"}], sampling={"temperature": 0, "max_tokens": 8})


def models(*names: str, **settings: Any) -> Models:
    return Models([(name, "embedded", {}) for name in names], Settings(**settings))


def test_names_and_aliases() -> None:
    found = Models(
        [
            ("main", "Qwen/Qwen3-8B@main", {}),
            ("small", "qwen3:0.6b", {}),
            ("qwen3-8b", "qwen3:4b", {}),  # a name of its own beats an alias
            ("mine", "/srv/models/mine", {}),
            ("again", "qwen3:0.6b", {"context": 100}),
        ]
    )
    expected = {
        None: "main", "": "main", "default": "main", "main": "main", "MAIN": "main", "main:latest": "main",
        "Qwen/Qwen3-8B": "main", "Qwen/Qwen3-8B@main": "main", "qwen3:8b": "main", "Qwen3-8B": "qwen3-8b",
        "qwen3-0.6b": "small", "qwen3:0.6b": "small", "small:latest": "small", "qwen3:4b": "qwen3-8b",
        "/srv/models/mine": "mine", "again": "again",
    }  # fmt: skip
    for name, wanted in expected.items():
        assert asyncio.run(found.get(name)).name == wanted, name
    for name in ("qwen3:14b", "main:first", "nothing", "x" * 10_000):
        with pytest.raises(ApiError, match="there is: main, small, qwen3-8b, mine, again") as caught:
            asyncio.run(found.get(name))
        assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
        assert len(caught.value.message) < 400
    assert [backend.name for backend in found.list()] == ["main", "small", "qwen3-8b", "mine", "again"]
    assert all(backend.state == "unloaded" for backend in found.list())


def test_what_keeps_the_first_from_loading_is_raised() -> None:
    async def work() -> None:
        found = Models([("x", "/nothing/here", {})])
        try:
            await found.start()
        finally:
            await found.close()

    with pytest.raises(ModelNotFoundError, match="/nothing/here"):
        asyncio.run(work())


def test_one_at_a_time_and_none_when_idle() -> None:
    async def work() -> None:
        found = models("a", "b", max_loaded=1, idle_unload=1.5)
        await found.start()
        a, b = found.list()
        assert (a.state, b.state) == ("ready", "unloaded")
        opened = await asyncio.gather(*(each.open(HELLO) for each in (a, b, a)))
        answers = await asyncio.gather(*(stream.collect() for stream in opened))
        assert len({samples[0].ids for samples in answers}) == 1
        assert sorted((a.state, b.state)) == ["ready", "unloaded"]
        end = time.monotonic() + 20
        while a.loaded or b.loaded:
            await asyncio.sleep(0.05)
            assert time.monotonic() < end
        assert (await (await a.open(HELLO)).collect())[0].ids == answers[0][0].ids
        await found.close()
        assert not a.loaded

    asyncio.run(asyncio.wait_for(work(), 100))


class Played(Backend):
    """Loads at once, into a device that has room for `room` models."""

    room, there, most = 2, 0, 0

    @property
    def loaded(self) -> bool:
        return self.state == "ready"

    async def load(self) -> Any:
        assert self._make_room is not None
        self.used = time.monotonic()
        if self.loaded:
            return self.info
        await self._make_room(self, False)
        while Played.there >= Played.room:
            if not await self._make_room(self, True):
                raise OutOfMemoryError("does not fit")
        self.state = "ready"
        Played.there += 1
        Played.most = max(Played.most, Played.there)
        return self.info

    async def unload(self) -> None:
        Played.there -= self.loaded
        self.state = "unloaded"


@pytest.fixture(name="played")
def fixture_played(monkeypatch: pytest.MonkeyPatch) -> type[Played]:
    monkeypatch.setattr("qwen3.serve.models.Backend", Played)
    Played.room, Played.there, Played.most = 2, 0, 0
    return Played


def test_the_least_recently_used_goes(played: type[Played]) -> None:
    async def work() -> None:
        found = models("a", "b", "c", max_loaded=2)
        a, b, c = found.list()
        for each in (a, b, a, c):
            await each.load()
        assert [each.loaded for each in (a, b, c)] == [True, False, True]
        await b.load()
        assert [each.loaded for each in (a, b, c)] == [False, True, True]
        assert played.most == 2

    asyncio.run(work())


def test_busy_ones_are_waited_for(played: type[Played]) -> None:
    async def work() -> None:
        a, b = models("a", "b", max_loaded=1).list()
        await a.load()
        a._replies[1] = asyncio.get_running_loop().create_future()
        loading = asyncio.create_task(b.load())
        await asyncio.sleep(0.2)
        assert a.loaded
        assert not loading.done()
        a._replies.clear()
        await loading
        assert not a.loaded

    asyncio.run(work())


def test_where_memory_is_short_others_go_one_by_one(played: type[Played]) -> None:
    async def work() -> None:
        found = models("a", "b", "c")  # as many as fit
        for each in found.list():
            await each.load()
        assert [each.loaded for each in found.list()] == [False, True, True]
        played.room = 0
        with pytest.raises(OutOfMemoryError):
            await found.list()[0].load()
        assert not any(each.loaded for each in found.list())

    asyncio.run(work())
