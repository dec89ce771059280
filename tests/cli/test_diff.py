"""`qwen3 diff`: its table, its object, its page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

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
