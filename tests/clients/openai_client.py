"""openai-python, 2.x and 3.x: chat completions, and the other resources of the same client."""

from __future__ import annotations

import json
import threading
from typing import Any

import checks as q
import openai
from pydantic import BaseModel

c = q.Checks()
client = openai.OpenAI(base_url=c.v1, api_key=c.key, max_retries=0)


def ask(text: str | list[Any], **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return client.chat.completions.create(model=q.MODEL, messages=messages, temperature=0, **fields)


def thinking(**fields: Any) -> dict[str, Any]:
    return {"extra_body": fields}


@c.check
def plain() -> None:
    done = ask(q.PRODUCT, max_tokens=400)
    choice = done.choices[0]
    assert q.PRODUCT_ANSWER in choice.message.content, choice
    assert choice.finish_reason == "stop"
    assert choice.message.role == "assistant"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert done._request_id


@c.check
def stream() -> None:
    chunks = list(ask(q.PRODUCT, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert deltas[0].delta.role == "assistant"
    text = "".join(d.delta.content or "" for d in deltas)
    thought = "".join(getattr(d.delta, "reasoning_content", None) or "" for d in deltas)
    assert q.PRODUCT_ANSWER in text, text
    assert q.PRODUCT_STEP in thought, thought
    assert "<think>" not in text + thought
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"] == [deltas[-1].finish_reason]
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens > q.BUDGET
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def loop(first: Any, messages: list[Any]) -> None:
    """The second half of a tool loop: the call is what was asked for, its result is told."""
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls", first
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": q.CITY}
    assert not message.content
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": q.WEATHER_RESULT}]
    second = ask(messages, tools=[q.WEATHER_TOOL])
    assert q.WEATHER_ANSWER in second.choices[0].message.content, second
    assert second.choices[0].finish_reason == "stop"


@c.check
def tools() -> None:
    messages = [{"role": "user", "content": q.WEATHER}]
    loop(ask(messages, tools=[q.WEATHER_TOOL], tool_choice="required"), messages)


@c.check
def tools_stream() -> None:
    messages = [{"role": "user", "content": q.WEATHER}]
    pieces = 0
    with client.chat.completions.stream(
        model=q.MODEL, messages=messages, tools=[q.WEATHER_TOOL], temperature=0
    ) as events:
        for event in events:
            pieces += event.type == "tool_calls.function.arguments.delta"
        loop(events.get_final_completion(), messages)
    assert pieces, "no event for the arguments"


class Answer(BaseModel):
    answer: int


@c.check
def schema() -> None:
    for mode in (True, False):
        done = client.chat.completions.parse(
            model=q.MODEL,
            messages=[{"role": "user", "content": q.PRODUCT}],
            response_format=Answer,
            temperature=0,
            **thinking(enable_thinking=mode),
        )
        message = done.choices[0].message
        assert isinstance(message.parsed, Answer), message
        assert bool(message.reasoning_content) == mode


@c.check
def thinking_on() -> None:
    done = ask(q.PRODUCT, **thinking(enable_thinking=True))
    message = done.choices[0].message
    assert q.PRODUCT_STEP in message.reasoning_content
    assert message.reasoning == message.reasoning_content
    assert done.usage.completion_tokens_details.reasoning_tokens > q.BUDGET


@c.check
def thinking_off() -> None:
    for fields in (
        thinking(enable_thinking=False),
        thinking(chat_template_kwargs={"enable_thinking": False}),
        {"reasoning_effort": "none"},
    ):
        done = ask("Hello", **fields)
        assert not getattr(done.choices[0].message, "reasoning_content", None), fields
        assert not done.usage.completion_tokens_details.reasoning_tokens
        assert "Hello" in done.choices[0].message.content


@c.check
def thinking_budget() -> None:
    done = ask(q.PRODUCT, **thinking(thinking_budget=q.BUDGET))
    assert 0 < done.usage.completion_tokens_details.reasoning_tokens <= q.BUDGET
    assert done.choices[0].message.reasoning_content
    assert done.choices[0].message.content


@c.check
def history() -> None:
    messages: list[Any] = [{"role": "user", "content": q.INTRODUCTION}]
    messages.append(ask(messages).choices[0].message)
    messages.append({"role": "user", "content": q.QUESTION})
    done = ask(messages)
    assert q.NAME in done.choices[0].message.content, done


@c.check
def bad_field() -> None:
    for fields, param in (
        ({"top_p": 2}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        (thinking(thinking_budget="many"), "thinking_budget"),
        ({"tool_choice": "required"}, "tool_choice"),
    ):
        error = q.raised(openai.BadRequestError, lambda fields=fields: ask("Hello", **fields))
        assert error.param == param, (error.param, param)
        assert error.type == "invalid_request_error"
        assert param in error.message
    error = q.raised(openai.BadRequestError, lambda: ask("Hello", **thinking(enable_thinking=False, thinking_budget=9)))
    assert {"enable_thinking", "thinking_budget"} <= set(error.param.split(", ")), error.param


@c.check
def unknown_model() -> None:
    error = q.raised(
        openai.NotFoundError,
        lambda: client.chat.completions.create(model="none-such", messages=[{"role": "user", "content": "Hello"}]),
    )
    assert error.code == "model_not_found"
    assert error.param == "model"
    assert q.MODEL in error.message


@c.check
def wrong_key() -> None:
    other = openai.OpenAI(base_url=c.v1, api_key=c.wrong_key, max_retries=0)
    error = q.raised(openai.AuthenticationError, other.models.list)
    assert error.type == "authentication_error"


@c.check
def retry() -> str:
    patient = openai.OpenAI(base_url=c.v1, api_key=c.key, max_retries=8)
    with c.busy() as end:
        error = q.raised(openai.RateLimitError, lambda: ask("Hello"))
        assert float(error.response.headers["retry-after"]) > 0
        threading.Timer(0.3, end).start()
        raw = patient.chat.completions.with_raw_response.create(
            model=q.MODEL, messages=[{"role": "user", "content": "Hello"}]
        )
    assert raw.parse().choices[0].message.content
    assert raw.retries_taken >= 1
    return f"{raw.retries_taken} retries"


@c.check
def disconnect() -> str:
    for _ in range(q.PER_KEY):
        answer = ask(q.LONG, stream=True, max_tokens=4000, **thinking(ignore_eos=True, enable_thinking=False))
        next(iter(answer))
        answer.close()
    return c.freed()


@c.check
def models() -> None:
    assert [(model.id, model.object) for model in client.models.list()] == [(q.MODEL, "model"), (q.VECTORS, "model")]
    assert client.models.retrieve(q.MODEL).id == q.MODEL


@c.check
def completions() -> None:
    done = client.completions.create(
        model=q.MODEL, prompt=["1, 2, 3, 4,", "2, 4, 6, 8,"], max_tokens=8, temperature=0, logprobs=2, echo=True
    )
    assert [choice.index for choice in done.choices] == [0, 1]
    first = done.choices[0]
    assert first.text.startswith("1, 2, 3, 4,")
    assert "".join(first.logprobs.tokens) == first.text
    assert first.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in first.logprobs.token_logprobs[1:])
    pieces = client.completions.create(model=q.MODEL, prompt="1, 2, 3, 4,", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == first.text[len("1, 2, 3, 4,") :]


@c.check
def logprobs() -> None:
    done = ask("Hello", logprobs=True, top_logprobs=3, **thinking(enable_thinking=False))
    content = done.choices[0].logprobs.content  # of all that was sampled: the end token, too
    assert "".join(entry.token for entry in content[:-1]) == done.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)


@c.check
def responses() -> None:
    done = client.responses.create(model=q.MODEL, input=q.PRODUCT, temperature=0, store=False)
    assert q.PRODUCT_ANSWER in done.output_text
    assert done.status == "completed"
    assert [item.type for item in done.output] == ["reasoning", "message"]
    assert q.PRODUCT_STEP in done.output[0].content[0].text
    assert done.usage.output_tokens_details.reasoning_tokens > q.BUDGET
    off = client.responses.create(model=q.MODEL, input="Hello", temperature=0, reasoning={"effort": "none"})
    assert [item.type for item in off.output] == ["message"]
    parsed = client.responses.parse(model=q.MODEL, input=q.PRODUCT, temperature=0, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)


@c.check
def responses_stream() -> None:
    with client.responses.stream(model=q.MODEL, input=q.PRODUCT, temperature=0) as events:
        kinds = [event.type for event in events]
        assert q.PRODUCT_ANSWER in events.get_final_response().output_text
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    for kind in ("response.output_item.added", "response.reasoning_text.delta", "response.output_text.delta"):
        assert kind in kinds, kinds


@c.check
def responses_tools() -> None:
    tool = {"type": "function", "strict": False} | q.WEATHER_FUNCTION
    given: list[Any] = [{"role": "user", "content": q.WEATHER}]
    first = client.responses.create(model=q.MODEL, input=given, tools=[tool], tool_choice="required", temperature=0)
    (call,) = (item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": q.CITY}
    given += first.output
    given.append({"type": "function_call_output", "call_id": call.call_id, "output": q.WEATHER_RESULT})
    second = client.responses.create(model=q.MODEL, input=given, tools=[tool], temperature=0)
    assert q.WEATHER_ANSWER in second.output_text, second


@c.check
def embeddings() -> None:
    """2.x asks for base64 unless told otherwise, 3.x does not: both encodings give the same vectors."""
    as_default = client.embeddings.create(model=q.VECTORS, input=["red", "blue"])
    as_floats = client.embeddings.create(model=q.VECTORS, input=["red", "blue"], encoding_format="float")
    for one, other in zip(as_default.data, as_floats.data, strict=True):
        assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-5
        assert abs(sum(a * a for a in one.embedding) - 1) < 1e-3
    assert as_default.usage.prompt_tokens > 0
    error = q.raised(openai.BadRequestError, lambda: client.embeddings.create(model=q.MODEL, input="red"))
    assert (error.param, error.code) == ("model", "wrong_model_kind")


@c.check
def batch() -> str:
    import time

    line = {
        "custom_id": "one", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": q.MODEL, "messages": [{"role": "user", "content": q.PRODUCT}], "temperature": 0},
    }  # fmt: skip
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode() + b"\n"), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    start = time.monotonic()
    while job.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() - start < 30, job
        time.sleep(0.1)
        job = client.batches.retrieve(job.id)
    assert job.status == "completed", job
    (answer,) = client.files.content(job.output_file_id).text.splitlines()
    body = json.loads(answer)["response"]["body"]
    assert q.PRODUCT_ANSWER in body["choices"][0]["message"]["content"]
    client.files.delete(file.id)
    return job.status


@c.check
def asynchronous() -> None:
    """The asynchronous client, several at once."""
    import asyncio

    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=c.v1, api_key=c.key, max_retries=3) as other:
            one = {"model": q.MODEL, "messages": [{"role": "user", "content": q.PRODUCT}], "temperature": 0}
            return await asyncio.gather(*(other.chat.completions.create(**one) for _ in range(q.PER_KEY)))

    for done in asyncio.run(main()):
        assert q.PRODUCT_ANSWER in done.choices[0].message.content


c.run()
