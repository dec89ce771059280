"""Reasoning memory: what a model thought before it called a tool, for the client that sends the call back without it.

Kept in this process's memory alone, encrypted (AES-GCM) under a key that dies with it, for half an hour, in bounded
number and size. An entry is found only by who it was made for, the call's id (128 random bits), and a hash of the
conversation before and of the call (`qwen3.chat.memory_key`): whoever asks with anything else gets nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from qwen3.chat import Message
from qwen3.chat.messages import REASONING_FIELDS
from qwen3.chat.reasoning import memory_key, restore_reasoning
from qwen3.errors import UsageError
from qwen3.serve.calls import Call

SECONDS, ENTRIES, BYTES, LONGEST = 1800.0, 8192, 64 << 20, 2 << 20
_LARGE = 128 << 10  # characters from which on hashing goes to a thread
_NONCE = 12


class ReasoningMemory:
    """All reasoning kept for all callers. enabled False: nothing is kept, nothing is found.

    seconds: how long an entry lives. max_entries, max_bytes: of all; the oldest go first. clock: seconds, monotonic.
    """

    def __init__(
        self,
        enabled: bool = True,
        *,
        seconds: float = SECONDS,
        max_entries: int = ENTRIES,
        max_bytes: int = BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.enabled, self.seconds, self.max_entries, self.max_bytes = enabled, seconds, max_entries, max_bytes
        self.bytes = 0
        self._clock, self._lock = clock, Lock()
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # the oldest first
        if enabled:
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM

            self._secret, self._cipher, self._wrong = os.urandom(32), AESGCM(AESGCM.generate_key(256)), InvalidTag

    def __len__(self) -> int:
        return len(self._entries)

    def keep(self, caller: str, call: Call, message: Message) -> int:
        """Keeps the reasoning of an answer to `call` for each tool call it makes; how many entries that gives."""
        text = message.reasoning_content
        if not (self.enabled and text and message.tool_calls and call.messages) or call.continue_last:
            return 0
        data = text.encode("utf-8", "surrogatepass")
        if len(data) > LONGEST:
            return 0
        turns = [*call.messages, message.to_dict()]
        ids = [made.id for made in message.tool_calls if made.id]
        for id in ids:
            self._put(self._index(caller, memory_key(turns, id)), data)
        return len(ids)

    async def restore(self, caller: str, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        """(the messages, with the reasoning of tool-calling turns that lack it where it is known; of how many turns).

        Nothing known, or messages that are no conversation: the same list and 0.
        """
        if not self._entries or not any(map(_bare, messages)):
            return messages, 0
        size = sum(len(content) for turn in messages if isinstance(content := turn.get("content"), str))
        if size < _LARGE:
            return self._restored(caller, messages)
        return await asyncio.to_thread(self._restored, caller, messages)

    def _restored(self, caller: str, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
        try:
            turns, count = restore_reasoning(messages, lambda key, turn: self._get(self._index(caller, key)))
        except UsageError:  # whoever renders the messages says what is wrong with them
            return messages, 0
        return (turns, count) if count else (messages, 0)

    def _index(self, caller: str, key: str) -> bytes:
        # The key is 64 hex digits: what follows it is the caller, whatever characters that has.
        return hmac.digest(self._secret, f"{key}{caller}".encode("utf-8", "surrogatepass"), hashlib.sha256)

    def _put(self, index: bytes, data: bytes) -> None:
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, data, index)
        with self._lock:
            self._drop(index)
            self._entries[index] = (self._clock() + self.seconds, sealed)
            self.bytes += len(sealed)
            self._expire()

    def _get(self, index: bytes) -> str | None:
        with self._lock:
            self._expire()
            found = self._entries.get(index)
        if found is None:
            return None
        sealed = found[1]
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], index).decode("utf-8", "surrogatepass")
        except self._wrong:
            return None

    def _expire(self) -> None:
        now = self._clock()
        while self._entries:
            index, (until, _) = next(iter(self._entries.items()))
            if until > now and len(self._entries) <= self.max_entries and self.bytes <= self.max_bytes:
                break
            self._drop(index)

    def _drop(self, index: bytes) -> None:
        if entry := self._entries.pop(index, None):
            self.bytes -= len(entry[1])


def _bare(turn: dict[str, Any]) -> bool:
    """Whether a turn calls tools and brings no reasoning; an empty one is one."""
    return bool(turn.get("tool_calls")) and all(turn.get(name) is None for name in REASONING_FIELDS)
