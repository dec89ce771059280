"""One caller and another: whoever has a key gets what is the key's own, and nothing else; browsers get no scripts."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from qwen3.serve.settings import Settings
from tests.serve.conftest import KEYS, AppClient, Listening, Running, bearer
from tests.serve.test_app import BODIES, CHAT, HELLO, message_of

SQL = [
    "' OR '1'='1", "admin'--", "1; DROP TABLE keys;--", '" OR ""="', "' UNION SELECT * FROM keys--", "%27%20OR%201=1",
    "\\'; --", "1' AND SLEEP(5)--", "${7*7}", "{{7*7}}", "() { :;}; echo x", "../../../../etc/passwd", "%00", "$(id)",
]  # fmt: skip


def test_injections(keyed_client: AppClient) -> None:
    """CVE-2026-42208: in every header and in the path, nothing opens and nothing breaks."""
    for text in SQL:
        for name in (
            "authorization",
            "x-api-key",
            "x-request-id",
            "user-agent",
            "cookie",
            "accept",
            "openai-organization",
        ):
            value = f"Bearer {text}" if name == "authorization" else text
            answer = keyed_client.get("/v1/models", headers={name: value})
            assert answer.status_code == 401, (name, text)
            if name not in ("authorization", "accept"):
                opened = keyed_client.get("/v1/models", headers={**bearer("alice"), name: value})
                assert opened.status_code == 200, (name, text)
        quoted = "".join(f"%{byte:02x}" for byte in text.encode())
        for path in ("/v1/models/", "/v1/files/", "/v1/batches/", "/v1/requests/", "/assets/x/"):
            method = "DELETE" if "requests" in path else "GET"
            answer = keyed_client.request(method, path + quoted, headers=bearer("alice"))
            assert answer.status_code in (400, 404), (path, text, answer.text)
            assert "root:" not in answer.text


def test_data_of_another_key(make_client: Callable[..., AppClient], key_file: Path, tmp_path: Path) -> None:
    """Open WebUI CVE-2026-45349, -44571: with another's id every path says what it says of an id that never was."""
    client = make_client(Settings(models=(("fake", "fake"),), api_key_file=key_file, files_dir=tmp_path))
    client.backend.delay = 0.05
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": HELLO}
    file = client.request(
        "POST", "/v1/files", headers=bearer("bob"), data={"purpose": "batch"},
        files={"file": ("in.jsonl", json.dumps(line).encode())},
    )  # fmt: skip
    assert file.status_code == 200, file.text
    given = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = client.post("/v1/batches", given, headers=bearer("bob"))
    assert batch.status_code == 200, batch.text
    ids = {"file_id": file.json()["id"], "batch_id": batch.json()["id"]}
    tried = 0
    for path, methods in client.app.openapi()["paths"].items():
        for name, id in ids.items():
            if f"{{{name}}}" not in path:
                continue
            for method in methods:
                tried += 1
                theirs = client.request(method.upper(), path.replace(f"{{{name}}}", id), headers=carol(client))
                nobodys = client.request(
                    method.upper(), path.replace(f"{{{name}}}", id[:-4] + "0000"), headers=carol(client)
                )
                assert theirs.status_code == nobodys.status_code == 404, (method, path)
                assert message_of(theirs).replace(id, "") == message_of(nobodys).replace(id[:-4] + "0000", "")
    assert tried >= 5
    assert client.post("/v1/batches", given, headers=carol(client)).status_code in (400, 404)
    for path in ("/v1/files", "/v1/batches"):
        assert client.get(path, headers=carol(client)).json()["data"] == []
        assert len(client.get(path, headers=bearer("bob")).json()["data"]) >= 1


def carol(client: AppClient) -> dict[str, str]:
    """A key without rights over others' things."""
    path = client.server.keys.path.with_name("keys-and-carol.txt")
    if not path.exists():
        path.touch(0o600)
        path.write_text(client.server.keys.path.read_text() + "carol:carol-secret-0123456789\n")
        client.server.keys.path = path
        client.server.keys.reload()
    return {"authorization": "Bearer carol-secret-0123456789"}


def test_streams_of_another_key(make_client: Callable[..., AppClient], key_file: Path) -> None:
    client = make_client(Settings(models=(("fake", "fake"),), api_key_file=key_file))
    client.backend.delay = 0.3
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, CHAT, {**HELLO, "stream": True}, headers=bearer("alice"))
        end = time.monotonic() + 10
        while not client.server.streams:
            assert time.monotonic() < end
            time.sleep(0.01)
        (id,) = client.server.streams
        for action in ("answer_now", "cancel"):
            body = {"id": id, "action": action}
            assert client.post(f"{CHAT}/control", body, headers=bearer("bob")).status_code == 404
        assert client.delete(f"/v1/requests/{id}", headers=bearer("bob")).status_code == 404
        assert "[DONE]" in running.result().text
    (stream,) = client.backend.streams
    assert not stream.hurried
    assert not stream.cancelled


def test_prefix_cache(server_with_keys: Running) -> None:
    """PromptPeek: another key's prompt is not in one's cache, whatever a request says of salts."""
    text = "The quick brown fox jumps over the lazy dog. " * 40
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "enable_thinking": False}

    def cached(name: str, **more: Any) -> int:
        with server_with_keys.client() as client:
            answer = client.post(CHAT, json={**body, **more}, headers=bearer(name))
            assert answer.status_code == 200, answer.text
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached("alice") == 0
    assert cached("alice") > 100
    for more in ({"cache_salt": "alice"}, {"cache_salt": "x"}, {"user": "alice"}):
        assert cached("bob", **more) == 0  # the first two have salts of their own, the last one has none
    assert cached("bob") > 100
    assert cached("alice", cache_salt="alice") == 0


def test_stored_xss(app_client: AppClient) -> None:
    """CVE-2026-44568: what a browser is given says what it is, and may run no script of anybody else."""
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for path in ("/", "/status"):
        answer = app_client.get(path, headers={"accept": "text/html"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "<script>" not in answer.text.replace("<script type", "").replace("<script src", "")
    for path, body in BODIES.items():
        answer = app_client.post(path, json.loads(json.dumps(body).replace("Hello", script)))
        assert answer.headers["content-type"].startswith(("application/json", "application/x-ndjson"))
        assert answer.headers["x-content-type-options"] == "nosniff"
    answer = app_client.get("/" + script.replace("<", "%3C").replace(">", "%3E"))
    assert answer.headers["content-type"] == "application/json"


def test_decompression_bombs(listen: Callable[..., Listening]) -> None:
    """CVE-2026-22773: nothing is unpacked, whatever a header says."""
    server = listen(Settings(models=(("fake", "fake"),)))
    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    before = psutil.Process().memory_info().rss
    for headers in ({"content-encoding": "gzip"}, {"content-encoding": "x-gzip"}, {}):
        sent = httpx.post(server.url + CHAT, content=bomb, headers={"content-type": "application/json", **headers})
        assert sent.status_code == (415 if headers else 400)
    assert psutil.Process().memory_info().rss - before < 30_000_000


def test_logs_of_real_servers(server: Running, server_with_keys: Running) -> None:
    """After all the above: no key, no body, no line of somebody else's."""
    with server_with_keys.client() as client:
        for name in KEYS:
            client.post(f"{CHAT}?key={KEYS[name]}", json=HELLO, headers=bearer(name))
            client.post(CHAT, json=HELLO, headers={"authorization": f"Basic {KEYS[name]}"})
    for running in (server, server_with_keys):
        log = running.log.read_text()
        for secret in (*KEYS.values(), "quick brown fox", "Hello", "Traceback"):
            assert secret not in log
