"""`qwen3 bench` as a command: a table for people, one object for programs, one line for mistakes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

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


def test_ended_from_outside_it_leaves_nothing_running(model: Path) -> None:
    command = [sys.executable, "-m", "qwen3", "bench", str(model), "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        own, deadline = psutil.Process(process.pid), time.monotonic() + 60
        while not (children := own.children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert children
    assert psutil.wait_procs(children, timeout=10)[1] == []
