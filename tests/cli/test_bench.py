"""`qwen3 bench` as a command: a table for people, one object for programs, one line for mistakes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Command


def test_table_and_json(qwen3: Command, model: Path) -> None:
    ran = qwen3("bench", model, "--only", "decode_b1_tok_s", "--device", "cpu")
    assert ran.code == 0, ran.err
    assert "decode_b1_tok_s" in ran.out
    assert "share of the floor" in ran.out
    ran = qwen3("bench", model, "--only", "none", "--json", "--device", "cpu")
    assert ran.code == 0
    assert json.loads(ran.out)["what"] == "qwen3 bench"


def test_mistakes(qwen3: Command, tmp_path: Path) -> None:
    assert "speed" in qwen3("bench", "--only", "speed").error
    ran = qwen3("bench", tmp_path / "nothing", "--device", "cpu")
    assert ran.code == 3
    ran = qwen3("bench", "235B-A22B", "--device", "cpu", "--json")
    assert ran.code == 4
    assert json.loads(ran.out)["error"]["type"] == "OutOfMemoryError"
