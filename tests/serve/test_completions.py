"""/v1/completions: raw prompts continued, echoed and measured, as evaluation harnesses and editors ask it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3.chat import Finish, TextDelta, ThinkingReport, Usage
from qwen3.serve.calls import Call, Item, TokenLogprob
from qwen3.serve.errors import ApiError
from qwen3.serve.openai import completions
from qwen3.serve.openai.completions import (
    CompletionBody,
    CompletionWriter,
    Echo,
    Offsets,
    Together,
    legacy_logprobs,
    middle,
    prompt_table,
    spelt,
    usage,
)
from tests.serve.fakes import FakeBackend, FakeStream

USED = Usage(3, 1, 0, 4)


def finish(reason: str = "stop", **more: Any) -> Finish:
    return Finish(reason, USED, ThinkingReport("off", None, 0, 0, None), **more)


def logprob(data: bytes, value: float = -0.5, top: tuple[tuple[int, bytes, float], ...] = ()) -> TokenLogprob:
    return TokenLogprob(1, data, value, 1, top)


def body(**given: Any) -> CompletionBody:
    return CompletionBody.model_validate({"prompt": "p", **given})


# Bodies


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_prompts_of_all_kinds(given: Any, prompts: list[Any]) -> None:
    calls, notes = body(prompt=given, temperature=0, logit_bias={"5": 2}).calls(body(prompt=given).prompt)
    assert [call.prompt for call in calls] == prompts
    assert notes == []
    assert {json.dumps(call.sampling) for call in calls} == {
        json.dumps({"temperature": 0.0, "logit_bias": {5: 2.0}, "max_tokens": 16})
    }
    assert all(call.thinking == {"loop_guard": False} for call in calls)


@pytest.mark.parametrize(
    "given", [[], {}, 5, None, True, [[]] * 2049, ["\ud800"], [1, "a"], [-1], [2**31], [1.0], [True], [[[1]]]]
)
def test_prompts_that_are_none(given: Any) -> None:
    with pytest.raises(ValueError, match="prompt"):
        CompletionBody.model_validate({"prompt": given})


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"best_of": 2}, "best_of, n"),
        ({"max_tokens": 0}, "max_tokens, echo"),
        ({"suffix": "s", "echo": True}, "suffix"),
        ({"suffix": "s", "prompt": [1]}, "suffix"),
        ({"stream": True, "echo": True, "logprobs": 0}, "echo, logprobs, stream"),
        ({"stream": True, "prompt_logprobs": 0}, "prompt_logprobs, stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options, stream"),
    ],
)
def test_contradictions_name_both_fields(app_client: Any, given: dict[str, Any], param: str) -> None:
    answer = app_client.post("/v1/completions", {"prompt": "p", **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"logprobs": 21}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"n": 0}, "n"), ({"n": 10**9}, "n"),
        ({"max_tokens": -1}, "max_tokens"), ({"temperature": "1"}, "temperature"), ({"seed": 2**65}, "seed"),
        ({"prompt": {}}, "prompt"), ({"suffix": 1}, "suffix"), ({"stop": ["x"] * 65}, "stop"),
        ({"stream_options": 1}, "stream_options"),
    ],
)  # fmt: skip
def test_bounds_are_400_with_the_field(app_client: Any, given: dict[str, Any], param: str) -> None:
    answer = app_client.post("/v1/completions", {"prompt": "p", **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_does_nothing_is_said() -> None:
    calls, notes = body(
        foo=1, stream=True, stream_options={"include_usage": True, "odd": 1}, regex="a+", user="u", priority=3,
        cache_salt="s", guided_decoding_backend="x",
    ).calls(["p"])  # fmt: skip
    assert notes == [
        "foo is not a field of this request and was ignored",
        "guided_decoding_backend has no effect: there is one way to follow a form here",
        "stream_options.odd is not a field of this request and was ignored",
    ]
    assert (calls[0].regex, calls[0].salt, calls[0].priority) == ("a+", "s", 3)


def test_fill_in_the_middle(app_client: Any) -> None:
    assert middle([1, 2], [3], [10, 11, 12]) == [10, 1, 2, 11, 3, 12]
    backend = app_client.backend
    answers = {completions.FIM: [10, 11, 12], "def ": [1], "<|im_end|>": [2, 3], "x": [4]}

    async def ask(what: str, text: str, plain: bool = False) -> dict[str, Any]:
        assert plain is (text != completions.FIM)  # control strings of the client stay text
        return {"ids": answers[text], "pieces": []}

    backend.ask = ask
    given = {"prompt": ["def ", "x"], "suffix": "<|im_end|>"}
    assert app_client.post("/v1/completions", given).status_code == 200
    assert [call.prompt for call in backend.calls] == [[10, 1, 11, 2, 3, 12], [10, 4, 11, 2, 3, 12]]
    answers[completions.FIM] = [1, 2, 3, 4]
    refused = app_client.post("/v1/completions", given)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")


# Log-probabilities


def test_offsets_count_characters_of_the_text() -> None:
    face = "🙂".encode()
    offsets = Offsets(2)
    tokens = [(b"a", False), (face[:2], False), (face[2:], False), (b"<|im_end|>", True), (b"b", False)]
    assert [offsets.next(*token) for token in tokens] == [2, 3, 3, 4, 4]


def test_legacy_logprobs() -> None:
    top = ((2, b"x", -0.1), (3, b"\xff", -0.2), (4, b"y", -0.3))
    entries = [b"A", logprob(b" b", -math.inf, top), logprob(b"\xf0\x9f", -1.5, top), logprob(b"<|im_end|>", -2.0)]
    found = legacy_logprobs(entries, Offsets(), 2, prompt=1)
    assert found == {
        "tokens": ["A", " b", "bytes:\\xf0\\x9f", "<|im_end|>"],
        "token_logprobs": [None, -9999.0, -1.5, -2.0],
        "top_logprobs": [
            None,
            {"x": -0.1, "bytes:\\xff": -0.2, " b": -9999.0},
            {"x": -0.1, "bytes:\\xff": -0.2, "bytes:\\xf0\\x9f": -1.5},
            {"<|im_end|>": -2.0},
        ],
        "text_offset": [0, 1, 3, 3],
    }
    assert json.dumps(found, allow_nan=False)
    # A special token is text in a prompt, and none in an answer.
    both = [logprob(b"<|im_start|>"), logprob(b"<|im_start|>"), logprob(b"x")]
    assert legacy_logprobs(both, Offsets(), 0, prompt=1)["text_offset"] == [0, 12, 12]


def test_prompt_table_is_vllms() -> None:
    entry = TokenLogprob(7, b"b", -3.0, None, ((5, b"a", -0.1), (6, b"c", -math.inf)))
    assert prompt_table([None, entry]) == [
        None,
        {
            "5": {"logprob": -0.1, "rank": 1, "decoded_token": "a"},
            "6": {"logprob": -9999.0, "rank": 2, "decoded_token": "c"},
            "7": {"logprob": -3.0, "rank": None, "decoded_token": "b"},
        },
    ]
    assert spelt(b"ok") == "ok"


def test_usage_counts_a_prompt_once() -> None:
    found = usage([(0, USED), (0, USED), (1, USED)])
    assert (found["prompt_tokens"], found["completion_tokens"], found["total_tokens"]) == (6, 12, 18)
    assert found["prompt_tokens_details"] == {"cached_tokens": 2}
    assert usage([(0, USED)], only_prompt=True)["completion_tokens"] == 0


# Streams


def chunks(data: bytes) -> list[dict[str, Any]]:
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


class FakeOpened:
    id = "req-00ff"


def test_stream_is_openais_legacy_shape() -> None:
    given = body(prompt=["a", "b"], n=2, stream=True, echo=True, logprobs=None, stream_options={"include_usage": True})
    writer = CompletionWriter(given, "m", [Echo("a"), Echo("b")])
    data = writer.begin(FakeOpened())
    data += writer.feed([Item(0, TextDelta('x"\n🙂')), Item(3, TextDelta("y"))])
    data += writer.feed(
        [
            Item(
                i, finish("length" if i else "stop", warnings=("w",) if i == 1 else (), matched="s" if i == 0 else None)
            )
            for i in range(4)
        ]
    )
    found = chunks(data + writer.end())
    assert {(c["id"], c["object"], c["model"]) for c in found} == {("cmpl-00ff", "text_completion", "m")}
    texts = {i: "".join(c["choices"][0]["text"] for c in found[:-1] if c["choices"][0]["index"] == i) for i in range(4)}
    assert texts == {0: 'ax"\n🙂', 1: "a", 2: "b", 3: "by"}
    ends = [c for c in found[:-1] if c["choices"][0]["finish_reason"]]
    assert [c["choices"][0]["finish_reason"] for c in ends] == ["stop", "length", "length", "length"]
    assert (ends[0]["choices"][0]["stop_reason"], ends[1]["warnings"]) == ("s", ["w"])
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == 6 + 16
    assert all(c["choices"][0]["logprobs"] is None for c in found[:-1])


def test_stream_with_logprobs_and_an_error() -> None:
    writer = CompletionWriter(body(stream=True, logprobs=1), "m", [Echo()])
    data = writer.begin(FakeOpened())
    data += writer.feed(
        [Item(0, TextDelta("ab"), (logprob(b"a"), logprob(b"b"))), Item(0, finish(), (logprob(b"<|im_end|>"),))]
    )
    found = chunks(data + writer.error(ApiError(503, "gone", code="engine_lost")))
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in found[:2]] == [[0, 1], [2]]
    assert found[2]["error"]["code"] == "engine_lost"
    assert writer.keep_alive().startswith(b":")


# Several prompts


class CountedStream(FakeStream):
    backend: CountingBackend

    async def __anext__(self) -> list[Item]:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            self.backend.now -= 1
            raise


class CountingBackend(FakeBackend):
    """Counts what runs at once; raises the errors of a prompt, one each time."""

    def __init__(self, errors: dict[str, list[ApiError]] | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self.errors = errors or {}

    async def open(self, call: Call) -> FakeStream:
        if self.errors.get(str(call.prompt)):
            raise self.errors[str(call.prompt)].pop()
        self.calls.append(call)
        self.now += 1
        self.most = max(self.most, self.now)
        stream = CountedStream(call, [TextDelta(f"{call.prompt}!"), finish()], 0.001)
        stream.backend = self
        self.streams.append(stream)
        return stream


def several(count: int, n: int = 1) -> list[Call]:
    return [Call(prompt=f"p{i}", sampling={"n": n}) for i in range(count)]


def test_several_prompts_are_one_call() -> None:
    async def play() -> None:
        backend = CountingBackend()
        together = Together(backend, several(40, n=2))  # type: ignore[arg-type]
        assert together.call.sampling["n"] == 80
        asked = replace(together.call, tenant="t", priority=5)
        samples = await (await together.open(asked)).collect()
        assert [sample.index for sample in samples] == list(range(80))
        assert [sample.result.content for sample in samples] == [f"p{i // 2}!" for i in range(80)]
        assert {(call.tenant, call.priority) for call in backend.calls} == {("t", 5)}
        assert backend.most == completions.TOGETHER
        texts: dict[int, str] = {}
        async for items in await together.open(asked):
            for item in items:
                if isinstance(item.event, TextDelta):
                    texts[item.index] = texts.get(item.index, "") + item.event.text
        assert texts == {i: f"p{i // 2}!" for i in range(80)}

    asyncio.run(play())


def test_no_room_for_a_later_prompt_is_no_error_and_a_wrong_one_is() -> None:
    full = [ApiError(503, "full", code="queue_full", retry_after=0.01) for _ in range(2)]

    async def play() -> None:
        backend = CountingBackend({"p2": list(full)})
        samples = await (await _opened(backend)).collect()
        assert [sample.result.content for sample in samples] == [f"p{i}!" for i in range(4)]
        wrong = ApiError(400, "too long", "prompt")
        with pytest.raises(ApiError, match="prompt 2: too long"):
            await _opened(CountingBackend({"p2": [wrong]}))
        for how in ("collect", "stream"):  # behind the first few it shows later
            stream = await _opened(CountingBackend({"p20": [wrong]}), 40)
            with pytest.raises(ApiError, match="prompt 20: too long"):
                await (stream.collect() if how == "collect" else _drained(stream))
            stream.cancel()
        with pytest.raises(ApiError, match="full"):
            await _opened(CountingBackend({"p0": list(full)}))

    asyncio.run(play())


async def _opened(backend: CountingBackend, count: int = 4) -> Any:
    together = Together(backend, several(count))  # type: ignore[arg-type]
    return await together.open(together.call)


async def _drained(stream: Any) -> list[Item]:
    return [item async for items in stream for item in items]


def test_cancelling_cancels_all_and_a_slow_reader_makes_them_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "WAITING", 2)

    async def play() -> None:
        backend = CountingBackend()
        stream = await _opened(backend)
        await anext(stream)
        await asyncio.sleep(0.05)
        assert len(stream._news) <= 2 + 4
        running = [s for s in backend.streams if s._at < 2]
        stream.cancel()
        assert all(s.cancelled for s in running)
        await asyncio.sleep(0)

    asyncio.run(play())


# Against the engine


def post(server: Any, **given: Any) -> Any:
    with server.client() as http:
        answer = http.post("/v1/completions", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def llm() -> Any:
    from qwen3 import LLM

    with LLM(device="cpu", context=512) as llm:
        yield llm


def test_text_is_what_the_engine_generates(server: Any, llm: Any) -> None:
    from qwen3 import SamplingParams

    prompts: Sequence[str] = ["<|im_start|>user\nWhat is 3 + 4?<|im_end|>\n<|im_start|>assistant\n", "One day"]
    found = post(server, prompt=list(prompts), max_tokens=24, seed=3, n=2)
    for k, prompt in enumerate(prompts):
        for i, own in enumerate(llm.generate(prompt, SamplingParams(max_tokens=24, seed=3, n=2))[0]):
            choice = found["choices"][2 * k + i]
            if k == 0:  # thinking stays in the text, tags and all
                assert choice["text"].startswith("<think>")
                assert choice["text"] == llm.tokenizer.decode(own.ids, skip_special_tokens=True)
            assert choice["index"] == 2 * k + i
    ids = [llm.tokenizer.encode(prompt) for prompt in prompts]
    again = post(server, prompt=ids, max_tokens=24, seed=3, n=2)
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in found["choices"]]
    assert again["usage"]["prompt_tokens"] == sum(map(len, ids))


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_loglikelihood_as_evaluation_harnesses_ask_it(server: Any, llm: Any, max_tokens: int) -> None:
    import torch

    text = "The sum of 2 and 3 is 5. é🙂"
    ids = llm.tokenizer.encode(text)
    wanted = llm.model(torch.tensor([ids])).float().log_softmax(-1)[0]
    for prompt in (text, ids):
        found = post(server, prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=3, temperature=0)
        choice = found["choices"][0]
        table = choice["logprobs"]
        assert choice["text"].startswith(text)
        assert len(table["tokens"]) == len(ids) + max_tokens
        assert table["token_logprobs"][0] is table["top_logprobs"][0] is None
        values = table["token_logprobs"][1 : len(ids)]
        assert values == pytest.approx([wanted[i, id].item() for i, id in enumerate(ids[1:])], abs=2e-3)
        for i, top in enumerate(table["top_logprobs"][1 : len(ids)]):
            assert max(top.values()) == pytest.approx(wanted[i].max().item(), abs=2e-3)
            assert table["tokens"][i + 1] in top
        for token, offset in zip(table["tokens"], table["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"].startswith(token, offset)
        assert found["usage"]["completion_tokens"] == max_tokens


def test_stream_equals_plain_and_stops(server: Any) -> None:
    given = {"prompt": ["What is 1 + 1?", "Hello"], "max_tokens": 12, "seed": 5, "n": 2, "logprobs": 1}
    plain = post(server, **given)
    with server.client() as http:
        streamed = chunks(http.post("/v1/completions", json={**given, "stream": True}).content)
    for choice in plain["choices"]:
        mine = [c["choices"][0] for c in streamed if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for key in ("tokens", "token_logprobs", "text_offset"):
            assert [v for c in mine if c["logprobs"] for v in c["logprobs"][key]] == choice["logprobs"][key]
    text = plain["choices"][0]["text"]
    stopped = post(server, **{**given, "stop": text[4:6]})["choices"][0]
    assert (stopped["text"], stopped["stop_reason"]) == (text[: text.index(text[4:6])], text[4:6])


def test_mistakes_reach_the_client(server: Any) -> None:
    with server.client() as http:
        for given, text in (
            ({"prompt": "a " * 5000}, "context"), ({"prompt": [10**6]}, "token"), ({"prompt": ""}, "empty"),
            ({"prompt": ["a", [10**6]]}, "prompt 1: "), ({"prompt": "a", "regex": "("}, "regex"),
        ):  # fmt: skip
            for stream in (False, True):
                answer = http.post("/v1/completions", json={**given, "stream": stream})
                assert answer.status_code == 400, (given, answer.text)
                assert text in answer.json()["error"]["message"]
        bound = http.post("/v1/completions", json={"prompt": "Number:", "regex": "[0-9]{3}", "max_tokens": 8}).json()
        assert len(bound["choices"][0]["text"]) == 3
