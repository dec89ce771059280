"""`qwen3 curve`: accuracy against the thinking budget. The work is in `qwen3.evaluate.thinking` for the package's own
tasks, in `qwen3.evaluate.runs` for suites: there a run of each budget, all of which can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3 import LLM
from qwen3.cli import eval as evaluation
from qwen3.cli.console import note, out, out_json, table, warn
from qwen3.errors import UsageError
from qwen3.evaluate.runs.record import write_json
from qwen3.evaluate.runs.run import check_needs, evaluate, finish, items_of, write_page
from qwen3.evaluate.suites import suite_named
from qwen3.evaluate.thinking import BUDGETS, budgets_of, curve
from qwen3.tasks import FAMILIES

SUITE_BUDGETS = (0, 512, 2048, 8192, None)
_PROBLEMS = 2000


def measure(
    suite: str,
    model: str | None,
    as_json: bool,
    *,
    budgets: str | None,
    problems: int | None,
    seed: int,
    device: str | None,
    dtype: str | None,
    max_batch: int | None,
    out_file: Path | None,
    command: str,
    **of_suites: Any,
) -> int:
    """Prints the table, or the result object, which also goes to `out_file`: a folder where `suite` is none of the
    package's own tasks. of_suites: further fields of `eval.Options`, None where they are not given."""
    given = {name: value for name, value in of_suites.items() if value is not None}
    own = all(name.strip() in ("tasks", "steps", "controls", *FAMILIES) for name in suite.split(","))
    if not own or given:
        options = evaluation.Options(
            model=model, limit=problems, seed=seed, device=device, dtype=dtype, max_batch=max_batch, out=out_file,
            **given,
        )  # fmt: skip
        return _of_suite(suite, options, budgets, as_json, command)
    chosen = BUDGETS if budgets is None else budgets_of(budgets)
    if out_file is not None and not out_file.resolve().parent.is_dir():
        raise UsageError(f"--out {out_file}: there is no folder {out_file.resolve().parent}")
    with LLM(model, device=device, dtype=dtype, max_batch=max_batch) as llm:
        for line in llm.warnings:
            warn(line)
        result = curve(llm, suite, chosen, problems or _PROBLEMS, seed, say=note, command=command)
    if out_file is not None:
        out_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        out_json(result)
    else:
        _show(result)
    return 0


def _of_suite(name: str, options: evaluation.Options, budgets: str | None, as_json: bool, command: str) -> int:
    """One run for each budget, in folders of one, with the same items, seeds and sampling."""
    suite, wish = suite_named(name), options.wish(command)
    chosen = SUITE_BUDGETS if budgets is None else budgets_of(budgets)
    check_needs(suite)
    items = items_of(suite, wish)
    points = []
    model = evaluation.model_of(replace(options, think=True))
    try:
        folder = options.out or Path("evals") / f"{evaluation.place(model)}-curve" / suite.name
        for budget in chosen:
            model.bound(budget)
            place = folder / f"budget-{'none' if budget is None else budget}"
            point = finish(evaluate(suite, model, wish, place, note, items), place)
            for line in point["cautions"]:
                note(f"budget {'none' if budget is None else budget}: {line}")
            points.append({"budget": budget, **point})
    finally:
        model.close()
    result = {"what": "accuracy against thinking budget", "suite": suite.name, "command": command, "points": points}
    write_json(folder / "curve.json", result)
    write_page(folder / "curve.html", points)
    note(f"{suite.name}: {folder / 'curve.html'}")
    if as_json:
        out_json(result)
    else:
        evaluation.show(points)
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
