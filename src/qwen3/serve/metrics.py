"""What the server counts: Prometheus metrics in a registry of their own, and the last minutes for the status page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from qwen3.chat import Finish, ThinkingReport, Usage
from qwen3.serve.calls import Item
from qwen3.serve.tracing import Tracing

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_GAPS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
DIALECTS = frozenset({"openai", "anthropic", "ollama", "other"})
ENDS = frozenset({"natural", "budget", "steps", "time", "client", "loop", "eos", "length", "cancelled", "stop"})
REASONS = frozenset({"stop", "length", "tool_calls", "loop", "cancelled"})
CUTS = frozenset({"disconnected", "slow_reader", "error"})
STATES = ("unloaded", "loading", "ready", "restarting", "failed")
KEPT = 300  # seconds of history
# (field of Backend.stats, metric, help)
_GAUGES = (
    ("running", "running_sequences", "Sequences in the engine's batch."),
    ("queued", "queued_sequences", "Sequences that wait for a place."),
    ("used_blocks", "kv_blocks_used", "Blocks of the KV cache in use."),
    ("blocks", "kv_blocks", "Blocks of the KV cache."),
    ("steps", "engine_steps", "Steps since the model was loaded."),
)


class Metrics:
    """All counts of one server. backends: gives the models at the moment, for the gauges."""

    def __init__(self, backends: Callable[[], Iterable[Any]] = tuple) -> None:
        self.registry = CollectorRegistry()
        self._backends = backends
        self.tracing: Tracing | None = None
        self.in_flight = 0
        self.draining = False
        new: dict[str, Any] = {"registry": self.registry, "namespace": "qwen3"}
        self.requests = Counter("requests", "HTTP requests answered.", ["dialect", "status"], **new)
        self.request_seconds = Histogram(
            "request_seconds", "From a request's headers to the last byte of its answer.", ["dialect"],
            buckets=_SECONDS, **new,
        )  # fmt: skip
        self.first_token = Histogram(
            "time_to_first_token_seconds", "From a request to its first token.", buckets=_SECONDS, **new
        )
        self.first_answer = Histogram(
            "time_to_first_answer_token_seconds", "From a request to its first token after the thinking.",
            buckets=_SECONDS, **new,
        )  # fmt: skip
        self.gap = Histogram("inter_token_seconds", "Between two tokens of a stream.", buckets=_GAPS, **new)
        self.tokens = Counter(
            "tokens", "Tokens by kind: prompt (cached among them), cached, thinking, forced, answer, discarded.",
            ["kind"], **new,
        )  # fmt: skip
        self.thinking_ends = Counter("thinking_ends", "How thinking ended.", ["cause"], **new)
        self.finishes = Counter("finishes", "How answers ended.", ["reason"], **new)
        self.cuts = Counter("cut_calls", "Calls that ended early.", ["why"], **new)
        self.queue = Histogram(
            "queue_seconds", "Of answers that were not streamed: the wait for a place.", buckets=_SECONDS, **new
        )
        self.history = History()
        self.registry.register(_Gauges(self))

    def text(self) -> bytes:
        """The exposition, as Prometheus reads it."""
        return generate_latest(self.registry)

    def answered(self, dialect: str, status: int, seconds: float) -> None:
        """One HTTP request is over. Labels are bounded: whatever is no dialect of ours is "other"."""
        dialect = dialect if dialect in DIALECTS else "other"
        self.requests.labels(dialect, str(status) if 100 <= status <= 599 else "0").inc()
        self.request_seconds.labels(dialect).observe(seconds)

    def observe_items(self, model: str, items: list[Item], elapsed: float, gap: float | None) -> None:
        """News of a stream. elapsed: s since the call came in; gap: s since the stream's last news, None for the first.
        Several tokens at once share the time they took."""
        count = 0
        for item in items:
            ids = getattr(item.event, "ids", None)
            count += len(ids) if ids else type(item.event) is not Finish
        if gap is None:
            self.first_token.observe(elapsed)
        elif count:
            self.gap.observe(gap / count)
        if count:
            self.history.add("tokens", count)

    def observe_answer(self, model: str, elapsed: float) -> None:
        """A stream's first text or tool call."""
        self.first_answer.observe(elapsed)

    def observe_cut(self, model: str, why: str) -> None:
        """A call ended early. why: "disconnected", "slow_reader" or "error"."""
        self.cuts.labels(why if why in CUTS else "other").inc()

    def observe_end(
        self,
        model: str,
        reason: str | None,
        usage: Usage | None,
        report: ThinkingReport | None,
        timing: Mapping[str, float | None],
    ) -> None:
        """A sample has ended. timing: seconds since its start; with "queued" where nothing was streamed, and then it
        says when tokens came."""
        if self.tracing is not None:
            self.tracing.sample(model, reason, usage, timing)
        self.finishes.labels(reason if reason in REASONS else "other").inc()
        if (queued := timing.get("queued")) is not None:
            for histogram, name in ((self.first_token, "first_token"), (self.first_answer, "first_answer")):
                if (seconds := timing.get(name)) is not None:
                    histogram.observe(seconds)
            self.queue.observe(queued)
            self.history.add("tokens", usage.completion_tokens if usage is not None else 0)
        if report is not None and report.ended_by is not None:
            self.thinking_ends.labels(report.ended_by if report.ended_by in ENDS else "other").inc()
        if usage is None:
            return
        forced, discarded = (report.forced_tokens, report.discarded_tokens) if report is not None else (0, 0)
        kinds = {
            "prompt": usage.prompt_tokens,
            "cached": usage.cached_tokens,
            "thinking": usage.reasoning_tokens,
            "forced": forced,
            "discarded": discarded,
            "answer": max(0, usage.completion_tokens - usage.reasoning_tokens - forced - discarded),
        }
        for kind, count in kinds.items():
            self.tokens.labels(kind).inc(count)
        self.history.add("prompt", usage.prompt_tokens - usage.cached_tokens)


class History:
    """Sums by second of the last minutes, and levels at their end: arrays for charts, the oldest first."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._seconds: deque[tuple[int, dict[str, float]]] = deque(maxlen=KEPT)

    def _now(self) -> dict[str, float]:
        second = int(self._clock())
        if not self._seconds or self._seconds[-1][0] < second:
            self._seconds.append((second, {}))
        return self._seconds[-1][1]

    def add(self, name: str, count: float) -> None:
        now = self._now()
        now[name] = now.get(name, 0) + count

    def set(self, name: str, level: float) -> None:
        self._now()[name] = level

    def arrays(self, sums: tuple[str, ...], levels: tuple[str, ...], seconds: int = KEPT) -> dict[str, list[float]]:
        """`time` (Unix seconds) and one array per name; a second without news is 0 in sums and unchanged in levels."""
        known = dict(self._seconds)
        end = int(self._clock())
        times = range(end - seconds + 1, end + 1)
        found: dict[str, list[float]] = {"time": [float(t) for t in times]}
        for name in sums:
            found[name] = [known.get(t, {}).get(name, 0) for t in times]
        for name in levels:
            last, row = 0.0, []
            for t in times:
                last = known.get(t, {}).get(name, last)
                row.append(last)
            found[name] = row
        return found


class _Gauges:
    """What is read off the models when somebody asks. Model names come from the command line, so they are few."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield GaugeMetricFamily("qwen3_http_requests_in_flight", "Requests under way.", metrics.in_flight)
        yield GaugeMetricFamily("qwen3_draining", "1 while the server ends.", float(metrics.draining))
        backends = [(backend.name, backend.state, backend.stats or {}) for backend in metrics._backends()]
        state = GaugeMetricFamily("qwen3_model_state", "1 for the state a model is in.", labels=["model", "state"])
        for name, now, _ in backends:
            for each in STATES:
                state.add_metric([name, each], float(each == now))
        yield state
        for field, metric, text in _GAUGES:
            family = GaugeMetricFamily(f"qwen3_{metric}", text, labels=["model"])
            for name, _, stats in backends:
                if field in stats:
                    family.add_metric([name], float(stats[field]))
            yield family
