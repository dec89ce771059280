"""docs/data.md keeps its word: its keys and filters exist, its example is a recipe, its table was measured."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

from qwen3.train.corpus.pipeline import Corpus, recipe
from qwen3.train.recipe import described, override
from qwen3.train.start import find_recipe, train

CHECKOUT = Path(__file__).parents[3]
PAGE = (CHECKOUT / "docs/data.md").read_text(encoding="utf-8")


def test_its_command_and_keys_exist() -> None:
    command = re.search(r"qwen3 train corpus (.*?)\nqwen3", PAGE, re.DOTALL)
    assert command is not None
    override(recipe(), shlex.split(command[1].replace("\\\n", " ")))
    known = described(recipe())
    for name in re.findall(r"`([a-z_.]+)=[^`]*`", PAGE):
        assert re.search(rf"^(corpus\.)?{re.escape(name)} ", known, re.MULTILINE), name


def test_its_table_has_every_filter() -> None:
    listed = re.findall(r"^\| `([a-z0-9_]+)` \|", PAGE, re.MULTILINE)
    judges = [field.name for field in dataclasses.fields(Corpus) if callable(getattr(Corpus(), field.name))]
    assert sorted(listed) == sorted(judges)


def test_its_recipe_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "NoDrafts" in code)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    words = " ".join(f"the word and number {i} of many that stand here" for i in range(9))
    (tmp_path / "notes" / "a.md").write_text(f"{words}.\n")
    (tmp_path / "notes" / "b.md").write_text(f"DRAFT {words.upper().lower()}, with an end of its own.\n")
    (tmp_path / "mine.py").write_text(source)
    made = find_recipe("mine.py", ["filters=gopher", "near=none", "tokenizer=embedded"])
    assert train(made, lambda line: None)["finished"]
    stats = json.loads((tmp_path / "runs" / "corpus" / "corpus" / "stats.json").read_text())
    assert stats["steps"]["drafts"]["dropped"]["draft"]["samples"] == ["b.md"]
    assert stats["steps"]["kept"]["documents"] == 1


def test_its_table_is_the_one_that_was_measured() -> None:
    measured = json.loads((CHECKOUT / "benchmarks/2026-11-22-corpus.json").read_text(encoding="utf-8"))
    table = re.search(r"```text\n(step .*?)```", PAGE, re.DOTALL)
    assert table is not None
    for name, step in measured["run"]["stats"]["steps"].items():
        gone = sum(found["documents"] for found in step["dropped"].values())
        assert re.search(rf"^{name} +{step['documents']:,} .* {gone:,} +[\d.]+%", table[1], re.MULTILINE), name
    for name, rate in measured["megabytes_per_cpu_second"].items():
        assert f"| {name} | {rate:g} |" in PAGE, name
