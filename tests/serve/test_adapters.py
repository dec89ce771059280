"""`qwen3 serve --adapter NAME=DIR`: to clients an adapter is a model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3 import LLM, SamplingParams, ThinkingPolicy
from qwen3.checkpoint.adapter import Adapter, write_adapter
from qwen3.errors import UsageError
from qwen3.serve.calls import Call
from qwen3.serve.errors import ApiError
from qwen3.serve.models import Models
from qwen3.serve.settings import Settings, adapted
from tests.adapting import random_adapter
from tests.serve.conftest import Running, start_server

QUESTION = [{"role": "user", "content": "What is 27 * 14?"}]
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module", name="folders")
def fixture_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of the embedded model."""
    with LLM() as llm:
        config = llm.config
    found = {}
    for seed, name in enumerate(("calm", "wild")):
        found[name] = tmp_path_factory.mktemp(name) / name
        adapter = Adapter(random_adapter(config, 4, seed=seed, gain=1.0).parts, base="embedded")
        write_adapter(found[name], adapter, config)
    return found


@pytest.fixture(scope="module", name="server")
def fixture_server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    flags = [f"--adapter={name}={folder}" for name, folder in folders.items()]
    running = start_server(tmp_path_factory.mktemp("server"), *flags)
    yield running
    running.stop()


def test_a_model_for_each_adapter(server: Running, folders: dict[str, Path]) -> None:
    with LLM() as llm:
        expected = {
            name: llm.chat(QUESTION, ThinkingPolicy("off"), SamplingParams(**GREEDY), adapter=folders.get(name)).content
            for name in ("embedded", "calm", "wild")
        }
    assert len(set(expected.values())) == 3
    with server.client() as http:
        listed = http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["embedded", "calm", "wild"]
        assert [model.get("parent") for model in listed] == [None, "embedded", "embedded"]
        assert [model["max_model_len"] for model in listed] == [4096] * 3
        assert http.get("/v1/models/wild").json()["parent"] == "embedded"
        assert [model["name"] for model in http.get("/api/tags").json()["models"]] == ["embedded", "calm", "wild"]
        body = {"messages": QUESTION, "enable_thinking": False, **GREEDY}
        for name, text in expected.items():
            for spelt in (name, name.upper(), *([] if name == "embedded" else [f"embedded:{name}", f"{name}:latest"])):
                answer = http.post("/v1/chat/completions", json={**body, "model": spelt}).json()
                assert answer["choices"][0]["message"]["content"] == text, spelt
                assert answer["model"] == name
        assert http.post("/v1/chat/completions", json=body).json()["model"] == "embedded"
        ollama = {"model": "wild", "messages": QUESTION, "think": False, "stream": False}
        answer = http.post("/api/chat", json={**ollama, "options": {"temperature": 0, "num_predict": 12}}).json()
        assert answer["message"]["content"] == expected["wild"]
        missing = http.post("/v1/chat/completions", json={**body, "model": "nobody"}).json()
        assert "embedded, calm, wild" in missing["error"]["message"]


def test_calls_carry_the_name() -> None:
    async def check() -> None:
        models = Models([("a", None, {}), ("b", None, {})], Settings(models=(("a", "a"), ("b", "b"))))
        with pytest.raises(ApiError, match="there is: a, b"):
            await models.get("x")

    asyncio.run(check())


def test_folders_are_given_to_the_first_model(folders: dict[str, Path]) -> None:
    pairs = adapted([f"x={folders['calm']}", str(folders["wild"])])
    assert pairs == (("x", str(folders["calm"])), ("wild", str(folders["wild"])))
    settings = Settings(models=(("a", "a"), ("b", "b")), adapters=pairs)

    async def check() -> None:
        models = Models([(name, spec, settings.model_options()) for name, spec in settings.models], settings)
        first, second = models.list()
        assert (first.options, second.options) == ({"adapters": dict(pairs)}, {})
        assert [model.name for model in models.named()] == ["a", "b", "x", "wild"]
        opened: list[Call] = []

        async def keep(call: Call) -> Any:
            opened.append(call)

        first.open = keep  # type: ignore[method-assign]
        for name in ("x", "a:wild", None):
            await (await models.get(name)).open(Call(QUESTION))
        assert [call.adapter for call in opened] == ["x", "wild", None]

    asyncio.run(check())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapters": (("x", "/nowhere"),)}, r"--adapter x=/nowhere: there is no adapter in this folder"),
        ({"adapters": (("Embedded", "/nowhere"),)}, "--adapter: two are called 'Embedded'"),
        ({"adapters": (("a b", "/nowhere"),)}, "--adapter: 'a b' is no name to serve a model under; use NAME=DIR"),
    ],
)
def test_wrong_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Settings(**given)
