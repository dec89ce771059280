"""Addresses on the web: secrets and trackers cut from them; documents that are little else dropped.

Source: RefinedWeb (Penedo et al. 2023, arXiv 2306.01116), which removes all addresses; here, milder, a share of them is
borne. Credentials by RFC 3986, section 3.2.1. The bound is this project's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from qwen3.train.corpus.documents import Document
from qwen3.train.recipe import key

_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>\"'`)\]}，。）】]+")
_USER = re.compile(r"(?<=://)[^/@\s?#]*:[^/@\s?#]*@")
_SECRET = re.compile(
    r"([?&;](?:utm_\w+|fbclid|gclid|session(?:id)?|sid|token|access_token|auth|api_?key|key|sig|signature|password|pwd)=)"
    r"[^&;#\s]+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Urls:
    name: ClassVar[str] = "urls"
    share: float = key(0.3, "largest share of the text in addresses")

    def __call__(self, document: Document) -> Document | str:
        if "://" not in document.text:
            return document
        inside = sum(len(found.group()) for found in _URL.finditer(document.text))
        if inside > self.share * len(document.text):
            return "mostly addresses"
        text = _URL.sub(lambda found: _SECRET.sub(r"\1…", _USER.sub("", found.group())), document.text)
        return document if text == document.text else replace(document, text=text)
