"""Every error a user can meet, with the exit code the command line ends with.

Messages are one line, name the field, file or tensor, and say what to do.
"""

from __future__ import annotations


class Qwen3Error(Exception):
    """Base class. `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(Qwen3Error, ValueError):
    """A wrong or contradictory argument, a prompt longer than the context."""

    exit_code = 2


class ModelNotFoundError(Qwen3Error, FileNotFoundError):
    """No such file, folder, tag or hub repository, or it is not in the cache and the hub may not be asked."""

    exit_code = 3


class OutOfMemoryError(Qwen3Error, MemoryError):
    """The model does not fit; the message carries what is needed and what is free, in bytes."""

    exit_code = 4


class RemoteError(Qwen3Error, ConnectionError):
    """The hub could not be reached, refused, or sent something else than asked for."""

    exit_code = 5


class CorruptFileError(Qwen3Error):
    """A file that is truncated, altered, contradictory or not what its name says."""

    exit_code = 6


class ConfigError(CorruptFileError):
    """A `config.json` with an unknown, missing or contradictory key, or of another architecture."""


class UnsafeFileError(CorruptFileError):
    """A format that can run code when it is read (pickle), which is never opened."""


class SandboxError(Qwen3Error):
    """The sandbox refused to run something."""

    exit_code = 7


class QueueFullError(Qwen3Error):
    """Too many requests wait already. Temporary: the same request may be sent again later (HTTP 429)."""
