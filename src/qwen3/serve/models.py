"""The models of a server by name: loaded when first wanted, and unloaded when nobody wants them any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from qwen3 import family
from qwen3.serve.backend import Backend, Stream
from qwen3.serve.calls import Call
from qwen3.serve.errors import ApiError
from qwen3.serve.settings import Settings


class Adapted:
    """A model with one of its adapters: to clients a model of its own, in all else the one below it (`base`)."""

    def __init__(self, base: Backend, name: str) -> None:
        self.base, self.name = base, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    async def open(self, call: Call) -> Stream:
        """See `Backend.open`."""
        return await self.base.open(replace(call, adapter=self.name))


class Models:
    """names: (public name, what `LLM` is given, keyword arguments of `LLM`) of each; the first is the default one.
    settings: adapters (of the first), max_queue (of each model), max_loaded, idle_unload."""

    def __init__(
        self, names: Iterable[tuple[str, str | None, dict[str, Any]]], settings: Settings | None = None
    ) -> None:
        self._settings = settings or Settings()
        self._backends = {
            name: Backend(name, spec, options, max_queue=self._settings.max_queue, make_room=self._make_room)
            for name, spec, options in names
        }
        first = next(iter(self._backends.values()))
        self._adapted = [Adapted(first, name) for name, _ in self._settings.adapters]
        if self._adapted:
            first.options["adapters"] = dict(self._settings.adapters)
        self._by_name: dict[str, Backend | Adapted] = {}
        for name, backend in self._backends.items():
            self._by_name.setdefault(name.casefold(), backend)
        for adapted in self._adapted:
            for alias in (adapted.name, f"{first.name}:{adapted.name}"):
                self._by_name.setdefault(alias.casefold(), adapted)
        for backend in self._backends.values():
            for alias in _aliases(backend):
                self._by_name.setdefault(alias.casefold(), backend)
        self._unloader: asyncio.Task[None] | None = None
        self._room = asyncio.Lock()

    async def get(self, name: str | None, caller: Any = None) -> Backend | Adapted:
        """The model of that name, in any case, or by an alias: what it was loaded from, the family's tag (qwen3:8b,
        qwen3-8b), each with or without ":latest"; or the first with an adapter, by the adapter's name or MODEL:NAME.
        None, "" and "default": the first. It need not be loaded. caller: who asks; all may have all. Raises ApiError
        404."""
        if not name or name == "default":
            return next(iter(self._backends.values()))
        wanted = name.casefold()
        found = self._by_name.get(wanted) or self._by_name.get(wanted.removesuffix(":latest"))
        if found is None:
            there = ", ".join(model.name for model in self.named())
            raise ApiError(404, f"there is no model {name[:200]!r} here; there is: {there}", "model", "model_not_found")
        return found

    def list(self) -> list[Backend]:
        """Those that take memory."""
        return list(self._backends.values())

    def named(self) -> Sequence[Backend | Adapted]:
        """Those that a client may name."""
        return [*self._backends.values(), *self._adapted]

    async def start(self) -> None:
        """Load the first. Raises what `LLM` raises."""
        if self._settings.idle_unload is not None:
            self._unloader = asyncio.create_task(self._unload_idle(self._settings.idle_unload))
        await next(iter(self._backends.values())).load()

    async def close(self, drain: float = 0.0) -> None:
        if self._unloader is not None:
            self._unloader.cancel()
        await asyncio.gather(*(backend.close(drain) for backend in self._backends.values()))

    async def _unload_idle(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(seconds / 4, 5.0))
            for backend in self._backends.values():
                if backend.state == "ready" and not backend.busy and time.monotonic() - backend.used > seconds:
                    await backend.unload()

    async def _make_room(self, wanting: Backend, memory: bool) -> bool:
        """Unload the least recently used models until there may be one more, or, for `memory`, one of them; waits for
        those that are busy. Whether there is more room now."""
        async with self._room:
            freed = False
            while True:
                others = [b for b in self._backends.values() if b is not wanting and b.loaded]
                most = self._settings.max_loaded
                if not others or (freed if memory else most is None or len(others) < most):
                    return freed
                idle = [b for b in others if b.state == "ready" and not b.busy]
                if idle:
                    await min(idle, key=lambda b: b.used).unload()
                    freed = True
                else:
                    await asyncio.sleep(0.05)


def _aliases(backend: Backend) -> list[str]:
    spec = backend.model
    if spec is None:
        return []
    member = family.find(spec)
    published = [member.tag, member.tag.replace(":", "-"), member.repo, member.name] if member else []
    return [spec, spec.partition("@")[0], *published]
