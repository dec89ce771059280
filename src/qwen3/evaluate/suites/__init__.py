"""The suites by name. A suite is one small file here whose SUITE (or SUITES) is a `types.Suite`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from qwen3.errors import UsageError
from qwen3.evaluate.types import Suite
from qwen3.evaluate.variants import variant


@cache
def suites() -> dict[str, Suite]:
    """All suites, sorted by name."""
    found: list[Suite] = []
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found += getattr(loaded, "SUITES", None) or ([loaded.SUITE] if hasattr(loaded, "SUITE") else [])
    return {suite.name: suite for suite in sorted(found, key=lambda suite: suite.name)}


def suite_named(name: str) -> Suite:
    """`NAME`, or `NAME+KIND` for a changed copy (`evaluate.variants`). Raises UsageError for an unknown name."""
    name, plus, kind = name.partition("+")
    if (found := suites().get(name)) is None:
        raise UsageError(f"no suite {name!r}; there are: {', '.join(suites())}")
    return variant(found, kind) if plus else found
