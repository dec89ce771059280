#!/usr/bin/env python3
"""What docs/training.md says about the code and the measurements: its list of recipes, and the tables of benchmarks/.

python tools/training_page.py            # rewrites the page between its marks
python tools/training_page.py --check    # changes nothing; exit code 1 if the page is not what it would be
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from marked_page import between, renew  # noqa: E402 (the path is set above)

from qwen3.train.start import RECIPES  # noqa: E402

PAGE, BENCHMARKS = ROOT / "docs/training.md", ROOT / "benchmarks"
SPEEDS = ("dense06b", "embedded", "moe", "lora8b", "fp8")  # sections of tools/train_bench.py
OTHERS = (
    "train",
    "corpus",
    "distill",
    "language-id",
    "newcomer",
    "embedded-v1",
    "kill-resume",
    "train-parity",
    "moe-balance",
)


def recipes() -> Iterator[str]:
    yield "| recipe | | example |"
    yield "|---|---|---|"
    for name, (_, about, example) in RECIPES.items():
        yield f"| `{name}` | {about} | `qwen3 train {name} {example}` |"


def newest() -> dict[str, tuple[str, dict[str, Any]]]:
    """Kind of measurement -> (file name, content) of its last date."""
    found = {}
    for path in sorted(BENCHMARKS.glob("20??-??-??-*.json")):
        kind = path.stem[11:]
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and any(kind.startswith(name) or f"-{name}" in kind for name in OTHERS):
            found[kind] = path.name, data
    return found


def measured() -> Iterator[str]:
    files = newest()
    rows = [
        (row, name, data)
        for kind, (name, data) in files.items()
        for row in (data.get("rows") or ())
        if data.get("section") in SPEEDS and "tok/s" in row and kind.startswith("train-")
    ]
    if rows:
        yield "Tokens a second, optimiser included (`tools/train_bench.py`; MFU of 989 TFLOP/s):"
        yield ""
        yield "| | tok/s | MFU | GB | machine | file |"
        yield "|---|---|---|---|---|---|"
        for row, name, data in rows:
            speed = f"{row['tok/s']:,.0f} | {row['MFU %']:.1f} % | {row['GB']:.1f}"
            yield f"| {row['what']} | {speed} | {data['machine']} | [{name[:10]}](../benchmarks/{name}) |"
        yield ""
    others = [(name, data) for name, data in files.values() if data.get("section") not in SPEEDS]
    if others:
        yield "| measured | machine | file |"
        yield "|---|---|---|"
        for name, data in others:
            what = next((str(data[k]) for k in ("name", "what") if data.get(k)), name[11:-5])
            what = f"`tools/train_bench.py {data['section']}`" if "section" in data else what
            machine = data.get("machine") or ""
            if isinstance(machine, dict):
                machine = machine.get("device") or machine.get("cpu") or ""
            yield f"| {what.replace('|', '/')} | {machine} | [{name}](../benchmarks/{name}) |"


def made(text: str) -> str:
    """The page with what is between its marks made anew. Raises ValueError for a page without them."""
    for name, lines in (("recipes", recipes()), ("measured", measured())):
        begin, end = f"<!-- begin: made by tools/training_page.py: {name} -->\n", f"<!-- end: {name} -->"
        text = between(PAGE, text, begin, end, lines)
    return text


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    return renew(PAGE, ROOT, made(PAGE.read_text(encoding="utf-8")), check)


if __name__ == "__main__":
    sys.exit(main())
