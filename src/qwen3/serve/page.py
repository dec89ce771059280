"""The chat page, the status page and their files, out of package data; nothing of them comes from elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from qwen3.serve.errors import ApiError

if TYPE_CHECKING:
    from qwen3.serve.app import Server

# Trusted types: of all scripts only DOMPurify may turn a text into HTML, so that a slip elsewhere stays text.
CSP = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
FOREVER = "public, max-age=31536000, immutable"
TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".woff2": "font/woff2", ".svg": "image/svg+xml"}


class Asset:
    """A file: its bytes, type and hash."""

    def __init__(self, name: str, data: bytes) -> None:
        suffix = name[name.rfind(".") :]
        self.data = data
        self.type = TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "text/plain"
        self.packed = suffix in (".woff2", ".png")
        self.etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'

    @cached_property
    def gzip(self) -> bytes:
        return gzip.compress(self.data, 6, mtime=0)

    def answer(self, request: Request, cache: str) -> Response:
        """The file, 304 where the client has it, packed where the client can unpack."""
        headers = {**HEADERS, "etag": self.etag, "cache-control": cache, "vary": "accept-encoding, accept"}
        if self.etag in request.headers.get("if-none-match", "").replace("W/", "").replace(" ", "").split(","):
            return Response(status_code=304, headers=headers)
        body = self.data
        if not self.packed and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["content-encoding"] = self.gzip, "gzip"
        return Response(body, media_type=self.type, headers=headers)


class Site:
    """All files under data/web, read once. version: a hash of all of them, part of every address: a file's address
    changes whenever it, or one that it imports, does, so browsers may keep it for good."""

    def __init__(self) -> None:
        files = dict(_walk(resources.files("qwen3") / "data" / "web", ""))
        digest = hashlib.sha256()
        for name in sorted(files):
            digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
        self.version = digest.hexdigest()[:16]
        self.pages = {
            name: Asset(name, data.replace(b"{assets}", f"/assets/{self.version}".encode()))
            for name, data in files.items()
            if name.endswith(".html")
        }
        self.assets = {name: Asset(name, data) for name, data in files.items() if not name.endswith(".html")}


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in folder.iterdir():
        name = prefix + entry.name
        found += _walk(entry, name + "/") if entry.is_dir() else [(name, entry.read_bytes())]
    return found


def router(server: Server) -> APIRouter:
    """`/`, `/status`, `/assets/*`: they hold nothing secret and need no key, since what they ask for does."""
    site = Site()
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def chat(request: Request) -> Response:
        # Ollama's clients ask for this very text to see whether a server is there.
        if not server.settings.page or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("Ollama is running", headers={**HEADERS, "vary": "accept"})
        return site.pages["index.html"].answer(request, "no-cache")

    if not server.settings.page:
        return routes

    @routes.api_route("/status", methods=["GET", "HEAD"])
    async def status(request: Request) -> Response:
        return site.pages["status.html"].answer(request, "no-cache")

    @routes.api_route("/assets/{version}/{name:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, version: str, name: str) -> Response:
        found = site.assets.get(name)
        if found is None:
            raise ApiError(404, f"this version of the page has no file {name[:100]!r}: reload it", code="not_found")
        # A page that was open before an upgrade still asks by the old version for what it loads late.
        return found.answer(request, FOREVER if version == site.version else "no-cache")

    return routes
