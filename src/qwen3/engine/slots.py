"""Rows of the KV cache: allocated by need, grown by doubling, never for the whole context up front."""

from __future__ import annotations

import torch

from qwen3.checkpoint.memory import available_bytes, dtype_bytes, gigabytes
from qwen3.config import ModelConfig
from qwen3.errors import OutOfMemoryError
from qwen3.model import KVCache

_FIRST_LENGTH = 256


class Slots:
    """One KVCache that is replaced by a larger one when a sample needs another row or more length.

    Who uses which row is not recorded here: the engine knows its running samples, so that nothing can leak.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, dtype: torch.dtype, max_rows: int, max_len: int
    ) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.max_rows = max_rows
        self.max_len = max_len
        self._cache: KVCache | None = None

    @property
    def rows(self) -> int:
        return 0 if self._cache is None else self._cache.rows

    @property
    def length(self) -> int:
        return 0 if self._cache is None else self._cache.max_len

    @property
    def cache(self) -> KVCache:
        if self._cache is None:
            self.reserve(1, 1)
        assert self._cache is not None
        return self._cache

    def view(self, rows: list[int]) -> KVCache:
        """The cache restricted to `rows`, in that order; writes go to the whole one."""
        cache = self.cache
        return cache if rows == list(range(self.rows)) else cache.select(rows)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens; what is cached stays. Raises OutOfMemoryError with numbers."""
        if rows <= self.rows and length <= self.length:
            return
        rows, length = max(rows, self.rows), max(length, self.length)
        roomy_rows = min(self.max_rows, max(rows, 2 * self.rows if rows > self.rows else rows))
        roomy_length = _FIRST_LENGTH
        while roomy_length < length:
            roomy_length *= 2
        roomy_length = min(self.max_len, roomy_length)
        try:
            self._replace(roomy_rows, roomy_length)
        except OutOfMemoryError:
            if (roomy_rows, roomy_length) == (rows, length):
                raise
            self._replace(rows, length)

    def _replace(self, rows: int, length: int) -> None:
        need = rows * length * self.config.kv_bytes_per_token(dtype_bytes(self.dtype))
        free = available_bytes(self.device)
        message = f"the KV cache for {rows} x {length:,} tokens needs {need:,} bytes ({gigabytes(need)})"
        if free is not None and need > free:
            raise OutOfMemoryError(
                f"{message} but {self.device} has {free:,} free ({gigabytes(free)}); "
                "shorten the prompt, lower max_tokens or run fewer requests at once"
            )
        try:
            fresh = KVCache(self.config, rows, length, self.device, self.dtype)
        except (RuntimeError, MemoryError) as error:
            raise OutOfMemoryError(f"{message}, which {self.device} refused: {str(error).splitlines()[0]}") from error
        if self._cache is not None:
            fresh.k[:, : self.rows, :, : self.length].copy_(self._cache.k)
            fresh.v[:, : self.rows, :, : self.length].copy_(self._cache.v)
            fresh.written[: self.rows, : self.length].copy_(self._cache.written)
        self._cache = fresh

    def copy(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` cached tokens of row `source`."""
        for part in (self.cache.k, self.cache.v):
            part[:, target, :, :length].copy_(part[:, source, :, :length])
        self.cache.written[target, :length] = True

    def clear(self) -> None:
        """Give all memory back; called when nothing runs."""
        self._cache = None
