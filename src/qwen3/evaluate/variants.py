"""Suites with their questions changed and their answers kept, or computed anew: `gsm8k+names`, `gpqa+options2`.

A model that knows how answers the copy as well as the original; one that remembers does not. Items keep their ids, so
that a run of the variant is compared with one of the suite item by item; items that cannot be changed are left out.

* names: people of the question get other names of the same gender.
* irrelevant: a sentence that has nothing to do with the question stands before it.
* options: the options of a multiple choice are turned by one place; options2 by two, and so on.
* numbers: of GSM8K, numbers of the question are changed, and the answer computed by its solution's own annotations.
  (Generated suites have copies without end: another seed.)
"""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score.options import permuted
from qwen3.evaluate.types import Item, Suite

KINDS = ("names", "irrelevant", "options", "numbers")
_GIRLS = (
    "Alice|Amy|Anna|Ann|Betty|Brenda|Carla|Carol|Cindy|Claire|Debbie|Diana|Elena|Ella|Emily|Emma|Grace|Hannah|"
    "Helen|Jane|Janet|Jasmine|Jenny|Jessica|Jill|Julia|Julie|Karen|Kate|Kim|Laura|Lily|Linda|Lisa|Lucy|Maria|"
    "Marie|Martha|Mary|Melissa|Mia|Nancy|Natalie|Nina|Olivia|Rachel|Rebecca|Sally|Samantha|Sandra|Sara|Sarah|"
    "Sophia|Sophie|Stella|Susan|Tina|Wendy|Zoe"
)
_BOYS = (
    "Aaron|Adam|Alan|Albert|Alex|Andrew|Andy|Ben|Billy|Bob|Bobby|Brad|Brian|Carl|Charles|Charlie|Daniel|Dan|Dave|"
    "David|Derek|Edward|Eric|Ethan|Fred|Gary|George|Greg|Harry|Henry|Jacob|Jake|James|Jason|Jeff|Jerry|Jim|Jimmy|"
    "Joe|John|Johnny|Jose|Josh|Juan|Kevin|Kyle|Larry|Leo|Luke|Marcus|Martin|Matt|Michael|Mike|Nick|Noah|Oliver|"
    "Paul|Peter|Phil|Ralph|Randy|Richard|Rick|Robert|Roger|Ron|Ryan|Sam|Scott|Sean|Steve|Steven|Ted|Thomas|Tim|"
    "Toby|Tom|Tommy|Tony|Travis|Tyler|Victor|Vincent|Walter|William|Zach"
)
_NAMED = re.compile(rf"\b(?:(?P<girl>{_GIRLS})|(?P<boy>{_BOYS}))\b")
_NEW = {
    "girl": ("Aroha", "Birgitta", "Chidinma", "Dilnoza", "Eithne", "Freyja", "Gulnara", "Hinewai", "Ingunn", "Katalin"),
    "boy": ("Anselm", "Bogdan", "Chukwudi", "Dmitar", "Eirik", "Farhod", "Gergely", "Haruki", "Ignatius", "Kwabena"),
}
_BESIDE = (
    "It had rained in the morning, and the streets were still wet.",
    "The library across the road is painted green.",
    "A cat was asleep on the windowsill all afternoon.",
    "The radio in the next room played an old song.",
    "Somebody had left a bicycle beside the gate.",
)


def variant(suite: Suite, kind: str) -> Suite:
    """The suite with its items changed. kind: one of KINDS, with a number behind it for other choices of the same.
    Raises UsageError for what is no kind, and for one that the suite's items do not allow (when they are loaded)."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})([1-9]\d{{0,3}})?", kind)
    if match is None:
        raise UsageError(f"{suite.name}+{kind}: there is no such variant; use {', '.join(KINDS)}")
    name, number = match[1], int(match[2] or 1)
    if name == "numbers" and suite.name != "gsm8k":
        raise UsageError(f"{suite.name}+numbers: only gsm8k's solutions say how an answer follows from its numbers")
    return replace(
        suite,
        name=f"{suite.name}+{kind}",
        title=f"{suite.title}, {kind} changed",
        load=partial(_load, suite, name, number),
        references=(),
        notes=f"{suite.notes} A changed copy of {suite.name}: published values do not apply.".strip(),
    )


def _load(suite: Suite, kind: str, number: int, local: str | None) -> list[Item]:
    if kind == "numbers":
        from qwen3.evaluate.suites import gsm8k

        return gsm8k.load(local, change=partial(_row, number))
    items = suite.load(local)
    changed = [new for item in items if (new := perturbed(item, kind, number)) is not None]
    if not changed:
        raise UsageError(f"{suite.name}+{kind}: none of its {len(items)} items can be changed so")
    return changed


def perturbed(item: Item, kind: str, number: int = 1) -> Item | None:
    """The item with its last question changed, None where that cannot be done without touching its answer."""
    if kind == "options":
        options = item.gold.get("options") if isinstance(item.gold, Mapping) else None
        return permuted(item, number) if options and number % len(options) else None
    rng = random.Random(f"{kind}/{number}/{item.id}")
    content = str(item.messages[-1]["content"])
    if kind == "irrelevant":
        new = f"{rng.choice(_BESIDE)} {content}"
    else:
        people = {match[0]: str(match.lastgroup) for match in _NAMED.finditer(content)}
        if not people or _NAMED.search(json.dumps(item.gold, default=str)):
            return None
        fresh = {kind: rng.sample(names, len(names)) for kind, names in _NEW.items()}
        if any([*people.values()].count(kind) > len(names) for kind, names in fresh.items()):
            return None
        others = {person: fresh[kind].pop() for person, kind in people.items()}
        new = _NAMED.sub(lambda match: others[match[0]], content)
    return replace(item, messages=(*item.messages[:-1], {**item.messages[-1], "content": new}))


_ANNOTATED = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")
# What may stand in a solution without having been read in the question: days, months, dozens, cents, …
_USUAL = {Fraction(n) for n in (0, 1, 2, 3, 4, 7, 10, 12, 24, 30, 31, 36, 50, 52, 60, 100, 365, 1000)}


def _row(number: int, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """A row of GSM8K with other numbers."""
    question, solution = str(row.get("question", "")), str(row.get("answer", ""))
    rng = random.Random(f"numbers/{number}/{question}")
    new = renumbered(question, solution, rng)
    return None if new is None else {**row, "question": new[0], "answer": f"#### {new[1]}"}


def renumbered(question: str, solution: str, rng: random.Random) -> tuple[str, int] | None:
    """(question with other numbers, its answer), or None where the annotations do not say beyond doubt how the answer
    follows. A number that is changed stands once in the question and is none that a solution may use of itself; no step
    but the last gives such a number, or one of the question; the steps give the old answer from the old numbers; all
    results stay whole and positive."""
    try:
        steps = [(left.replace(",", ""), _number(right)) for left, right in _ANNOTATED.findall(solution)]
        shown = [(match, _number(match[0])) for match in _NUMBER.finditer(question)]
        used = {_number(text) for left, _ in steps for text in _NUMBER.findall(left)}
        final = _number(solution.rpartition("####")[2])
    except ValueError:
        return None
    values, results = [value for _, value in shown], [result for _, result in steps]
    free = [v for v in values if v in used and values.count(v) == 1 and v not in {*_USUAL, *results} and v % 1 == 0]
    # A number in the question that no step uses may tell of another that does ("each of his 5 friends" …).
    told = all(value in used or value in _USUAL for value in values)
    apart = {*results[:-1]}.isdisjoint({*values, *_USUAL})  # else an operand may be either
    if not free or not told or not apart or results[-1] != final or _replay(steps, {}) != results:
        return None
    for _ in range(50):
        changed = {value: value + rng.choice([d for d in range(-9, 10) if d and value + d > 4]) for value in free}
        new = _replay(steps, changed)
        if new and new[-1] != final and _whole(new, results):
            text = question
            for match, value in reversed(shown):
                if value in changed:
                    text = f"{text[: match.start()]}{changed[value]}{text[match.end() :]}"
            return text, int(new[-1])
    return None


def _number(text: str) -> Fraction:
    """Raises ValueError for what is no number."""
    return Fraction(text.strip().replace(",", ""))


def _whole(new: Sequence[Fraction], old: Sequence[Fraction]) -> bool:
    return all(n > 0 and (n.denominator == 1 or o.denominator > 1) for n, o in zip(new, old, strict=True))


def _replay(steps: Sequence[tuple[str, Fraction]], changed: Mapping[Fraction, Fraction]) -> list[Fraction] | None:
    """The steps' results when numbers are others; an operand that an earlier step gave is that step's new result."""
    now, found = dict(changed), list[Fraction]()
    for left, right in steps:
        try:
            found.append(_value(ast.parse(left.strip(), mode="eval").body, now))
        except (ValueError, SyntaxError, ZeroDivisionError, RecursionError):
            return None
        if right in now and now[right] != found[-1]:
            return None  # two numbers that were equal are so no more: which of them a step means cannot be told
        now[right] = found[-1]
    return found


def _value(node: ast.expr, now: Mapping[Fraction, Fraction]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = Fraction(str(node.value))
        return now.get(value, value)
    if isinstance(node, ast.BinOp):
        a, b = _value(node.left, now), _value(node.right, now)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.Div):
            return a / b
    raise ValueError("not an annotation's arithmetic")
