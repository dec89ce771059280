"""Whole suites against endpoints whose answers are known: one that is always right, one whose answers are cut, one that
leaks think tags, one that fails, and the fields in which other servers return thoughts.

The questions are made up here, in the layouts that the data sets are published in. The mathematical suites need
math-verify (extra `eval`) and are skipped without it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import RemoteError, SandboxError
from qwen3.evaluate.runs import Run
from qwen3.evaluate.runs.endpoint import Endpoint
from qwen3.evaluate.runs.run import Wish, evaluate, remarks
from qwen3.evaluate.suites import suite_named
from qwen3.evaluate.summary import summarise
from qwen3.evaluate.types import Item
from qwen3.sandbox import require
from tests.evaluate.endpoint import Body, Reply, Script, faulty, leaking, oracle, serving, truncating

CHOICES = ["seven", "green", "run", "soon"]
ASKED = "Which of these is a colour?"
WRONG = {f"Incorrect Answer {i}": text for i, text in enumerate(("seven", "run", "soon"), 1)}
PAIR = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
MATH = {"math500", "gsm8k", "aime24"}
CODE = {"humaneval", "mbpp"}
ROWS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "math500": (
        "m.jsonl",
        [
            {"problem": "What is 1/2 + 1/4?", "answer": r"\frac{3}{4}", "level": 1, "unique_id": "a"},
            {"problem": "Solve x^2 = 4.", "answer": "-2, 2", "level": 2, "unique_id": "b"},
            {"problem": "Which x have x > 1?", "answer": r"(1, \infty)", "level": 2, "unique_id": "c"},
        ],
    ),
    "gsm8k": ("g.jsonl", [{"question": f"{n} apples and 1,000?", "answer": f"#### {n + 1000:,}"} for n in (2, 7)]),
    "aime24": ("a.jsonl", [{"id": n, "problem": f"Find {n} - 7.", "answer": f"{n - 7:03}"} for n in (32, 500)]),
    "gpqa": ("q.jsonl", [{"Question": ASKED, "Correct Answer": "green", **WRONG, "Record ID": "r"}]),
    "mmlu_redux": ("colours.jsonl", [{"question": ASKED, "choices": CHOICES, "answer": 1, "error_type": "ok"}]),
    "ceval": (
        "law_val.jsonl",
        [{"id": 0, "question": ASKED, **dict(zip("ABCD", CHOICES, strict=True)), "answer": "B"}],
    ),
    "belebele": (
        "eng_Latn.jsonl",
        [
            {"flores_passage": "Grass.", "question": ASKED, "correct_answer_num": 2}
            | {f"mc_answer{i}": text for i, text in enumerate(CHOICES, 1)}
        ],
    ),
    "zebralogic": (
        "z.jsonl",
        [
            {
                "id": "z",
                "puzzle": "There are 2 houses …",
                "solution": {"header": ["House", "Name"], "rows": [["1", "Ann"], ["2", "Bob"]]},
            }
        ],
    ),
    "arc_agi": ("0a1b.json", [{"train": [PAIR, PAIR], "test": [PAIR]}]),
    "humaneval": (
        "h.jsonl",
        [
            {
                "task_id": "HumanEval/0",
                "prompt": 'def add(a: int, b: int) -> int:\n    """The sum."""\n',
                "entry_point": "add",
                "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
                "canonical_solution": "    return a + b\n",
            }
        ],
    ),
    "mbpp": (
        "b.jsonl",
        [
            {
                "task_id": 11,
                "text": "Write a function to add two numbers.",
                "code": "def add(a, b):\n    return a + b",
                "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
            }
        ],
    ),
}
GENERATED = {"steps": "count=9,seed=3", "controls": "count=9,seed=3"}
EVERY = [*ROWS, *GENERATED]


def right(item: Item) -> str:
    """An answer that says what the item expects, as the suite's prompt asks for it."""
    match item.gold:
        case {"letter": letter}:
            return f'"answer": "{letter}"'
        case {"reply": reply}:
            return str(reply)
        case {"canonical_solution": code, "prompt": prompt}:
            return f"```python\n{prompt}{code}```"
        case {"code": code}:
            return f"Here it is:\n\n```python\n{code}\n```"
        case dict() as table:
            return json.dumps({"reasoning": "by the clues", "solution": table})
        case list() as grid:
            return f"```json\n{json.dumps(grid)}\n```"
        case answer:
            return rf"So it is $\boxed{{{answer}}}$."


def data(name: str, folder: Path) -> str:
    """Where the suite's questions are, made on the spot."""
    if name in MATH:
        pytest.importorskip("math_verify", reason="math-verify (extra eval) is not installed")
    if name in CODE:
        try:
            require()
        except SandboxError:
            pytest.skip("running programs needs bubblewrap")
    if name in GENERATED:
        return GENERATED[name]
    file, rows = ROWS[name]
    place = folder / "data" / file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(place.parent)


def asked(name: str, folder: Path, script: Any, mode: str | None = "think", **options: Any) -> Run:
    """The run of a suite against an endpoint; script: of the right answers' oracle, what the endpoint does."""
    source = data(name, folder)
    known = oracle({item.messages[-1]["content"]: right(item) for item in suite_named(name).load(source)})
    with serving(script(known)) as server:
        endpoint = Endpoint(server.url, "scripted", mode=mode, retries=2, pause_s=0.01, **options)
        return evaluate(suite_named(name), endpoint, Wish(samples=1, data=source), folder / "run")


def outcomes(run: Run) -> Counter[str]:
    return Counter(sample["score"]["outcome"] for sample in run.samples)


def flags(run: Run) -> Counter[str]:
    return Counter(flag for sample in run.samples for flag in sample.get("flags", ()))


@pytest.mark.parametrize("name", EVERY)
def test_an_oracle_has_all_points(tmp_path, name):
    run = asked(name, tmp_path, lambda known: known)
    assert outcomes(run) == {"right": run.head["items"]["count"]}
    assert run.samples
    assert not flags(run)
    assert not remarks(run)
    assert all(sample["answer"]["thinking"] == "Let me see." for sample in run.samples)


@pytest.mark.parametrize("name", ["gpqa", "steps", "zebralogic", "humaneval", "math500"])
def test_cut_answers_are_called_cut_and_not_wrong(tmp_path, name):
    """Half-way through the answer, and in the thoughts, where there is no answer at all."""
    cut = asked(name, tmp_path, truncating)
    assert outcomes(cut) == {"truncated": cut.head["items"]["count"]}
    told = summarise(cut)
    assert told["finished"] is None
    assert any(line.startswith("TRUNCATED: 100.0%") for line in told["cautions"])

    def in_thoughts(known: Script) -> Script:
        return lambda body: replace(known(body), content="", finish="length")

    assert set(outcomes(asked(name, tmp_path / "second", in_thoughts))) == {"truncated"}


def half(known: Script) -> Script:
    """The template opened the think block, so that the opening tag is in the prompt."""
    return lambda body: replace(r := known(body), content=f"{r.reasoning}\n</think>\n\n{r.content}", reasoning="")


def beside(known: Script) -> Script:
    """A parser that found thoughts, and left others in the content."""
    return lambda body: replace(r := known(body), content=f"<think>\nMore.\n</think>\n\n{r.content}")


@pytest.mark.parametrize("script", [leaking, half, beside])
@pytest.mark.parametrize("name", ["steps", "arc_agi", "mbpp", "gsm8k"])
def test_leaked_tags_are_caught_and_named(tmp_path, name, script):
    run = asked(name, tmp_path, script)
    count = run.head["items"]["count"]
    assert outcomes(run) == {"right": count}
    assert flags(run)["leak"] == count
    assert any("thoughts with their tags" in line for line in remarks(run))
    for sample in run.samples:
        assert "think>" not in sample["answer"]["content"]
        assert sample["answer"]["thinking"].strip() in ("Let me see.", "Let me see.\nMore.")


def test_thoughts_that_are_cut_in_the_content_are_no_answer(tmp_path):
    """The right answer stands in the thoughts of a server without a parser: that is not an answer."""

    def unclosed(known: Script) -> Script:
        return lambda body: replace(r := known(body), content=f"<think>\nMaybe {r.content}", reasoning="", usage=None)

    run = asked("gpqa", tmp_path, unclosed)
    assert outcomes(run) == {"empty": 1}
    assert flags(run) == {"leak": 1, "estimated": 1}


@pytest.mark.parametrize(
    ("field", "usage"),
    [
        ("reasoning_content", {"completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 30}}),
        ("reasoning", {"completion_tokens": 40, "completion_tokens_details": {"reasoning_tokens": 30}}),
        ("reasoning_content", {"completion_tokens": 40, "reasoning_tokens": 30}),
        ("reasoning_content", {"completion_tokens": 40, "completion_tokens_details": None}),
        ("reasoning", None),
    ],
    ids=["vllm until 0.15, openrouter", "vllm, openrouter", "sglang", "llama.cpp", "nothing counted"],
)
def test_fields_of_other_servers(tmp_path, field, usage):
    def theirs(known: Script) -> Script:
        told = usage and {"prompt_tokens": 5, **usage}
        return lambda body: replace(known(body), reasoning_field=field, usage=told)

    run = asked("belebele", tmp_path, theirs)
    (sample,) = run.samples
    answer, exact = sample["answer"], bool(usage) and "llama.cpp" not in str(usage) and "30" in str(usage)
    assert (sample["score"]["outcome"], answer["thinking"]) == ("right", "Let me see.")
    assert flags(run) == ({} if exact else {"estimated": 1})
    assert answer["thinking_tokens"] > 0
    assert answer["answer_tokens"] > 0
    if usage:
        assert answer["thinking_tokens"] + answer["answer_tokens"] == 40
    if exact:
        assert answer["thinking_tokens"] == 30


def test_texts_in_parts(tmp_path):
    """Mistral's content, and OpenRouter's `reasoning_details` where there is nothing beside."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}

    def parts(known: Script) -> Script:
        def script(body: Body) -> Reply:
            reply = known(body)
            return replace(reply, content=[thought, {"type": "text", "text": reply.content}], reasoning="")

        return script

    def details(known: Script) -> Script:
        found = [{"type": "reasoning.text", "text": "Hm."}]
        return lambda body: replace(known(body), reasoning=found, reasoning_field="reasoning_details")

    for name, script in (("parts", parts), ("details", details)):
        (sample,) = asked("gpqa", tmp_path / name, script).samples
        assert (sample["score"]["outcome"], sample["answer"]["thinking"]) == ("right", "Hm.")


def test_null_content_and_thoughts_where_none_were_asked_for(tmp_path):
    def null(known: Script) -> Script:
        return lambda body: replace(known(body), content=None, reasoning="Hm.")

    run = asked("gpqa", tmp_path, null, mode="no-think")
    assert (outcomes(run), flags(run)["thought"]) == ({"empty": 1}, 1)


def test_an_endpoint_that_fails_gives_failed_samples_which_are_asked_again(tmp_path):
    suite, wish = suite_named("controls"), Wish(samples=1, data=GENERATED["controls"])
    known = oracle({item.messages[-1]["content"]: right(item) for item in suite.load(wish.data)})
    ill = True

    def failing(body: Body) -> Reply:
        return Reply(status=500) if ill and "sort" in str(body["messages"]).lower() else known(body)

    with serving(failing) as server:
        endpoint = Endpoint(server.url, "scripted", retries=1, pause_s=0.01)
        first = evaluate(suite, endpoint, wish, tmp_path)
        before, ill = len(server.bodies), False
        again = evaluate(suite, endpoint, wish, tmp_path)
    failed = outcomes(first)["failed"]
    assert 0 < failed < 9
    assert outcomes(first)["right"] == 9 - failed
    assert all("status 500" in s["answer"]["error"] for s in first.samples if s["score"]["outcome"] == "failed")
    assert any(f"{failed} of 9 samples failed" in line for line in summarise(first)["cautions"])
    assert outcomes(again) == {"right": 9}
    assert len(server.bodies) - before == failed  # those alone


def test_faults_of_the_way_are_tried_again(tmp_path):
    faults = (Reply(status=503), Reply("never read", cut=True))
    assert outcomes(asked("steps", tmp_path, lambda known: faulty(known, *faults))) == {"right": 9}
    with pytest.raises(RemoteError, match="401"):
        asked("gpqa", tmp_path / "data", lambda known: faulty(known, Reply(status=401)))
