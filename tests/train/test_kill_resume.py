"""A pretraining run that is killed equals the whole one (20 kills: tools/kill_resume.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_kills_change_nothing(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "tools" / "kill_resume.py"), "--kills", "2", "--updates", "8"]
    paths = f"{ROOT / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    found = subprocess.run(
        [*words, "--out", str(tmp_path / "out.json")], capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["equal"]
    assert len(report["kills"]) == 2
    assert len(report["compared"]) == 7
