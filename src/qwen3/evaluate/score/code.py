"""Programs in answers: taken out of the text, made whole, run in the sandbox, judged by tests.

What counts as the program: the text after the thoughts; of its fenced blocks that are Python or of no language the last
one that defines what is asked for, else the last; an unclosed block to its end; without a block, a text that reads like
a program. Official harnesses differ in this (HumanEval's has completions only, LiveCodeBench takes the last block of
any language, and nothing without one).
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from qwen3.evaluate.types import Score
from qwen3.sandbox import Limits, Verdict, check_calls, check_output, run

_FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = ("", "python", "python3", "py", "py3")
_CODE = re.compile(r"^[ \t]*(def|class|import|from|return|for|while|if|print\(|[A-Za-z_]\w* *=[^=])", re.MULTILINE)

# What LiveCodeBench's runner puts before every program (its testing_util.py): star imports in this order, the modules
# by name, and room for recursion.
_STARRED = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys"
IMPORTS = (
    "".join(f"from {name} import *\n" for name in f"{_STARRED} json builtins typing".split())
    + "".join(f"import {name}\n" for name in f"{_STARRED} json".split())
    + "sys.setrecursionlimit(50000)\n"
)


def defines(code: str, name: str) -> bool:
    """Whether a line of the code defines or assigns the name at the top level."""
    return bool(re.search(rf"^(?:(?:async +)?def|class) +{re.escape(name)}\b|^{re.escape(name)} *=[^=]", code, re.M))


def program_in(text: str, entry: str | None = None) -> str | None:
    """The program in an answer, None where there is none. entry: the name that it is to define, if any."""
    text = text.rpartition("</think>")[2].replace("\r\n", "\n")
    text = re.sub(r"^\s*\[BEGIN\]\s*?\n|\[DONE\].*\Z", "", text, flags=re.DOTALL)
    blocks = [(block[2].lower(), textwrap.dedent(block[3])) for block in _FENCE.finditer(text)]
    python = [code for language, code in blocks if language in _PYTHON and code.strip()]
    found = python or [code for _, code in blocks if code.strip()]
    if entry is not None:
        found = [code for code in found if defines(code, entry)] or found
    if found:
        return found[-1]
    return text.strip("\n") if _CODE.search(text) else None


def completed(prompt: str, code: str, entry: str) -> str:
    """A whole program out of HumanEval's prompt and an answer to it, which is either the function (with what the prompt
    has before it: imports and helpers) or the rest of its body, the first line's indentation perhaps lost."""
    if defines(code, entry):
        return before(prompt, entry) + "\n" + code
    lines = [line for line in code.split("\n") if line.strip()]
    if lines and not lines[0][0].isspace():
        rest = min((len(line) - len(line.lstrip()) for line in lines[1:]), default=0)
        code = textwrap.indent(code, "    ") if rest == 0 else " " * min(4, rest) + code.lstrip("\n")
    return prompt + code


def before(prompt: str, entry: str) -> str:
    """What a prompt has before the function that is asked for."""
    found = re.search(rf"^(?:async +)?def +{re.escape(entry)}\b", prompt, re.M)
    return prompt[: found.start()] if found else ""


def judged(verdict: Verdict, code: str) -> Score:
    """The score of a program's verdict."""
    if verdict.passed:
        return Score(1.0, "right", code)
    return Score(0.0, "wrong", code, note=f"{verdict.reason}: {verdict.detail}".rstrip(": "))


UNPARSED = Score(0.0, "unparsed", note="no program in the answer")


def differ_as_numbers(found: str, wanted: str) -> str:
    """How two outputs differ, "" if they do not: line by line without white space around; two lines are the same, too,
    where all their words are numbers of the same values (LiveCodeBench's rule: 1.0 is 1, and 0.333 is not 1/3)."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (found, wanted)]
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[0])} lines instead of {len(lines[1])}"
    for i, (a, b) in enumerate(zip(*lines, strict=True), 1):
        if a != b and (_numbers(a) is None or _numbers(a) != _numbers(b)):
            return f"line {i} differs"
    return ""


def _numbers(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None


def check_stdin(
    program: str, tests: Sequence[Mapping[str, str]], seconds: float, memory: int, checker: str | None = None
) -> Verdict:
    """Does the program answer each test's "input" with its "output"? Ends at the first that fails. seconds: processor
    time a test; on the clock it has three times that and 2 more, so that a loaded machine costs nobody a verdict.
    memory: bytes. checker: see `checked`; it decides instead of a comparison."""
    spent = 0.0
    for i, test in enumerate(tests, 1):
        limits = Limits(seconds, 3 * seconds + 2, memory, output=2 * len(test["output"]) + (1 << 16))

        def differ(found: str, wanted: str, given: str = test["input"]) -> str:
            return checked(checker, given, wanted, found) if checker else differ_as_numbers(found, wanted)

        verdict = check_output(program, test["input"], test["output"], limits, differ)
        spent += verdict.seconds
        if not verdict.passed:
            return Verdict(False, verdict.reason, f"test {i} of {len(tests)}: {verdict.detail}", spent)
    return Verdict(True, "passed", "", spent)


def checked(checker: str, given: str, wanted: str, found: str) -> str:
    """ "" if a Codeforces checker takes an output: a program that is called with the paths of the input, of the
    expected and of the found output, and prints 1 (or 100) for a right one. It runs in a sandbox, as programs do."""
    files = {"input.txt": given, "correct_output.txt": wanted, "solution_output.txt": found}
    program = (
        f"import sys\nfor name, text in {files!r}.items():\n"
        "    with open(name, 'w', encoding='utf-8', errors='surrogatepass') as file:\n        file.write(text)\n"
        f"sys.argv = ['checker.py', *{list(files)!r}]\n"
        f"exec(compile({checker!r}, 'checker.py', 'exec'), {{'__name__': '__main__'}})\n"
    )
    outcome = run(program, limits=Limits(30, 60, 1 << 30))
    said = outcome.stdout.split()
    if outcome.ended == "exit" and outcome.code == 0 and said and said[-1].rstrip("0").rstrip(".") == "1":
        return ""
    return f"the checker says {said[-1] if said else (outcome.stderr.strip().splitlines() or ['nothing'])[-1]!r:.200}"


def check_function(program: str, entry: str, cases: Sequence[Sequence[Any]], seconds: float, memory: int) -> Verdict:
    """Does `entry` give for each case [arguments, value] that value (a tuple counts as a list)? seconds: a case, on the
    clock, and half as much again where the machine is loaded."""
    tests = (
        "import json, signal\ndef late(*_):\n    raise TimeoutError('more than its seconds')\n"
        "signal.signal(signal.SIGALRM, late)\n"
        f"cases = json.loads({json.dumps(cases)!r})\n"
        "for i, (given, wanted) in enumerate(cases, 1):\n"
        f"    signal.setitimer(signal.ITIMER_REAL, {1.5 * seconds})\n"
        "    found = candidate(*given)\n"
        "    found = list(found) if isinstance(found, tuple) else found\n"
        "    assert found == wanted, f'test {i} of {len(cases)}: {found!r:.100} is not {wanted!r:.100}'\n"
    )
    total = min(600.0, 2 + 1.5 * seconds * len(cases))
    return check_calls(program, entry, tests, Limits(min(120.0, seconds * max(2, len(cases))), total, memory))
