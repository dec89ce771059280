"""Programs taken out of answers, made whole, and judged as the official harnesses would."""

from __future__ import annotations

import random

import pytest

from qwen3.errors import SandboxError
from qwen3.evaluate.score.code import (
    IMPORTS,
    check_function,
    check_stdin,
    checked,
    completed,
    differ_as_numbers,
    program_in,
)
from qwen3.sandbox import check_calls, require

try:
    require()
    SANDBOX = True
except SandboxError:
    SANDBOX = False
needs_sandbox = pytest.mark.skipif(not SANDBOX, reason="running programs needs bubblewrap")

F = "def f(x):\n    return x + 1"
TEXTS = {
    "one block": (f"Here it is:\n```python\n{F}\n```\nDone.", F),
    "no language": (f"```\n{F}\n```", F),
    "tildes": (f"~~~py\n{F}\n~~~", F),
    "the last of two": (f"```python\ndef f(x): pass\n```\nBetter:\n```python\n{F}\n```", F),
    "use shown after it": (f"```python\n{F}\n```\nUse:\n```python\nprint(f(1))\n```", F),
    "output shown after it": (f"```python\n{F}\n```\nprints\n```text\n2\n```\n```bash\npython f.py\n```", F),
    "in a list, indented": ("1. So:\n   ```python\n   def f(x):\n       return x + 1\n   ```", F),
    "never closed": (f"```python\n{F}\n", F),
    "after thoughts": (f"<think>\n```python\ndef f(x): 0\n```\n</think>\n\n```python\n{F}\n```", F),
    "thoughts without a beginning": (f"```python\ndef f(x): 0\n```\n</think>{F}", F),
    "marks of MBPP": (f"[BEGIN]\n{F}\n[DONE]\nmore", F),
    "bare": (F, F),
    "a fence in a text": (
        "````python\ndef f(x):\n    '''\n```\nno\n```\n    '''\n````",
        "def f(x):\n    '''\n```\nno\n```\n    '''",
    ),
    "carriage returns": (f"```python\r\n{F}\r\n```\r\n", F),
    "another language alone": ("```cpp\nint f;\n```", "int f;"),
    "prose": ("I cannot do that.", None),
    "an empty block": ("I cannot.\n```python\n\n```", None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_program_is_found(name: str) -> None:
    text, wanted = TEXTS[name]
    found = program_in(text, "f")
    assert (found or "").strip() == (wanted or "")
    assert (found is None) == (wanted is None)


PROMPT = 'from typing import List\n\ndef helper(x):\n    return x + 1\n\ndef f(x: int) -> List[int]:\n    """Says."""\n'
BODIES = {
    "as it is": "    if x:\n        return [helper(x)]\n    return []",
    "its first indentation lost": "if x:\n        return [helper(x)]\n    return []",
    "all indentation lost": "if x:\n    return [helper(x)]\nreturn []",
    "one line": "return [helper(x)] if x else []",
    "the whole function": "def f(x: int) -> List[int]:\n    return [helper(x)] if x else []",
    "the whole program": PROMPT + "    return [helper(x)] if x else []",
    "a blank line first": "\n    return [helper(x)] if x else []",
}


@pytest.mark.parametrize("body", BODIES)
def test_an_answer_becomes_a_program(body: str) -> None:
    space: dict = {}
    source = completed(PROMPT, BODIES[body], "f")
    exec(compile(source, "f", "exec"), space)  # a program of this file's
    assert space["f"](1) == [2]
    assert space["f"](0) == []


SAME = [("1.0 2", "1 2.00"), ("a\n b \n", "a\nb"), ("", "\n"), ("1e3", "1000"), ("0.1", "0.10")]
DIFFERENT = [
    ("1", "2"),
    ("1 2", "1"),
    ("a\nb", "a"),
    ("a", "A"),
    ("0.3333", "0.33333"),
    ("x 1.0", "x 1"),
    ("a  b", "a b"),
]


@pytest.mark.parametrize(("found", "wanted"), SAME)
def test_outputs_that_are_the_same(found: str, wanted: str) -> None:
    assert differ_as_numbers(found, wanted) == ""


@pytest.mark.parametrize(("found", "wanted"), DIFFERENT)
def test_outputs_that_differ(found: str, wanted: str) -> None:
    assert differ_as_numbers(found, wanted)


@needs_sandbox
def test_stdin_ends_at_the_first_test_that_fails() -> None:
    tests = [{"input": f"{i}\n", "output": f"{2 * i}\n"} for i in range(4)]
    assert check_stdin(IMPORTS + "print(2 * int(input()))", tests, 4, 1 << 29).passed
    wrong = check_stdin("n = int(input()); print(n * n)", tests, 4, 1 << 29)
    assert (wrong.reason, wrong.detail) == ("failed", "test 2 of 4: line 1 differs")
    assert check_stdin("while True: pass", tests[:1], 1, 1 << 29).reason == "time"
    assert check_stdin("x = 'x' * (1 << 30)", tests[:1], 2, 1 << 28).reason == "error"
    long = [{"input": "", "output": "x" * 200_000}]
    assert check_stdin("print('x' * 200_000)", long, 2, 1 << 29).passed


@needs_sandbox
def test_a_function_is_called_case_by_case() -> None:
    cases = [[[[1, 2], 3], [1, 2, 3]], [[[], 0], [0]]]
    good = "class Solution:\n    def join(self, a, b): return tuple(a) + (b,)"
    assert check_function(good, "Solution().join", cases, 4, 1 << 29).passed
    bad = check_function(good.replace("(b,)", "(b,) * len(a[:1])"), "Solution().join", cases, 4, 1 << 29)
    assert bad.reason == "failed"
    assert "test 2 of 2" in bad.detail
    slow = check_function("def join(a, b):\n    while True: pass", "join", cases, 0.5, 1 << 29)
    assert not slow.passed
    assert slow.seconds < 5
    assert not check_function("def other(): 0", "join", cases, 1, 1 << 29).passed


@needs_sandbox
def test_a_checker_decides_where_many_outputs_are_right() -> None:
    checker = (
        "import sys\na, b, c = (open(p).read().split() for p in sys.argv[1:])\n"
        "print(int(sum(map(int, c)) == int(a[0]) and len(c) == len(b)))"
    )
    assert checked(checker, "7\n", "3 4\n", "5 2\n") == ""
    assert checked(checker, "7\n", "3 4\n", "5 3\n")
    assert "ValueError" in checked(checker, "7\n", "3 4\n", "five two\n")
    tests = [{"input": "7", "output": "3 4"}]
    assert check_stdin("print(int(input()) - 1, 1)", tests, 2, 1 << 29, checker).passed
    assert not check_stdin("print(1, 1)", tests, 2, 1 << 29, checker).passed


@needs_sandbox
def test_the_judge_agrees_with_calling_in_process() -> None:
    """The slow way that needs no sandbox, as the programs are of this file: the same process runs program and test."""
    rng = random.Random()
    for _ in range(12):
        values = [
            rng.choice([rng.randrange(-9, 9), rng.random(), "a'\n", None, (1, [2]), {"k": {1}}]) for _ in range(3)
        ]
        program = f"def f(i):\n    return {values!r}[i]"
        wanted = list(values)
        if rng.random() < 0.5:
            wanted[rng.randrange(3)] = "other"
        tests = "\n".join(f"assert f({i}) == {value!r}" for i, value in enumerate(wanted))
        assert check_calls(program, "f", tests).passed == (values == wanted)
