#!/usr/bin/env python3
"""The pictures of docs/training.md, drawn from benchmarks/*.json: docs/images/training-*.svg.

python tools/plot_training.py            # draws them anew
python tools/plot_training.py --check    # changes nothing; exit code 1 if one is not what the files say
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

from marked_page import renew  # noqa: E402 (the path is set above)

from qwen3.charts import Series, chart  # noqa: E402 (the path is set above)

IMAGES = ROOT / "docs/images"
COLOURS = ("#1565c0", "#d9730d", "#2e7d32")
UNBOUNDED = 320  # where "no limit" stands on the axis of budgets


def read(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/{name}.json").read_text(encoding="utf-8"))


def budgets() -> str:
    lines = []
    for colour, suite in zip(COLOURS, ("steps", "controls"), strict=False):
        points = read(f"2026-11-23-curve-{suite}-h100")["points"]
        at = [(UNBOUNDED if p["budget"] is None else p["budget"], p) for p in points]
        band = [(x, *p["interval"]) for x, p in at]
        lines.append(Series(suite, colour, [(x, p["percent"]) for x, p in at], band))
    title = "Right answers by thinking budget: v1, 2,000 held-out problems a point"
    return chart(title, f"budget, tokens ({UNBOUNDED}: no limit)", "% right", lines, "linear")


def rl(key: str, title: str, y_label: str) -> str:
    lines = []
    for colour, run in zip(COLOURS, read("2026-11-23-rl-seeds-h100")["seeds"], strict=True):
        if key == "held_out":
            points = [(0, 100 * run["held_out before"])]
            points += [(row["update"], 100 * row["held_out"]) for row in run["held_out"]]
        else:
            points = [(row["update"], row[key]) for row in run["curve"]]
        lines.append(Series(f"seed {run['seed']}", colour, points))
    return chart(title, "update", y_label, lines, "linear")


def distill() -> str:
    found, names = read("2026-11-23-distill-vs-rl-5m-h100")["curves"], {"opd": "distillation", "rl": "rewards"}
    lines = [
        Series(name, colour, [(p["seconds"], 100 * p["mean"]) for p in found[method]],
               [(p["seconds"], 100 * p["low"], 100 * p["high"]) for p in found[method]])
        for colour, (method, name) in zip(COLOURS, names.items(), strict=False)
    ]  # fmt: skip
    title = "From one student of 5M: on-policy distillation and rewards"
    return chart(title, "seconds of an H100", "% right, mean of three seeds", lines, "linear")


def pictures() -> Iterator[tuple[str, str]]:
    """(file name, SVG)."""
    yield "training-budgets.svg", budgets()
    yield "training-rl.svg", rl("held_out", "RL: right answers to 512 held-out problems, temperature 1", "% right")
    yield "training-rl-length.svg", rl("length", "RL: length of answers", "tokens, mean of an update")
    yield "training-rl-entropy.svg", rl("entropy", "RL: entropy", "nats a token")
    yield "training-distill.svg", distill()


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--check", action="store_true")
    check = options.parse_args().check
    return max([renew(IMAGES / name, ROOT, text, check) for name, text in pictures()])


if __name__ == "__main__":
    sys.exit(main())
