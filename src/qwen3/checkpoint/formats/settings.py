"""The quantization section of a config.json, taken key by key: what nobody asked for is an error, not a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwen3.errors import ConfigError

_MISSING = object()
# a search that may take for ever: with a repeated group, or with many repetitions
_REPEATED, _REPETITIONS = re.compile(r"\)[*+{]"), 5


class Settings:
    """One JSON object; `where` is how messages call it. Raises ConfigError if it is none."""

    def __init__(self, where: str, data: Any) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{where} must be an object, not {str(data)[:60]!r}")
        self.where, self.left = where, dict(data)

    def take(self, name: str, default: Any = _MISSING) -> Any:
        """Any value; null counts as absent."""
        value = self.left.pop(name, None)
        if value is None and default is _MISSING:
            raise ConfigError(f"{self.where}.{name} is missing; take it from the tool that wrote the weights")
        return default if value is None else value

    def one_of(self, name: str, allowed: Sequence[Any], default: Any = _MISSING) -> Any:
        value = self.take(name, default)
        if not any(type(value) is type(one) and value == one for one in allowed):
            listed = ", ".join(repr(one) for one in allowed)
            raise ConfigError(f"{self.where}.{name} is {str(value)[:60]!r}, which is not read (only {listed})")
        return value

    def names(self, name: str) -> tuple[str, ...]:
        """A list of strings; absent: empty."""
        value = self.take(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ConfigError(f"{self.where}.{name} must be a list of names")
        return tuple(value)

    def finish(self, ignored: str = "") -> None:
        """ignored: keys that say how the weights were made, or how another program is to run them."""
        unknown = sorted(key for key in self.left if key not in ignored.split())
        if unknown:
            what = f"{self.where}.{unknown[0][:60]} is {str(self.left[unknown[0]])[:60]!r}"
            raise ConfigError(f"{what}, which is not known and may change the weights; remove it if it does not")


def pattern(where: str, text: str) -> re.Pattern[str]:
    """A regular expression of a config; ConfigError if it is none, or one that may take for ever."""
    if len(text) > 500 or _REPEATED.search(text) or sum(map(text.count, "*+{")) > _REPETITIONS:
        raise ConfigError(f"{where}: the pattern {text[:60]!r} may take for ever; write it with fewer repetitions")
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{where}: {text[:60]!r} is no regular expression ({error})") from None
