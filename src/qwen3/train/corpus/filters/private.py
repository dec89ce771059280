"""Masks for private data: e-mail addresses and public IP addresses become ones that belong to nobody.

Source: Penedo et al. 2024 (FineWeb), arXiv 2406.17557, which anonymises e-mail and public IP addresses by patterns. The
names that stand for them are reserved for examples by RFC 2606, 5737 and 3849.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

_EMAIL = re.compile(r"\b[A-Za-z0-9][A-Za-z0-9._%+'-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{1,4}(?![\w:]|\.\d)")
_NOBODY = ("example.com", "example.org", "example.net", ".example", ".test", ".invalid", ".localhost")


@dataclass(frozen=True)
class Private:
    name: ClassVar[str] = "private"
    email: str = key("name@example.com", "what an e-mail address becomes")
    ip4: str = key("192.0.2.1", "what a public IPv4 address becomes")
    ip6: str = key("2001:db8::1", "what a public IPv6 address becomes")

    def __call__(self, document: Document) -> Document | str:
        text = document.text
        if "@" in text:
            text = _EMAIL.sub(self._email, text)
        text = _IP4.sub(lambda found: _public(found.group(), self.ip4), text)
        if "::" in text or text.count(":") > 5:
            text = _IP6.sub(lambda found: _public(found.group(), self.ip6), text)
        return document if text == document.text else replace(document, text=text)

    def _email(self, found: re.Match[str]) -> str:
        return found.group() if found.group().lower().endswith(_NOBODY) else self.email


def _public(address: str, instead: str) -> str:
    """Private, local and reserved addresses stay, and what is no address at all."""
    try:
        return instead if ipaddress.ip_address(address).is_global else address
    except ValueError:
        return address
