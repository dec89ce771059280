"""A hub on loopback that speaks Hugging Face's and ModelScope's HTTP, with faults to order. Standard library only."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".gguf", ".bin", "tokenizer.json")


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Revisions of a repository: commit → files; branch or tag → commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        revision = self.refs.get(revision, revision)
        return next((name for name in self.commits if name.startswith(revision)), None)


@dataclass
class FakeHub:
    """What is served and what goes wrong.

    `cut_once`: file name → bytes after which the connection is dropped, the first time. `wrong_hash`: files whose
    listed hash is not that of their bytes. `status`: file name (or "api") → HTTP status to answer with. `no_range`:
    Range is ignored. `cdn`: large files are redirected to this other address of the server, as the real hub does.
    `token`: what private repositories want to see. `requests` records (method, file, range,
    authorization).
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    cut_once: dict[str, int] = field(default_factory=dict)
    wrong_hash: set[str] = field(default_factory=set)
    status: dict[str, int] = field(default_factory=dict)
    no_range: bool = False
    cdn: str | None = None
    token: str = "secret"
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    endpoint: str = ""
    _server: ThreadingHTTPServer | None = None

    def add(self, repo: str, files: dict[str, bytes], *refs: str) -> str:
        """Puts files under a new commit that `refs` (default: main and master) point to; the commit's name."""
        entry = self.repos.setdefault(repo, Repo())
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        entry.commits[commit] = dict(files)
        for ref in refs or ("main", "master"):
            entry.refs[ref] = commit
        return commit

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [name for method, name, _, _ in self.requests if method == "GET" and name != "api"]

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `requests` instead."""

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def route(self) -> None:
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        match parts:
            case ["api", "models", owner, name, "revision", revision]:
                self.record("api")
                self.huggingface_listing(f"{owner}/{name}", revision)
            case ["api", "v1", "models", owner, name, "repo", "files"]:
                self.record("api")
                self.modelscope_listing(f"{owner}/{name}", query["Revision"])
            case ["api", "v1", "models", owner, name, "repo"]:
                self.record(query["FilePath"])
                self.file(f"{owner}/{name}", query["Revision"], query["FilePath"])
            case [owner, name, "resolve", revision, file]:
                self.record(file)
                if self.state.cdn and file.endswith(LFS_SUFFIXES):
                    return self.reply(302, b"", {"Location": f"{self.state.cdn}/cdn{self.path}"})
                self.file(f"{owner}/{name}", revision, file)
            case ["cdn", owner, name, "resolve", revision, file]:
                self.record(f"cdn {file}")
                self.file(f"{owner}/{name}", revision, file)
            case _:
                self.reply(404, b"no such route")

    def record(self, what: str) -> None:
        entry = (self.command, what, self.headers.get("Range"), self.headers.get("Authorization"))
        self.state.requests.append(entry)

    def lookup(self, repo: str, revision: str, what: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files), or None after an error has been sent the way the hub does."""
        if what in self.state.status:
            self.reply(self.state.status[what], b'{"error": "ordered"}')
            return None
        found = self.state.repos.get(repo)
        allowed = self.headers.get("Authorization") == f"Bearer {self.state.token}" or self.path.startswith("/cdn/")
        if found is None or (repo in self.state.private and not allowed):
            # Hugging Face does not tell strangers whether a repository exists
            self.reply(404 if "/api/v1/" in self.path else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if repo in self.state.gated and not allowed:
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
            return None
        commit = found.commit(revision)
        if commit is None:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, found.commits[commit]

    def sha256(self, name: str, data: bytes) -> str:
        return hashlib.sha256(b"other" if name in self.state.wrong_hash else data).hexdigest()

    def huggingface_listing(self, repo: str, revision: str) -> None:
        if (found := self.lookup(repo, revision, "api")) is None:
            return
        commit, files = found
        siblings = []
        for name, data in files.items():
            item = {"rfilename": name, "size": len(data), "blobId": git_sha1(data)}
            if name.endswith(LFS_SUFFIXES):
                item["lfs"] = {"sha256": self.sha256(name, data), "size": len(data), "pointerSize": 134}
            elif name in self.state.wrong_hash:
                item["blobId"] = "0" * 40
            siblings.append(item)
        self.reply(200, json.dumps({"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}).encode())

    def modelscope_listing(self, repo: str, revision: str) -> None:
        if (found := self.lookup(repo, revision, "api")) is None:
            return
        files = [{"Name": "sub", "Path": "sub", "Type": "tree", "Size": 0, "Sha256": ""}]
        for name, data in found[1].items():
            digest = self.sha256(name, data)
            files.append({"Name": name, "Path": name, "Type": "blob", "Size": len(data), "Sha256": digest})
        self.reply(200, json.dumps({"Code": 200, "Success": True, "Message": "", "Data": {"Files": files}}).encode())

    def file(self, repo: str, revision: str, name: str) -> None:
        if (found := self.lookup(repo, revision, name)) is None:
            return
        commit, files = found
        if name not in files:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        data, lfs = files[name], name.endswith(LFS_SUFFIXES)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"', "Accept-Ranges": "bytes"}
        if lfs:
            headers |= {"X-Linked-Etag": f'"{self.sha256(name, data)}"', "X-Linked-Size": str(len(data))}
        start = 0
        wanted = self.headers.get("Range")
        if wanted and not self.state.no_range:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                return self.reply(416, b"")
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.state.cut_once.pop(name, None) if self.command == "GET" else None
        self.reply(206 if "Content-Range" in headers else 200, data[start:], headers, cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
