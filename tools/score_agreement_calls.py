"""How far our check of tool calls agrees with BFCL's official one, on calls made right and made wrong.

    pip install --no-deps bfcl-eval
    python tools/score_agreement_calls.py --out benchmarks/DATE-scorers-calls.json

Each question of the single-turn categories whose calls are checked gets calls drawn from its published answers: right
ones, in several spellings, and mutated ones. Both checkers see the same calls. The truth by construction is known for
right calls and for the mutations that no list of right values can excuse.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import types
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from qwen3.checkpoint.journal import write_atomic
from qwen3.evaluate.machine import commit
from qwen3.evaluate.score import calls
from qwen3.evaluate.suites import bfcl
from qwen3.evaluate.types import Item

Made = list[tuple[str, dict[str, Any]]]


def official() -> Any:
    """The official checker. The table of models that it imports needs every vendor's client, and is asked for one fact:
    whether dots in names were written as underscores."""
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"qwen3": types.SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[table.__name__] = table
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(item: Item, made: Made) -> bool:
        gold = item.gold
        shown = [{calls.safe_name(name): arguments} for name, arguments in made]
        language = Language(gold["language"])
        return bool(
            ast_checker(gold["functions"], shown, gold["expected"], language, gold["category"], "qwen3")["valid"]
        )

    return check


def ours(item: Item, made: Made) -> bool:
    wire = [
        {"type": "function", "function": {"name": calls.safe_name(name), "arguments": json.dumps(arguments)}}
        for name, arguments in made
    ]
    gold = item.gold
    return not calls.mismatch(gold["functions"], calls.calls_of(wire), gold["expected"], gold["language"])


def right(item: Item, rng: random.Random) -> Made:
    """One of the right answers."""
    return [
        (name, drawn(values, item.gold, name, rng)) for one in item.gold["expected"] for name, values in one.items()
    ]


def drawn(values: dict[str, list[Any]], gold: dict[str, Any], name: str, rng: random.Random) -> dict[str, Any]:
    about = next(f for f in gold["functions"] if f["name"] == name)["parameters"]
    found = {}
    for key, options in values.items():
        full = [one for one in options if one != ""]
        if not full or ("" in options and key not in about["required"] and rng.random() < 0.4):
            continue
        kind = about["properties"].get(key, {})
        value = plain(rng.choice(full), rng) if kind.get("type") in ("dict", "HashMap") else rng.choice(full)
        if kind.get("type") == "array" and (kind.get("items") or {}).get("type") == "dict" and isinstance(value, list):
            value = [plain(one, rng) for one in value]
        found[key] = value if gold["language"] == calls.PYTHON else source(value, kind, gold["language"])
    return found


def plain(value: Any, rng: random.Random) -> Any:
    """A dictionary whose values are lists of right ones, as a dictionary of values."""
    if not isinstance(value, dict):
        return value
    full = {key: [one for one in options if one != ""] for key, options in value.items()}
    return {key: rng.choice(options) for key, options in full.items() if options}


def source(value: Any, about: dict[str, Any], language: str) -> str:
    """A value as Java or JavaScript source text."""
    kind, inner = about.get("type"), (about.get("items") or {}).get("type")
    java = language == calls.JAVA
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        parts = [source(one, {"type": inner}, language) if inner else json.dumps(one) for one in value]
        if java and inner == "String":
            parts = [json.dumps(one) for one in value]
        if not java:
            return f"[{', '.join(json.dumps(one) if isinstance(one, str) else str(one) for one in value)}]"
        if kind == "ArrayList":
            return f"new ArrayList<>(Arrays.asList({', '.join(parts)}))" if value else "new ArrayList<>()"
        return f"new String[]{{{', '.join(parts)}}}"
    if isinstance(value, dict):
        if java:
            puts = " ".join(f'put("{key}", {json.dumps(one)});' for key, one in value.items())
            return f"new HashMap<String, Object>() {{{{ {puts} }}}}" if value else "new HashMap<>()"
        return json.dumps(value)
    if isinstance(value, (int, float)):
        return (
            f"{value}{'L' if kind == 'long' else 'f' if kind == 'float' and java else 'n' if kind == 'Bigint' else ''}"
        )
    return f'"{value}"' if kind == "String" and not java else str(value)


def respelt(made: Made, rng: random.Random) -> Made:
    """The same calls in other letters: case, blanks, commas."""

    def other(value: Any) -> Any:
        if isinstance(value, str):
            return rng.choice([value.upper(), value.lower(), value.replace(" ", ""), value.replace(",", ""), value])
        if isinstance(value, list):
            return [other(one) for one in value]
        if isinstance(value, dict):
            return {key: other(one) for key, one in value.items()}
        return value

    return [(name, {key: other(value) for key, value in arguments.items()}) for name, arguments in made]


def mutated(item: Item, made: Made, kind: str, rng: random.Random) -> Made | None:
    """The calls with one thing changed, None where there is nothing of that kind to change."""
    made = copy.deepcopy(made)
    i = rng.randrange(len(made))
    name, arguments = made[i]
    about = next(f for f in item.gold["functions"] if f["name"] == name)["parameters"]
    if kind == "order":
        return made[::-1] if len(made) > 1 else None
    if kind == "drop call":
        return made[:i] + made[i + 1 :]
    if kind == "extra call":
        return [*made, made[i]]
    if kind == "name":
        made[i] = (name + "_x", arguments)
        return made
    if kind == "argument added":
        arguments["no_such_argument"] = 1 if item.gold["language"] == calls.PYTHON else "1"
        return made
    if kind == "required dropped":
        if not (there := [key for key in about["required"] if key in arguments]):
            return None
        del arguments[rng.choice(there)]
        return made
    if not arguments:
        return None
    key = rng.choice(list(arguments))
    value = arguments[key]
    changed = changes(value, kind, rng)
    if changed is None:
        return None
    arguments[key] = changed
    return made


def changes(value: Any, kind: str, rng: random.Random) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "value":
        if isinstance(value, bool):
            return not value
        return value + 9173 if number else value + " zqx9" if isinstance(value, str) else None
    if kind == "type":
        return {str: 5, bool: "yes", int: str(value), float: str(value), list: {"a": 1}, dict: [1]}.get(type(value))
    if kind == "int and float":
        return int(value) if isinstance(value, float) and value == int(value) else float(value) if number else None
    if kind == "null":
        return None if value is None else Null
    if kind == "list":
        if not isinstance(value, list) or not value:
            return None
        return rng.choice([value[:-1], value[::-1], [*value, value[0]], [], [str(one) for one in value], value[0]])
    if kind == "dictionary":
        if not isinstance(value, dict) or not value:
            return None
        gone = rng.choice(list(value))
        return rng.choice(
            [{k: v for k, v in value.items() if k != gone}, {**value, "zqx": 1}, {**value, gone: "zqx"}, {}]
        )
    return None


class Null:
    """JSON's null, where None means that nothing is changed."""


KINDS = {
    "order": None,
    "drop call": False,
    "extra call": False,
    "name": False,
    "argument added": False,
    "required dropped": False,
    "value": None,
    "type": None,
    "int and float": None,
    "null": None,
    "list": None,
    "dictionary": None,
}
"""Whether calls so mutated are right; None: it depends on the question."""


def explained(item: Item, agreed: bool) -> str:
    """Why the two differ, or both are not true."""
    if not agreed:
        return "not explained"
    if item.gold["language"] == calls.JAVA:
        return (
            "not right by either: the official reading of a Java list keeps the quotes of an array's strings, and "
            "takes items of type any as text, so that an idiomatic literal is not the published value; so does ours"
        )
    return "not right by either: the published answer lacks a required argument, or has one that the function does not"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the folder of the data, None: the package's")
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    rng, check = random.Random(given.seed), official()
    counts: dict[str, Counter[str]] = {}
    differ: list[dict[str, Any]] = []
    raised: Counter[str] = Counter()
    for item in bfcl.load(given.data):
        if item.gold["expected"] is None:
            continue
        base = right(item, rng)
        trials: list[tuple[str, Made | None, bool | None]] = [
            ("right", base, True),
            ("respelt", respelt(base, rng), None),
        ]
        trials += [(kind, mutated(item, base, kind, rng), truth) for kind, truth in KINDS.items()]
        for kind, made, truth in trials:
            if made is None:
                continue
            made = [(n, {k: None if v is Null else v for k, v in a.items()}) for n, a in made]
            count = counts.setdefault(f"{item.about['category']} | {kind}", Counter())
            mine = ours(item, copy.deepcopy(made))
            try:
                theirs = check(item, copy.deepcopy(made))
            except Exception as error:  # the official program stops here; a call it cannot check is not right
                raised[f"{type(error).__name__}: {error}"[:80]] += 1
                count["official raises"] += 1
                theirs = False
            count["calls"] += 1
            count["agree"] += mine == theirs
            count["right by ours"] += mine
            if truth is not None:
                count["truth known"] += 1
                count["ours true"] += mine == truth
                count["official true"] += theirs == truth
            if mine != theirs or (truth is not None and mine != truth):
                differ.append(
                    {"id": item.id, "kind": kind, "ours": mine, "official": theirs, "truth": truth, "calls": made}
                    | {"class": explained(item, mine == theirs)}
                )
    total = sum(counts.values(), Counter())
    result = {
        "what": f"our check of tool calls and BFCL's official one (bfcl-eval {version('bfcl-eval')}) on the same calls",
        "command": "python tools/score_agreement_calls.py --out FILE",
        "date": str(date(2026, 11, 23)),
        "machine": "2 shared EPYC cores",
        "commit": commit(),
        "seed": given.seed,
        "total": dict(total),
        "agreement": total["agree"] / total["calls"],
        "truth by ours": total["ours true"] / total["truth known"],
        "truth by official": total["official true"] / total["truth known"],
        "official raises": dict(raised),
        "classes": dict(Counter(one["class"] for one in differ)),
        "by kind": {name: dict(count) for name, count in sorted(counts.items())},
        "not agreed or not true": differ,
    }
    write_atomic(Path(given.out), [json.dumps(result, indent=1, ensure_ascii=False).encode(), b"\n"])
    print(json.dumps({key: result[key] for key in ("total", "agreement", "classes", "official raises")}, indent=1))


if __name__ == "__main__":
    main()
