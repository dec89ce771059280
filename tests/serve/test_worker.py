"""The worker without its process: what it hears, what it says, who waits for whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qwen3 import LLM
from qwen3.chat import fold
from qwen3.engine.request import Request
from qwen3.serve import wire, worker
from qwen3.serve.calls import Call
from qwen3.serve.worker import Worker
from tests.fixtures import random_model, tiny_config, tiny_tokenizer

CONFIG = tiny_config()
TOKENIZER = tiny_tokenizer(CONFIG)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


class Line:
    """Keeps what was said."""

    def __init__(self) -> None:
        self.frames: list[list[Any]] = []

    def send(self, stats: Any, replies: list[Any], news: list[Any]) -> None:
        ((message, _),) = wire.Frames().feed(wire.pack([stats, replies, news]))
        self.frames.append(message)

    def reply(self, key: int, value: Any = None, error: Exception | None = None) -> None:
        self.send(None, [[key, value, None if error is None else wire.error_to_wire(error)]], [])

    def replies(self) -> dict[int, Any]:
        return {key: error or value for _, replies, _ in self.frames for key, value, error in replies}

    def news(self, key: int) -> list[list[Any]]:
        return [piece for _, _, news in self.frames for piece in news if piece[0] == key]


@pytest.fixture(name="made")
def fixture_made() -> Iterator[Worker]:
    llm = LLM.of(random_model(CONFIG, seed=3), TOKENIZER, max_batch=8)
    made = Worker(llm, Line())  # type: ignore[arg-type]
    yield made
    for threads in made._threads:
        threads.shutdown()
    llm.close()


def run(made: Worker, until: Any, seconds: float = 30) -> None:
    """Steps until `until()`, where there is something to do."""
    end = time.monotonic() + seconds
    while not until():
        if made.engine.has_work or made._jobs or not made.inbox.empty():
            made.step()
        else:
            time.sleep(0.002)
        assert time.monotonic() < end, made.line.frames[-3:]  # type: ignore[attr-defined]


def ended(made: Worker, key: int) -> Any:
    return lambda: any(piece[2] >= wire.FINISH for piece in made.line.news(key))  # type: ignore[attr-defined]


def opened(made: Worker, key: int, **fields: Any) -> None:
    made.hear(["open", key, {**HELLO, **fields}], 100)


def test_one_frame_a_step_for_all(made: Worker) -> None:
    for key in range(1, 9):
        opened(made, key, sampling={"max_tokens": 40, "ignore_eos": True, "seed": key})
    run(made, lambda: len(made.calls) == 8)
    first, before = len(made.line.frames), made.engine.steps
    run(made, lambda: not made.calls)
    assert len(made.line.frames) - first <= made.engine.steps - before + 1
    stats, _, _ = made.line.frames[-1]
    assert dict(zip([*worker.STATS, "tokens"], stats, strict=True)) | {"steps": 0} == {
        "running": 0, "queued": 0, "used_blocks": 0, "blocks": made.engine.blocks, "steps": 0, "max_batch": 8,
        "max_len": made.engine.max_len, "tokens": 320,
    }  # fmt: skip
    assert not made.samples
    assert not made.pending


def test_log_probabilities_go_with_their_tokens(made: Worker) -> None:
    sampling = {"max_tokens": 80, "seed": 5, "logprobs": 2, "prompt_logprobs": 1}
    opened(made, 1, sampling=sampling, thinking={"budget": 6})
    run(made, ended(made, 1))
    *deltas, end = made.line.news(1)
    alone = made.llm.chat("Hello", sampling=worker.SamplingParams(**sampling), thinking=worker.ThinkingPolicy(budget=6))
    told = []
    for piece in deltas:
        skipped, own = piece[5:]
        assert [entry[0] for entry in own] == piece[4]
        told += [*skipped, *own]
    told += end[4]["logprobs"]
    assert [entry[0] for entry in told] == list(alone.ids) == end[4]["ids"]
    assert [entry[2] for entry in told] == pytest.approx([entry.logprob for entry in alone.logprobs or ()], abs=1e-4)
    assert len(end[4]["prompt_logprobs"]) == made.line.replies()[1]["prompt_tokens"]
    assert fold(map(wire.event_of, [*deltas, end])).content == alone.content


def test_a_call_that_is_cancelled_while_it_is_rendered_never_runs(made: Worker) -> None:
    go_on = threading.Event()
    for _ in range(2):
        made._threads[0].submit(go_on.wait)
    opened(made, 1)
    made.hear(["cancel", 1], 10)
    made.hear(["answer_now", 99], 10)
    run(made, lambda: made.inbox.empty())
    assert not made.pending
    go_on.set()
    made._threads[0].submit(lambda: None).result()
    run(made, lambda: made.inbox.empty())
    assert not made.engine.has_work
    assert made.line.replies() == {}
    made.hear(["cancel", 1], 10)
    run(made, lambda: made.inbox.empty())


def test_what_is_wrong_is_the_reply(made: Worker) -> None:
    wrong: dict[int, dict[str, Any]] = {
        1: {"sampling": {"temperature": "hot"}},
        2: {"sampling": {"temprature": 1}},
        3: {"thinking": {"budgets": 1}},
        4: {"adapter": "x"},
        5: {"messages": [{"role": "user", "content": "x" * 40_000}]},
        6: {"messages": None},
        7: {"regex": "("},
        8: {"continue_last": True},
        9: {"prompt": [10**9]},
        10: {"messages": None, "prompt": []},
    }
    for key, fields in wrong.items():
        opened(made, key, **fields)
    made.hear(["ask", 11, "x", {}], 10)
    made.hear(["ask", 12, "detokenize", {"ids": [10**9]}], 10)
    made.hear(["ask", 13, "embed", {"inputs": ["x"], "dimensions": 0}], 10)
    run(made, lambda: len(made.line.replies()) == 13)
    replies = made.line.replies()
    assert {kind for kind, _ in replies.values()} == {"UsageError"}
    starts = [
        "temperature=", "temprature is not", "thinking.budgets is not", "adapter 'x' is not", "the prompt has",
        "messages", "regex", "continue_last", "the prompt holds", "the prompt is empty", "nothing called", "token id",
        "dimensions",
    ]  # fmt: skip
    for key, start in enumerate(starts, 1):
        assert replies[key][1].startswith(start)
    assert not made.pending


def test_what_is_not_ours_is_written_down_and_not_told(made: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    made.hear(["ask", 1, "detokenize", {"nothing": 1}], 10)
    run(made, lambda: made.line.replies())
    assert made.line.replies()[1][0] == ""
    made.line.frames.clear()
    assert worker._told(TypeError("secret")) == ["", "secret"]
    assert "TypeError: secret" in capfd.readouterr().err


def test_vectors_are_computed_between_steps(made: Worker) -> None:
    opened(made, 1, sampling={"max_tokens": 3000, "ignore_eos": True})
    run(made, lambda: made.calls)
    made.hear(["ask", 2, "embed", {"inputs": ["word " * 300] * 12}], 100)
    run(made, lambda: 2 in made.line.replies())
    assert made.calls  # and the answer went on
    assert made.line.replies()[2]["tokens"] == [len(made.llm.tokenizer.encode("word " * 300)) + 1] * 12
    made.hear(["ask", 3, "embed", {"inputs": ["word " * 300] * 12}], 100)
    run(made, lambda: made._jobs)
    made.hear(["cancel", 3], 10)
    run(made, lambda: not made._jobs)
    assert made.line.replies()[3] is None
    made.hear(["cancel", 1], 10)
    run(made, ended(made, 1))


def test_the_next_turn_is_computed_when_nothing_else_is_to_do(made: Worker) -> None:
    opened(made, 1, regex="[ab]{20}", thinking={"mode": "off"}, tenant="me")
    run(made, ended(made, 1))
    run(made, lambda: made.engine.has_idle_work)
    while made.engine.has_idle_work:
        made.step()
    reply = fold(map(wire.event_of, made.line.news(1))).message
    turns = [*HELLO["messages"], reply.to_dict(), {"role": "user", "content": "And?"}]
    cached = {}
    for key, tenant in ((2, "me"), (3, "you")):
        opened(made, key, messages=turns, sampling={"max_tokens": 1}, tenant=tenant)
        run(made, ended(made, key))
        cached[tenant] = wire.event_of(made.line.news(key)[-1]).usage.cached_tokens  # type: ignore[union-attr]
    known = len(made.asking.next_ids(made._asked(Call(**HELLO), made.engine.check), reply))
    assert cached == {"me": known // 16 * 16, "you": 0}


def test_a_lost_device_ends_the_process(made: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(worker.os, "_exit", codes.append)
    opened(made, 1, sampling={"max_tokens": 3000, "ignore_eos": True})
    run(made, lambda: made.samples)
    request: Request = next(iter(made.samples.values())).request

    def lost(*_: Any, **more: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(made.engine.runner, "forward", lost)
    run(made, ended(made, 1))
    assert isinstance(request.error, torch.AcceleratorError)
    assert made.line.news(1)[-1][2:] == [wire.ERROR, ["", str(request.error)]]
    assert codes == [1]
