"""/v1/models: what there is, and what it can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from qwen3.serve.settings import Settings
from tests.serve.fakes import FakeBackend, FakeModels


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    backends = [FakeBackend("fake"), FakeBackend("Qwen/Qwen3-8B"), FakeBackend("emb"), FakeBackend("never")]
    backends[1].info = replace(backends[1].info, mode="instruct", context=262_144)
    backends[2].info = replace(backends[2].info, kind="embedding")
    backends[3].info, backends[3].state = None, "unloaded"  # type: ignore[assignment]
    return make_client(Settings(models=(("fake", "fake"),)), FakeModels(*backends))


def test_list(client: Any) -> None:
    found = client.get("/v1/models").json()
    assert found["object"] == "list"
    assert [model["id"] for model in found["data"]] == ["fake", "Qwen/Qwen3-8B", "emb", "never"]
    for model in found["data"]:
        assert (model["object"], model["owned_by"]) == ("model", "qwen3")
        assert model["created"] == found["data"][0]["created"] > 1_700_000_000
    hybrid, instruct, embedding, never = found["data"]
    assert hybrid["thinking"] == {"mode": "hybrid", "modes": ["on", "off", "auto"]}
    assert {"chat", "tools", "thinking", "json_schema"} <= set(hybrid["capabilities"])
    assert (instruct["max_model_len"], instruct["thinking"]["modes"]) == (262_144, ["off"])
    assert "thinking" not in instruct["capabilities"]
    assert (embedding["kind"], embedding["capabilities"]) == ("embedding", ["embeddings"])
    assert embedding["thinking"]["modes"] == []
    assert (never["state"], "max_model_len" in never) == ("unloaded", False)


def test_one_by_its_name_with_slashes(client: Any) -> None:
    for path in ("Qwen/Qwen3-8B", "Qwen%2FQwen3-8B"):
        assert client.get(f"/v1/models/{path}").json()["id"] == "Qwen/Qwen3-8B"
    missing = client.get("/v1/models/Qwen/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert "fake" in missing.json()["error"]["message"]


def test_of_a_real_server(server: Any) -> None:
    with server.client() as http:
        model = http.get("/v1/models/embedded").json()
    assert (model["state"], model["max_model_len"], model["vocab_size"]) == ("ready", 4096, 8218)
    assert model["sampling"]["thinking"]["temperature"] == 0.6
