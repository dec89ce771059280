"""The trainer's loss is that of transformers and a plain loop (200 updates: tools/parity.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("transformers")
SPEC = importlib.util.spec_from_file_location("parity", Path(__file__).parents[2] / "tools" / "parity.py")
assert SPEC is not None
assert SPEC.loader is not None
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_twenty_updates_have_the_loss_of_transformers(kind: str) -> None:
    found = parity.compare(kind, 20)
    assert found["largest_relative_difference"] < 1e-4
    assert found["last"] < found["first"]
