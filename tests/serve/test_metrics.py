"""What the server counts, as Prometheus' own parser reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen3.chat import Finish, ReasoningDelta, TextDelta, ThinkingReport, Usage
from qwen3.serve.calls import Item
from qwen3.serve.metrics import History, Metrics
from tests.serve.conftest import AppClient
from tests.serve.fakes import SCRIPT, FakeBackend, FakeModels
from tests.serve.test_app import BODIES, CHAT, HELLO

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def figures(client: AppClient) -> Figures:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found: Figures = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.name.startswith("qwen3_")
        assert family.documentation
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def of(found: Figures, name: str, **labels: str) -> float:
    return found.get((f"qwen3_{name}", frozenset(labels.items())), 0.0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_an_answer(app_client: AppClient, path: str, stream: bool) -> None:
    assert app_client.post(path, {**BODIES[path], "stream": stream}).status_code == 200
    found = figures(app_client)
    kinds = ("prompt", "cached", "thinking", "forced", "discarded", "answer")
    assert [of(found, "tokens_total", kind=kind) for kind in kinds] == [5, 1, 2, 0, 0, 4]
    assert of(found, "thinking_ends_total", cause="natural") == 1
    assert of(found, "finishes_total", reason="stop") == 1
    assert of(found, "time_to_first_token_seconds_count") == 1
    assert of(found, "time_to_first_answer_token_seconds_count") == 1
    assert of(found, "inter_token_seconds_count") == (3 if stream else 0)
    dialect = {"/v1/messages": "anthropic", "/api/chat": "ollama"}.get(path, "openai")
    assert of(found, "requests_total", dialect=dialect, status="200") == 1
    assert of(found, "request_seconds_count", dialect=dialect) == 1
    assert of(found, "http_requests_in_flight") == 1  # the one that asks


def test_errors_and_cuts(app_client: AppClient) -> None:
    app_client.backend.script = (*SCRIPT[:3], RuntimeError("x"))
    app_client.post(CHAT, {**HELLO, "stream": True})
    app_client.post(CHAT, {})
    app_client.get("/nope")
    found = figures(app_client)
    assert of(found, "cut_calls_total", why="error") == 1
    assert of(found, "requests_total", dialect="openai", status="400") == 1
    assert of(found, "requests_total", dialect="openai", status="404") == 1


def test_levels_of_the_models(make_client: Callable[..., AppClient]) -> None:
    one, two = FakeBackend("one"), FakeBackend('two"\n')
    one.stats.update(running=3, queued=2, used_blocks=10, steps=99)
    two.state, two.stats = "unloaded", {}
    client = make_client(models=FakeModels(one, two))
    found = figures(client)
    for name, value in (
        ("running_sequences", 3), ("queued_sequences", 2), ("kv_blocks_used", 10), ("kv_blocks", 64),
        ("engine_steps", 99),
    ):  # fmt: skip
        assert of(found, name, model="one") == value
        assert ("qwen3_" + name, frozenset({("model", 'two"\n')})) not in found
    assert of(found, "model_state", model="one", state="ready") == 1
    assert of(found, "model_state", model='two"\n', state="ready") == 0
    assert of(found, "model_state", model='two"\n', state="unloaded") == 1
    client.server.drain()
    assert of(figures(client), "draining") == 1


def test_labels_are_few(app_client: AppClient) -> None:
    """Nothing that a client makes up becomes a series."""
    before = len(figures(app_client))
    for i in range(30):
        app_client.get(f"/path-{i}")
        app_client.post(CHAT, {**HELLO, "model": f"model-{i}"})
        app_client.request(f"METHOD{i}", "/health")
    assert len(figures(app_client)) <= before + 3 * 20
    metrics = app_client.server.metrics
    for i in range(30):
        metrics.answered(f"dialect-{i}", 99_000 + i, 0.1)
        metrics.observe_end("m", f"reason-{i}", None, ThinkingReport("on", None, 0, 0, f"cause-{i}"), {})
        metrics.observe_cut("m", f"why-{i}")
    assert len(figures(app_client)) < before + 120


def test_tokens_at_once_share_their_time() -> None:
    metrics = Metrics()
    metrics.observe_items("m", [Item(0, ReasoningDelta("a", (1,)))], 0.5, None)
    metrics.observe_items("m", [Item(0, TextDelta("abc", (1, 2, 3, 4)))], 0.9, 0.4)
    metrics.observe_items(
        "m", [Item(0, Finish("stop", Usage(1, 0, 0, 5), ThinkingReport("off", None, 0, 0, None)))], 1, 0.1
    )
    samples = {(s.name, s.labels.get("le")): s.value for family in metrics.registry.collect() for s in family.samples}
    assert samples["qwen3_inter_token_seconds_count", None] == 1
    assert samples["qwen3_inter_token_seconds_sum", None] == pytest.approx(0.1)
    assert samples["qwen3_time_to_first_token_seconds_sum", None] == 0.5


def test_history() -> None:
    now = 1000.0
    history = History(lambda: now)
    history.add("tokens", 3)
    history.set("running", 2)
    now = 1000.9
    history.add("tokens", 4)
    now = 1003.0
    history.add("tokens", 5)
    found = history.arrays(("tokens", "none"), ("running",), 5)
    assert found == {
        "time": [999.0, 1000.0, 1001.0, 1002.0, 1003.0],
        "tokens": [0, 7, 0, 0, 5],
        "none": [0] * 5,
        "running": [0, 2, 2, 2, 2],
    }
    for _ in range(1000):
        now += 1
        history.add("tokens", 1)
    assert len(history._seconds) == 300
    assert sum(history.arrays(("tokens",), ())["tokens"]) == 300


def test_spans(app_client: AppClient) -> None:
    """Without the package, `--trace` says what to install; with it, a request's span has its parts below it."""
    sdk: Any = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from qwen3.serve.tracing import Tracing

    exporter = sdk.InMemorySpanExporter()
    tracing = Tracing("http://localhost", exporter)
    app_client.server.tracing = app_client.server.metrics.tracing = tracing
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    app_client.post(CHAT, HELLO, headers={"traceparent": parent})
    app_client.post(CHAT, {**HELLO, "stream": True})
    app_client.post(CHAT, {})
    tracing.close()
    spans = exporter.get_finished_spans()
    roots = [span for span in spans if span.name == f"POST {CHAT}"]
    assert [span.attributes["http.response.status_code"] for span in roots] == [200, 200, 400]
    assert f"{roots[0].context.trace_id:032x}" == parent.split("-")[1]
    for root in roots[:2]:
        parts = {span.name: span for span in spans if span.parent and span.parent.span_id == root.context.span_id}
        assert set(parts) == {"queue", "prefill", "decode"}
        assert parts["queue"].end_time == parts["prefill"].start_time
        assert parts["decode"].attributes["gen_ai.usage.output_tokens"] == 6
