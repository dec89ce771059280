"""/tokenize, /detokenize and counting: the same ids as those that a request would run with."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3.serve.openai.tokens import TokenizeBody

TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 3 + 4? <|im_end|>"}]}
USER = TALK["messages"][0]
TOOL = {"type": "function", "function": {"name": "f", "description": "adds", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("given", "param"),
    [({}, "prompt"), ({"prompt": "a", "content": "b"}, "prompt, content"),
     ({"prompt": "a", **TALK}, "prompt, messages"), ({"prompt": 1}, "prompt"), ({"messages": []}, "messages"),
     ({"prompt": "a", "with_pieces": 1}, "with_pieces")],
)  # fmt: skip
def test_one_of_three(app_client: Any, given: dict[str, Any], param: str) -> None:
    answer = app_client.post("/tokenize", given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_what_does_nothing_is_said() -> None:
    notes = TokenizeBody(prompt="a", tools=[TOOL], enable_thinking=False, foo=1, add_special=True, model="m").notes()
    assert notes == [
        "foo is not a field of this request and was ignored",
        "add_special has no effect: Qwen's tokenizer adds no tokens around a text",
        "enable_thinking has no effect: it goes with messages",
        "tools has no effect: it goes with messages",
    ]


def test_texts(server: Any) -> None:
    from qwen3 import LLM

    with LLM(device="cpu", context=64) as llm, server.client() as http:
        tok = llm.tokenizer
        text = "Hello, wörld 🙂 <|im_end|>"
        found = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
        assert found["tokens"] == tok.encode(text)
        assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 4096)
        assert found["token_strs"][-1] == "<|im_end|>"
        plain = http.post("/tokenize", json={"content": text, "parse_special": False, "with_pieces": True}).json()
        assert [token["id"] for token in plain["tokens"]] == tok.encode_plain(text)
        assert plain["tokens"][0]["piece"] == tok.decode([tok.encode_plain(text)[0]])
        back = http.post("/detokenize", json={"tokens": found["tokens"]}).json()
        assert back == {"prompt": text, "content": text}
        wrong = http.post("/detokenize", json={"tokens": [10**6]})
        assert wrong.status_code == 400
        assert wrong.json()["error"]["param"] == "tokens"
        assert wrong.json()["error"]["message"] == (
            f"tokens holds 1000000, which is no token of embedded (0 to {tok.vocab_size - 1})"
        )
        assert http.post("/detokenize", json={"tokens": []}).json()["prompt"] == ""
        assert http.post("/tokenize", json={"prompt": ""}).json()["count"] == 0
        assert http.post("/detokenize", json={"tokens": "x"}).json()["error"]["param"] == "tokens"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"enable_thinking": False},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [TOOL]},
        {
            "messages": [
                *TALK["messages"],
                {"role": "assistant", "content": "7", "reasoning_content": "easy"},
                *TALK["messages"],
            ]
        },
    ],
)
def test_a_conversation_has_the_tokens_it_would_run_with(server: Any, more: dict[str, Any]) -> None:
    given = {**TALK, **more}
    with server.client() as http:
        ids = http.post("/tokenize", json=given).json()
        count = http.post("/v1/chat/completions/input_tokens", json=given).json()
        used = http.post("/v1/chat/completions", json={**given, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
        assert ids["count"] == count["input_tokens"] == used
        assert count["object"] == "response.input_tokens"
        end = http.post("/tokenize", json={"prompt": "<|im_end|>"}).json()["tokens"][0]
        assert ids["tokens"].count(end) == len(given["messages"]) + bool(given.get("tools"))  # none of the user's


def test_a_prompt_too_long_to_run_is_counted(server: Any) -> None:
    given = {"messages": [{"role": "user", "content": "word " * 5000}]}
    with server.client() as http:
        assert http.post("/v1/chat/completions/input_tokens", json=given).json()["input_tokens"] > 5000
        assert http.post("/v1/chat/completions", json=given).status_code == 400
