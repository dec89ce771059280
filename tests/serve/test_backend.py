"""The engine's process from outside: the tokens of this process, nothing lost in silence, nothing left behind."""

from __future__ import annotations

import asyncio
import base64
import gc
import os
import re
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.chat import Finish, fold
from qwen3.errors import ModelNotFoundError, UsageError
from qwen3.serve import backend as module
from qwen3.serve.backend import Backend, Stream
from qwen3.serve.calls import Call, Item
from qwen3.serve.errors import ApiError

QUESTION = [{"role": "user", "content": "What is 27 * 14?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"enum": [27, 14]}}, "required": ["a"]},
    },
}
CONTROL = dict.fromkeys(range(8192, 8218), -100.0)
LONG = Call(QUESTION, sampling={"ignore_eos": True, "max_tokens": 3900}, thinking={"loop_guard": False})
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module", autouse=True)
def fixture_one_thread() -> Iterator[None]:
    """In both processes: the last bits of a sum depend on how many threads it is split among, and tests before these
    may have changed that of this one."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", name="run")
def fixture_run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield lambda work: runner.run(asyncio.wait_for(work, 60))


@pytest.fixture(scope="module", name="backend")
def fixture_backend(run: Run) -> Iterator[Backend]:
    found = Backend("embedded", options={"max_batch": 8, "invariant": True}, max_queue=80)
    run(found.load())
    yield found
    run(found.close())


@pytest.fixture(scope="module", name="llm")
def fixture_llm() -> Iterator[LLM]:
    with LLM(max_batch=8, invariant=True) as llm:
        yield llm


@pytest.fixture(scope="module", name="alone")
def fixture_alone(llm: LLM) -> str:
    """What `CALLS[0]` is answered with in this process, whatever the weights."""
    answer = llm.chat(QUESTION, sampling=SamplingParams(temperature=0))
    assert answer.finish_reason == "stop"
    assert answer.content.strip()
    return answer.content


async def items_of(stream: Stream) -> list[Item]:
    return [item async for items in stream for item in items]


async def refused(work: Coroutine[Any, Any, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await work
    return caught.value


async def until(what: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        await asyncio.sleep(0.01)
        assert time.monotonic() < end


async def resting(backend: Backend) -> None:
    """Nothing runs, nothing waits, no block of the cache is held."""
    await until(lambda: not backend.busy and all(backend.stats[n] == 0 for n in ("running", "queued", "used_blocks")))
    assert backend._count == 0


CALLS = [
    Call(QUESTION, sampling={"temperature": 0, "logprobs": 3, "prompt_logprobs": 1}),
    Call(QUESTION, sampling={"seed": 7, "n": 3, "max_tokens": 60}, thinking={"budget": 9}),
    Call(QUESTION, tools=[TOOL], tool_choice="add", sampling={"seed": 1}, thinking={"mode": "off"}),
    Call(QUESTION, schema={"type": "object", "properties": {"x": {"enum": [378, 387]}}, "required": ["x"],
            "additionalProperties": False},
         sampling={"seed": 2, "logprobs": 0}, thinking={"budget": 20}),
    Call(QUESTION, sampling={"seed": 3, "logit_bias": {13: -100.0}, "stop": ["378"]}, thinking={"mode": "auto"}),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=["logprobs", "samples", "tool", "schema", "auto"])
def test_answers_are_those_of_this_process(backend: Backend, llm: LLM, run: Run, call: Call) -> None:
    async def both() -> tuple[list[Any], list[Item], Stream]:
        whole = await (await backend.open(call)).collect()
        stream = await backend.open(replace(call, sampling={**call.sampling, "seed": whole[0].seed}))
        return whole, await items_of(stream), stream

    samples, items, stream = run(both())
    found = llm.chat(
        QUESTION, ThinkingPolicy(**call.thinking), SamplingParams(**{**call.sampling, "seed": samples[0].seed}),
        tools=call.tools, tool_choice=call.tool_choice, schema=call.schema,
    )  # fmt: skip
    alone = found if isinstance(found, list) else [found]
    assert len(samples) == len(alone)
    for sample, wanted in zip(samples, alone, strict=True):
        got, streamed = sample.result, fold(item.event for item in items if item.index == sample.index)
        for result in (got, streamed):
            assert result.content == wanted.content
            assert result.reasoning_content == wanted.reasoning_content
            assert result.tool_calls == wanted.tool_calls
            assert result.finish_reason == wanted.finish_reason
            assert result.thinking == wanted.thinking
            assert result.warnings == wanted.warnings
            assert result.matched == wanted.matched
            assert result.usage is not None
            assert wanted.usage is not None
            assert replace(result.usage, cached_tokens=0) == replace(wanted.usage, cached_tokens=0)
        assert sample.ids == wanted.ids == tuple(stream.ends[sample.index]["ids"])
        assert set(sample.timing) == set(vars(wanted.timing))
        assert all(value is None or value >= 0 for value in sample.timing.values())
        if call.sampling.get("logprobs") is None:
            assert sample.logprobs is None
            continue
        assert sample.logprobs is not None
        assert wanted.logprobs is not None
        assert [entry.id for entry in sample.logprobs] == list(sample.ids)
        for entry, other in zip(sample.logprobs, wanted.logprobs, strict=True):
            assert entry.logprob == other.logprob
            assert entry.data == llm.tokenizer.token_bytes(entry.id)
            assert [(id, value) for id, _, value in entry.top] == other.top
            assert entry.rank == next((i for i, (id, _, _) in enumerate(entry.top, 1) if id == entry.id), None)
        for item in items:
            assert [entry.id for entry in item.logprobs] == list(getattr(item.event, "ids", ()))
    if "prompt_logprobs" in call.sampling:
        told, wanted_prompt = samples[0].prompt_logprobs, alone[0].prompt_logprobs
        assert samples[0].prompt_ids == alone[0].prompt_ids
        assert told is not None
        assert told[0] is None
        assert [entry and entry.logprob for entry in told] == [entry and entry.logprob for entry in wanted_prompt]
    assert len(stream.id) == 36
    assert stream.opened["prompt_tokens"] == len(alone[0].prompt_ids)
    run(resting(backend))


def test_raw_prompts_and_open_messages(backend: Backend, llm: LLM, run: Run) -> None:
    async def work() -> list[Any]:
        ids = (await backend.ask("tokenize", call=Call(QUESTION)))["ids"]
        begun = {"role": "assistant", "content": "The answer"}
        calls = [
            Call(prompt=ids, sampling={"temperature": 0}),
            Call(QUESTION, sampling={"temperature": 0}),
            Call([*QUESTION, begun], sampling={"temperature": 0}, continue_last=True),
            Call(prompt="<|im_start|>", sampling={"max_tokens": 1}),
        ]
        return [ids, *[(await (await backend.open(call)).collect())[0] for call in calls]]

    ids, raw, chat, gone_on, text = run(work())
    assert raw.prompt_ids == tuple(ids)
    assert raw.ids == chat.ids
    assert raw.result.content.startswith("<think>")  # nothing is split off a raw prompt's answer
    assert gone_on.result.content.startswith(" is ")
    assert gone_on.result.reasoning_content == ""
    assert text.prompt_ids == (llm.tokenizer.control.im_start,)


def test_a_slow_reader_gets_more_at_once(backend: Backend, run: Run) -> None:
    async def work() -> tuple[list[list[Item]], Stream]:
        # no control token, of which nobody hears, whatever the weights
        sampling = {"seed": 1, "n": 2, "ignore_eos": True, "max_tokens": 300, "logit_bias": CONTROL}
        stream = await backend.open(Call(QUESTION, sampling=sampling, thinking={"mode": "off", "loop_guard": False}))
        first = await anext(stream)
        await until(lambda: stream.done)
        assert stream.buffered < 300  # what waits is joined meanwhile
        return [first, *[items async for items in stream]], stream

    batches, stream = run(work())
    assert len(batches) == 2
    assert len(batches[1]) < 30
    for index in range(2):
        ids = [
            id for items in batches for item in items if item.index == index for id in getattr(item.event, "ids", ())
        ]
        assert 0 <= len(stream.ends[index]["ids"]) - len(ids) < 30
    assert sum(isinstance(item.event, Finish) for item in batches[1]) == 2


def test_cancel_and_answer_now(backend: Backend, run: Run) -> None:
    async def work() -> tuple[list[Item], list[Item]]:
        one, two = await backend.open(LONG), await backend.open(LONG)
        await anext(one)
        await anext(two)
        one.cancel()
        two.answer_now()
        stopped = await items_of(one)
        rest = []
        async for items in two:
            rest += items
            if any(type(item.event).__name__ == "TextDelta" for item in items):
                two.cancel()
        one.cancel()
        one.answer_now()
        return stopped, rest

    stopped, rest = run(work())
    assert isinstance(stopped[-1].event, Finish)
    assert stopped[-1].event.reason == "cancelled"
    assert len(stopped) < 100
    assert isinstance(rest[-1].event, Finish)
    assert rest[-1].event.thinking.ended_by == "client"
    run(resting(backend))


def test_whoever_goes_away_leaves_nothing(backend: Backend, run: Run, alone: str) -> None:
    async def work() -> None:
        stream = await backend.open(LONG)
        await anext(stream)
        del stream
        gc.collect()
        await resting(backend)
        waiting = [asyncio.create_task(backend.open(LONG)) for _ in range(40)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        asking = asyncio.create_task(backend.ask("embed", inputs=["word " * 500] * 200))
        await asyncio.sleep(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        reader = asyncio.create_task(items_of(await backend.open(LONG)))
        await asyncio.sleep(0.05)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        del reader  # whose error's traceback holds the stream
        gc.collect()
        await resting(backend)
        assert (await (await backend.open(CALLS[0])).collect())[0].result.content == alone

    run(work())


def test_errors_name_the_field(backend: Backend, run: Run) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    long = [{"role": "user", "content": "a b c d e f g " * 1000}]
    wrong = [
        (Call(QUESTION, sampling={"temperature": -1}), "temperature", None),
        (Call(QUESTION, thinking={"budget": "x"}), "thinking.budget", None),
        (Call([]), "messages", None),
        (Call([{"role": "user", "content": "\ud800"}]), "messages[0].content", None),
        (Call(QUESTION, schema={}, regex="x"), "schema, regex", None),
        (Call(QUESTION, tools=[TOOL], tool_choice="sub"), "tool_choice", None),
        (Call(QUESTION, adapter="x"), "adapter", None),
        (Call(long), None, "context_length_exceeded"),
        (Call([{"role": "user", "content": "😀" * 100_000}]), None, "context_length_exceeded"),
        (Call([{"role": "user", "content": deep}]), None, None),
        (Call(QUESTION, sampling={"n": 129}), "n", None),
    ]
    for call, param, code in wrong:
        error = run(refused(backend.open(call)))
        assert (error.status, error.param, error.code) == (400, param, code), error.message
    run(resting(backend))
    assert run(backend.ask("count", call=Call(long)))["prompt_tokens"] > 6000  # counting needs no room


def test_questions(backend: Backend, llm: LLM, run: Run) -> None:
    asked = run(backend.ask("tokenize", text="Hello <think>"))
    assert asked == {"ids": llm.tokenizer.encode("Hello <think>"), "pieces": ["H", "ello", " ", "<think>"]}
    assert llm.tokenizer.control.think not in run(backend.ask("tokenize", text="<think>", plain=True))["ids"]
    assert run(backend.ask("detokenize", ids=asked["ids"])) == {"text": "Hello <think>"}
    found = run(backend.ask("embed", inputs=["Hello", [5, 6, 7]], dimensions=16))
    vectors = array("f", base64.b64decode(found["vectors"]))
    wanted = llm.embed(["Hello", [5, 6, 7]], 16).flatten().tolist()
    assert vectors.tolist() == pytest.approx(wanted, abs=1e-5)
    assert found["tokens"] == [len(llm.tokenizer.encode("Hello")) + 1, 4]
    assert run(refused(backend.ask("rerank", query="x", documents=["y"]))).status == 400


def test_a_full_queue_says_when_to_come_again(backend: Backend, run: Run) -> None:
    async def work() -> None:
        streams = [await backend.open(LONG) for _ in range(88)]
        error = await refused(backend.open(LONG))
        assert (error.status, error.code) == (503, "queue_full")
        assert 1 <= (error.retry_after or 0) <= 60
        streams[0].cancel()
        await items_of(streams[0])
        streams[0] = await backend.open(LONG)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*map(items_of, streams))
        await resting(backend)

    run(work())


def test_both_ends_with_full_buffers_do_not_wait_for_each_other(backend: Backend, run: Run) -> None:
    """Megabytes of calls go out while the answers of others come in."""
    big = Call([{"role": "user", "content": "word " * 20_000}])  # 100 kB, which is under the cap, and too long

    async def work() -> list[Any]:
        streams = [await backend.open(replace(LONG, sampling={**LONG.sampling, "max_tokens": 60})) for _ in range(8)]
        answers = asyncio.gather(*map(items_of, streams))
        refusals = await asyncio.gather(*(refused(backend.open(big)) for _ in range(60)))
        await answers
        return refusals

    assert {error.code for error in run(work())} == {"context_length_exceeded"}
    run(resting(backend))


def test_a_killed_process_is_everybody_s_error_and_is_replaced(
    run: Run, monkeypatch: pytest.MonkeyPatch, alone: str
) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.2))
    backend = Backend("embedded", options={"max_batch": 4})

    async def work() -> None:
        first = await backend.load()
        streams = [await backend.open(LONG) for _ in range(3)]
        await anext(streams[0])
        pid = backend.pid
        assert pid is not None
        whole, asking = asyncio.create_task(streams[1].collect()), asyncio.create_task(backend.open(LONG))
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        for failed in (items_of(streams[0]), whole, asking):
            error = await refused(failed)
            assert (error.status, error.code) == (503, "engine_lost")
            assert "killed by SIGKILL" in error.message
            assert error.retry_after is not None
        assert backend.state == "restarting"
        error = await refused(backend.open(LONG))
        assert (error.status, error.code) == (503, "model_restarting")
        streams[2].cancel()
        await refused(items_of(streams[2]))
        await until(lambda: backend.state == "ready")
        assert (backend.restarts, backend.info, backend._count) == (1, first, 0)
        assert backend.pid != pid
        assert (await (await backend.open(CALLS[0])).collect())[0].result.content == alone
        child = psutil.Process(backend.pid)
        stream = await backend.open(LONG)
        await backend.unload()
        assert (await refused(items_of(stream))).status == 503
        assert not child.is_running()
        await backend.open(LONG)  # who asks again loads it again
        await backend.close()
        assert (await refused(backend.open(LONG))).code == "shutting_down"

    run(work())


def test_an_engine_that_hangs_is_noticed_and_replaced(run: Run, monkeypatch: pytest.MonkeyPatch, alone: str) -> None:
    """Stopped, as by a driver that never comes back: no frame, no end of file. Who does not ask does not notice."""
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.2))
    monkeypatch.setattr(module, "_PATIENCE", {"cpu": 1.5})
    monkeypatch.setattr(module, "_LAST_WORDS", 0.3)
    backend = Backend("embedded", options={"max_batch": 4})

    async def work() -> None:
        await backend.load()
        stream = await backend.open(LONG)
        await anext(stream)
        await asyncio.sleep(2.0)  # works, however long that takes
        assert (backend.restarts, backend.stuck, backend.state) == (0, False, "ready")
        stream.cancel()
        await items_of(stream)
        await resting(backend)
        child = psutil.Process(backend.pid)
        child.suspend()
        await asyncio.sleep(2.0)
        assert (backend.restarts, backend.stuck, backend.state) == (0, False, "ready")
        begun = time.monotonic()
        asking = asyncio.create_task(backend.open(LONG))
        await until(lambda: backend.stuck)
        error = await refused(asking)
        assert (error.status, error.code) == (503, "engine_lost")
        assert re.search(r"no step in \d+ s", error.message)
        assert 1.0 < time.monotonic() - begun < 8.0
        await until(lambda: backend.state == "ready")
        assert (backend.restarts, backend.stuck) == (1, False)
        assert not child.is_running()
        assert (await (await backend.open(CALLS[0])).collect())[0].result.content == alone
        await backend.close()

    run(work())


def test_draining_lets_answers_end(run: Run, alone: str) -> None:
    async def work() -> None:
        backend = Backend("embedded")
        short = await backend.open(CALLS[0])
        reading = asyncio.create_task(short.collect())
        closing = asyncio.create_task(backend.close(drain=20))
        await asyncio.sleep(0)
        assert (await refused(backend.open(CALLS[0]))).code == "shutting_down"
        assert (await reading)[0].result.content == alone
        await closing
        assert backend.state == "unloaded"

    run(work())


def test_what_keeps_a_model_from_loading_is_raised_as_it_is(run: Run, tmp_path: Path) -> None:
    cases = [("/nothing/here", {}, ModelNotFoundError), (None, {"context": 0}, UsageError), (None, {"x": 1}, None)]
    for model, options, kind in cases:
        backend = Backend("m", model, options)
        with pytest.raises(kind or Exception) as caught:
            run(backend.load())
        if kind is not None:
            assert type(caught.value) is kind
        assert backend.state == "failed"
        error = run(refused(backend.open(LONG)))  # at once, without trying again
        assert (error.status, error.code) == (503, "model_not_loaded")
        assert str(caught.value) in error.message
        assert backend.pid is None


PARENT = """
import asyncio, signal, sys
from qwen3.serve.backend import Backend
from tests.serve.test_backend import LONG

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background

async def main():
    backend = Backend("embedded")
    stream = await backend.open(LONG)
    await anext(stream)
    print(backend.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_its_parent_and_not_by_ctrl_c(number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    for signaled in (signal.SIGINT, signal.SIGTERM):  # a service manager sends it to all
        child.send_signal(signaled)
    time.sleep(0.3)
    assert child.is_running()
    assert os.getpgid(child.pid) != os.getpgid(parent.pid)  # a terminal's Ctrl-C does not reach it
    os.killpg(parent.pid, number)
    parent.wait(20)
    parent.stdout.close()
    assert psutil.wait_procs([child], 20)[0] or child.status() == psutil.STATUS_ZOMBIE


def test_the_loop_may_be_uvloop(alone: str) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def work() -> str:
        backend = Backend("embedded")
        content: str = (await (await backend.open(CALLS[0])).collect())[0].result.content
        await backend.close()
        return content

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(work()) == alone
