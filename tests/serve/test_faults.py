"""Every section of the fault campaign, small. The whole one: python tools/serve_faults.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: pip install 'qwen3[serve]'")
pytest.importorskip("psutil", reason="pip install 'qwen3[test]'")

from tests.serve import hostile, storage  # noqa: F401 (they add their sections)
from tests.serve.faults import SECTIONS, Served, serve

SLOW = {"overload", "batch_killed", "disk_full", "uploads_cut", "second_signal"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """The server that the sections share."""
    held: list[Served] = []
    yield held
    for served in held:
        served.kill()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SECTIONS]
)
def test_fault(name: str, shared: list[Served], tmp_path: Path) -> None:
    part = SECTIONS[name]
    found = asyncio.run(serve(name, part.short, tmp_path, shared))
    assert not found.failures, found
