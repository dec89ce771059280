"""Who may send what: Host and Origin against drive-by requests from web pages, keys against everybody else."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from qwen3.serve.errors import ApiError
from qwen3.serve.keys import ANONYMOUS, Caller, Keys
from qwen3.serve.settings import LOOPBACK_NAMES, Settings

# What a browser must get before anybody could give it a key: the page and its parts, which hold no data.
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico", "/status"})
OPEN_PREFIX = "/assets/"
# Load balancers and Kubernetes ask these by the address of the machine; a page that reads them by a name of its own
# learns nothing.
PROBES = frozenset({"/health", "/ready"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS_OF_PAGES = "x-request-id, request-id, x-warnings, retry-after, x-should-retry"
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(:(?P<port>\d{1,5}))?")


class Headers:
    """Of one request: the last value of a name, and a refusal of what must not come twice."""

    ONCE = frozenset({b"host", b"authorization", b"x-api-key", b"origin", b"content-length", b"content-type"})

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._values: dict[bytes, bytes] = {}
        for name, value in raw:
            if name in self.ONCE and name in self._values:
                raise ApiError(400, f"the header {name.decode()} is there twice", code="duplicate_header")
            self._values[name] = value

    def get(self, name: str) -> str | None:
        value = self._values.get(name.encode())
        return None if value is None else value.decode("latin-1").strip()


@dataclass(frozen=True)
class Gate:
    """The checks before anything of a request is looked at. keys: None lets everybody in."""

    settings: Settings
    keys: Keys | None

    def check(self, method: str, path: str, http_version: str, headers: Headers) -> Caller:
        """Raises ApiError 400, 401 or 403."""
        host = headers.get("host")
        if host is None:
            if http_version != "1.0":
                raise ApiError(400, "the header Host is missing")
        else:
            self._check_host(host, path)
        self._check_origin(method, host, headers)
        if self.keys is None:
            return ANONYMOUS
        if (method in SAFE and (path in OPEN_PATHS or path.startswith(OPEN_PREFIX))) or method == "OPTIONS":
            return Caller("")
        return self._authenticate(self.keys, headers)

    def _check_host(self, host: str, path: str) -> None:
        found = _HOST.fullmatch(host.lower())
        if found is None:
            raise ApiError(400, f"the header Host is no name: {host[:100]!r}")
        if path not in PROBES and not self._known(found["name"].rstrip("."), found["port"]):
            raise ApiError(
                403,
                f"this server does not go by the name {found['name']!r}; if it should, start it with "
                f"--allowed-hosts {found['name']}",
                code="unknown_host",
            )

    def _known(self, name: str, port: str | None) -> bool:
        """A name that leads here by somebody else's DNS must not: its web page would pass for ours. Addresses are
        nobody's names. Where keys are asked for, a page without one gets nothing by any name."""
        settings = self.settings
        for allowed in settings.allowed_hosts:
            if matches(allowed.lower(), name, port):
                return True
        if name in LOOPBACK_NAMES or name == settings.host.lower():
            return True
        if settings.public and not settings.allowed_hosts:
            return self.keys is not None or _is_address(name) or name in _own_names()
        return False

    def _check_origin(self, method: str, host: str | None, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            if method in SAFE or headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
                return
            raise _foreign("another site")
        if not self.same_or_allowed(origin, host):
            raise _foreign(origin[:200])

    def same_or_allowed(self, origin: str, host: str | None) -> bool:
        if origin in self.settings.allowed_origins or "*" in self.settings.allowed_origins:
            return True
        scheme, found, rest = origin.partition("://")
        return bool(found) and scheme in ("http", "https") and host is not None and rest.lower() == host.lower()

    def cors(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        """What lets the page of an allowed other origin read the answer."""
        if origin is None or not (origin in self.settings.allowed_origins or "*" in self.settings.allowed_origins):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", HEADERS_OF_PAGES.encode()),
            (b"vary", b"origin"),
        ]

    @staticmethod
    def _authenticate(keys: Keys, headers: Headers) -> Caller:
        presented = headers.get("x-api-key")
        authorization = headers.get("authorization")
        if authorization is not None:
            scheme, _, token = authorization.partition(" ")
            if scheme.lower() == "bearer":
                presented = token.strip()
        if not presented:
            raise ApiError(401, "no API key: send it as `authorization: Bearer KEY` or `x-api-key: KEY`", code="no_key")
        caller = keys.find(presented)
        if caller is None:
            raise ApiError(401, "this API key is not one of the server's", code="invalid_api_key")
        return caller


def matches(allowed: str, name: str, port: str | None) -> bool:
    """Whether a host is meant by `allowed`: *, NAME, NAME:PORT, [ADDRESS] or *.DOMAIN."""
    if allowed == "*":
        return True
    found = re.fullmatch(r"(\[.*\]|[^:]*)(:(\d+))?", allowed)
    if found is None or (found[3] is not None and found[3] != port):
        return False
    return name.endswith(found[1][1:]) if found[1].startswith("*.") else name == found[1]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], f"{name.partition('.')[0]}.local"}


def _foreign(origin: str) -> ApiError:
    return ApiError(
        403,
        f"web pages of {origin} may not use this server; if they should, start it with --allowed-origins ORIGIN",
        code="foreign_origin",
    )
