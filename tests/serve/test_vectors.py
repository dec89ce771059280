"""Embeddings, reranking, scores: shapes with models that play, numbers with real ones."""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")

import torch

from qwen3.checkpoint import save_checkpoint
from qwen3.model import load_model
from qwen3.serve.openai.vectors import EmbeddingBody, RerankBody, ScoreBody, embedding_answer, rerank_answer
from qwen3.serve.settings import Settings
from qwen3.tokenizer import Tokenizer
from tests.fixtures import random_model, tiny_config
from tests.serve.conftest import Running, start_server
from tests.serve.fakes import FakeBackend, FakeModels

VECTORS = array("f", [1.0, 0.0, 0.25, -2.0]).tobytes()


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    """Models "fake" (chat), "emb" and "rank"."""
    backends = [FakeBackend(), FakeBackend("emb"), FakeBackend("rank")]
    for backend, kind in zip(backends[1:], ("embedding", "reranker"), strict=True):
        backend.info = replace(backend.info, kind=kind)
    return make_client(Settings(models=(("fake", "fake"),)), FakeModels(*backends))


# Shapes


def test_embeddings_as_numbers_and_as_base64() -> None:
    body = EmbeddingBody(input=["a", "b"], foo=1)
    found = embedding_answer(body, "m", VECTORS, [2, 3])
    assert found == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "embedding", "index": 1, "embedding": [0.25, -2.0]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "warnings": ["foo is not a field of this request and was ignored"],
    }
    coded = embedding_answer(EmbeddingBody(input=["a", "b"], encoding_format="base64"), "m", VECTORS, [2, 3])
    assert base64.b64decode(coded["data"][1]["embedding"]) == VECTORS[8:]
    assert "warnings" not in coded


def test_what_goes_to_the_model(client: Any) -> None:
    backend = client.models.backends[1]
    for given, inputs in (
        ("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]),
    ):  # fmt: skip
        answer = client.post("/v1/embeddings", {"model": "emb", "input": given, "dimensions": 3})
        assert answer.status_code == 200, answer.text
        assert backend.asked[-1] == ("embed", {"inputs": inputs, "dimensions": 3})
        assert [len(entry["embedding"]) for entry in answer.json()["data"]] == [3] * len(inputs)
    client.post("/v1/embeddings", {"model": "emb", "input": "cats", "instruction": "Find animals"})
    assert backend.asked[-1][1]["inputs"] == ["Instruct: Find animals\nQuery:cats"]


@pytest.mark.parametrize(
    ("path", "given", "param"),
    [
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": ["a", ""]}, "input"),
        ("embeddings", {"input": []}, "input"),
        ("embeddings", {"input": [1.5]}, "input"),
        ("embeddings", {}, "input"),
        ("embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"input": [1], "instruction": "x"}, "instruction, input"),
        ("rerank", {"query": "q", "documents": []}, "documents"),
        ("rerank", {"query": "q", "documents": ["a", {"title": "b"}]}, "documents"),
        ("rerank", {"query": "q", "documents": ["a"], "top_n": 0}, "top_n"),
        ("rerank", {"query": 1, "documents": ["a"]}, "query"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1, text_2"),
        ("score", {"text_1": "a", "text_2": []}, "text_2"),
        ("score", {"text_1": "a", "text_2": 1}, "text_2"),
    ],
)
def test_mistakes_are_400_with_the_field(client: Any, path: str, given: dict[str, Any], param: str) -> None:
    model = "emb" if path == "embeddings" else "rank"
    answer = client.post(f"/v1/{path}", {"model": model, **given})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(param)


def test_a_model_of_another_kind_is_refused(client: Any) -> None:
    for path, body in (
        ("embeddings", {"input": "a"}), ("rerank", {"query": "q", "documents": ["d"]}),
        ("score", {"text_1": "a", "text_2": "b"}), ("completions", {"prompt": "a", "model": "emb"}),
    ):  # fmt: skip
        answer = client.post(f"/v1/{path}", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model"), path
        assert "kind" in answer.json()["error"]["message"]


def test_rerank_is_jinas_and_coheres_shape(client: Any) -> None:
    body = RerankBody(query="q", documents=["a", {"text": "b", "id": 3}, "c"], top_n=2)
    found = rerank_answer(body, "m", [0.1, 0.9, 0.9], [4, 5, 6])
    assert found["results"] == [
        {"index": 1, "relevance_score": 0.9, "document": {"text": "b"}},
        {"index": 2, "relevance_score": 0.9, "document": {"text": "c"}},
    ]
    assert (found["usage"]["total_tokens"], found["meta"]["tokens"]["input_tokens"]) == (15, 15)
    short = rerank_answer(body.model_copy(update={"return_documents": False}), "m", [0.1, 0.9, 0.9], [4, 5, 6])
    assert short["results"] == [{"index": i, "relevance_score": 0.9} for i in (1, 2)]
    given = {"model": "rank", "query": "q", "documents": ["a", "b"], "instruction": "i"}
    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        answer = client.post(path, given).json()
        assert [result["index"] for result in answer["results"]] == [0, 1]
    asked = client.models.backends[2].asked[-1]
    assert asked == ("rerank", {"query": "q", "documents": ["a", "b"], "instruction": "i"})


def test_scores_are_of_pairs(client: Any) -> None:
    assert ScoreBody(text_1="a", text_2=["b", "c"]).pairs() == (["a", "a"], ["b", "c"])
    assert ScoreBody(text_1=["a", "b"], text_2=["c", "d"]).pairs() == (["a", "b"], ["c", "d"])
    asked = client.models.backends[2].asked
    found = client.post("/v1/score", {"model": "rank", "text_1": "a", "text_2": ["b", "c"]}).json()
    assert [(entry["index"], entry["score"]) for entry in found["data"]] == [(0, 1.0), (1, 0.5)]
    assert len(asked) == 1
    found = client.post("/v1/score", {"model": "rank", "text_1": ["a", "b"], "text_2": ["c", "d"]}).json()
    assert [args["query"] for _, args in asked[1:]] == ["a", "b"]
    assert found["usage"]["total_tokens"] == 8


# Numbers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with the official tokenizer, which has tokens for yes and no."""
    config = tiny_config(vocab_size=151_936, hidden_size=16, max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("weights")
    save_checkpoint(folder, random_model(config), tokenizer=Tokenizer.from_pretrained())
    return folder


@pytest.fixture(scope="module")
def vectors_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The same weights under names that say what they are for."""
    folder = tmp_path_factory.mktemp("vectors")
    for name in ("Tiny-Embedding", "Tiny-Reranker"):
        (folder / name).symlink_to(checkpoint)
    running = start_server(folder / "home", f"emb={folder}/Tiny-Embedding", f"rank={folder}/Tiny-Reranker")
    yield running
    running.stop()


def test_embeddings_are_those_of_the_network(vectors_server: Running, checkpoint: Path) -> None:
    model, tokenizer = load_model(checkpoint, "cpu", torch.float32), Tokenizer.from_pretrained(checkpoint)
    texts = ["A cat sat on the mat.", "7", "Dogs bark <|im_end|> loudly at night, and cats do not."]
    with vectors_server.client() as http:
        found = http.post("/v1/embeddings", json={"input": texts}).json()
        assert found["model"] == "emb"
        for text, entry in zip(texts, found["data"], strict=True):
            ids = [*tokenizer.encode_plain(text), tokenizer.control.endoftext]
            with torch.inference_mode():
                state = model.hidden(torch.tensor([ids]))[0, -1].float()
            assert entry["embedding"] == pytest.approx((state / state.norm()).tolist(), abs=2e-4)
        coded = http.post("/v1/embeddings", json={"input": texts, "encoding_format": "base64"}).json()
        for entry, other in zip(coded["data"], found["data"], strict=True):
            assert array("f", base64.b64decode(entry["embedding"])).tolist() == other["embedding"]
        short = http.post("/v1/embeddings", json={"input": texts[0], "dimensions": 8}).json()["data"][0]["embedding"]
        full = found["data"][0]["embedding"][:8]
        assert short == pytest.approx([value / math.hypot(*full) for value in full], abs=1e-5)
        assert math.hypot(*short) == pytest.approx(1, abs=1e-5)
        ids = tokenizer.encode(texts[0])
        same = http.post("/v1/embeddings", json={"input": [ids, ids[:2]]}).json()
        assert same["data"][0]["embedding"] == pytest.approx(found["data"][0]["embedding"], abs=1e-4)
        assert same["usage"]["prompt_tokens"] == len(ids) + 1 + 3
        for wrong, param in (
            ({"input": "a", "dimensions": 10**6}, "dimensions"), ({"input": [10**6]}, "input"),
            ({"input": "word " * 2000}, "input"),
        ):  # fmt: skip
            answer = http.post("/v1/embeddings", json=wrong)
            assert answer.status_code == 400, answer.text
            assert param in answer.json()["error"]["message"]
        models = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
        assert models["emb"]["capabilities"] == ["embeddings"]
        assert (
            http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "a"}]}).status_code == 400
        )


def test_scores_are_those_of_the_network(vectors_server: Running, checkpoint: Path) -> None:
    model, tokenizer = load_model(checkpoint, "cpu", torch.float32), Tokenizer.from_pretrained(checkpoint)
    no, yes = (tokenizer.encode(word)[0] for word in ("no", "yes"))
    documents = ["Paris is the capital of France.", "A cat.", "Berlin"]
    wanted = []
    for document in documents:
        prompt = (
            "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
            'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
            f"<Instruct>: Find facts\n<Query>: What is the capital?\n<Document>: {document}<|im_end|>\n"
            "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        )
        with torch.inference_mode():
            logits = model(torch.tensor([tokenizer.encode(prompt)]))[0, -1].float()
        wanted.append(logits[[no, yes]].softmax(0)[1].item())
    given = {"model": "rank", "query": "What is the capital?", "instruction": "Find facts"}
    with vectors_server.client() as http:
        found = http.post("/v1/rerank", json={**given, "documents": documents}).json()
        assert [result["relevance_score"] for result in found["results"]] == sorted(
            (result["relevance_score"] for result in found["results"]), reverse=True
        )
        scores = {result["index"]: result["relevance_score"] for result in found["results"]}
        assert [scores[i] for i in range(3)] == pytest.approx(wanted, abs=1e-4)
        pair = {"model": "rank", "text_1": given["query"], "text_2": documents, "instruction": "Find facts"}
        scored = http.post("/v1/score", json=pair).json()
        assert [entry["score"] for entry in scored["data"]] == pytest.approx(wanted, abs=1e-4)
