"""Host, Origin and keys: who gets in, and who does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen3.errors import UsageError
from qwen3.serve.keys import Keys
from qwen3.serve.security import Gate, Headers, matches
from qwen3.serve.settings import Settings
from tests.serve.conftest import KEYS, AppClient, bearer
from tests.serve.test_app import BODIES, CHAT, HELLO, message_of


def settings(**given: Any) -> Settings:
    return Settings(models=(("fake", "fake"),), **given)


# Host


LOCAL = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "localhost.", "[::1]", "[::1]:8000"]
FOREIGN = [
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
    "169.254.169.254", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1",
]  # fmt: skip
WRONG = [
    "",
    "a b",
    "a/b",
    "user@localhost",
    "localhost:99999999",
    "localhost:",
    "[::1",
    "l\u00f6cal",
    "a\x00b",
    "http://localhost",
]


@pytest.mark.parametrize("host", LOCAL)
def test_hosts_of_a_local_server(app_client: AppClient, host: str) -> None:
    assert app_client.post(CHAT, HELLO, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_rebinding_is_refused(app_client: AppClient, host: str) -> None:
    for path, body in BODIES.items():
        answer = app_client.post(path, body, headers={"host": host})
        assert answer.status_code == 403
        assert "--allowed-hosts" in message_of(answer)
    assert app_client.get("/", headers={"host": host}).status_code == 403
    assert app_client.get("/ready", headers={"host": host}).status_code == 200  # a load balancer asks by any address
    assert app_client.backend.calls == []


@pytest.mark.parametrize("host", WRONG)
def test_hosts_that_are_none(app_client: AppClient, host: str) -> None:
    answer = app_client.get("/health", headers={"host": host.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code in (400, 403)
    message_of(answer)


def test_more_names(make_client: Callable[..., AppClient]) -> None:
    client = make_client(settings(allowed_hosts=("chat.example.org", "*.inner.example", "port.example:99")))
    good = ["chat.example.org", "CHAT.example.org:443", "a.inner.example", "a.b.inner.example:1", "port.example:99"]
    bad = [
        "inner.example",
        "xinner.example",
        "example.org",
        "port.example",
        "port.example:98",
        "chat.example.org.evil.com",
    ]
    assert {client.get("/", headers={"host": host}).status_code for host in (*good, "localhost")} == {200}
    assert {client.get("/", headers={"host": host}).status_code for host in bad} == {403}
    assert make_client(settings(allowed_hosts=("*",))).get("/", headers={"host": "any"}).status_code == 200
    assert not matches("[::1]:80", "[::1]", "81")


def test_public_servers(make_client: Callable[..., AppClient], key_file: Path) -> None:
    """Without keys, addresses only: a page can bring its own name, no address. With keys any name: a page has none."""
    insecure = make_client(settings(host="0.0.0.0", insecure=True))
    keyed = make_client(settings(host="0.0.0.0", api_key_file=key_file))
    named = make_client(settings(host="0.0.0.0", api_key_file=key_file, allowed_hosts=("chat.example.org",)))
    for client, host, status in (
        (insecure, "10.0.0.1:8000", 200), (insecure, "evil.example", 403), (keyed, "qwen3.default.svc", 200),
        (named, "chat.example.org", 200), (named, "evil.example", 403), (named, "127.0.0.1", 200),
    ):  # fmt: skip
        assert client.get("/", headers={"host": host}).status_code == status, host


# Origin


FROM_PAGES = [
    "https://evil.example", "http://localhost:3000", "http://127.0.0.1:8001", "null", "file://", "", "http://127.0.0.1",
    "https://127.0.0.1:8000.evil.example", "http://127.0.0.1:8000@evil.example", "chrome-extension://abc",
]  # fmt: skip


@pytest.mark.parametrize("origin", FROM_PAGES)
def test_other_pages_are_refused(app_client: AppClient, origin: str) -> None:
    for path, body in BODIES.items():
        answer = app_client.post(path, body, headers={"origin": origin})
        assert answer.status_code == 403
        assert "--allowed-origins" in message_of(answer)
        assert "access-control-allow-origin" not in answer.headers
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    assert app_client.request("OPTIONS", CHAT, headers=preflight).status_code == 403
    assert app_client.backend.calls == []


def test_the_own_page_is_not(app_client: AppClient) -> None:
    for origin in ("http://127.0.0.1:8000", "https://127.0.0.1:8000"):  # a proxy in front may speak TLS
        assert (
            app_client.post(CHAT, HELLO, headers={"origin": origin, "sec-fetch-site": "same-origin"}).status_code == 200
        )


def test_a_form_on_another_page(app_client: AppClient) -> None:
    """Browsers that send no Origin with it still say where it comes from."""
    for site, status in (("cross-site", 403), ("same-site", 403), ("none", 200), ("same-origin", 200)):
        answer = app_client.post("/api/chat", BODIES["/api/chat"], headers={"sec-fetch-site": site})
        assert answer.status_code == status
    assert app_client.get("/health", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link


def test_allowed_origins(make_client: Callable[..., AppClient]) -> None:
    client = make_client(settings(allowed_origins=("https://app.example",)))
    ask = {"origin": "https://app.example"}
    answer = client.post(CHAT, HELLO, headers=ask)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    preflight = client.request(
        "OPTIONS", CHAT,
        headers={**ask, "access-control-request-method": "POST", "access-control-request-headers": "authorization"},
    )  # fmt: skip
    assert preflight.status_code == 204
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    assert client.post(CHAT, {}, headers=ask).headers["access-control-allow-origin"] == "https://app.example"
    assert client.post(CHAT, HELLO, headers={"origin": "https://app.example.evil"}).status_code == 403
    assert client.post(CHAT, HELLO).headers.get("access-control-allow-origin") is None
    assert (
        make_client(settings(allowed_origins=("*",))).post(CHAT, HELLO, headers={"origin": "null"}).status_code == 200
    )


# Keys


@pytest.mark.parametrize("path", BODIES)
def test_a_key_opens(keyed_client: AppClient, path: str) -> None:
    body, alice = BODIES[path], KEYS["alice"]
    for headers in (
        bearer("alice"), {"x-api-key": f"alice.{alice}"}, {"authorization": f"Bearer {alice}"}, {"x-api-key": alice},
        {"authorization": f"bearer  {alice}"}, {"authorization": "Basic abc", "x-api-key": alice},
    ):  # fmt: skip
        answer = keyed_client.post(path, body, headers=headers)
        assert answer.status_code == 200, (headers, answer.text)
    assert {call.tenant for call in keyed_client.backend.calls} == {"alice"}


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Bearer "}, {"x-api-key": ""},
     {"authorization": f"Basic {KEYS['alice']}"}, {"authorization": KEYS["alice"]}, {"authorization": "Bearer wrong"},
     {"authorization": f"Bearer alice.{KEYS['bob']}"}, {"authorization": "Bearer alice"}, {"api-key": KEYS["alice"]},
     {"authorization": f"Bearer {KEYS['alice']} x"}, {"authorization": "Bearer wrong", "x-api-key": KEYS["alice"]},
     {"cookie": f"key={KEYS['alice']}"}, {"x-forwarded-for": "127.0.0.1"}, {"x-api-key": "\u00e4" * 9}],
)  # fmt: skip
def test_nothing_else_does(keyed_client: AppClient, headers: dict[str, str]) -> None:
    sent: Any = {name: value.encode("latin-1") for name, value in headers.items()}
    for path, body in BODIES.items():
        answer = keyed_client.post(path, body, headers=sent)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-should-retry"] == "false"
        assert KEYS["alice"] not in answer.text
        message_of(answer)
    assert keyed_client.backend.calls == []


def test_keys_in_the_address_are_not_looked_at(keyed_client: AppClient) -> None:
    for name in ("key", "api_key", "access_token", "token"):
        assert keyed_client.post(f"{CHAT}?{name}={KEYS['alice']}", HELLO).status_code == 401


def test_every_path_but_the_page_needs_a_key(keyed_client: AppClient) -> None:
    paths = keyed_client.app.openapi()["paths"]
    assert len(paths) > 30
    for path, methods in paths.items():
        for method in methods:
            answer = keyed_client.request(method.upper(), path.replace("{", "").replace("}", ""))
            assert answer.status_code == (200 if path in ("/health", "/ready") else 401), (method, path)
    for path in ("/nope", "/openapi.json", "/health/", "/assets", "/metrics"):
        assert keyed_client.get(path).status_code == 401, path
    assert keyed_client.post("/", {}).status_code == 401
    for path in ("/", "/status"):
        assert keyed_client.get(path, headers={"accept": "text/html"}).status_code == 200
    assert keyed_client.get("/metrics", headers=bearer("bob")).status_code == 200


def test_headers_that_come_twice() -> None:
    for name in (b"host", b"authorization", b"origin", b"x-api-key"):
        with pytest.raises(Exception, match="twice"):
            Headers([(name, b"a"), (b"accept", b"b"), (name, b"c")])
    assert Headers([(b"accept", b"a"), (b"accept", b"b")]).get("accept") == "b"


def test_http_1_0_has_no_host() -> None:
    gate = Gate(settings(), None)
    assert gate.check("GET", "/health", "1.0", Headers([])).id == "anonymous"
    with pytest.raises(Exception, match="Host"):
        gate.check("GET", "/health", "1.1", Headers([]))


def test_a_key_that_was_taken_back(keyed_client: AppClient, tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text(f"bob:{KEYS['bob']}\n")
    keys: Keys = keyed_client.server.keys
    keys.path = path
    keys.reload()
    assert keyed_client.get("/version", headers=bearer("alice")).status_code == 401
    assert keyed_client.get("/version", headers=bearer("bob")).status_code == 200


# Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "myhost.example", "[::]"])
def test_a_public_address_needs_keys(host: str, key_file: Path) -> None:
    with pytest.raises(UsageError, match="--insecure") as caught:
        settings(host=host)
    assert "--api-key-file" in str(caught.value)
    assert settings(host=host, insecure=True).public
    assert settings(host=host, api_key_file=key_file).public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.8.0.3"])
def test_a_local_one_does_not(host: str) -> None:
    assert not settings(host=host).public


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"port": -1}, "--port"), ({"port": 65_536}, "--port"), ({"port": True}, "--port"),
        ({"drain": float("nan")}, "--drain"), ({"drain": -1.0}, "--drain"), ({"max_queue": 0}, "--max-queue"),
        ({"idle_unload": 0.0}, "--idle-unload"), ({"body_timeout": float("inf")}, "--body-timeout"),
        ({"max_body": 10**30}, "--max-body"), ({"context": 1.5}, "--context"), ({"host": ""}, "--host"),
        ({"reasoning_field": "all"}, "--reasoning-field"), ({"log_format": "xml"}, "--log-format"),
        ({"host": "a b"}, "--host"), ({"allowed_hosts": ("http://x",)}, "--allowed-hosts"),
        ({"allowed_origins": ("x.example",)}, "--allowed-origins"), ({"models": ()}, "models"),
        ({"models": (("a b", "x"),)}, "models"), ({"models": (("a", "x"), ("a", "y"))}, "two are called"),
    ],
)  # fmt: skip
def test_wrong_settings(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Settings(**given)
