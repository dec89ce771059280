"""`qwen3 bench`: the speed of a model on this machine, beside its floor. The work is in `qwen3.evaluate.bench`."""

from __future__ import annotations

import signal
import sys
from typing import Any

from qwen3.cli.console import note, out_json, warn
from qwen3.evaluate.bench import figure, measure, rows


def bench(model: str | None, as_json: bool, **options: Any) -> int:
    """Prints the table, or the result object. Exit code 1 if a part failed; what was measured is shown all the same."""
    # raised, not ended by it: the process that measures is ended on the way out
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        result = measure(model or "embedded", say=note, **options)
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        out_json(result)
    else:
        _table(result)
    for name, error in result["errors"].items():
        warn(f"{name}: {error}")
    return 1 if result["errors"] else 0


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    machine = result["machine"]
    title = f"{result['model']} on {machine.get('device', '?')}, torch {machine.get('torch', '?')}"
    table = Table(title=title, title_justify="left")
    table.add_column("key")
    for name in ("measured", "floor", "share of the floor"):
        table.add_column(name, justify="right")
    for row in rows(result):
        table.add_row(*row)
    console = Console(file=sys.stdout)
    console.print(table)
    for name, points in result.get("curves", {}).items():
        key = "streams" if name == "streams" else "context"
        curve = Table(title=f"tokens/s against {name}", title_justify="left")
        for column in (key, "tokens/s", "floor"):
            curve.add_column(column, justify="right")
        for point in points:
            curve.add_row(f"{point[key]:,}", figure(point["tok_s"]), figure(point.get("floor_tok_s") or 0.0))
        console.print(curve)
