"""IFEval's 25 verifiable instructions, each checked by a few lines, and the benchmark's strict and loose reading.

Zhou et al., "Instruction-Following Evaluation for Large Language Models" (arXiv 2311.07911). What an instruction means
where the paper leaves it open is what the official program does, since published values are made by it; the comparison
with it, and each class of what differs, is in benchmarks/2026-11-23-scorers-ifeval.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score.ifeval.checks import CHECKS
from qwen3.evaluate.types import Score

Instruction = Mapping[str, Any]
"""{"id": one of CHECKS, and its arguments}."""


def instructions(where: str, ids: Sequence[str], arguments: Sequence[Any]) -> list[dict[str, Any]]:
    """The instructions of a row of the data set, whose arguments come as objects (those not used are null) or as JSON.
    Raises UsageError, which begins with `where`, for an instruction that is not known or lacks an argument."""
    if len(ids) != len(arguments) or not ids:
        raise UsageError(f"{where}: {len(ids)} instructions with {len(arguments)} sets of arguments")
    found = []
    for name, given in zip(ids, arguments, strict=True):
        if name not in CHECKS:
            raise UsageError(f"{where}: unknown instruction {name!r}; there are: {', '.join(CHECKS)}")
        try:
            given = json.loads(given) if isinstance(given, str) else given or {}
        except ValueError as error:
            raise UsageError(f"{where}: the arguments of {name} are not JSON ({error})") from None
        if not isinstance(given, Mapping):
            raise UsageError(f"{where}: the arguments of {name} are not an object")
        needed = CHECKS[name].needs
        if missing := [key for key in needed if given.get(key) is None]:
            raise UsageError(f"{where}: {name} lacks its argument {missing[0]!r}")
        found.append({"id": name, **{key: given[key] for key in needed}})
    return found


def follows(response: str, instruction: Instruction, *, multilingual: bool = False) -> bool:
    """Whether a response follows an instruction, read strictly: as it is. An empty one follows none. multilingual:
    words, sentences and quotation marks by the response's own language, as Multi-IF has them."""
    arguments = {key: value for key, value in instruction.items() if key != "id"}
    check = CHECKS[instruction["id"]]
    return bool(response.strip()) and check.follows(response, multilingual=multilingual, **arguments)


def readings(response: str) -> list[str]:
    """The eight texts of the loose reading: with and without asterisks, the first line, the last line, both."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys(cut + [text.replace("*", "") for text in cut]))


def score(response: str, asked: Sequence[Instruction], *, multilingual: bool = False) -> Score:
    """Right where every instruction is followed strictly. parts: `prompt_strict`, `prompt_loose`; the share of the
    instructions followed, `instruction_strict` and `instruction_loose`; and each one's, `strict <id>`, `loose <id>`,
    of which `instruction_level` makes the benchmark's other number."""
    texts = readings(response)
    strict = [follows(response, one, multilingual=multilingual) for one in asked]
    loose = [
        done or any(follows(text, one, multilingual=multilingual) for text in texts[1:])
        for done, one in zip(strict, asked, strict=True)
    ]
    parts: dict[str, float] = {}
    for name, done in (("strict", strict), ("loose", loose)):
        parts |= {f"prompt_{name}": float(all(done)), f"instruction_{name}": sum(done) / len(done)}
        for one in dict.fromkeys(i["id"] for i in asked):
            same = [d for d, i in zip(done, asked, strict=True) if i["id"] == one]
            parts[f"{name} {one}"] = sum(same) / len(same)
    broken = [i["id"] for d, i in zip(strict, asked, strict=True) if not d]
    return Score(parts["prompt_strict"], "wrong" if broken else "right", None, parts, ", ".join(broken))


def instruction_level(parts: Iterable[Mapping[str, float]], reading: str = "strict") -> float:
    """The share of all instructions of all prompts that are followed. reading: strict or loose. Raises ValueError where
    there are none."""
    values = [value for one in parts for name, value in one.items() if name.startswith(f"{reading} ")]
    if not values:
        raise ValueError(f"no {reading!r} parts")
    return sum(values) / len(values)
