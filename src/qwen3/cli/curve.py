"""`qwen3 curve`: accuracy against the thinking budget. The work is in `qwen3.evaluate.thinking`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen3 import LLM
from qwen3.cli.console import note, out, out_json, table, warn
from qwen3.errors import UsageError
from qwen3.evaluate.thinking import BUDGETS, budgets_of, curve


def measure(
    suite: str,
    model: str | None,
    as_json: bool,
    *,
    budgets: str | None,
    problems: int,
    seed: int,
    device: str | None,
    dtype: str | None,
    max_batch: int | None,
    out_file: Path | None,
    command: str,
) -> int:
    """Prints the table, or the result object, which also goes to `out_file`."""
    chosen = BUDGETS if budgets is None else budgets_of(budgets)
    if out_file is not None and not out_file.resolve().parent.is_dir():
        raise UsageError(f"--out {out_file}: there is no folder {out_file.resolve().parent}")
    with LLM(model, device=device, dtype=dtype, max_batch=max_batch) as llm:
        for line in llm.warnings:
            warn(line)
        result = curve(llm, suite, chosen, problems, seed, say=note, command=command)
    if out_file is not None:
        out_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        out_json(result)
    else:
        _show(result)
    return 0


def _show(result: dict[str, Any]) -> None:
    rows = []
    for point in result["points"]:
        low, high = point["interval"]
        budget = "none" if point["budget"] is None else str(point["budget"])
        bar = "#" * round(point["percent"] / 4)
        used = f"{point['thinking_tokens']:.0f}"
        rows.append([budget, f"{point['percent']:.1f} %", f"{low:.1f} to {high:.1f}", used, bar])
    out(table(rows, ["budget", "right", "95 % interval", "tokens thought", ""]))
    out(
        f"{len(result['points'])} budgets, {result['settings']['problems']:,} held-out problems each: "
        f"{result['rise']:+.1f} points from first to last, "
        f"{'no budget below a smaller one' if result['monotone'] else 'NOT monotone'} (95 % intervals)"
    )
    if below := result["below_none"]:
        out(f"Worse than no thinking at all (budget 0): thoughts cut at {', '.join(map(str, below))} tokens")
