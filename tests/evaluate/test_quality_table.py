"""The table of formats: docs/quantization.md says what benchmarks/ holds, and `tools/quality_table.py` measures."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate import difference as whole
from qwen3.evaluate import workloads
from qwen3.evaluate.measured import Settings
from tests.evaluate.test_page import tool
from tests.fixtures import random_checkpoint, tiny_config


@pytest.fixture(scope="module")
def table() -> ModuleType:
    return tool("quality_table")


def test_the_page_is_what_the_file_says(table: ModuleType) -> None:
    if not table.PAGE.is_file() or table.BEGIN not in table.PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page has no table")
    assert table.page(check=True) == 0, "run tools/quality_table.py page"


def test_measured_once_and_written_as_a_table(
    table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_checkpoint(tmp_path / "model", tiny_config(hidden_size=128, dtype="bfloat16"), tokenizer=True)
    monkeypatch.setattr(table, "REFERENCE", str(model))
    measured, begun = whole.differences, []

    def small(a: str, variants: object, settings: object, *rest: object) -> object:
        begun.append(a)
        return measured(a, variants, Settings(problems=2, tokens=16, max_tokens=4, speed=False), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(whole, "differences", small)
    formats = [
        table.Format("int8", "int8"),
        table.Format("nearest", words=("rtn", "--bits", "4", "--group", "32")),
        table.Format("impossible", words=("rtn", "--bits", "1")),
    ]
    write = table._write

    def refused(one: object, place: str) -> None:
        if one is formats[2]:
            raise UsageError("bits must be one of some")
        write(one, place)

    monkeypatch.setattr(table, "_write", refused)
    out = tmp_path / "2026-01-01-quality-embedded.json"
    assert table.measure(out, tmp_path, formats, False, "a command") == 1
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["command"] == "a command"
    assert "bits must be" in data["formats"]["impossible"]["error"]
    assert data["formats"]["nearest"]["variant"]["bits_per_weight"] < 13
    assert 0 < data["formats"]["int8"]["divergence"]["text"]["mean"] < 0.1
    assert data["formats"]["nearest"]["command"].startswith("qwen3 quantize ")

    monkeypatch.setattr(table, "FORMATS", formats)
    tick = iter((1, 3, 1, 2, 1, 1.5, 9, 2.5, 0.5, 9, 1, 9))  # seconds of 16 and 80 tokens, two rounds of three
    monkeypatch.setattr(workloads.Subject, "generate", lambda subject, inputs, outputs: next(tick))
    assert table.speed(out, tmp_path, table.FORMATS, 2) == 0
    data = json.loads(out.read_text(encoding="utf-8"))
    assert data["reference"]["speed"]["1"] == pytest.approx(64 / 1.5)
    rates = [data["formats"][name]["variant"]["speed"]["1"] for name in ("int8", "nearest")]
    assert rates == pytest.approx([64 / 1.5, 128])
    assert data["formats"]["nearest"]["speed"]["1"] == pytest.approx(3)

    monkeypatch.setattr(table, "BENCHMARKS", tmp_path)
    page = table.made(f"Before.\n{table.BEGIN}old\n{table.END}After.\n")
    assert page.startswith("Before.\n<!-- quality table -->\nThe embedded model")
    assert page.endswith(f"{table.END}After.\n")
    assert "old" not in page
    assert "| nearest | " in page
    assert " | 128 | " in page
    assert "Not measured: impossible (bits must be" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert len({line.count("|") for line in lines}) == 1
    assert table.made(page) == page
    with pytest.raises(ValueError, match="must have the lines"):
        table.made("no marks")

    assert table.measure(out, tmp_path, formats[:1], False, "again") == 1  # a failure is known, nothing is measured
    assert len(begun) == 1
    assert json.loads(out.read_text(encoding="utf-8"))["command"] == "a command"
