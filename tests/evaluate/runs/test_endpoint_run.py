"""Runs against a scripted endpoint: what it says, what it breaks, and what is left of it after a second start."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qwen3.errors import CorruptFileError, RemoteError, UsageError
from qwen3.evaluate.runs import Run, read_run
from qwen3.evaluate.runs.endpoint import Endpoint, split_leak
from qwen3.evaluate.runs.record import SAMPLES
from qwen3.evaluate.runs.run import Wish, evaluate, items_of, remarks
from qwen3.evaluate.types import Answer, Item, Sampling, Score, Suite
from tests.evaluate.endpoint import FAULTS, Reply, Script, faulty, leaking, oracle, question, serving, truncating

ITEMS = [
    Item(f"sum/{i}", ({"role": "user", "content": f"{i} + {i}?"},), str(2 * i), {"odd": i % 2 == 1}) for i in range(12)
]


def score(item: Item, answer: Answer) -> Score:
    right = answer.content.strip() == item.gold
    return Score(float(right), "right" if right else "wrong", answer.content.strip())


SUITE = Suite("sums", "sums", lambda source: ITEMS, score, "none", "made here", sampling=Sampling(2, 100))
KNOWS = oracle(lambda text: str(2 * int(text.split()[0])))


def asked(script: Script, folder: Path, suite: Suite = SUITE, wish: Wish = Wish(), **how: object) -> Run:  # noqa: B008
    with serving(script) as server:
        model = Endpoint("http://127.0.0.1:1/v1", "scripted", **{"mode": "think", "pause_s": 0.01, **how})  # type: ignore[arg-type]
        address, model.url = model.url, server.url
        head = model.head
        model.head = lambda: {**head(), "source": address, "endpoint": address}  # type: ignore[method-assign]
        return evaluate(suite, model, wish, folder)


def outcomes(run: Run) -> Counter[str]:
    return Counter(record["score"]["outcome"] for record in run.samples)


def test_oracle(tmp_path: Path) -> None:
    run = asked(KNOWS, tmp_path)
    assert outcomes(run) == {"right": 24}
    first = run.samples[0]["answer"]
    assert first["thinking"] == "Let me see."
    assert (first["thinking_tokens"], first["answer_tokens"]) == (3, 1)
    assert not remarks(run)
    assert run.head["items"]["count"] == 12
    assert run.head["samples"] == 2


def test_what_is_sent(tmp_path: Path) -> None:
    with serving(KNOWS) as server:
        model = Endpoint(server.url + "/", "m", "sekret", "think", 64, concurrency=3)
        evaluate(SUITE, model, Wish(samples=1, sampling={"temperature": 0.5}), tmp_path)
    body = server.bodies[0]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert body["thinking_budget"] == 64
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (0.5, 0.95, 20, 100)
    assert set(server.keys) == {"Bearer sekret"}
    assert server.most <= 3
    assert len({body["seed"] for body in server.bodies}) == 12
    assert not any("sekret" in file.read_text() for file in tmp_path.iterdir())
    with serving(KNOWS) as server:  # no mode: nothing that another server would refuse
        evaluate(SUITE, Endpoint(server.url, "m"), Wish(samples=1), tmp_path / "plain")
    assert set(server.bodies[0]) == {"model", "messages", "max_tokens", "seed"}


def test_truncated(tmp_path: Path) -> None:
    assert outcomes(asked(truncating(KNOWS), tmp_path)) == {"truncated": 24}


def test_leak_is_taken_out_and_told(tmp_path: Path) -> None:
    run = asked(leaking(KNOWS), tmp_path)
    assert outcomes(run) == {"right": 24}
    assert all(record["flags"] == ["estimated", "leak"] or record["flags"] == ["leak"] for record in run.samples)
    assert any("tags stood in the content" in line for line in remarks(run))


@pytest.mark.parametrize(
    ("content", "answer", "thought"),
    [
        ("<think>\na\n</think>\n\nb", "b", "a"),
        ("a\n</think>\n\nb", "b", "a"),
        ("<think>a", "", "a"),
        ("the tag <think> begins", "the tag <think> begins", None),
        ("plain", "plain", None),
    ],
)
def test_split_leak(content: str, answer: str, thought: str | None) -> None:
    assert split_leak(content) == (answer, thought)


def test_faults_are_no_answers(tmp_path: Path) -> None:
    run = asked(faulty(KNOWS, *FAULTS, Reply("late", hang=30)), tmp_path, timeout_s=0.5)
    assert outcomes(run) == {"right": 24}


def test_failed_samples_are_asked_again(tmp_path: Path) -> None:
    broken = asked(faulty(KNOWS, *[Reply(status=500)] * 4), tmp_path, retries=0)
    assert outcomes(broken) == {"right": 20, "failed": 4}
    assert outcomes(asked(KNOWS, tmp_path)) == {"right": 24}


def test_refusals_end_the_run_and_keep_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="status 401: scripted 401"):
        asked(faulty(KNOWS, Reply(status=401)), tmp_path, concurrency=1)
    with pytest.raises(RemoteError, match=r"20 samples in a row failed.*status 500"):
        asked(lambda body: Reply(status=500), tmp_path, retries=0)
    assert outcomes(asked(KNOWS, tmp_path)) == {"right": 24}
    bad = asked(lambda body: Reply(status=400) if question(body) == "1 + 1?" else KNOWS(body), tmp_path / "one")
    assert outcomes(bad) == {"right": 22, "failed": 2}


def test_a_torn_line_is_asked_again_and_a_broken_one_is_named(tmp_path: Path) -> None:
    whole = asked(KNOWS, tmp_path)
    raw = (tmp_path / SAMPLES).read_bytes()
    (tmp_path / SAMPLES).write_bytes(raw[:-40])
    assert len(read_run(tmp_path).samples) == 23
    again = asked(KNOWS, tmp_path)

    def without_time(run: Run) -> list[object]:
        return [{**record, "answer": {**record["answer"], "seconds": 0}} for record in run.samples]

    assert without_time(again) == without_time(whole)
    (tmp_path / SAMPLES).write_bytes(raw[:5] + b"\n" + raw)
    with pytest.raises(CorruptFileError, match=r"samples.jsonl:1: not a sample"):
        read_run(tmp_path)


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    asked(KNOWS, tmp_path)
    for wish, told in (
        (Wish(seed=2), "seed: there 1, now 2"),
        (Wish(samples=3), "samples: there 2, now 3"),
        (Wish(sampling={"temperature": 0.0}), r"sampling.temperature: there 0.6, now 0.0"),
    ):
        with pytest.raises(UsageError, match=told):
            asked(KNOWS, tmp_path, wish=wish)
    with pytest.raises(UsageError, match=r"items\.sha256"):
        asked(KNOWS, tmp_path, suite=replace(SUITE, load=lambda source: [*ITEMS[1:], replace(ITEMS[0], gold="1")]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not a run"):
        asked(KNOWS, tmp_path / "other")


def test_several_turns(tmp_path: Path) -> None:
    items = [replace(ITEMS[1], later=("2 + 2?", "3 + 3?"))]
    suite = replace(SUITE, load=lambda source: items, score=lambda item, answer: Score(1.0, "right", answer.content))
    with serving(KNOWS) as server:
        run = evaluate(suite, Endpoint(server.url, "m", mode="no-think"), Wish(samples=1), tmp_path)
    answer = run.samples[0]["answer"]
    assert answer["turns"] == ["2", "4", "6"]
    assert answer["prompt_tokens"] == 30
    assert answer["answer_tokens"] == 3
    assert [turn["content"] for turn in server.bodies[-1]["messages"]] == ["1 + 1?", "2", "2 + 2?", "4", "3 + 3?"]


def test_tools(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    suite = replace(
        SUITE,
        load=lambda source: [replace(ITEMS[0], tools=(tool,))],
        score=lambda item, answer: Score(float(list(answer.tool_calls) == [call]), "right"),
    )
    with serving(lambda body: Reply(finish="tool_calls", tool_calls=(call,))) as server:
        run = evaluate(suite, Endpoint(server.url, "m"), Wish(samples=1), tmp_path)
    assert server.bodies[0]["tools"] == [tool]
    assert run.samples[0]["score"]["value"] == 1.0


def test_items() -> None:
    some = [item.id for item in items_of(SUITE, Wish(limit=5))]
    assert len(some) == 5
    assert some == [item.id for item in items_of(SUITE, Wish(limit=5))]
    assert some != [item.id for item in items_of(SUITE, Wish(limit=5, seed=2))]
    with pytest.raises(UsageError, match="two items have the id 'sum/0'"):
        items_of(replace(SUITE, load=lambda source: [ITEMS[0], ITEMS[0]]), Wish())


def test_a_scorers_own_mistake_names_the_item(tmp_path: Path) -> None:
    def broken(item: Item, answer: Answer) -> Score:
        raise KeyError("gone")

    with pytest.raises(RuntimeError, match=r"scoring sums, item sum/\d+: KeyError\('gone'\)"):
        asked(KNOWS, tmp_path, suite=replace(SUITE, score=broken))


@pytest.mark.parametrize(("usage", "counts"), [(None, (2, 1)), ({"completion_tokens": 30}, (25, 5))])
def test_tokens_that_nobody_counted(tmp_path: Path, usage: dict[str, int] | None, counts: tuple[int, int]) -> None:
    run = asked(lambda body: Reply("22", "thinking!", usage=usage), tmp_path)
    first = run.samples[0]
    assert (first["answer"]["thinking_tokens"], first["answer"]["answer_tokens"]) == counts
    assert first["flags"] == ["estimated"]
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 1
