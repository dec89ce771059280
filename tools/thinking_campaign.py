#!/usr/bin/env python3
"""The measurements behind docs/thinking.md, one section after the other, each into a file of its own:

    python tools/thinking_campaign.py budget schema curve auto turn time --out benchmarks/runs --device cuda

Sections: budget (every combination of budget, streaming, speculation, grammar and tools), schema (answers under 20 JSON
schemas), curve (accuracy against budget), auto (beside always, never and chance), turn (a second turn after a long
thought), time (limits under load). --size 0.05 takes a twentieth of everything. `judge FILE` validates the answers of a
schema section that was measured where the package jsonschema is missing. The exit code is 1 if a criterion is missed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

SECTIONS = ("budget", "schema", "curve", "auto", "turn", "time")
Result = dict[str, Any]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def validator() -> Callable[[str, Any], None] | None:
    """Judges a value by the package jsonschema; None where that is missing."""
    try:
        import jsonschema  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return None
    from qwen3.evaluate.schemas import SCHEMAS

    formats = jsonschema.FormatChecker()
    judges = {name: jsonschema.Draft202012Validator(schema, format_checker=formats) for name, schema in SCHEMAS.items()}

    def check(name: str, value: Any) -> None:
        try:
            judges[name].validate(value)
        except jsonschema.ValidationError as error:
            raise ValueError(error.message) from None

    return check


def measure(section: str, llm: Any, options: argparse.Namespace, command: str) -> Result:
    """One section at `options.size` of its full extent."""
    from qwen3.evaluate import thinking, thinking_auto, thinking_live, thinking_rules

    def sized(count: int) -> int:
        return max(1, round(count * options.size))

    common: dict[str, Any] = {"seed": options.seed, "say": say, "command": command}
    if section == "budget":
        return thinking_rules.budgets(llm, sized(20_000), **common)
    if section == "schema":
        return thinking_rules.judge(thinking_rules.schema_answers(llm, sized(1000), **common), validator())
    if section == "curve":
        return thinking.curve(llm, problems=sized(2400), **common)
    if section == "auto":
        return thinking_auto.auto(llm, sized(4000), threshold=options.threshold, **common)
    if section == "turn":
        return thinking_live.second_turns(llm, sized(20), **common)
    limits = tuple(float(word) for word in options.limits.split(","))
    return thinking_live.time_limits(llm, sized(500), limits, options.crowd, -(-options.crowd * 2 // 3), **common)


def verdict(section: str, result: Result) -> dict[str, bool]:
    """The acceptance criteria that a result speaks of, by name."""
    if section == "budget":
        return {"no violation": result["violations"] == 0}
    if section == "schema":
        return {} if result["valid"] is None else {"all valid": result["valid"] == result["of"]}
    if section == "curve":
        return {
            "rises 30 points": result["rise"] >= 30,
            "monotone": result["monotone"],
            "within 2.5 points": result["half_width"] <= 2.5,
        }
    if section == "auto":
        return {f"{part}: {name}": met for part in ("all", "short") for name, met in result[part]["met"].items()}
    if section == "turn":
        met = {}
        for run in result["runs"]:
            for kind, found in run["kinds"].items():
                same = found["same_bits"] if run["invariant"] else found["same_tokens"]
                met[f"{run['run']}: {kind}, as a cold engine"] = same == found["of"]
                if not run["loaded"]:  # under load nothing is computed ahead, and the usual cache has to do
                    met[f"{run['run']}: {kind}, tokens recomputed"] = found["kept"] == found["of"]
        return met
    return {
        "in time": result["in_time"] >= 0.99 * result["of"],
        "ended by themselves": result["stop"] >= 0.95 * result["in_time"],
        "half of the time is used": result["used_of"] > 0 and result["used_mean"] >= 0.5,
    }


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    out.add_argument("sections", nargs="+", help=f"some of {', '.join(SECTIONS)}; or: judge FILE")
    out.add_argument("--out", type=Path, default=Path("."), help="folder for the files")
    out.add_argument("--size", type=float, default=1.0, help="share of the full extent")
    out.add_argument("--model", help="folder, tag or hub id; none: the embedded model")
    out.add_argument("--device")
    out.add_argument("--dtype")
    out.add_argument("--max-batch", type=int, help="most sequences at once, of curve and auto")
    out.add_argument("--seed", type=int, default=1)
    out.add_argument("--threshold", type=float, help="of mode auto; none: the default")
    out.add_argument("--limits", default="1,2,4", help="seconds, of time")
    out.add_argument("--crowd", type=int, default=96, help="requests there at once, of time")
    return out


def main() -> int:
    options = parser().parse_args()
    from qwen3.evaluate.thinking_rules import judge

    if options.sections[0] == "judge":
        path = Path(options.sections[1])
        result = judge(json.loads(path.read_text(encoding="utf-8")), validator())
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        say(f"{result['valid']} of {result['of']} valid")
        return 0 if result["valid"] == result["of"] else 1
    for section in options.sections:
        if section not in SECTIONS:
            raise SystemExit(f"error: there is no section {section!r}; take some of {', '.join(SECTIONS)}")
    from qwen3 import LLM

    options.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "tools/thinking_campaign.py", *sys.argv[1:]])
    missed = False
    with LLM(options.model, options.device, options.dtype, max_batch=options.max_batch, prefill_ahead=False) as llm:
        for section in options.sections:
            say(f"== {section}")
            try:
                result = measure(section, llm, options, command)
            except Exception:  # the other sections are measured all the same
                traceback.print_exc()
                missed = True
                continue
            met = verdict(section, result)
            path = options.out / f"thinking-{section}.json"
            path.write_text(json.dumps({**result, "met": met}, indent=1) + "\n", encoding="utf-8")
            missed |= not all(met.values())
            for name, good in met.items():
                say(f"{'met   ' if good else 'MISSED'} {name}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
