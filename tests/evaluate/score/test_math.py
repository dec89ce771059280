r"""Mathematical answers: what is read out of a text, and when it is the reference."""

from __future__ import annotations

import importlib.util
import random
import time
from fractions import Fraction

import pytest

from qwen3.errors import UsageError
from qwen3.evaluate.score import math_same
from qwen3.evaluate.score.math import boxes, compare, extract, math_item, score, whole
from qwen3.evaluate.score.math_same import equivalent, parts, quick, tidy, value
from qwen3.evaluate.types import Answer, Suite, score_answer
from tests.evaluate.score.math_forms import cases, number_cases, references, symbolic_cases

# math-verify (with sympy, latex2sympy2_extended and antlr4: pure Python) understands expressions.
verify = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so $\boxed{\frac{1}{\sqrt{2}}}$.", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{1} no, \boxed{2}", r"2"),
        (r"The values are $\boxed{1}$ and $\boxed{-2}$.", "1, -2"),
        (r"$x=\boxed{1}$, $y=\boxed{-2}$", "1, -2"),
        (r"\boxed{5}. Checking again gives $\boxed{5}$", "5"),
        (r"put it in \boxed{}. The answer is 7.", "7"),
        (r"\boxed{12} was cut off: \boxed{13", "12"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed 5", "5"),
        (r"\fbox{\text{(C)}}", r"\text{(C)}"),
        ("16 - 3 = 13\n#### 13", "13"),
        ("The answer is 3.5. It took 9 steps.", "3.5"),
        ("The final answer is: **42**", "42"),
        (r"Answer: $\frac12$" + "\nThank you!", r"\frac12"),
        ("答案是 12。", "12"),
        ("Die Antwort ist 12.", "12"),
        ("Ответ: 12", "12"),
        (r"So $x = 3$ and then \[x + y = 9\]", "x + y = 9"),
        ("After all that there are 19 of them in the whole of the box, which nobody would have thought at all", "19"),
        ("(-1, 4]", "(-1, 4]"),
        ("I do not know what this problem means.\nI cannot solve it.", None),
        ("...", None),
        ("$$", None),
    ],
)
def test_reads_what_is_stated(text: str, found: str | None) -> None:
    assert extract(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She earns $1,234.50 a week.", "$1,234.50"),
        ("He has 5 and needs **18 dollars**", "18"),
        ("The answer is 18 dollars.", "18"),
        (r"\boxed{18 \text{ dollars}}", "18"),
        (r"\boxed{2^5}", "2^5"),
        ("He paid $3 and has 5 left of $8", "$8"),
        ("The answer is $18 and 3 of them pay $2.", "$18"),
        ("It is\n$$\\frac{36}{2}$$", r"\frac{36}{2}"),
        ("#### -7", "-7"),
        ("no number", None),
    ],
)
def test_reads_numbers_out_of_prose(text: str, found: str | None) -> None:
    assert extract(text, number=True) == found


@pytest.mark.parametrize(
    "part", [r"\boxed{", "The answer is ", r"\[", "$x ", r"\text{", "1,", "answer to ", r"\boxed{1}, "]
)
def test_what_a_model_repeats_forever_is_read_in_time(part: str) -> None:
    began = time.perf_counter()
    for number in (False, True):
        found = extract(part * 5000, number=number)
        assert found is None or quick("5", found) is not True
    assert time.perf_counter() - began < 5


def test_boxes_nest_and_do_not_end_at_escaped_braces() -> None:
    assert [inside for _, _, inside in boxes(r"\boxed{a_{b_{c}}} \boxed{x \in \{1\}} \boxed{\boxed{3}} \boxed{ }")] == [
        "a_{b_{c}}",
        r"x \in \{1\}",
        r"\boxed{3}",
        "3",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("-.5", Fraction(-1, 2)),
        ("", None),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"-\frac34", Fraction(-3, 4)),
        (r"\dfrac 59", Fraction(5, 9)),
        ("3/4", Fraction(3, 4)),
        ("1 3/4", Fraction(7, 4)),
        (r"-137 \frac{1}{2}", Fraction(-275, 2)),
        ("10,080", 10080),
        (r"11,\! 111,\! 111,\! 100", 11111111100),
        (r"\$32,\!348", 32348),
        ("$1{,}000", 1000),
        (r"15\mbox{ cm}^2", 15),
        (r"864 \text{ square inches}", 864),
        (r"\frac{270}7\text{ degrees}", Fraction(270, 7)),
        ("90^\\circ", 90),
        (r"6.72 \times 10^{-5}", Fraction(672, 10**7)),
        ("5e-3", Fraction(1, 200)),
        ("−7", -7),
        ("٤٢", 42),
        ("twelve", 12),
        ("½", Fraction(1, 2)),
        ("1,2", None),
        ("x", None),
        ("5 apples and 3 pears", None),
        (r"\frac{1}{0}", None),
        ("1e999999999", None),
        ("9" * 5000, None),
    ],
)
def test_numbers_are_exact(text: str, number: Fraction | int | None) -> None:
    found = value(tidy(text))
    assert (found.number if found else None) == number


@pytest.mark.parametrize(
    ("gold", "found", "same"),
    [
        ("0.15", r"15\%", True),
        ("10", r"10\%", True),
        ("10", "0.1", False),
        (".0000672", "0.000067", False),
        (r"\frac{1}{3}", "0.33333333", True),
        (r"\frac{1}{3}", "0.333", False),
        ("0.333333", "0.3333333", False),
        ("1.25", "1,25", True),
        ("x=5", "5", True),
        ("5", "x = 5", True),
        ("x=5", "y=5", False),
        ("52_8", "52_{8}", True),
        ("52_8", "(52)_8", True),
        ("52_8", r"52_{\text{eight}}", True),
        ("52_8", "52", True),
        ("52_8", "42", False),
        ("52_8", "52_9", False),
        (r"\text{Evelyn}", "evelyn", True),
        (r"\text{Evelyn}", "Evelny", False),
        (r"\text{(C)}", "C", True),
        (r"\text{(C)}", r"\textbf{(C)}\ 12", True),
        (r"\text{(C)}", "(D)", False),
        (r"\frac43", r"1\frac{1}{3}", True),
        ("5", "", False),
    ],
)
def test_numbers_and_texts_need_no_sympy(gold: str, found: str, same: bool) -> None:
    assert quick(gold, found) is same


@verify
@pytest.mark.parametrize(
    ("gold", "found", "same"),
    [
        (r"(3, \frac{\pi}{2})", r"\left(3,\dfrac{\pi}{2}\right)", True),
        (r"(3, \frac{\pi}{2})", "(3, 1.5707963)", True),
        ("(1,2)", "(2,1)", False),
        ("(1,2)", r"\{1,2\}", False),
        ("(3,4]", "[3,4]", False),
        ("[-2,7]", r"-2 \le x \le 7", True),
        ("x \\in [-2,7]", "[-2,7]", True),
        ("(2,\\infty)", "x > 2", True),
        ("(2,\\infty)", "x > 3", False),
        ("1,-2", "-2, 1", True),
        ("1,-2", r"\{-2,1\}", True),
        ("1,-2", "x = 1 or x = -2", True),
        ("1,-2", "1", False),
        ("3", r"\{3\}", True),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", True),
        (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1+\sqrt5, 1-\sqrt5\}", True),
        (r"(0,9) \cup (9,36)", r"(9,36) ∪ (0,9)", True),
        (r"(0,9) \cup (9,36)", r"(0,36)", False),
        (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1, 2)", True),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", False),
        ("6 - 5i", "-5i + 6", True),
        ("6 - 5i", "6 + 5i", False),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
        (r"3\sqrt{13}", r"\sqrt{117}", True),
        (r"3\sqrt{13}", "10.816654", True),
        (r"3\sqrt{13}", "10.8", False),
        ("(a+5)(b+2)", "ab + 2a + 5b + 10", True),
        ("y = 2x + 3", "2x - y + 3 = 0", True),
        ("5x - 7y + 11z + 4 = 0", "10x - 14y + 22z + 8 = 0", True),
        ("2k+2", "2(k+1)", True),
        (r"\cot x", r"\frac{\cos x}{\sin x}", True),
        (r"12\pi", "12π", True),
        (r"12\pi", "12", False),
        (r"11\sqrt2", "11√2", True),
    ],
)
def test_expressions(gold: str, found: str, same: bool) -> None:
    assert equivalent(gold, found) is same


def test_parts_split_outside_brackets() -> None:
    assert parts("(f(1,2), 3)") == ("()", ("f(1,2)", "3"))
    assert parts(r"\{1\pm x\}") == ("{}", ("1+x", "1-x"))
    assert parts("(a+5)(b+2)") is None
    assert parts("x = 3") is None


def test_outcomes() -> None:
    item = math_item("1", "What?", "42", {})
    suite = Suite("s", "S", lambda _: [item], score, "", "")
    assert score_answer(suite, item, Answer(r"\boxed{42}")).outcome == "right"
    wrong = score_answer(suite, item, Answer(r"\boxed{41}"))
    assert (wrong.outcome, wrong.extracted) == ("wrong", "41")
    assert score_answer(suite, item, Answer("No idea at all.\nSorry for that.")).outcome == "unparsed"
    assert score_answer(suite, item, Answer(r"\boxed{42}", finish_reason="length")).outcome == "truncated"
    assert score_answer(suite, item, Answer(" ")).outcome == "empty"


@verify
@pytest.mark.parametrize("fresh", [False, True])
def test_forms_of_references_are_right_and_changed_ones_wrong(fresh: bool) -> None:
    seed = random.randrange(10**9) if fresh else 0
    made = cases(references(seed, 30), seed, 2) + symbolic_cases(seed, 25)
    false = [case for case in made if (compare(case.gold, case.text).value == 1.0) is not case.right]
    assert len(made) > 120
    assert not false, (seed, false[:3])


@pytest.mark.parametrize("fresh", [False, True])
def test_forms_of_numbers_need_no_sympy(fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = random.randrange(10**9) if fresh else 0
    monkeypatch.setattr("qwen3.evaluate.score.math_workers.need", lambda: pytest.fail("a number went to a worker"))
    rng = random.Random(seed)
    made = number_cases([rng.choice([rng.randint(0, 99), rng.randint(1000, 10**6)]) for _ in range(200)], seed)
    false = [case for case in made if (compare(case.gold, case.text).value == 1.0) is not case.right]
    assert not false, (seed, false[:3])


def test_random_fractions_agree_with_arithmetic() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        a, b = (Fraction(rng.randint(-30, 30), rng.randint(1, 12)) for _ in range(2))
        shown = rng.choice([f"\\frac{{{b.numerator}}}{{{b.denominator}}}", f"{b.numerator}/{b.denominator}"])
        assert quick(f"\\frac{{{a.numerator}}}{{{a.denominator}}}", shown) is (a == b)


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_same.importlib.util, "find_spec", lambda name: None)
    assert compare(7, r"\boxed{7}").value == 1.0
    with pytest.raises(UsageError, match=r"qwen3\[eval\]"):
        compare("x + 1", r"\boxed{1 + x}")


def test_whole_numbers_of_data_sets() -> None:
    assert [whole(text, "here") for text in ("1,234", r"$\boxed{033}$", " 7 ", 12, "12.0")] == [1234, 33, 7, 12, 12]
    with pytest.raises(UsageError, match="row 3: the answer 'x' is no whole number"):
        whole("x", "row 3")
    with pytest.raises(UsageError, match="item 9"):
        math_item("9", " ", "4", {})
