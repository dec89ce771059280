"""`qwen3 diff`: its table, its object, its page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

QUICK = ("--problems", "4", "--tokens", "64", "-n", "6", "--no-speed")


def test_table_object_and_page(qwen3: Command, model: Path, tmp_path: Path) -> None:
    ran = qwen3("diff", model, f"{model}+int8", *QUICK, "--html", tmp_path / "report.html")
    assert ran.code == 0, ran.err
    assert "same likeliest token" in ran.out
    assert "thinking: right" in ran.out
    assert "thinking, " not in ran.out  # progress is on stderr
    assert "comparing distributions" in ran.err
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!doctype html>")
    assert "<script" not in html
    assert list(tmp_path.glob("*.html*")) == [tmp_path / "report.html"]

    told = json.loads(qwen3("diff", model, model, f"{model}+int4", *QUICK, "--json").out)["differences"]
    assert [one["variant"]["name"] for one in told] == [str(model), f"{model}+int4"]
    assert told[0]["divergence"]["text"]["max"] == 0
    assert told[1]["divergence"]["text"]["mean"] > 0
    assert told[0]["head"]["settings"]["max_tokens"] == 6


def test_a_text_of_ones_own(qwen3: Command, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A cat sat on a mat, and then it slept.\n" * 5)
    ran = qwen3("diff", model, f"{model}+int8", "--problems", "0", "--no-speed", "--text", text, "--json")
    assert json.loads(ran.out)["differences"][0]["head"]["settings"]["text_name"] == "text.txt"
    text.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in qwen3("diff", model, model, "--text", text).error
    text.write_text("")
    assert "text.txt is empty" in qwen3("diff", model, model, "--text", text).error
    assert "cannot be read" in qwen3("diff", model, model, "--text", tmp_path).error


def test_what_it_refuses(qwen3: Command, model: Path, tmp_path: Path) -> None:
    for words, code, why in (
        ((model,), 2, "two models or more"),
        ((model, f"{model}+q4"), 2, "behind the + must be one of"),
        ((model, tmp_path / "missing"), 3, "no such file or folder"),
        ((model, model, "--suite", "cooking"), 2, "no suite or family"),
        ((model, model, "--html", tmp_path / "no" / "page.html"), 2, "there is no such folder"),
        ((model, model, "--html", tmp_path), 2, "it is a folder"),
        ((model, model, "--device", "tpu"), 2, "tpu"),
    ):
        ran = qwen3("diff", *words, *QUICK)
        assert (ran.code, why in ran.error) == (code, True), ran.err


def test_the_report_of_what_was_quantized(
    qwen3: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--report of `qwen3 quantize`, wherever it wrote to."""
    compared: list[str] = []

    def difference(a: str, b: str, *, say: object, command: str) -> list[str]:
        assert a == str(model)
        compared.append(str(Path(b).relative_to(tmp_path)))
        return [b]

    monkeypatch.setattr("qwen3.evaluate.difference.difference", difference)
    monkeypatch.setattr("qwen3.evaluate.difference_page.page", lambda found: f"about {found[0]}")
    page = tmp_path / "page.html"
    for out, words in (
        ("folder", ("rtn", "--group", "32")),
        ("file.gguf", ("gguf", "--type", "q8_0")),
        ("into", ("gguf", "--type", "q4_0")),
    ):
        (tmp_path / "into").mkdir(exist_ok=True)
        ran = qwen3("quantize", model, *words, "--out", tmp_path / out, "--report", page)
        assert ran.code == 0, ran.err
        assert page.read_text() == f"about {tmp_path / compared[-1]}"
    assert compared[:2] == ["folder", "file.gguf"]
    assert compared[2].startswith("into/")
    assert compared[2].endswith(".gguf")
    refused = qwen3("quantize", model, "rtn", "--out", tmp_path / "other", "--report", tmp_path / "no" / "page.html")
    assert "no such folder" in refused.error
    assert not (tmp_path / "other").exists()
