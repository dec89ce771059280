r"""Mathematical answers: what an answer's text states, and whether that is the reference.

What is stated, the most explicit form first, within a form the last: \boxed{…} (several that one sentence joins are one
list), `#### 42`, "the answer is …" in many languages, and where there is none of these the last formula, number or line
of few words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from qwen3.errors import UsageError
from qwen3.evaluate.score.math_same import tidy, value
from qwen3.evaluate.score.math_workers import same
from qwen3.evaluate.types import Answer, Item, Score

ASK = r"Please reason step by step, and put your final answer within \boxed{}."
"""Qwen3's model cards, "Standardize Output Format"."""


def math_item(id: str, problem: Any, gold: str | int, about: Mapping[str, Any], *, ask: str = ASK) -> Item:
    """An item that shows a problem and asks for a boxed answer. Raises UsageError for an empty problem or reference."""
    if not isinstance(problem, str) or not problem.strip() or not str(gold).strip():
        raise UsageError(f"item {id}: needs a problem and its answer, both texts")
    return Item(id, ({"role": "user", "content": f"{problem.strip()}\n\n{ask}"},), gold, dict(about))


def whole(answer: Any, where: str) -> int:
    """The whole number that a data set's reference is, \\boxed{} and thousands separators apart. Raises UsageError."""
    text = str(answer)
    boxed = [content for _, _, content in boxes(text)]
    found = value(tidy(boxed[-1] if boxed else text))
    if found is None or found.number.denominator != 1:
        raise UsageError(f"{where}: the answer {text[:60]!r} is no whole number")
    return int(found.number)


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:\{|(?=[\d\\a-zA-Z]))")
_JOINED = re.compile(
    r"[\s$.\\()\[\]]*(?:,|;|and|or|,\s*and|,\s*or|\\text\{\s*(?:and|or)\s*\}|和|或|y|und|et|и|\\quad|&|\s|[a-zA-Z](?:_\{?\w\}?)?\s*=)*[\s$.\\()\[\]]*"
    r"(?:[a-zA-Z](?:_\{?\w\}?)?\s*=\s*)?"
)
_HASHES = re.compile(r"^\s*#{4}\s*(\S.*?)\s*$", re.M)
_CUE = re.compile(
    r"(?:\b(?:final|correct|right)?\s*answer\b(?:\s+to\s+[^.\n]{0,80}?)?(?:\s*(?:is|are|was|would\s+be|must\s+be|equals)\b|\s*\**\s*[:=：])"
    r"|\b(?:antwort|réponse|respuesta|resposta|risposta|jawaban|jibu|đáp\s+án|ответ|cevap)\b\s*(?:finale?|final|akhir)?\s*\**\s*(?:[:：]|\b(?:ist|est|es|é|è|adalah|ni|là)\b|-|–|—)"
    r"|(?:最终)?答案(?:是|为|為)?\s*\**\s*[:：]?|答(?:え|案)?(?:は|:|：)|정답은?\s*[:：]?|답(?:은|:)|الإجابة(?:\s+النهائية)?\s*(?:هي)?\s*[:：]?|উত্তর\s*[:ঃ：]?"
    r"|సమాధానం\s*[:：]?|คำตอบ(?:คือ)?\s*[:：]?)\s*",
    re.I,
)
_FORMULA = re.compile(
    r"\$\$(.{1,2000}?)\$\$|\\\[(.{1,2000}?)\\\]|(?<!\\)\$((?:\\.|[^$\n]){1,2000}?)(?<!\\)\$|\\\((.{1,2000}?)\\\)", re.S
)
_PROSE = re.compile(r"(?:^|\s)[a-zA-Z]{2,}(?=\s|$)")
_NUMBER = re.compile(
    r"(?<![\w.])-?(?:\\?\$\s*)?-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?(?:\s*\\?%)?|(?<![\w.])-?\.\d+"
)
_END = re.compile(r"(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s+\D|\s*$)|[。!?！？]|\n")


def boxes(text: str) -> Iterator[tuple[int, int, str]]:
    r"""(start, end, content) of each \boxed{…} that closes and is not empty, braces nested; \boxed 5, too."""
    closes, opened = dict[int, int](), list[int]()
    for brace in re.finditer(r"\\.|[{}]", text, re.S):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closes[opened.pop()] = brace.start()
    for m in _BOX.finditer(text):
        if text[m.end() - 1] != "{":
            if bare := re.compile(r"\\[a-zA-Z]+(?:\{[^{}]*\})*|-?[\w.]+").match(text, m.end()):
                yield m.start(), bare.end(), bare[0]
        elif (end := closes.get(m.end() - 1)) and (inside := text[m.end() : end].strip()):
            yield m.start(), end + 1, inside


def extract(text: str, *, number: bool = False) -> str | None:
    """What an answer states. number: the reference is one number, so that of prose around a number only the number
    counts. None where there is nothing that could be an answer."""
    stated = _boxed(text) or _hashed(text) or _said(text, number) or _last(text, number)
    if stated is None or not stated.strip(" .$*"):
        return None
    return _only_number(stated) if number else stated


def _inside(m: re.Match[str]) -> str:
    """What a formula's marks hold; "" where that is prose between two dollar signs of prices."""
    inside = next(filter(None, m.groups())).strip()
    return "" if _PROSE.search(re.sub(r"\\[a-zA-Z]+\s*\{[^{}]*\}", "", inside)) else inside


def _last(text: str, number: bool) -> str | None:
    formulas = [(m.end(), inside) for m in _FORMULA.finditer(text) if (inside := _inside(m))]
    numbers = [(m.end(), m[0]) for m in _NUMBER.finditer(text)]
    if number and numbers:
        within = formulas and formulas[-1][0] >= numbers[-1][0] and re.search(r"frac|sqrt|\\pi|\^", formulas[-1][1])
        return formulas[-1][1] if within else numbers[-1][1]
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not formulas and len(lines) == 1 and len(lines[0]) <= 60 and not number:
        return lines[0]
    return next((found[-1][1] for found in (formulas, numbers) if found), None)


def _boxed(text: str) -> str | None:
    found = list(boxes(text))
    if not found:
        return None
    joined = [found[-1]]
    for box in reversed(found[:-1]):
        between = text[box[1] : joined[0][0]]
        if len(between) > 40 or not between.strip(" $.\\()[]\n") or not _JOINED.fullmatch(between) or "\n\n" in between:
            break
        joined.insert(0, box)
    return ", ".join(dict.fromkeys(content for _, _, content in joined))


def _hashed(text: str) -> str | None:
    found = _HASHES.findall(text)
    return found[-1] if found and re.search(r"[\d\\$]", found[-1]) else None


def _said(text: str, number: bool) -> str | None:
    """What follows the last "the answer is": the formula that begins there, else the rest of the sentence."""
    for cue in reversed(list(_CUE.finditer(text))[-50:]):
        rest = text[cue.end() : cue.end() + 2500].lstrip(" \n*_:：`")
        formula = _FORMULA.match(rest)
        if formula and (inside := _inside(formula)):
            return inside + (rest[formula.end()] if rest[formula.end() : formula.end() + 1] == "%" else "")
        sentence = rest[: end.start()] if (end := _END.search(rest)) else rest
        if not number and (inner := _FORMULA.search(sentence)) and (inside := _inside(inner)):
            return inside
        sentence = re.sub(r"\*+|`", "", sentence).strip()
        if sentence and (not number or re.search(r"\d", sentence)) and len(sentence) <= 200:
            return re.sub(r"^(?:that|the|a|an|simply|therefore|thus|just|indeed)\s+", "", sentence)
    return None


def _only_number(stated: str) -> str:
    """The first number in a statement's prose; the statement where it is no prose around numbers."""
    if re.search(r"[\\^=+*()]", re.sub(r"\\[$%!,; ]|\\text\{[^{}]*\}", "", stated)):
        return stated
    found = [m[0] for m in _NUMBER.finditer(stated)]
    return found[0] if found and re.search(r"[^\W\d_]", stated) else stated


def score(item: Item, answer: Answer) -> Score:
    """Right where the answer states `item.gold`: a text, or a number for suites whose answers are all numbers. unparsed
    where it states nothing. Raises UsageError where math-verify is needed and not installed."""
    return compare(item.gold, answer.content)


def compare(gold: Any, text: str) -> Score:
    """The score of a text against a reference, which is a text in LaTeX or a number."""
    found = extract(text, number=isinstance(gold, (int, float)))
    if found is None:
        return Score(0.0, "unparsed", note="no answer in it")
    right, note = same(str(gold), found)
    return Score(float(right), "right" if right else "wrong", found, note=note)
