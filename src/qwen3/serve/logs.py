"""One line per request, for people or as JSON: what happened, never what was said. No bodies, keys or query strings."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, TextIO

LOG = logging.getLogger("qwen3.serve")


class _Format(logging.Formatter):
    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        message = record.getMessage()
        error = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            line: dict[str, Any] = {"time": stamp, "level": record.levelname.lower(), "event": message, **fields}
            if error:
                line["error"] = error
            return json.dumps(line, default=str)
        words = [stamp, record.levelname.lower(), _one_line(message)]
        words += [f"{name}={_one_line(str(value))}" for name, value in fields.items() if value is not None]
        return " ".join(words) + (f"\n{error}" if error else "")


def _one_line(text: str) -> str:
    """Whoever sends a line break must not write log lines of their own."""
    return text if text.isprintable() else json.dumps(text)


def setup(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Sends the server's log to `stream` (stderr), with one handler however often it is called."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Format(log_format == "json"))
    LOG.handlers[:] = [handler]
    LOG.setLevel(level.upper())
    LOG.propagate = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = False
        if name == "asyncio":
            logger.addHandler(handler)
        logger.setLevel("ERROR" if name == "asyncio" else "CRITICAL")


def event(message: str, level: int = logging.INFO, **fields: Any) -> None:
    """Something that happened, with what belongs to it."""
    LOG.log(level, message, extra={"fields": fields})
