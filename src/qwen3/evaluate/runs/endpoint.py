"""A model behind an endpoint of OpenAI's shape (/v1/chat/completions), asked in threads.

What a network does is no answer: status 408, 429 and 5xx, timeouts, cut connections and broken bodies are tried again
with growing pauses, and a sample that stays without an answer is "failed", which the next start asks again. Thinking is
read from `reasoning_content`, `reasoning` or parts of the content; where a server leaves it in the text, tags included,
it is taken out and the sample is flagged.

Source: https://platform.openai.com/docs/api-reference/chat; `chat_template_kwargs` and `reasoning_content` as vLLM and
SGLang have them.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from qwen3.errors import RemoteError, UsageError
from qwen3.evaluate.runs.talk import Reply, Talk

_AGAIN = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 403, 404, 405})
_LONGEST_PAUSE = 60.0
_CHARS_PER_TOKEN = 4  # of the estimate, where a server counts nothing


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host, and a POST would become a GET."""

    def redirect_request(self, *args: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@dataclass
class Endpoint:
    """url: up to and with /v1. model: its name there. key: sent as a bearer token, kept nowhere. mode: "think" or
    "no-think", None: whatever the server does, without a field that only Qwen's servers know. budget: sent as
    `thinking_budget`. timeout_s: seconds of one request. retries: more tries of one. pause_s: before the first of them.

    `answers` raises RemoteError where the server refuses everybody (401, 403, 404).
    """

    url: str
    model: str
    key: str | None = None
    mode: str | None = None
    budget: int | None = None
    concurrency: int = 8
    timeout_s: float = 3600.0
    retries: int = 8
    pause_s: float = 1.0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--api {self.url!r}: must be the address up to /v1, such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UsageError("--api: no secrets in the address, which is recorded; use --api-key-env")
        self.url = self.url.rstrip("/").removesuffix("/chat/completions")
        if self.mode == "auto":
            raise UsageError("--auto works in this process alone: an endpoint has no field for it")
        if self.budget is not None and self.mode != "think":
            raise UsageError("--budget with --api needs --think: the endpoint's own way is not known")

    def bound(self, budget: int | None) -> None:
        """From now on so many tokens of thinking at most."""
        self.budget = budget

    @property
    def thinks(self) -> bool:
        return self.mode == "think"

    def sampling(self, wish: dict[str, Any]) -> dict[str, Any]:
        """What is sent: `wish`, with Qwen's recommendation for the mode where it has nothing; in no mode the wish
        alone."""
        from qwen3 import family

        given = {name: value for name, value in wish.items() if value is not None}
        if self.mode is None:
            return given
        usual = family.sampling_defaults("hybrid", self.thinks)
        return {"temperature": usual.temperature, "top_p": usual.top_p, "top_k": usual.top_k, **given}

    def head(self) -> dict[str, Any]:
        """Its part of a run's head."""
        return {
            "model": self.model,
            "source": self.url,
            "endpoint": self.url,
            "template_sha256": None,
            "checkpoint_sha256": None,
            "numbers": None,
            "concurrency": self.concurrency,
            "machine": None,
        }

    def answers(self, talks: Iterator[Talk], sampling: dict[str, Any]) -> Iterator[Talk]:
        """The talks as they end, in whatever order; `concurrency` of them are open at once."""
        work: queue.SimpleQueue[Talk | None] = queue.SimpleQueue()
        ended: queue.SimpleQueue[tuple[Talk, BaseException | None]] = queue.SimpleQueue()
        self._stop = threading.Event()

        def worker() -> None:
            while (talk := work.get()) is not None:
                problem: BaseException | None = None
                try:
                    while talk.add(self._ask(talk, sampling)):
                        pass
                except BaseException as error:
                    problem = error
                ended.put((talk, problem))

        threads = 0
        open_talks = 0
        try:
            while True:
                while open_talks < self.concurrency and (talk := next(talks, None)) is not None:
                    work.put(talk)
                    open_talks += 1
                    if threads < open_talks:  # daemons: Ctrl-C must not wait for an answer that takes an hour
                        threading.Thread(target=worker, daemon=True).start()
                        threads += 1
                if not open_talks:
                    return
                talk, problem = ended.get()
                open_talks -= 1
                if problem is not None:
                    raise problem
                yield talk
        finally:
            self._stop.set()
            for _ in range(threads):
                work.put(None)

    def close(self) -> None:
        self._stop.set()

    def body(self, talk: Talk, sampling: dict[str, Any]) -> dict[str, Any]:
        """The request of a talk's next turn."""
        body: dict[str, Any] = {"model": self.model, "messages": talk.messages, **sampling, "seed": talk.seed}
        if self.mode is not None:
            body["chat_template_kwargs"] = {"enable_thinking": self.thinks and self.budget != 0}
        if self.budget:
            body["thinking_budget"] = self.budget
        if talk.item.tools:
            body["tools"] = talk.item.tools
        return body

    def judge(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that comes back, at temperature 0: `score.judge.Ask`. Raises RemoteError where none does: a judge
        that cannot be reached is no verdict."""
        reply = self._send({"model": self.model, "messages": list(messages), "temperature": 0.0})
        if reply.error:
            raise RemoteError(f"the judge at {self.url}: {reply.error}")
        return reply.content

    def _ask(self, talk: Talk, sampling: dict[str, Any]) -> Reply:
        return self._send(self.body(talk, sampling))

    def _send(self, body: dict[str, Any]) -> Reply:
        data = json.dumps(body).encode()
        problem = ""
        for attempt in range(self.retries + 1):
            start = time.monotonic()
            try:
                answer = self._post(data)
                return self._reply(answer, time.monotonic() - start)
            except urllib.error.HTTPError as error:
                problem, pause = f"status {error.code}: {_said(error)}", _retry_after(error)
                if error.code in _REFUSED:
                    raise RemoteError(f"{self.url}: {problem}") from None
                if error.code not in _AGAIN and error.code < 500:
                    return Reply(finish_reason="error", error=problem)
            # The last four: not the JSON that it should be.
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
                reason = getattr(error, "reason", None) or error
                problem, pause = f"{type(reason).__name__}: {reason}"[:300], None
            if attempt < self.retries:
                grown = min(_LONGEST_PAUSE, self.pause_s * 2**attempt) * random.uniform(0.5, 1)
                if self._stop.wait(grown if pause is None else pause):
                    break
        return Reply(finish_reason="error", error=problem)

    def _post(self, data: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "qwen3-eval"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", data, headers)
        with _OPENER.open(request, timeout=self.timeout_s) as response:
            answer = json.loads(response.read())
        if not isinstance(answer, dict) or not answer.get("choices"):
            raise ValueError(f"no choices in what the server sent: {str(answer)[:200]}")
        return answer

    def _reply(self, answer: dict[str, Any], seconds: float) -> Reply:
        choice = answer["choices"][0]
        message = choice.get("message") or {}
        flags: list[str] = []
        content, inside = _texts(message.get("content"))
        thinking = message.get("reasoning_content") or message.get("reasoning")
        thinking = thinking or _texts(message.get("reasoning_details"))[0] or inside
        content, leaked = split_leak(content)
        if leaked is not None:
            flags.append("leak")
            thinking = "\n".join(filter(None, (thinking, leaked)))
        calls = tuple(message.get("tool_calls") or ())
        reason = choice.get("finish_reason") or "stop"
        usage = answer.get("usage") or {}
        thought, answered, estimated = _tokens(usage, thinking or "", content)
        flags += ["estimated"] if estimated else []
        if self.budget and thought > self.budget:
            flags.append("over-budget")
        if self.mode == "no-think" and (thinking or "").strip():
            flags.append("thought")
        return Reply(
            content, thinking or "", reason, calls, usage.get("prompt_tokens"), thought, answered, seconds,
            flags=tuple(flags),
        )  # fmt: skip


def split_leak(content: str) -> tuple[str, str | None]:
    """(answer, the thoughts that stood in it with their tags; None: there were none). A block that is not closed is
    all thought. A tag in the middle of an answer, with no closing one, is the answer's own text."""
    head, closed, tail = content.partition("</think>")
    opened = head.lstrip().startswith("<think>")
    if not closed and not opened:
        return content, None
    thoughts = head.lstrip().removeprefix("<think>").strip()
    return (tail.lstrip("\n"), thoughts) if closed else ("", thoughts)


def _texts(value: Any) -> tuple[str, str]:
    """(text, thoughts) of a content that is a text, or a list of parts, as some servers have it."""
    if not isinstance(value, list):
        return value or "", ""
    parts = [part for part in value if isinstance(part, dict)]
    text = "".join(str(part.get("text") or part.get("summary") or "") for part in parts)
    return text, "".join(_texts(part["thinking"])[0] for part in parts if part.get("thinking"))


def _tokens(usage: dict[str, Any], thinking: str, content: str) -> tuple[int, int, bool]:
    """(thinking, answer, whether that is an estimate): what the server says; else its total in shares of characters,
    or characters by four."""
    total = usage.get("completion_tokens")
    said = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", usage.get("reasoning_tokens"))
    if total is not None and (said or not thinking):  # some say 0 whatever was thought
        return int(said or 0), max(0, int(total) - int(said or 0)), False
    chars = len(thinking) + len(content)
    whole = int(total) if total is not None else -(-chars // _CHARS_PER_TOKEN)
    thought = round(whole * len(thinking) / chars) if chars else 0
    return thought, whole - thought, True


def _said(error: urllib.error.HTTPError) -> str:
    """The server's own words, in short."""
    try:
        raw = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        data = json.loads(raw)
        told = data.get("error", data) if isinstance(data, dict) else data
        raw = str(told.get("message", told) if isinstance(told, dict) else told)
    except ValueError:
        pass
    return " ".join(raw.split())[:300]


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks for, None where it does not (or names a date)."""
    value = (error.headers.get("Retry-After") or "").strip()
    return min(_LONGEST_PAUSE, float(value)) if value.replace(".", "", 1).isdigit() else None
