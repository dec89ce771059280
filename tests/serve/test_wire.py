"""Frames come out as they went in, however the bytes are cut; news keeps its meaning when it is joined."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from itertools import pairwise

import pytest

from qwen3 import errors
from qwen3.chat import Event, Finish, ReasoningDelta, TextDelta, ThinkingReport, ToolCallDelta, ToolCallDropped, fold
from qwen3.chat.events import Usage
from qwen3.errors import OutOfMemoryError, Qwen3Error, UsageError
from qwen3.serve import wire
from qwen3.serve.calls import Call, TokenLogprob

FINISH = Finish("stop", Usage(5, 1, 2, 6), ThinkingReport("on", 7, 2, 0, "natural", "default"), ("beware",), "END")
EVENTS: list[Event] = [
    ReasoningDelta("Lét me\u2028", (1, 2)),
    TextDelta("\0\ud7ff😀", ()),
    ToolCallDelta(0, "call_1", "add", '{"a'),
    ToolCallDelta(0, None, None, '": 1}'),
    ToolCallDropped(0, "<tool_call>"),
    FINISH,
]


def news(event: Event, key: int = 1, index: int = 0) -> list[object]:
    """As the worker writes it."""
    match event:
        case TextDelta() | ReasoningDelta():
            kind = wire.TEXT if isinstance(event, TextDelta) else wire.REASONING
            return [key, index, kind, event.text, list(event.ids)]
        case ToolCallDelta():
            return [key, index, wire.TOOL_CALL, event.index, event.id, event.name, event.arguments_delta]
        case ToolCallDropped():
            return [key, index, wire.DROPPED, event.index, event.text]
    return [key, index, wire.FINISH, wire.finish_to_wire(event), {}]


def test_frames_survive_any_cut() -> None:
    rng = random.Random(3)
    messages = [["x" * rng.randrange(300), i, {"é": None}] for i in range(50)] + [["\ud800"], []]
    data = b"".join(map(wire.pack, messages))
    for _ in range(20):
        frames, found, at = wire.Frames(), [], 0
        while at < len(data):
            size = rng.choice([1, 3, 4, 5, 100, 5000])
            found += [message for message, _ in frames.feed(data[at : at + size])]
            at += size
        assert found == messages


def test_frames_are_bounded() -> None:
    with pytest.raises(Qwen3Error, match="at most"):
        list(wire.Frames().feed(struct.pack(">I", wire.MAX_FRAME + 1)))
    with pytest.raises(UsageError, match="at most"):
        wire.pack("x" * (wire.MAX_FRAME + 1))
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(UsageError, match="nested too deeply"):
        wire.pack(deep)
    with pytest.raises(UsageError, match="no JSON form"):
        wire.pack({"x": {1, 2}})


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_come_back(event: Event) -> None:
    ((message, _),) = wire.Frames().feed(wire.pack(news(event, index=3)))
    item = wire.item_of(message)
    assert item.event == event
    assert (item.index, item.logprobs) == (3, ())


def test_joined_news_says_the_same() -> None:
    rng = random.Random(4)
    given: list[list[object]] = []
    for _ in range(300):
        event = rng.choice(EVENTS[:5])
        given.append(news(event, index=rng.randrange(3)))
    before = [fold(wire.event_of(piece) for piece in given if piece[1] == index) for index in range(3)]
    ids = [[id for piece in given if piece[1] == i and piece[2] <= wire.REASONING for id in piece[4]] for i in range(3)]
    found = wire.merged(given)
    assert len(found) < len(given)
    for index in range(3):
        own = [piece for piece in found if piece[1] == index]
        assert fold(map(wire.event_of, own)) == before[index]
        assert [id for piece in own if piece[2] <= wire.REASONING for id in piece[4]] == ids[index]
        assert all(a[2] > wire.REASONING or a[2] != b[2] for a, b in pairwise(own))
    assert len(wire.merged([[*news(TextDelta(text)), [], []] for text in "ab"])) == 2


def test_calls_come_back() -> None:
    calls = [
        Call(),
        Call(messages=[{"role": "user", "content": "x"}], tools=[{"a": 1}], thinking={"budget": 3}, tenant="t"),
        Call(prompt=[1, 2], sampling={"logit_bias": {5: 1.5}, "seed": 2**64 - 1}, priority=-3, continue_last=True),
    ]
    for call in calls:
        ((message, _),) = wire.Frames().feed(wire.pack(wire.call_to_wire(call)))
        assert wire.call_from_wire(message) == call
    assert wire.call_to_wire(Call()) == {}


def test_log_probabilities_come_back() -> None:
    entry = [7, b"\xff\xe4".decode("latin-1"), -0.5, 1, [[7, "\xff\xe4", -0.5], [8, "b", -9999.0]]]
    ((message, _),) = wire.Frames().feed(wire.pack(entry))
    wanted = TokenLogprob(7, b"\xff\xe4", -0.5, 1, ((7, b"\xff\xe4", -0.5), (8, b"b", -9999.0)))
    assert wire.logprob_of(message) == wanted


def test_errors_keep_their_class_and_others_say_nothing() -> None:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Qwen3Error):
            found = wire.error_of(wire.error_to_wire(kind("what is wrong")))
            assert type(found) is kind, name
            assert str(found) == "what is wrong"
    assert isinstance(wire.error_of(wire.error_to_wire(OutOfMemoryError("x"))), MemoryError)
    assert type(wire.error_of(wire.error_to_wire(KeyError("x")))) is Exception
    assert type(wire.error_of(["UsageError.__init__", "x"])) is Exception


def test_the_server_s_side_needs_no_torch() -> None:
    code = "import sys, qwen3.serve.models; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
