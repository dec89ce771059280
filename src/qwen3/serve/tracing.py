"""Spans of requests for OpenTelemetry, where the extra `trace` is installed and `--trace URL` says where they go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from qwen3 import __version__
from qwen3.chat import Usage
from qwen3.errors import Qwen3Error

# (span, where it begins, where it ends) by the names of a sample's timing; "" is the call's own start.
_PARTS = (("queue", "", "queued"), ("prefill", "queued", "first_token"), ("decode", "first_token", "total"))


class Tracing:
    """exporter: of opentelemetry.sdk; None: OTLP over HTTP to `url` (/v1/traces where it has no path).
    Raises Qwen3Error if the extra is missing."""

    def __init__(self, url: str, exporter: Any = None) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter(
                    endpoint=url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1/traces"
                )
        except ImportError as error:
            raise Qwen3Error(
                f"--trace needs OpenTelemetry ({error.name} is missing): pip install 'qwen3[trace]'"
            ) from None
        resource = Resource.create({"service.name": "qwen3", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("qwen3.serve")
        self._trace, self._extract = trace, propagate.extract

    @contextmanager
    def request(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[Any]:
        """The span of one HTTP request, under the client's where it sends `traceparent`."""
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        kind = self._trace.SpanKind.SERVER
        attributes = {"http.request.method": method, "url.path": path}
        with self._tracer.start_as_current_span(
            f"{method} {path}", self._extract(given), kind, attributes=attributes, record_exception=False
        ) as span:
            yield span

    def sample(self, model: str, reason: str | None, usage: Usage | None, timing: Mapping[str, float | None]) -> None:
        """The parts of one sample that has just ended, under the request's span. timing: seconds since its start."""
        total = timing.get("total")
        if total is None:
            return
        start = time.time_ns() - int(total * 1e9)
        marks = {**timing, "": 0.0, "queued": timing.get("queued", timing.get("opened"))}
        attributes: dict[str, Any] = {"gen_ai.request.model": model, "gen_ai.response.finish_reason": reason or ""}
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.completion_tokens
        for name, begins, ends in _PARTS:
            first, last = marks.get(begins), marks.get(ends)
            if first is not None and last is not None and last >= first:
                span = self._tracer.start_span(name, start_time=start + int(first * 1e9), attributes=attributes)
                span.end(start + int(last * 1e9))

    def close(self) -> None:
        self._provider.shutdown()
