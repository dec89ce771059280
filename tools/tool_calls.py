"""How often a model's tool calls are whole and follow the tool's schema: held to their form, and left to the model.

    python tools/tool_calls.py [--model NAME] [--out benchmarks/DATE-tool-calls.json]

`tool_choice` is "auto", so whether there is a call is the model's own affair. Both ways get the same seeds, in turns.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.asking import Form
from qwen3.chat import Result
from qwen3.evaluate.crowd import Case, asker, drive
from qwen3.evaluate.machine import commit, describe

TEXT = {"type": "string"}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "description": "Current date and time of a time zone",
            "parameters": {"type": "object", "properties": {"zone": TEXT}, "required": []},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "calculate",
            "description": "Calculate the value of an expression",
            "parameters": {"type": "object", "properties": {"expression": TEXT}, "required": ["expression"]},
        },
    },
]


def kind(result: Result) -> str:
    """What became of an answer: "no call", "valid", "breaks the schema", "malformed" (text, with a warning)."""
    if any("tool call" in warning for warning in result.warnings):
        return "malformed" if result.finish_reason != "length" else "cut off"
    if not result.tool_calls:
        return "no call"
    for call in result.tool_calls:
        parameters = next((t["function"]["parameters"] for t in TOOLS if t["function"]["name"] == call.name), False)
        closed = parameters and {**parameters, "additionalProperties": False}
        if not jsonschema.Draft202012Validator(closed).is_valid(json.loads(call.arguments)):
            return "breaks the schema"
    return "valid"


def run(llm: LLM, form: Form, mode: Any, count: int) -> tuple[Counter[str], int, float]:
    """(kinds, tokens, seconds) of `count` questions, 32 at once."""
    ask, rng = asker(llm), random.Random(0)

    def cases() -> Any:
        for seed in range(count):
            question = f"Please calculate {rng.randrange(10, 100)} * {rng.randrange(10, 100)} with the tool."
            params = SamplingParams(seed=seed, max_tokens=1024)
            yield Case(ask([{"role": "user", "content": question}], form, ThinkingPolicy(mode), params), {})

    began = time.perf_counter()
    found = [result for _, result in drive(llm.engine, cases(), 32)]
    seconds = time.perf_counter() - began
    return Counter(map(kind, found)), sum(r.usage.completion_tokens for r in found if r.usage), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    llm = LLM(options.model, max_batch=32)
    held = Form.of(TOOLS)
    ways = {"held to their form": held, "left to the model": replace(held, constraint=None)}
    found: list[dict[str, Any]] = []
    for mode in ("on", "off"):
        run(llm, held, mode, 32)
        for way, form in ways.items():
            kinds, tokens, seconds = run(llm, form, mode, options.count)
            found.append(
                {
                    "thinking": mode,
                    "calls": way,
                    **kinds,
                    "tokens": tokens,
                    "tokens_per_second": round(tokens / seconds),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    result = {
        "what": f"{options.count} products of two numbers of two digits, asked for with a tool, tool_choice auto",
        "model": options.model,
        "commit": commit(),
        "machine": describe(llm.device),
        "results": found,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
