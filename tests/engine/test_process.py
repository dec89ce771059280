"""The engine in a process of its own: the same tokens as in this one, and nothing lost in silence when either dies."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from qwen3 import LLM
from qwen3.chat import Event, Finish, ThinkingPolicy, TokenStream, fold
from qwen3.engine import Engine, Request, SamplingParams
from qwen3.engine.process import EngineProcess
from qwen3.errors import QueueFullError, Qwen3Error, UsageError
from tests.fixtures import random_model, tiny_config, tiny_tokenizer

PARAMS = SamplingParams(temperature=1.0, top_k=50, top_p=1.0, min_p=0.0, max_tokens=60)
LONG = replace(PARAMS, max_tokens=4000, ignore_eos=True, seed=1)
TOKENIZER = tiny_tokenizer(tiny_config())


def tiny_engine(**options: Any) -> Engine:
    """What a child makes."""
    model = random_model(tiny_config(), seed=3)
    return Engine(model, tiny_tokenizer(tiny_config()), max_batch=8, invariant=True, **options)


def refusing_engine() -> Engine:
    raise UsageError("no engine today")


def breaking_engine() -> Engine:
    raise ZeroDivisionError("1 / 0")


def request(prompt: list[int], params: SamplingParams, *, index: int = 0, stream: bool = True) -> Request:
    policy = ThinkingPolicy(budget=8) if params.seed is not None and params.seed % 3 == 0 else None
    own = TokenStream(TOKENIZER, prompt, policy, ignore_eos=params.ignore_eos) if stream else None
    return Request(prompt, params, own, index)


def requests() -> list[Request]:
    """Twenty of every kind; the same ones with every call."""
    rng, found = random.Random(5), []
    for i in range(20):
        prompt = [rng.randrange(600) for _ in range(rng.randrange(1, 60))]
        params = replace(PARAMS, seed=i, max_tokens=rng.randrange(1, 90), logprobs=2 if i % 4 == 0 else None)
        found.append(request(prompt, params, stream=i % 5 != 1))
    return found


class Log:
    """Every event of each request, as they came."""

    def __init__(self) -> None:
        self.events: dict[int, list[Event]] = {}

    def poll(self, process: EngineProcess, timeout: float = 5.0) -> list[Request]:
        changed = process.poll(timeout)
        for item in changed:
            self.events.setdefault(id(item), []).extend(item.take_events())
        return changed

    def finish(self, process: EngineProcess, items: list[Request]) -> None:
        end = time.monotonic() + 60
        while not all(item.done for item in items):
            self.poll(process)
            assert time.monotonic() < end


@pytest.fixture(scope="module", name="process")
def fixture_process() -> Iterator[EngineProcess]:
    with contextlib.closing(EngineProcess(partial(tiny_engine, max_queue=30))) as process:
        yield process


def test_tokens_and_events_are_those_of_this_process(process: EngineProcess) -> None:
    alone = requests()
    engine = tiny_engine()
    for item in alone:
        engine.add(item)
    while engine.has_work:
        engine.advance()
    there, log, cancelled = requests(), Log(), []
    for i, item in enumerate(there):
        process.submit([item])
        if i % 3 == 2:
            cancelled.append(there[i - 1])
            process.cancel(there[i - 1])
            process.cancel(there[i - 1])
        log.poll(process, 0.01)
    log.finish(process, there)
    for item, other in zip(there, alone, strict=True):
        assert item.output == other.output[: len(item.output)]
        assert item.finish_reason == other.finish_reason or item in cancelled
        if item.finish_reason == "cancelled":
            continue
        assert item.output == other.output
        assert [entry.id for entry in item.logprobs] == [entry.id for entry in other.logprobs]
        assert item.clock.added <= item.clock.started <= item.clock.first_token <= item.clock.finished
        if item.stream is not None:
            told, wanted = fold(log.events[id(item)]), fold(other.take_events())
            assert replace(told.usage, cached_tokens=0) == replace(wanted.usage, cached_tokens=0)
            assert replace(told, usage=wanted.usage) == wanted
    assert sum(item.finish_reason != "cancelled" for item in there) >= 14
    assert (process.stats["running"], process.stats["queued"], process.stats["used_blocks"]) == (0, 0, 0)


def test_samples_of_one_prompt(process: EngineProcess) -> None:
    items = [request([5, 6, 7], replace(PARAMS, seed=4), index=i) for i in range(3)]
    process.submit(items)
    Log().finish(process, items)
    engine, alone = tiny_engine(), [request([5, 6, 7], replace(PARAMS, seed=4), index=i) for i in range(3)]
    engine.add_samples(alone)
    while engine.has_work:
        engine.advance()
    assert [item.output for item in items] == [item.output for item in alone]


def test_one_message_a_step(process: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    before, messages, loads = process.stats["steps"], [], pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda data: messages.append(1) or loads(data))
    items = [request([i + 1], replace(LONG, max_tokens=100, seed=i + 1)) for i in range(8)]
    for item in items:
        process.submit([item])
    Log().finish(process, items)
    assert sum(len(item.output) for item in items) == 800
    assert len(messages) <= process.stats["steps"] - before + len(items)


def test_what_the_engine_refuses_is_the_requests_error(process: EngineProcess) -> None:
    bad, good = request([1] * 5000, replace(PARAMS, seed=1)), request([1, 2], replace(PARAMS, seed=1))
    log = Log()
    process.submit([bad])
    process.submit([good])
    log.finish(process, [bad, good])
    assert isinstance(bad.error, UsageError)
    assert "5,000 tokens" in str(bad.error)
    assert [event.reason for event in log.events[id(bad)] if isinstance(event, Finish)] == ["error"]
    assert good.error is None
    many = [request([i + 1], replace(LONG, seed=1)) for i in range(60)]
    for item in many:
        process.submit([item])
    end = time.monotonic() + 30
    while not any(item.done for item in many) and time.monotonic() < end:
        process.poll(1)
    for item in many:
        process.cancel(item)
    Log().finish(process, many)
    refused = [item for item in many if isinstance(item.error, QueueFullError)]
    assert 22 <= len(refused) <= 30
    assert {item.finish_reason for item in many if item not in refused} == {"cancelled"}


def test_a_killed_process_is_every_requests_error() -> None:
    process = EngineProcess(tiny_engine)
    items, log = [request([i + 1], LONG, stream=i != 2) for i in range(4)], Log()
    for item in items:
        process.submit([item])
    while not items[0].output:
        log.poll(process)
    assert process._process.pid is not None
    os.kill(process._process.pid, signal.SIGKILL)
    log.finish(process, items)
    for item in items:
        assert "killed by SIGKILL" in str(item.error)
        assert item.finish_reason == "error"
        if item.stream is not None:
            assert [e.reason for e in log.events[id(item)] if isinstance(e, Finish)] == ["error"]
    with pytest.raises(Qwen3Error, match="start another"):
        process.submit([request([1], LONG)])
    process.cancel(items[0])
    assert process.poll() == []
    process.close()
    process.close()


def test_an_llm_can_be_what_is_made() -> None:
    alone = LLM()
    wanted = alone.chat("What is 27 * 14?", sampling=SamplingParams(temperature=0, max_tokens=40))
    prompt = [*wanted.prompt_ids]
    params = SamplingParams(temperature=0, max_tokens=40).resolved("thinking")
    item = Request(prompt, params, TokenStream(alone.tokenizer, prompt))
    with contextlib.closing(EngineProcess(LLM)) as process:
        process.submit([item])
        Log().finish(process, [item])
    assert tuple(item.output) == wanted.ids


def test_what_cannot_be_sent_is_not_waited_for(process: EngineProcess) -> None:
    item = request([1], replace(PARAMS, seed=1))
    item.tenant = lambda: None  # type: ignore[assignment]
    with pytest.raises((AttributeError, pickle.PicklingError)):
        process.submit([item])
    assert not process._open


def test_closing_cancels() -> None:
    process = EngineProcess(tiny_engine)
    item = request([1], LONG)
    process.submit([item])
    process.close()
    assert item.finish_reason == "cancelled"
    assert process._process.exitcode == 0


def test_what_prevents_the_engine_is_raised() -> None:
    with pytest.raises(UsageError, match="no engine today"):
        EngineProcess(refusing_engine)
    with pytest.raises(Qwen3Error, match="ZeroDivisionError: 1 / 0"):
        EngineProcess(breaking_engine)


PARENT = """
from tests.engine.test_process import *

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins without
    process = EngineProcess(tiny_engine)
    item = request([1], LONG)
    process.submit([item])
    print(process._process.pid, flush=True)
    try:
        while not item.done:
            process.poll(1)
    except KeyboardInterrupt:
        process.cancel(item)
        after = request([1], replace(PARAMS, seed=1))
        process.submit([after])
        Log().finish(process, [item, after])
        print(item.finish_reason, after.finish_reason)
        process.close()
"""


def gone(pid: int, seconds: float = 20) -> bool:
    """Whether the process ends by then."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody collects it
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_death_of_the_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does: to the child too
        assert parent.stdout.read().split() == ["cancelled", "length"]
        assert parent.wait(30) == 0
    else:
        parent.kill()
        parent.wait()
    assert gone(child)
