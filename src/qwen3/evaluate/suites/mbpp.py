"""MBPP: short Python functions from a sentence and three tests (Austin et al. 2021, arXiv 2108.07732)."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from qwen3.errors import UsageError
from qwen3.evaluate.score.code import UNPARSED, defines, judged, program_in
from qwen3.evaluate.suites.source import Row, field, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite
from qwen3.sandbox import Limits, check_calls

HOW = (
    "Get mbpp.jsonl or sanitized-mbpp.json from https://github.com/google-research/google-research/tree/master/mbpp,"
    " or let huggingface_hub fetch google-research-datasets/mbpp."
)
LIMITS = Limits(cpu=5, wall=12)
TEST_SPLIT = range(11, 511)


def load(local: str | None) -> list[Item]:
    """The paper's test split (task 11 to 510); whole files hold others, too, for prompts and training."""
    found = rows("mbpp", local=local, hub=("google-research-datasets/mbpp", "full", "test"), how=HOW)
    return [_item(row) for row in found if field(row, "task_id") in TEST_SPLIT]


def _item(row: Row) -> Item:
    tests: Sequence[str] = field(row, "test_list")
    setup = "\n".join([*(row.get("test_imports") or ()), row.get("test_setup_code") or ""]).strip()
    entry = called(tests, field(row, "code"), f"MBPP task {row['task_id']}")
    # The paper's prompt, whose example-free form chat models answer.
    content = (
        f"You are an expert Python programmer, and here is your task: {field(row, 'text', 'prompt')} "
        "Your code should pass these tests:\n\n" + "\n".join(tests)
    )
    gold = {"entry": entry, "setup": setup, "tests": list(tests), "code": field(row, "code"), "inside": False}
    names = {node.id for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Name)}
    if any(defines(gold["code"].replace("\r", ""), name) for name in names):
        gold |= {"inside": True, "tests": [_asked(test, entry) for test in tests]}
    return Item(f"mbpp/{row['task_id']}", ({"role": "user", "content": content},), gold)


def called(tests: Sequence[str], code: str, where: str) -> str:
    """The function of the reference solution that all of the tests call. Raises UsageError if there is none."""
    try:
        trees = [ast.walk(ast.parse(test)) for test in tests]
    except SyntaxError as error:
        raise UsageError(f"{where}: its tests are not Python ({error})") from None
    calls = [
        [node.func.id for node in tree if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        for tree in trees
    ]
    for name in calls[0] if calls else ():
        if defines(code.replace("\r", ""), name) and all(name in other for other in calls):
            return name
    raise UsageError(f"{where}: its reference solution defines no function that all of its tests call")


def _asked(test: str, entry: str) -> str:
    """The test with the text of its call for an argument: the setup builds objects of the answer's own class there, so
    it runs where the answer does, and so does the call."""
    tree = ast.parse(test)
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == entry)
    return ast.unparse(tree).replace(ast.unparse(call), f"candidate({ast.unparse(call)!r})")


def score(item: Item, answer: Answer) -> Score:
    code = program_in(answer.content, item.gold["entry"])
    if code is None:
        return UNPARSED
    setup, tests, entry = item.gold["setup"], "\n".join(item.gold["tests"]), item.gold["entry"]
    if item.gold["inside"]:
        verdict = check_calls(f"{code}\n{setup}", "lambda call: eval(call)", tests, LIMITS)
    else:
        verdict = check_calls(f"{setup}\n{code}", entry, tests, LIMITS, setup)
    return judged(verdict, code)


SUITE = Suite(
    name="mbpp",
    title="MBPP",
    load=load,
    score=score,
    licence="CC BY 4.0",
    source="https://github.com/google-research/google-research/tree/master/mbpp",
    headline="pass@1",
    needs=("sandbox",),
    notes="The report's MBPP is of base models with 3 examples; this asks chat models without any.",
)
