r"""Answers whose worth is known by construction: references written in other ways, and changed into other values.

`written` gives a reference in forms of the same value, `changed` other values near it, `cases` puts either into prose.
tests/evaluate/score/test_math.py does this to references from a seed, tools/score_agreement_math.py to those of a data
set, where official scorers judge the same answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

Form = tuple[str, str]  # its name, the text

INTEGER = re.compile(r"-?\d+")
FRACTION = re.compile(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
DECIMAL = re.compile(r"-?\d*\.\d+")
BASED = re.compile(r"(\d+)_\{?(\d)\}?")
WORD = re.compile(r"\\text\{([A-Za-z]{3,})\}")
MATRIX = re.compile(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}")
BRACKETS = re.compile(
    r"(?:\\left)?([(\[])\s*([^()\[\]{}]*?(?:\{[^{}]*\}[^()\[\]{}]*?)*),\s*([^(),\[\]]*?)\s*(?:\\right)?([)\]])"
)
LIST = re.compile(r"(?!\\\{)-?[\w\\{}/.]+(?:,\s*-?[\w\\{}/.]+)+")


class Case(NamedTuple):
    """An answer and what it is worth. form: how its value was written or changed; prose: how it is said."""

    gold: str | int
    text: str
    right: bool
    form: str
    prose: str


def written(gold: str, rng: random.Random) -> list[Form]:
    """A reference (in LaTeX) in forms of the same value, the plain copy first."""
    found = [("copy", gold), ("display style", gold.replace(r"\frac", r"\dfrac")), ("spaced", f"\\,{gold}\\,")]
    if r"\left" not in gold and re.search(r"[(\[].*,.*[)\]]", gold) and "cup" not in gold:
        found.append(("sized brackets", re.sub(r"([)\]])$", r"\\right\1", re.sub(r"^([(\[])", r"\\left\1", gold))))
    if INTEGER.fullmatch(gold):
        n = int(gold)
        k = rng.randint(2, 9)
        found += [("decimal of a whole", f"{n}.0"), ("unreduced", f"\\frac{{{n * k}}}{{{k}}}"), ("named", f"x = {n}")]
        found += [
            ("unit", f"{n} \\text{{ units}}"),
            ("unit in prose", f"{n} \\text{{ square inches}}"),
            ("sum", f"{n - k} + {k}"),
        ]
        found += [("degrees", f"{n}^\\circ")] if 0 < n < 360 else []
        found += [("product", f"{n // k} \\cdot {k} + {n % k}"), ("bold", f"\\mathbf{{{n}}}")]
        if abs(n) >= 1000:
            found += [("thousands", f"{n:,}"), ("thousands in LaTeX", f"{n:,}".replace(",", "{,}"))]
            found += [
                ("thin spaces", f"{n:,}".replace(",", "\\,")),
                ("kerned thousands", f"{n:,}".replace(",", ",\\!")),
            ]
    if m := FRACTION.fullmatch(gold):
        a, b, k = int(m[2]), int(m[3]), rng.randint(2, 7)
        found += [("slash", f"{m[1]}{a}/{b}"), ("unreduced", f"{m[1]}\\frac{{{a * k}}}{{{b * k}}}")]
        found += [("minus within", f"\\frac{{-{a}}}{{{b}}}")] if m[1] else [("text style", f"\\tfrac{{{a}}}{{{b}}}")]
        if a > b and not m[1]:
            found.append(("mixed", f"{a // b}\\frac{{{a % b}}}{{{b}}}"))
        if _finite(b):
            found.append(("decimal", m[1] + f"{a / b:.12f}".rstrip("0")))
        else:
            found.append(("long decimal", m[1] + f"{a / b:.8f}"))
        if a < 10 and b < 10:
            found.append(("bare digits", f"{m[1]}\\frac{a}{b}"))
    if DECIMAL.fullmatch(gold):
        places = len(gold.partition(".")[2])
        digits = str(int(gold.replace(".", "")))
        found += [("trailing zero", gold + "0"), ("as a fraction", f"\\frac{{{digits}}}{{{10**places}}}")]
        if gold[0] == "0":
            found.append(("no leading zero", gold[1:]))
        if gold[0] == ".":
            found.append(("leading zero", f"0{gold}"))
    if m := BASED.fullmatch(gold):
        found += [("base in braces", f"{m[1]}_{{{m[2]}}}"), ("bare base", f"{m[1]}_{m[2]}")]
    if m := WORD.fullmatch(gold):
        found += [
            ("plain word", m[1]),
            ("capital", f"\\text{{{m[1].capitalize()}}}"),
            ("bold word", f"\\textbf{{{m[1]}}}"),
        ]
    if m := re.fullmatch(r"\\text\{\(([A-E])\)\}", gold):
        found += [
            ("option's letter", m[1]),
            ("option in brackets", f"({m[1]})"),
            ("option in text", f"\\text{{{m[1]}}}"),
        ]
    if m := MATRIX.fullmatch(gold):
        found += [("square matrix brackets", gold.replace("pmatrix", "bmatrix"))]
        found += [("fractions in a matrix", re.sub(r"(\d+)/(\d+)", r"\\frac{\1}{\2}", gold))]
    if (m := BRACKETS.fullmatch(gold)) and "," not in m[2]:
        if m[1] + m[4] != "()":
            found.append(("named interval", f"x \\in {gold}"))
            if r"\infty" not in gold:
                signs = ["\\le" if mark in "[]" else "<" for mark in (m[1], m[4])]
                found.append(("inequality", f"{m[2]} {signs[0]} x {signs[1]} {m[3]}"))
        found.append(("Unicode", gold.replace("\\infty", "∞").replace("\\pi", "π").replace("-", "−")))
    if LIST.fullmatch(gold) and not re.search(r"\d,\d{3}(?!\d)", gold):
        pieces = [piece.strip() for piece in gold.split(",")]
        found += [("reordered", ", ".join(reversed(pieces))), ("set", "\\{" + ", ".join(pieces) + "\\}")]
        found.append(("and", ", ".join(pieces[:-1]) + " \\text{ and } " + pieces[-1]))
    if r"\cup" in gold:
        found.append(("reordered union", r" \cup ".join(reversed(gold.split(r"\cup")))))
    if m := re.fullmatch(r"([^,]*?)(\d+) ?\\pm ?([^,]+)", gold):
        found.append(("both signs", f"{m[1]}{m[2]}+{m[3]}, {m[1]}{m[2]}-{m[3]}"))
    if m := re.fullmatch(r"(-?)(\d*) ?\\sqrt\{?(\d+)\}?", gold):
        c, s = int(m[2] or 1), int(m[3])
        found += [("under the root", f"{m[1]}\\sqrt{{{c * c * s}}}"), ("root times", f"{m[1]}\\sqrt{{{s}}} \\cdot {c}")]
    if m := re.fullmatch(r"(\d+) ?\\pi", gold):
        found += [("pi first", f"\\pi \\cdot {m[1]}"), ("pi in Unicode", f"{m[1]}π")]
    if m := re.fullmatch(r"(-?\w+) ?([+-]) ?(\w+)", gold):
        found.append(
            ("terms in another order", f"{'-' if m[2] == '-' else ''}{m[3]} {'' if m[1][0] == '-' else '+'} {m[1]}")
        )
    if m := re.fullmatch(r"([a-z]) ?= ?([^=,]+)", gold):
        found += [("right side", m[2]), ("turned equation", f"{m[2]} = {m[1]}")][: 2 if re.search("[a-z]", m[2]) else 1]
    return [*dict.fromkeys(found)]


def changed(gold: str, rng: random.Random) -> list[Form]:
    """Other values near a reference."""
    found: list[Form] = []
    if INTEGER.fullmatch(gold) or DECIMAL.fullmatch(gold):
        n = float(gold)
        show = (lambda v: str(round(v))) if INTEGER.fullmatch(gold) else (lambda v: f"{v:.10f}".rstrip("0").rstrip("."))
        found += [("one more", show(n + 1)), ("one less", show(n - 1)), ("ten times", show(n * 10))][: 3 if n else 2]
        found += [("other sign", show(-n))] if n else []
        found += [("a tenth off", f"{n + 0.1:.10f}".rstrip("0"))]
        if len(gold) > 1 and INTEGER.fullmatch(gold) and gold[::-1].lstrip("0") not in (gold, "") and n > 0:
            found.append(("digits turned", gold[::-1].lstrip("0")))
        found += [("half, as a fraction", f"\\frac{{{round(n)}}}{{2}}")] if n and INTEGER.fullmatch(gold) else []
        found.append(
            ("a root", f"\\sqrt{{{abs(round(n)) + 2}}}") if round(n) not in (-2, -1, 0, 1, 2) else ("symbol", "x")
        )
        if abs(n - 100) > 1 and n:
            found.append(("a hundredth", f"\\frac{{{round(n * 1000)}}}{{100000}}"))
    if m := FRACTION.fullmatch(gold):
        a, b = int(m[2]), int(m[3])
        found += [
            ("numerator more", f"{m[1]}\\frac{{{a + 1}}}{{{b}}}"),
            ("other sign", f"{'' if m[1] else '-'}\\frac{{{a}}}{{{b}}}"),
        ]
        found += [("turned over", f"{m[1]}\\frac{{{b}}}{{{a}}}")] if a != b else []
        found += [("denominator more", f"{m[1]}\\frac{{{a}}}{{{b + 1}}}"), ("denominator lost", f"{m[1]}{a}")][
            : 1 + (b != 1)
        ]
        found += (
            [("short decimal", m[1] + f"{a / b:.3f}")]
            if not _finite(b)
            else [("decimal off", m[1] + str(a / b + 0.01))]
        )
    if m := BASED.fullmatch(gold):
        found += [("other digits", f"{int(m[1]) + 1}_{m[2]}"), ("other base", f"{m[1]}_{int(m[2]) + 1}")]
    if WORD.fullmatch(gold):
        found += [("other word", r"\text{nothing}"), ("a number for a word", "7"), ("more letters", gold[:-1] + "er}")]
    if m := re.fullmatch(r"\\text\{\(([A-E])\)\}", gold):
        found.append(("other option", f"\\text{{({'ABCDE'[('ABCDE'.index(m[1]) + 1) % 5]})}}"))
    if m := MATRIX.fullmatch(gold):
        found.append(("other cell", re.sub(r"(\d+)", lambda d: str(int(d[1]) + 1), gold, count=1)))
        rows = [row.strip() for row in m[1].split(r"\\")]
        if rows != rows[::-1]:
            found.append(("rows turned", gold.replace(m[1], r" \\ ".join(reversed(rows)))))
        found.append(("row lost", gold.replace(m[1], r" \\ ".join(rows[:-1]))))
    if (m := BRACKETS.fullmatch(gold)) and "," not in m[2] and m[2] != m[3]:
        found.append(("ends turned", f"{m[1]}{m[3]}, {m[2]}{m[4]}"))
        found.append(("other end", f"{m[1]}{m[2]}, {m[3]} + 1{m[4]}")) if r"\infty" not in m[3] else None
        if m[1] + m[4] != "()" and r"\infty" not in m[2]:
            found.append(("brackets turned", f"{'[' if m[1] == '(' else '('}{m[2]}, {m[3]}{m[4]}"))
    elif LIST.fullmatch(gold) and not re.search(r"\d,\d{3}(?!\d)", gold):
        pieces = [piece.strip() for piece in gold.split(",")]
        found += [("one lost", ", ".join(pieces[1:])), ("one more part", gold + ", 77")]
    if r"\cup" in gold:
        found.append(("part lost", gold.split(r"\cup")[0]))
    if not found or (re.search(r"\\sqrt|\\pi|[a-z]\b", gold) and not re.search("text|mbox|frac|infty|begin", gold)):
        found += (
            [("plus one", f"{gold} + 1")] if not re.search(r"[,=]|\\in|\\pm|text|mbox|circ|\$|\}$.*pt", gold) else []
        )
        if re.search(r"\d", gold) and not re.search(r"=", gold):
            found.append(("other digit", re.sub(r"\d", lambda d: str((int(d[0]) + 1) % 10), gold, count=1)))
    return [*dict.fromkeys(found)]


def _finite(b: int) -> bool:
    """Whether fractions with this denominator end as decimals."""
    while b % 2 == 0:
        b //= 2
    while b % 5 == 0:
        b //= 5
    return b == 1


PROSE: dict[str, Callable[[str], str]] = {
    "boxed": lambda a: f"We add what we have.\n\nTherefore, the answer is $\\boxed{{{a}}}$.",
    "boxed, display": lambda a: f"**Step 1.** Let $y = 12$.\n\n\\[\n\\boxed{{{a}}}\n\\]",
    "boxed after another": lambda a: (
        f"At first it seems to be $\\boxed{{101}}$, but that forgets a case. So it is\n\n$$\\boxed{{{a}}}$$"
    ),
    "minerva": lambda a: f"We count to $12$.\nFinal Answer: The final answer is ${a}$. I hope it is correct.",
    "said": lambda a: f"There are $12$ cases and $3$ are left. So the answer is ${a}$.",
    "boxed, then checked": lambda a: f"So $\\boxed{{{a}}}$.\n\nTo check, we count again: $3 + 4 = 7$, and $7 < 12$.",
    "boxed and bold": lambda a: f"With $y = 12$ we are done: **$\\boxed{{{a}}}$**",
    "labelled": lambda a: f"We have $x+y=12$.\n\n**Answer:** ${a}$",
}
"""How an answer states a formula."""

GRADE_SCHOOL: dict[str, Callable[[str], str]] = {
    "hashes": lambda a: f"She has 12 and gives 3 away.\n#### {a}",
    "boxed": lambda a: f"She has 12 and gives 3 away.\n\n\\boxed{{{a}}}",
    "Answer:": lambda a: f"She has 12 and gives 3 away.\nAnswer: {a}",
    "said": lambda a: f"She has 12 and gives 3 away. The answer is {a}.",
    "bold": lambda a: f"She has 12 and gives 3 away. She has **{a}** left.",
    "last number": lambda a: f"She has 12 and gives 3 away. In the end she has {a}.",
}
"""How an answer states a number in grade school's problems."""


def numbers_written(n: int) -> list[Form]:
    """A whole number as word problems' answers write it."""
    found = [("copy", f"{n}"), ("two decimals", f"{n}.00"), ("dollars", f"${n}"), ("unit", f"{n} dollars")]
    return found + ([("thousands", f"{n:,}"), ("dollars and thousands", f"${n:,}")] if abs(n) >= 1000 else [])


def numbers_changed(n: int) -> list[Form]:
    """Other numbers near it."""
    found = [("one more", f"{n + 1}"), ("half more", f"{n}.5"), ("other sign", f"{-n}"), ("ten times", f"{n * 10}")]
    return [(name, text) for name, text in found if float(text) != n]


def references(seed: int, count: int) -> list[str]:
    """References of many kinds as MATH has them."""
    rng = random.Random(f"math references/{seed}")
    i = lambda low=1, high=40: rng.randint(low, high)  # noqa: E731
    sign = lambda: rng.choice(["", "-"])  # noqa: E731

    def fraction() -> str:
        value = Fraction(i(), rng.choice([3, 4, 5, 6, 7, 8, 11, 20, 25]))
        value += Fraction(1, 7) if value.denominator == 1 else 0
        return f"{sign()}\\frac{{{value.numerator}}}{{{value.denominator}}}"

    kinds: list[Callable[[], str]] = [
        lambda: f"{sign()}{i(1, 9999)}",
        lambda: f"{i(1, 500)}",
        fraction,
        fraction,
        lambda: f"{i(0, 20)}.{i(1, 99)}",
        lambda: f"{rng.choice([2, 3, 5, 11])}\\sqrt{{{rng.choice([2, 3, 5, 7])}}}",
        lambda: f"{i()}\\pi",
        lambda: f"({sign()}{i(1, 9)},{i(10, 20)})",
        lambda: f"[{-i(1, 9)},{i(1, 9)}{rng.choice(')]')}",
        lambda: f"({i(1, 9)},\\infty)",
        lambda: f"(-\\infty, {i(1, 9)}) \\cup ({i(10, 20)}, \\infty)",
        lambda: f"\\left( {i()}, \\frac{{\\pi}}{{{i(2, 6)}}} \\right)",
        lambda: f"{i(1, 9)},{i(10, 19)},{i(20, 30)}",
        lambda: f"{i()} \\pm \\sqrt{{{rng.choice([2, 3, 19])}}}",
        lambda: f"\\begin{{pmatrix}} {i(1, 9)} \\\\ {i(10, 19)} \\end{{pmatrix}}",
        lambda: f"\\begin{{pmatrix}} {i()} & 1/{i(2, 9)} \\\\ 0 & {sign()}{i()} \\end{{pmatrix}}",
        lambda: f"\\text{{{rng.choice(['Evelyn', 'ellipse', 'even', 'west'])}}}",
        lambda: f"\\text{{({rng.choice('ABCDE')})}}",
        lambda: f"{rng.choice([12, 104, 432, 2130])}_{rng.choice('5678')}",
        lambda: f"x^2 - {i()}x + {i()}",
        lambda: f"{i(2, 9)}k+{i(2, 9)}",
        lambda: f"{i(1, 9)} {rng.choice('+-')} {i(2, 9)}i",
        lambda: f"y = {i(2, 9)}x + {i()}",
    ]
    return [rng.choice(kinds)() for _ in range(count)]


def cases(golds: list[str], seed: int, each: int) -> list[Case]:
    """For each reference `each` answers that are right and as many that are not, where it has as many forms."""
    rng = random.Random(f"math cases/{seed}")
    found = []
    for gold in golds:
        for right, forms in ((True, written(gold, rng)), (False, changed(gold, rng))):
            for form, text in rng.sample(forms, min(each, len(forms))):
                prose = rng.choice(list(PROSE))
                found.append(Case(gold, PROSE[prose](text), right, form, prose))
    return found


def symbolic_cases(seed: int, count: int) -> list[Case]:
    """Expressions of one variable as sympy prints them, in other forms, and with a term changed."""
    import sympy

    rng = random.Random(f"symbolic cases/{seed}")
    x = sympy.Symbol("x")
    n = lambda low=1, high=9: rng.randint(low, high)  # noqa: E731
    kinds: list[Callable[[], sympy.Expr]] = [
        lambda: (x + n()) * (x - n()) * n(),
        lambda: (n() * x + n()) ** 2 - n(),
        lambda: x ** n(2, 5) + n() * x - n(),
        lambda: (x + n()) / (n(2, 5) * x + n()),
        lambda: sympy.sqrt(n(2, 30)) + sympy.Rational(n(), n(2, 9)),
        lambda: n() * sympy.pi + sympy.Rational(n(), 7),
        lambda: sympy.sqrt(n(2, 12)) / sympy.sqrt(n(2, 30)) + n(),
        lambda: 2 ** sympy.Rational(n(), 3) * n(),
        lambda: n() * sympy.sin(x) + n() * sympy.cos(x),
        lambda: sympy.log(n(2, 9)) + n(),
    ]
    shown: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
        "sympy: printed": lambda e: e,
        "sympy: expanded": sympy.expand,
        "sympy: factored": sympy.factor,
        "sympy: simplified": sympy.simplify,
        "sympy: together": sympy.together,
    }
    found = []
    for _ in range(count):
        expression = rng.choice(kinds)()
        form = rng.choice(list(shown))
        gold, prose = sympy.latex(expression), rng.choice(list(PROSE))
        found.append(Case(gold, PROSE[prose](sympy.latex(shown[form](expression))), True, form, prose))
        other = sympy.latex(shown[form](expression + rng.choice([1, -1, x, sympy.Rational(1, 9)])))
        found.append(Case(gold, PROSE[prose](other), False, f"{form}, another", prose))
    return found


def number_cases(golds: list[int], seed: int) -> list[Case]:
    """For each number one answer that is right and one that is not."""
    rng = random.Random(f"number cases/{seed}")
    found = []
    for gold in golds:
        for right, forms in ((True, numbers_written(gold)), (False, numbers_changed(gold))):
            form, text = rng.choice(forms)
            prose = rng.choice(list(GRADE_SCHOOL))
            found.append(Case(gold, GRADE_SCHOOL[prose](text), right, form, prose))
    return found
