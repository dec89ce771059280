"""docs/performance.md says what benchmarks/ holds; the lease runner's table and the page judge figures alike."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
H100 = "NVIDIA H100 80GB HBM3"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    return tool("plot_performance")


def result(**changes: Any) -> dict[str, Any]:
    return {
        "what": "qwen3 bench",
        "model": "0.6B",
        "engine": "qwen3 0.1.0",
        "date": "2026-11-22T10:00:00+00:00",
        "settings": {"kv_dtype": None, "weights": None, "invariant": False},
        "machine": {"device": H100, "torch": "2.11", "cpu": "x", "driver": "1", "cuda": "13"},
        "ceilings": {"copy_bytes_s": 3.0e12, "read_bytes_s": 3.1e12},
        "decode_b1_tok_s": 1234.0,
        "ttft_1024_ms": 5.25,
        "floor": {"decode_b1_tok_s": 2468.0},
        "share": {"decode_b1_tok_s": 0.5},
        "errors": {},
    } | changes


def test_the_page_is_what_the_files_say(
    plot: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["plot_performance.py", "--check"])
    code = plot.main()
    assert code == 0, f"run tools/plot_performance.py: {capsys.readouterr().out}"


def test_figures_variants_and_curves(plot: ModuleType, tmp_path: Path) -> None:
    for name in ("targets.json", "2026-11-22-vllm-0.22.1-h100.json"):
        (tmp_path / name).write_text((ROOT / "benchmarks" / name).read_text(encoding="utf-8"), encoding="utf-8")
    curves = {"streams": [{"streams": 2**i, "tok_s": 1000.0 * 2**i, "floor_tok_s": 2000.0 * 2**i} for i in range(4)]}
    first = result(curves=curves, offline256={"out_tok_s": 19000.0, "joules_per_out_tok": 0.031})
    later = result(date="2026-11-23T10:00:00+00:00", decode_b1_tok_s=1500.0)
    fp8 = result(settings={"kv_dtype": "fp8", "weights": None, "invariant": False}, offline256={"out_tok_s": 35000.0})
    (tmp_path / "a.json").write_text(json.dumps(first), encoding="utf-8")
    (tmp_path / "b-lease.json").write_text(json.dumps({"0.6B": later, "0.6B:kv8": fp8}), encoding="utf-8")
    ours, peer, targets = plot.load(tmp_path)
    text = plot.page(ours, peer, targets)
    assert "| `decode_b1_tok_s` | **1,500** | ≥ 1,000 | ≥ 1,500 | 454–501 | 2,468 | 50% |" in text
    assert "| `offline256`, output tok/s | **19,000** | ≥ 20,500 |" in text
    assert "| `offline256`, output tok/s, FP8 KV cache | **35,000** |  | ≥ 34,000 |" in text
    assert "| `ttft_1024_ms` | **5.25** | ≤ 8 | ≤ 4 | 26 |" in text
    assert "31.0 mJ" in text
    assert "| copy | 3.00 TB/s | 3.03 TB/s | -1.0% |" in text
    drawn = plot.charts(ours, peer)
    assert list(drawn) == ["performance-0_6b-streams.svg"]
    picture = ElementTree.fromstring(drawn["performance-0_6b-streams.svg"])
    assert len(picture.findall("{*}polyline")) == 3
    assert len(picture.findall("{*}circle")) == 4 + 3  # ours, and vLLM at 1, 8 and 32 streams


def test_the_lease_table_says_what_misses() -> None:
    lease = tool("gpu_lease")
    text = lease.table(
        {
            "0.6B": result(decode_b1_tok_s=999.0, gap=None, experts={}),
            "0.6B:kv8": result(offline256={"out_tok_s": 35000.0}),
            "8B": {"errors": {"main": "RuntimeError: it broke"}},
        }
    )
    lines = {tuple(line.split()[:2]): line for line in text.splitlines()}
    assert lines["0.6B", "decode_b1_tok_s"].endswith("MISS")
    assert lines["0.6B", "ttft_1024_ms"].endswith("ok")
    assert lines["0.6B:kv8", "offline256"].endswith("+")
    assert "it broke" in lines["8B", "ERROR"]
    assert lease.verdict("ready_s", 8.0, 8.0)
    assert not lease.verdict("decode_b8_tok_s", 6499.0, 6500.0)


def test_the_lease_ends_inside_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = tool("gpu_lease")
    log = tmp_path / "log"
    assert lease.child([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1.5, log) is None
    assert log.read_text() == "on\n" or "KeyboardInterrupt" in log.read_text()
    monkeypatch.setattr(sys, "argv", ["x", "--models", "0.6B", "--budget", "10", "--out", str(tmp_path / "out")])
    assert lease.main() == 0
    assert json.loads((tmp_path / "out" / "lease.json").read_text())["0.6B"]["errors"]
