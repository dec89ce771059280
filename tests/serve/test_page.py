"""The page's routes and files, without a browser."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from qwen3.serve.errors import ApiError, shape
from qwen3.serve.page import Site, router

WEB = Path(str(resources.files("qwen3") / "data" / "web"))
HTML = {"accept": "text/html,application/xhtml+xml"}


def client(page: bool = True) -> TestClient:
    app = FastAPI()
    server: Any = SimpleNamespace(settings=SimpleNamespace(page=page))
    app.include_router(router(server))
    app.exception_handler(ApiError)(lambda _, error: JSONResponse(shape(error, "openai"), error.status))
    return TestClient(app)


@pytest.fixture(scope="module")
def http() -> Iterator[TestClient]:
    with client() as made:
        yield made


def assets(html: str) -> list[str]:
    return re.findall(r'(?:src|href)="(/assets/[^"]+)"', html)


@pytest.mark.parametrize("path", ["/", "/status"])
def test_pages(http: TestClient, path: str) -> None:
    answer = http.get(path, headers=HTML)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "{assets}" not in answer.text
    found = assets(answer.text)
    assert len(found) >= 4
    for address in found:
        assert http.get(address).status_code == 200, address
    assert http.head(path, headers=HTML).status_code == 200


def test_security_headers(http: TestClient) -> None:
    policy = http.get("/", headers=HTML).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data:"
    assert rules["frame-ancestors"] == rules["object-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy
    for path in ("/", "/status", assets(http.get("/", headers=HTML).text)[0]):
        headers = http.get(path, headers=HTML).headers
        assert headers["content-security-policy"] == policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"


def test_no_inline_script_or_style() -> None:
    """What the policy would refuse must not be there: script elements without address, handlers, style attributes."""
    for page in WEB.glob("*.html"):
        text = page.read_text()
        assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
        assert re.findall(r"<[^>]+\s(?:on\w+|style)=", text) == []
        assert "<style" not in text


def test_other_clients_at_the_root(http: TestClient) -> None:
    for accept in ("*/*", "application/json", ""):
        answer = http.get("/", headers={"accept": accept})
        assert (answer.status_code, answer.text) == (200, "Ollama is running")
        assert answer.headers["content-type"].startswith("text/plain")
    assert "accept" in http.get("/", headers=HTML).headers["vary"]


def test_without_the_page() -> None:
    with client(page=False) as http:
        assert http.get("/", headers=HTML).text == "Ollama is running"
        assert http.get("/status", headers=HTML).status_code == 404


def test_caching(http: TestClient) -> None:
    address = next(path for path in assets(http.get("/", headers=HTML).text) if path.endswith("/chat.js"))
    first = http.get(address)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    etag = first.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}'):
        again = http.get(address, headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert http.get(address, headers={"if-none-match": '"other"'}).status_code == 200
    # A page of an older version still gets what it loads late, but nobody keeps it for that version.
    old = http.get(re.sub(r"/assets/\w+/", "/assets/0123456789abcdef/", address))
    assert old.content == first.content
    assert old.headers["cache-control"] == "no-cache"


def test_compression(http: TestClient) -> None:
    version = Site().version
    for name, packed in (("vendor/katex.min.js", True), ("vendor/fonts/KaTeX_Main-Regular.woff2", False)):
        plain = http.get(f"/assets/{version}/{name}", headers={"accept-encoding": "identity"})
        assert plain.content == (WEB / name).read_bytes()
        assert "content-encoding" not in plain.headers
        small = http.get(f"/assets/{version}/{name}", headers={"accept-encoding": "gzip"})
        assert small.content == plain.content
        assert ("content-encoding" in small.headers) == packed
    assert gzip.decompress(Site().assets["chat.js"].gzip) == (WEB / "chat.js").read_bytes()


@pytest.mark.parametrize(
    "name",
    ["../page.py", "%2e%2e/page.py", "..%2f..%2fpage.py", "index.html", "", "vendor", "/etc/passwd", "chat.js%00"],
)
def test_only_the_files(http: TestClient, name: str) -> None:
    assert http.get(f"/assets/{Site().version}/{name}", headers=HTML).status_code == 404


def test_types(http: TestClient) -> None:
    version = Site().version
    for name, kind in {
        "chat.js": "text/javascript", "vendor/preact.mjs": "text/javascript", "base.css": "text/css",
        "icon.svg": "image/svg+xml", "vendor/fonts/KaTeX_Main-Regular.woff2": "font/woff2",
    }.items():  # fmt: skip
        assert http.get(f"/assets/{version}/{name}").headers["content-type"].split(";")[0] == kind


def test_version_follows_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(change: Callable[[Path], Any]) -> str:
        folder = tmp_path / "data" / "web"
        folder.mkdir(parents=True, exist_ok=True)
        change(folder)
        monkeypatch.setattr("qwen3.serve.page.resources.files", lambda _: tmp_path)
        return Site().version

    first = version(lambda folder: (folder / "a.js").write_text("1"))
    assert version(lambda folder: None) == first
    assert version(lambda folder: (folder / "a.js").write_text("2")) != first


def test_size() -> None:
    """All of it, libraries, fonts and licences included, within 1 MB; no file of ours longer than 600 lines."""
    sizes = {path: path.stat().st_size for path in WEB.rglob("*") if path.is_file()}
    assert sum(sizes.values()) <= 1_000_000
    for path in sizes:
        if "vendor" not in path.parts and path.suffix in (".js", ".css", ".html"):
            assert len(path.read_text().splitlines()) <= 600, path


def test_nothing_from_elsewhere() -> None:
    """Our files name no other host; imports are relative and lead to files that exist."""
    for path in WEB.iterdir():
        if path.suffix not in (".js", ".css", ".html"):
            continue
        text = path.read_text()
        assert re.findall(r"(?:https?:)?//[\w.-]+\.\w{2,}/", text) == [], path
        for name in re.findall(r'(?:from |import |import\()"([^"\n]+)"', text):
            assert name.startswith("./"), f"{path}: {name}"
            assert (WEB / name).is_file(), f"{path}: {name}"


def test_vendored_files_are_the_listed_ones() -> None:
    tool = Path(__file__).resolve().parents[2] / "tools" / "vendor_web.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    listed = json.loads((WEB / "vendor" / "manifest.json").read_text())["packages"]
    for package in listed:
        assert any("LICENSE" in name for name in package["files"]), f"{package['name']} has no licence beside it"
        assert package["integrity"].startswith("sha512-")
