"""What every client is asked to do, and how it reports: one JSON line per check on stdout. Standard library only.

A client's script runs with the interpreter of its own environment (`tools/client_envs.py`) as
`python SCRIPT BASE_URL KEY`, makes one `Checks`, gives it a function for each name of `CHECKS`, or says why the client
cannot do it, and ends with `run()`. Questions are such that the embedded model answers them the same way each time.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

CHECKS = (
    "plain", "stream", "tools", "tools_stream", "schema", "thinking_on", "thinking_off", "thinking_budget", "history",
    "bad_field", "unknown_model", "wrong_key", "retry", "disconnect",
)  # fmt: skip

MODEL, VECTORS = "embedded", "vectors"  # the second one gives embeddings
PRODUCT, PRODUCT_ANSWER, PRODUCT_STEP = "What is 27 * 14?", "378", "27 * 10"
LONG = "Count from 1 to 250."  # more than a thousand tokens
INTRODUCTION, QUESTION, NAME = "My name is Anna.", "What is my name?", "Anna"
BUDGET = 16
WEATHER, CITY = "What is the weather in Paris?", "Paris"
WEATHER_RESULT, WEATHER_ANSWER = json.dumps({"temperature": 21, "sky": "sunny"}), "21 degrees"
WEATHER_PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
WEATHER_FUNCTION = {
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": WEATHER_PARAMETERS,
}
WEATHER_TOOL = {"type": "function", "function": WEATHER_FUNCTION}
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}
PER_KEY = 2  # requests that a key of the tests' server may have under way


class Checks:
    """base: the server's address without a path; v1: with OpenAI's."""

    def __init__(self) -> None:
        self.base, self.key = sys.argv[1], sys.argv[2]
        self.v1 = self.base + "/v1"
        self.wrong_key = self.key[:-1] + ("A" if self.key[-1] != "A" else "B")
        self.checks: dict[str, Callable[[], object] | str] = {}

    def check(self, function: Callable[[], object]) -> Callable[[], object]:
        """A decorator: the function is the check of its name, and fails by raising."""
        self.checks[function.__name__] = function
        return function

    def not_offered(self, name: str, why: str) -> None:
        self.checks[name] = why

    def run(self) -> None:
        for name, function in self.checks.items():
            line: dict[str, Any] = {"check": name, "ok": True, "offered": not isinstance(function, str), "detail": ""}
            start = time.perf_counter()
            try:
                if not isinstance(function, str):
                    self.freed(10.0)  # what the check before left is seen a moment later than the next request
                line["detail"] = function if isinstance(function, str) else str(function() or "")
            except BaseException:
                line |= {"ok": False, "detail": traceback.format_exc(limit=-3)[-3000:]}
            print(json.dumps(line | {"seconds": round(time.perf_counter() - start, 3)}), flush=True)

    def post(self, body: dict[str, Any]) -> http.client.HTTPResponse:
        """A chat completion without any client, its headers read."""
        connection = http.client.HTTPConnection(urlsplit(self.base).netloc, timeout=60)
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        connection.request("POST", "/v1/chat/completions", json.dumps({"model": MODEL} | body), headers)
        response = connection.getresponse()
        response.connection = connection  # or it would be closed as soon as nobody holds it
        return response

    @contextmanager
    def busy(self) -> Iterator[Callable[[], None]]:
        """As many streams as the key may have are under way; the function that is given ends them."""
        body = {
            "messages": [{"role": "user", "content": LONG}], "stream": True, "ignore_eos": True, "max_tokens": 4000,
            "enable_thinking": False, "temperature": 0,
        }  # fmt: skip
        held = []

        def end() -> None:
            for response in held:
                response.connection.sock and response.connection.sock.close()
                response.close()
            held.clear()

        try:
            while len(held) < PER_KEY:
                response = self.post(body)
                if response.status == 429:  # the last answer is not quite put away yet
                    response.read()
                    continue
                assert response.status == 200, response.read()
                response.readline()
                held.append(response)
            yield end
        finally:
            end()

    def freed(self, within: float = 3.0) -> str:
        """Fails unless the key may ask again `within` seconds: what it left has been cancelled."""
        start = time.perf_counter()
        while True:
            response = self.post({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1})
            said, waited = response.read(), time.perf_counter() - start
            if response.status == 200:
                return f"free after {waited:.3f} s"
            assert response.status == 429, said
            assert waited < within, f"still busy after {waited:.2f} s"
            time.sleep(0.02)


def raised(kind: type[BaseException], function: Callable[[], object]) -> Any:
    """The exception of that very class which the function must raise."""
    try:
        got = function()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected, not {got!r}")
