r"""Whether two mathematical answers are the same: exactly where both are numbers, texts or lists of such, and by
math-verify (sympy) where an expression must be understood.

Numbers are compared as fractions, so that 0.15, .150, 15/100, \frac{3}{20}, 15\% and 1.5\times10^{-1} are one value and
0.0000672 is not 0.000067. A decimal stands for another number only where it is that number's rounding to six places or
more. Units, degrees and currency signs count for nothing, as in the official scorers; a percentage may be written with
or without its sign. Intervals, tuples, sets, matrices and unions are compared part by part.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, NamedTuple

from qwen3.errors import UsageError

LONGEST = 2000  # characters of an answer that are worth understanding

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "—": "-",
        "×": r"\times ",
        "⋅": r"\cdot ",
        "·": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
    }
    | {
        "∪": r"\cup ",
        "∩": r"\cap ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "∈": r"\in ",
        "±": r"\pm ",
        "°": r"^\circ ",
    }
    | {
        "θ": r"\theta ",
        "∅": r"\emptyset ",
        "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
        "\u00a0": " ",
    }
    | {"，": ",", "（": "(", "）": ")", "％": "%", "。": ".", "：": ":", "；": ";", "＝": "=", "、": ","}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
    | {
        chr(start + digit): str(digit)
        for start in (0x0660, 0x06F0, 0x0966, 0x09E6, 0x0C66, 0x0E50)
        for digit in range(10)
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_UNIT = re.compile(
    r"\s*(?:(?:square|cubic|sq\.?|cu\.?)\s+)?"
    r"(?:degrees?|deg|radians?|dollars?|bucks|euros?|pounds?|cents?|percent(?:age)?|inch(?:es)?|in|f(?:oo|ee)?t|yards?|yd"
    r"|miles?|mi|mph|(?:kilo|centi|milli|deci)?met(?:er|re)s?|km|cm|mm|m|(?:kilo|milli)?grams?|kg|mg|g|ounces?|oz|lbs?"
    r"|lit(?:er|re)s?|ml|l|gallons?|hours?|hrs?|h|minutes?|mins?|seconds?|secs?|s|days?|weeks?|months?|years?|units?|people"
    r"|students?|ways?|points?|times|digits?|integers?|solutions?|items?|children|apples?|eggs?|books?|cups?|pieces?|square)"
    r"(?:\s+(?:old|per\s+\w+|squared|cubed|long|wide|tall))?\.?(?:\s*\^\s*\{?[23]\}?|[23])?(?:\s*/\s*[a-z]+)?",
    re.I,
)
_BLANKS = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|quad|qquad|thinspace|displaystyle|textstyle|limits|hfill|phantom\{[^{}]*\})|~"
)
_WRAPS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|mbox|operatorname|bf|rm|boldsymbol|bm)\*?\s*\{([^{}]*)\}"
)
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|\\degree(?![a-z])")
_NAMED = re.compile(
    r"^\s*(?:[A-Za-z]|\\[a-zA-Z]+|[A-Za-z]\([a-z](?:,\s*[a-z])*\)|[A-Za-z]_\{?\w\}?)\s*(?:=|\\in(?![a-z]))\s*(?=\S)"
)


def need() -> None:
    """Raises UsageError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UsageError("scoring mathematics needs math-verify: pip install 'qwen3[eval]'")


class Parts(NamedTuple):
    """An answer of several parts. kind: "()", "(]", "[)", "[]", "{}", "matrix", "list" (no brackets) or "union"."""

    kind: str
    values: tuple[str, ...]


@lru_cache(4096)
def tidy(answer: str) -> str:
    r"""An answer in one way of writing: no math or Markdown marks around it, no sizes of brackets, no fonts, fractions
    and roots in braces, Unicode signs as LaTeX."""
    text = re.sub(
        r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", answer.translate(_CHARACTERS)
    )
    text = re.sub(r"[₀-₉]+", lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\(([^()]*)\)|\w+)", lambda m: r"\sqrt{" + (m[2] or m[1]) + "}", text)
    text = re.sub(r"^\s*\*\*|\*\*\s*$", "", text.replace("\\$", "").replace("$", ""))
    text = re.sub(r"(?<!\\)\\[()\[\]]|[€£¥₹]|\\pounds|\\euro", " ", text)
    text = _SIZES.sub("", text.replace(r"\lbrace", r"\{").replace(r"\rbrace", r"\}"))
    text = re.sub(r"\\(?:d|t|c)frac(?![a-z])", r"\\frac", text)
    text = re.sub(r"(?<=\d)(?:\\!|\\,|\{,\}|,\\!)+\s*(?:,\s*)?(?=\d{3}(?!\d))", ",", text.replace(r",\!", "{,}"))
    text = _BLANKS.sub(" ", text.replace("{,}", ","))
    while (bare := _WRAPS.sub(lambda m: f" {m[1]} " if " " in m[1] or m[1][:1].isalpha() else m[1], text)) != text:
        text = bare
    text = _DEGREE.sub("", text).replace(r"\%", "%").replace(r"\dots", r"\ldots")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\w)", r"\\frac\1{\2}", re.sub(r"\\frac\s*(\w)\s*\{", r"\\frac{\1}{", text))
    text = re.sub(r"\\sqrt\s*(\d|[a-zA-Z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\le(?:q|qslant)?(?![a-z])", r"\\le ", re.sub(r"\\ge(?:q|qslant)?(?![a-z])", r"\\ge ", text))
    text = re.sub(r"(?<!\\)\\\s*$", "", " ".join(text.split())).strip(" ;:`'\"")
    return text.rstrip(" .")


_INTEGER = r"(?:\d{1,3}(?:[,  ]\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"(?P<a>{_DECIMAL})",
        rf"\\frac\{{\s*(?P<sa>[-+]?)(?P<a>{_DECIMAL})\s*\}}\{{\s*(?P<sb>[-+]?)(?P<b>{_DECIMAL})\s*\}}",
        rf"\(?(?P<a>{_DECIMAL})\)?\s*/\s*\(?(?P<sb>-?)(?P<b>{_DECIMAL})\)?",
        r"(?P<whole>\d+)\s*(?:\\frac\{\s*(?P<a>\d+)\s*\}\{\s*(?P<b>\d+)\s*\})",
        r"(?P<whole>\d+)(?:\s+|\s*(?:and|&|-)\s*)(?P<a>\d+)\s*/\s*(?P<b>\d+)",
        rf"(?P<a>{_DECIMAL})\s*(?:\\times|\\cdot|[x*])\s*10\s*\^\s*\{{?\s*(?P<power>-?\d{{1,3}})\s*\}}?",
        rf"(?P<a>{_DECIMAL})[eE](?P<power>[-+]?\d{{1,3}})",
    )
)


class Value(NamedTuple):
    """A number as it was written. places: digits after its point, None for fractions and powers; percent: its sign."""

    number: Fraction
    places: int | None
    percent: bool


def value(text: str) -> Value | None:
    """The number that a tidied answer is, units and percent sign apart. None: it is no plain number."""
    if len(text) > 200:
        return None
    bare, percent = text.strip(), False
    if cut := re.search(r"\s*(?:%|\bpercent(?:age)?s?\b)(?:\s+points?)?$", bare, re.I):
        bare, percent = bare[: cut.start()], True
    while len(bare) > 2 and bare[0] + bare[-1] in ("()", "{}") and not re.search(r"[(){}]", bare[1:-1]):
        bare = bare[1:-1].strip()
    sign = -1 if bare.startswith("-") else 1
    bare = bare.lstrip("-+ ") if not re.match(r"[-+]{2}", bare) else bare
    for end in (len(bare), *((m.start(),) if (m := re.search(r"(?<=[\d}).])\s*[A-Za-z]", bare)) else ())):
        if end < len(bare) and not _UNIT.fullmatch(bare[end:]):
            return None
        for form in _FORMS:
            if m := form.fullmatch(bare[:end].strip()):
                return _value(m, sign, percent)
    return Value(Fraction(_WORDS.index(bare.lower())), 0, False) if bare.lower() in _WORDS else None


def _value(m: re.Match[str], sign: int, percent: bool) -> Value | None:
    found = {"b": "1", "whole": "0", "power": "0", "sa": "", "sb": ""} | {k: v for k, v in m.groupdict().items() if v}
    a, b, whole = (Fraction(re.sub(r"[,\s]", "", found[name]).rstrip(".")) for name in ("a", "b", "whole"))
    if not b:
        return None
    for minus in (found["sa"], found["sb"]):
        sign = -sign if minus == "-" else sign
    number = sign * (whole + a / b) * Fraction(10) ** int(found["power"])
    plain = m.re is _FORMS[0]
    return Value(number, len(found["a"].partition(".")[2]) if plain else None, percent)


def _same_number(gold: Value, found: Value) -> bool:
    pairs = [(gold.number, found.number)]
    if gold.percent != found.percent:
        one, other = (gold.number, found.number / 100) if found.percent else (gold.number / 100, found.number)
        pairs.append((one, other))
    if any(one == other for one, other in pairs):
        return True
    # A long decimal is what a calculator says of the other number, where that one is written as a fraction.
    for rounded, exact in ((found, gold), (gold, found)):
        if rounded.places is not None and rounded.places >= 6 and exact.places is None:
            return abs(rounded.number - exact.number) * 2 <= Fraction(1, 10**rounded.places)
    return False


def _plain_text(text: str) -> str:
    return "".join(re.findall(r"[^\W_]+", text)).casefold()


def _is_text(text: str) -> bool:
    """Whether a tidied answer is words or an option's letter in brackets, not symbols."""
    bare = text.strip("() ")
    return bool(re.fullmatch(r"[^\W\d_]{2,}(?:[ '’-]+[^\W\d_]+)*\.?", bare)) or bool(re.fullmatch(r"\(?[A-Z]\)?", text))


def _based(text: str) -> tuple[str, int | None] | None:
    m = re.fullmatch(r"\(?\s*([0-9A-Fa-f]+)\s*\)?\s*_\s*\{?\s*([a-z]+|\d{1,2})\s*\}?", text)
    if m is None or (m[2].isalpha() and m[2] not in _WORDS):
        return (text.upper(), None) if re.fullmatch(r"[0-9A-F]+", text) else None
    return m[1].upper(), _WORDS.index(m[2]) if m[2].isalpha() else int(m[2])


def quick(gold: str, found: str) -> bool | None:
    """Whether two answers are the same, where that is clear without sympy; None where it is not."""
    if len(found) > LONGEST:
        return False
    one, other = tidy(gold), tidy(found)
    if not other:
        return False
    if one.replace(" ", "") == other.replace(" ", ""):
        return True
    if "_" in one or "_" in other:
        bases = _based(one), _based(other)
        if bases[0] and bases[1]:
            (digits, base), (others, another) = bases[0], bases[1]
            return digits == others and (base == another or None in (base, another))
    ours, theirs = value(_unnamed(one)), value(_unnamed(other))
    if ours is not None and theirs is not None:
        names = [re.sub(r"\s|=", "", m[0]) for text in (one, other) if (m := _NAMED.match(text))]
        return len(set(names)) < 2 and _same_number(ours, theirs)
    if ours is not None and (m := re.fullmatch(r"(-?\d+),(\d+)", other)):
        decimal = value(f"{m[1]}.{m[2]}")  # a decimal comma
        return decimal is not None and _same_number(ours, decimal)
    if (raw := _texts(gold, found)) is not None:
        return raw
    if _is_text(one) and _is_text(other):
        return _plain_text(one) == _plain_text(other)
    return None


def _texts(gold: str, found: str) -> bool | None:
    r"""Words and options: where the reference is \text{…}, or an option's letter in brackets, it is no expression."""
    m = re.fullmatch(r"\s*\\(?:text|textbf|mbox|mathrm)\s*\{\s*(\(?)([^{}\d\\]+?)\)?\s*\}\s*", gold)
    if m is None:
        return None
    wanted, shown = _plain_text(m[2]), tidy(found)
    if m[1] and len(wanted) == 1 and (option := re.match(r"\(\s*([A-Za-z])\s*\)", shown)):
        return option[1].casefold() == wanted
    return wanted == _plain_text(shown)


def _unnamed(text: str) -> str:
    """What is right of `x =` or `x \\in`."""
    return text[m.end() :] if (m := _NAMED.match(text)) else text


def _split(text: str, marks: str) -> list[str]:
    """A text's parts between marks (a regex) that are outside all brackets."""
    found, depth, start, at = [], 0, 0, 0
    mark = re.compile(marks)
    while at < len(text):
        if depth == 0 and (m := mark.match(text, at)):
            found.append(text[start:at].strip())
            start = at = m.end()
            continue
        if text[at] == "\\" and at + 1 < len(text) and text[at + 1] in "{}":
            at += 1
        elif text.startswith(r"\begin{", at) or text.startswith(r"\end{", at):
            depth += 1 if text[at + 1] == "b" else -1
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    return [*found, text[start:].strip()]


def parts(text: str) -> Parts | None:
    """The parts of a tidied answer that has several. None: it is one expression."""
    text = _unnamed(text)
    if m := re.fullmatch(r"\\begin\{([pbB]?matrix|array)\}(?:\{[lcr|]*\})?(.*?)\\end\{\1\}", text):
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", m[2]) if row.strip()]
        return Parts("matrix", tuple(" & ".join(cell.strip() for cell in row.split("&")) for row in rows))
    if len(pieces := _split(text, r"\\cup(?![a-z])")) > 1:
        return Parts("union", tuple(pieces))
    pieces = _split(text, r",|;|\s(?:and|or)\s|\\(?:land|lor|vee|wedge)(?![a-z])")
    if len(pieces) > 1 and all(pieces):
        return Parts("list", _signed(pieces))
    opened = "{" if text.startswith(r"\{") else text[:1]
    closed = "}" if text.endswith(r"\}") else text[-1:]
    if opened in ("(", "[", "{") and closed in (")", "]", "}") and (opened == "{") == (closed == "}"):
        width = 2 if opened == "{" and text.startswith(r"\{") else 1
        inner = [part for part in _split(text[width : len(text) - width], ",|;") if part]
        if len(inner) > 1 or (opened == "{" and width == 2 and inner and not re.search(r"\||\\mid|:", inner[0])):
            return Parts(opened + closed, _signed(inner) if opened == "{" else tuple(inner))
    return Parts("list", both) if len(both := _signed([text])) > 1 else None


def _signed(pieces: Sequence[str]) -> tuple[str, ...]:
    """Each a ± b as a + b and a - b."""
    both = lambda piece: [re.sub(r"\\pm\s?", sign, piece) for sign in "+-"]  # noqa: E731
    return tuple(new for piece in pieces for new in (both(piece) if piece.count(r"\pm") == 1 else [piece]))


def equivalent(gold: str, found: str) -> bool:
    """Whether `found` is the answer `gold`. Raises UsageError where math-verify is needed and not installed.

    It may take arbitrarily long and arbitrarily much memory: `math_workers.same` is what bounds it.
    """
    if (clear := quick(gold, found)) is not None:
        return clear
    one, other = tidy(gold), tidy(found)
    ours, theirs = parts(one), parts(other)
    if ours and theirs and (result := _same_parts(ours, theirs)) is not None:
        return result
    if theirs and theirs.kind == "{}" and len(theirs.values) == 1:
        return equivalent(one, theirs.values[0])
    return _by_sympy(_unset(one, ours), _unset(other, theirs))


def _unset(text: str, found: Parts | None) -> str:
    return found.values[0] if found and found.kind == "{}" and len(found.values) == 1 else text


def _same_parts(gold: Parts, found: Parts) -> bool | None:
    """None: what is written so differently that sympy has to say."""
    kinds = {gold.kind, found.kind}
    if kinds == {"matrix"}:
        rows = [[row.split(" & ") for row in side.values] for side in (gold, found)]
        same_shape = [len(row) for row in rows[0]] == [len(row) for row in rows[1]]
        return same_shape and _each([c for row in rows[0] for c in row], [c for row in rows[1] for c in row])
    if "matrix" in kinds:
        matrix = gold if gold.kind == "matrix" else found
        cells = matrix.values if len(matrix.values) > 1 else tuple(matrix.values[0].split(" & "))
        if any("&" in cell for cell in cells) or kinds & {"union", "{}"}:
            return False
        return _each(cells if gold is matrix else gold.values, cells if found is matrix else found.values)
    if gold.kind == found.kind and gold.kind not in ("list", "{}", "union"):
        return _each(gold.values, found.values)
    if kinds <= {"list", "{}"} or kinds == {"union"}:
        return _any_order(gold.values, found.values) or (None if kinds == {"union"} else False)
    if kinds == {"list", "()"}:
        return _each(gold.values, found.values)
    return False if "union" not in kinds and "list" not in kinds else None


def _each(gold: Sequence[str], found: Sequence[str]) -> bool:
    return len(gold) == len(found) and all(map(equivalent, gold, found))


def _any_order(gold: Sequence[str], found: Sequence[str]) -> bool:
    left = list(found)
    for one in gold:
        at = next((i for i, other in enumerate(left) if equivalent(one, other)), None)
        if at is None:
            return False
        del left[at]
    return not left


@cache
def _verifier() -> tuple[Callable[..., list[Any]], Callable[..., bool], Any]:
    need()
    library = importlib.import_module("math_verify")
    # It says that it runs without a limit of time: ours is the worker's.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return library.parse, library.verify, (library.LatexExtractionConfig(),)


def _by_sympy(gold: str, found: str) -> bool:
    parse, verify, config = _verifier()
    one, other = (parse(f"${text}$", config, parsing_timeout=None) for text in (gold, found))
    return bool(verify(one, other, timeout_seconds=None, allow_set_relation_comp=True))
