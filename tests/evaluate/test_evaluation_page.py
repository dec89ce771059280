"""docs/evaluation.md says what the program does: its table is its program's, its words are the types', its names exist.
Its commands and programs are run by tests/cli/test_readme.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3 import family
from qwen3.evaluate.claims import claims
from qwen3.evaluate.suites import suite_named
from qwen3.evaluate.types import OUTCOMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


def test_the_table_of_costs_is_what_its_program_prints() -> None:
    program = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "REACHED" in block)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout in PAGE
    assert ran.stdout.count("\n") >= 8


def test_the_speed_it_counts_with_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "2026-11-22-bench-8B-h100.json").read_text(encoding="utf-8"))
    assert measured["ceilings"]["read_bytes_s"] == pytest.approx(3.07e12, rel=0.01)
    assert all(measured["share"][f"decode_b{batch}_tok_s"] > 0.8 for batch in (1, 8, 32))


def test_percentages_of_the_table_are_the_suites_references() -> None:
    rows = re.findall(r'\("([\w\'’ -]+)", "(think|no-think)", (\d+), (\d+), \d+, ([\d.]+),', PAGE)
    names = {"MATH-500": "math500", "AIME'24": "aime24", "AIME'25": "aime25", "GPQA-Diamond": "gpqa",
             "MMLU-Redux": "mmlu_redux", "IFEval": "ifeval"}  # fmt: skip
    assert len(rows) >= 8
    for title, mode, _, samples, percent in rows:
        suite = suite_named(names[title])
        published = {(r.model, r.mode): r.value for r in suite.references}
        assert published["Qwen3-4B", mode] == float(percent), title
        if suite.sampling.samples > 1:
            assert suite.sampling.samples == int(samples)


def test_outcomes_sampling_and_numbers_are_the_programs() -> None:
    table = PAGE.partition("## Outcomes")[2].partition("\n## ")[0]
    for outcome in OUTCOMES:
        assert re.search(rf"^\|.*\b{outcome}\b.*\|", table, re.MULTILINE), outcome
    for column, key in ((1, "thinking"), (2, "non-thinking")):
        usual = family.SAMPLING[key]
        line = next(line for line in PAGE.splitlines() if line.startswith("| temperature, top-p"))
        assert line.split("|")[column + 1].strip() == f"{usual.temperature}, {usual.top_p}, {usual.top_k}"
    assert f"lists {len(claims())} claims" in PAGE
    settled = {2: "Two", 7: "Seven", 8: "Eight", 9: "Nine"}[sum(bool(claim.settled) for claim in claims())]
    assert f"{settled} claims on configurations" in PAGE


def test_suites_that_commands_name_are_there() -> None:
    named = re.findall(r"qwen3 eval ([a-z0-9_+,]+) ", PAGE)
    named += re.findall(r"^\| `(\w+\+\w+)`", PAGE, re.MULTILINE)
    known = [name for names in named for name in names.split(",") if name not in ("claims", "contamination")]
    assert len(known) > 10
    for name in known:
        suite_named(name)


def test_counts_of_changed_copies_are_in_benchmarks() -> None:
    counted = json.loads((ROOT / "benchmarks" / "2026-11-23-eval-variants.json").read_text(encoding="utf-8"))
    assert f"of {counted['items']:,} items the {counted['variants']['numbers']} where" in PAGE


def test_the_run_that_is_shown_was_made() -> None:
    made = json.loads((ROOT / "benchmarks" / "2026-11-23-eval-embedded.json").read_text(encoding="utf-8"))
    for run in made["runs"]:
        low, high = run["interval"]
        line = rf"tasks  embedded  {run['mode']}  +{run['percent']:.1f} %  +{low:.1f} to {high:.1f} "
        assert re.search(line, PAGE), line
        assert f"qwen3 eval tasks --limit 60 --samples {run['samples']} --{run['mode']}\n" in PAGE
    found = made["compare"]
    low, high = found["interval"]
    assert f"b - a: {found['points']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}" in PAGE
    assert f"b is better on {found['better']} items, worse on {found['worse']}" in PAGE
    for label, (word, detail) in made["claim_14"].items():
        assert f"  {label}: {word}. {detail}\n" in PAGE
